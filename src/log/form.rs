//! Form: events as lines of JSON, or of text where people read them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

pub(super) struct Form {
    is_text: Arc<AtomicBool>,
    text: Format<Full>,
    json: Format<Json>,
}

impl Form {
    pub(super) fn new(is_text: Arc<AtomicBool>) -> Self {
        let format = tracing_subscriber::fmt::format;
        // Nothing here has spans, and the fields of others' are formatted for one form only.
        let json = format().json().with_current_span(false).with_span_list(false);
        Self { is_text, text: format().with_ansi(false), json }
    }
}

impl<S, N> FormatEvent<S, N> for Form
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        match self.is_text.load(Ordering::Relaxed) {
            true => self.text.format_event(context, writer, event),
            false => self.json.format_event(context, writer, event),
        }
    }
}
