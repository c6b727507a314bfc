//! Export: events as log records of OpenTelemetry.

use std::sync::{Arc, OnceLock};

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::otlp::{self, Exporter, value};

/// Most attributes of an event.
const MOST: usize = 64;

/// Sends events, once there is an exporter.
pub(super) struct Export(pub(super) Arc<OnceLock<Exporter>>);

impl<S: Subscriber> Layer<S> for Export {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let Some(exporter) = self.0.get().filter(|exporter| exporter.takes_logs()) else { return };
        let is_its_own = otlp::is_own_thread() || event.metadata().target().starts_with("nimgate::otlp");
        if !is_its_own {
            exporter.log(record(event));
        }
    }
}

fn record(event: &Event<'_>) -> LogRecord {
    let mut record = LogRecord { time_unix_nano: value::now(), ..LogRecord::default() };
    record.observed_time_unix_nano = record.time_unix_nano;
    let metadata = event.metadata();
    let (number, word) = severity(metadata);
    record.severity_number = number.into();
    record.severity_text = word.to_owned();
    let mut fields = Fields(record);
    event.record(&mut fields);
    let Fields(mut record) = fields;
    // Those of other libraries' logs name their own place in fields.
    if metadata.target() != "log" {
        record.attributes.push(value::text("nimgate.log.target", metadata.target()));
    }
    record
}

fn severity(metadata: &Metadata<'_>) -> (SeverityNumber, &'static str) {
    match *metadata.level() {
        Level::ERROR => (SeverityNumber::Error, "ERROR"),
        Level::WARN => (SeverityNumber::Warn, "WARN"),
        Level::INFO => (SeverityNumber::Info, "INFO"),
        Level::DEBUG => (SeverityNumber::Debug, "DEBUG"),
        Level::TRACE => (SeverityNumber::Trace, "TRACE"),
    }
}

/// A record that fields are written into.
struct Fields(LogRecord);

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::StringValue(text)) => self.0.body = Some(value::body(text)),
            ("trace_id", Value::StringValue(text)) if bytes(&text, 16).is_some() => {
                self.0.trace_id = bytes(&text, 16).unwrap_or_default();
            }
            ("span_id", Value::StringValue(text)) if bytes(&text, 8).is_some() => {
                self.0.span_id = bytes(&text, 8).unwrap_or_default();
            }
            ("log.target", Value::StringValue(text)) => {
                self.0.attributes.push(value::text("nimgate.log.target", text));
            }
            ("log.module_path" | "log.file" | "log.line", _) => {}
            _ if self.0.attributes.len() >= MOST => self.0.dropped_attributes_count += 1,
            (name, Value::StringValue(text)) => self.0.attributes.push(value::text(name, text)),
            (name, value) => self.0.attributes.push(value::attribute(name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, Value::StringValue(value.to_owned()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, Value::BoolValue(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, Value::IntValue(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        let value = i64::try_from(value).map_or_else(|_| Value::StringValue(value.to_string()), Value::IntValue);
        self.set(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, Value::DoubleValue(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.set(field, Value::StringValue(format!("{value:?}")));
    }
}

/// The bytes that so many pairs of hexadecimal digits stand for.
fn bytes(text: &str, count: usize) -> Option<Vec<u8>> {
    let is_plain = text.len() == 2 * count && text.bytes().all(|b| b.is_ascii_hexdigit());
    let pairs = || (0..count).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok());
    is_plain.then(|| pairs().collect()).flatten()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Keeps the records of events.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<LogRecord>>>);

    impl<S: Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
            self.0.lock().unwrap().push(record(event));
        }
    }

    #[test]
    fn an_event_is_a_record() {
        let kept = Kept::default();
        let subscriber = tracing_subscriber::registry().with(kept.clone());
        let trace = "0af7651916cd43dd8448eb211c80319c";
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(count = 3, most = u64::MAX, is_new = true, share = 0.5, error = %"gone", "it {}", "broke");
            tracing::debug!(trace_id = trace, span_id = "b7ad6b7169203331", "traced");
            tracing::info!(trace_id = "none", "not traced");
        });
        let records = kept.0.lock().unwrap();
        let broke = &records[0];
        assert_eq!(broke.body, Some(value::body("it broke")));
        assert_eq!((broke.severity_number, broke.severity_text.as_str()), (17, "ERROR"));
        let wanted = [
            value::integer("count", 3),
            value::text("most", u64::MAX.to_string()),
            value::boolean("is_new", true),
            value::number("share", 0.5),
            value::text("error", "gone"),
            value::text("nimgate.log.target", "nimgate::log::export::tests"),
        ];
        assert_eq!(broke.attributes, wanted);
        assert_eq!((records[1].trace_id.len(), records[1].trace_id[0], records[1].span_id.len()), (16, 0x0a, 8));
        assert_eq!(records[1].attributes.len(), 1);
        assert!(records[2].trace_id.is_empty());
        assert_eq!(records[2].attributes[0], value::text("trace_id", "none"));
    }
}
