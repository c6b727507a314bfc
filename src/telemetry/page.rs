//! The Prometheus page: readings as text, by the older format or by OpenMetrics, which has exemplars.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use super::histogram::{Exemplar, Spread};
use super::metric::{Form, Metric, Reading, Value};

/// How a page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The text format of Prometheus, 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// What a scraper that accepts these media types is given.
    pub fn accepted(accept: Option<&str>) -> Self {
        let is_open = accept.is_some_and(|accept| accept.contains("application/openmetrics-text"));
        if is_open { Self::OpenMetrics } else { Self::Text }
    }

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The page of these readings.
pub fn render(readings: &[Reading], format: Format) -> String {
    let mut page = Page { text: String::with_capacity(64 * 1024), format };
    readings.iter().for_each(|reading| page.add(reading));
    if format == Format::OpenMetrics {
        page.text += "# EOF\n";
    }
    page.text
}

struct Page {
    text: String,
    format: Format,
}

impl Page {
    fn add(&mut self, reading: &Reading) {
        let metric = reading.metric;
        if reading.points.is_empty() {
            return;
        }
        let (suffix, form) = match metric.form {
            Form::Counter => ("_total", "counter"),
            Form::Gauge => ("", "gauge"),
            Form::Histogram(_) => ("", "histogram"),
        };
        let declared = if self.format == Format::Text { suffix } else { "" };
        for (what, text) in [("HELP", metric.help), ("TYPE", form)] {
            for part in ["# ", what, " ", metric.page, declared, " ", text, "\n"] {
                self.text += part;
            }
        }
        for point in &reading.points {
            match &point.value {
                Value::Number(number) => {
                    self.begin(metric, suffix, &point.labels, None);
                    self.end(*number, None);
                }
                Value::Spread(spread) => self.spread(metric, &point.labels, spread),
            }
        }
    }

    fn spread(&mut self, metric: &Metric, labels: &[Arc<str>], spread: &Spread) {
        let count = spread.count();
        let bounds = spread.grid.bounds().map(Some).chain([None]);
        let counts = spread.up_to_bounds().into_iter().chain([count]);
        for (at, (bound, count)) in bounds.zip(counts).enumerate() {
            self.begin(metric, "_bucket", labels, Some(bound));
            self.end(count as f64, spread.exemplars.get(at).and_then(Option::as_ref));
        }
        self.begin(metric, "_sum", labels, None);
        self.end(spread.sum, None);
        self.begin(metric, "_count", labels, None);
        self.end(count as f64, None);
    }

    /// Writes the name of a sample and its labels; `bound` is that of a bucket, the last of which has none.
    fn begin(&mut self, metric: &Metric, suffix: &str, labels: &[Arc<str>], bound: Option<Option<f64>>) {
        self.text += metric.page;
        self.text += suffix;
        let mut mark = '{';
        for (name, value) in metric.labels.iter().zip(labels) {
            self.text.push(mark);
            mark = ',';
            self.text.extend(name.chars().map(|c| if c == '.' { '_' } else { c }));
            self.text += "=\"";
            self.escaped(value);
            self.text.push('"');
        }
        if let Some(bound) = bound {
            self.text.push(mark);
            mark = ',';
            // The text format writes whole numbers bare, OpenMetrics with a point.
            let _ = match bound {
                None => write!(self.text, "le=\"+Inf\""),
                Some(bound) if self.format == Format::OpenMetrics => write!(self.text, "le=\"{bound:?}\""),
                Some(bound) => write!(self.text, "le=\"{bound}\""),
            };
        }
        if mark == ',' {
            self.text.push('}');
        }
        self.text.push(' ');
    }

    fn end(&mut self, value: f64, exemplar: Option<&Exemplar>) {
        let _ = write!(self.text, "{value}");
        if let Some(Exemplar { value, trace, span, at }) = exemplar.filter(|_| self.format == Format::OpenMetrics) {
            let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            let _ = write!(self.text, " # {{trace_id=\"{trace:032x}\",span_id=\"{span:016x}\"}} {value} {at:.3}");
        }
        self.text.push('\n');
    }

    fn escaped(&mut self, value: &str) {
        if !value.contains(['\\', '"', '\n']) {
            self.text += value;
            return;
        }
        for c in value.chars() {
            match c {
                '\\' => self.text += "\\\\",
                '"' => self.text += "\\\"",
                '\n' => self.text += "\\n",
                c => self.text.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::histogram::{Histogram, TOKENS};
    use crate::telemetry::metric::Family;

    static COUNTER: Metric = Metric {
        name: "a.b",
        page: "a_b",
        unit: "{c}",
        form: Form::Counter,
        labels: &["x.y", "z"],
        most: 3,
        step: 1.0,
        help: "Of a.",
    };
    static SPREAD: Metric = Metric {
        name: "s",
        page: "s",
        unit: "{token}",
        form: Form::Histogram(&TOKENS),
        labels: &["p"],
        most: 3,
        step: 1.0,
        help: "Of s.",
    };

    fn readings() -> Vec<Reading> {
        let spread = Family::<Histogram>::new(&SPREAD);
        spread.on(&["q"], |histogram| {
            histogram.observe(3.0, Some((0xab, 0xcd)));
            histogram.observe(1e12, None);
        });
        vec![Reading::new(&COUNTER).with(&["a\"b\\\n", ""], 2.0), spread.read()]
    }

    #[test]
    fn the_text_format_is_as_prometheus_reads_it() {
        let page = render(&readings(), Format::Text);
        let expected = "# HELP a_b_total Of a.\n# TYPE a_b_total counter\na_b_total{x_y=\"a\\\"b\\\\\\n\",z=\"\"} 2\n\
                        # HELP s Of s.\n# TYPE s histogram\ns_bucket{p=\"q\",le=\"1\"} 0\ns_bucket{p=\"q\",le=\"4\"} 1\n";
        assert!(page.starts_with(expected), "{page}");
        assert!(page.ends_with("s_bucket{p=\"q\",le=\"+Inf\"} 2\ns_sum{p=\"q\"} 1000000000003\ns_count{p=\"q\"} 2\n"));
    }

    #[test]
    fn openmetrics_has_exemplars_and_an_end() {
        let page = render(&readings(), Format::OpenMetrics);
        assert!(page.contains("# TYPE a_b counter\na_b_total{"), "{page}");
        let trace = "000000000000000000000000000000ab";
        let bucket =
            format!("s_bucket{{p=\"q\",le=\"4.0\"}} 1 # {{trace_id=\"{trace}\",span_id=\"00000000000000cd\"}} 3 ");
        assert!(page.contains(&bucket), "{page}");
        assert!(page.ends_with("# EOF\n"));
    }

    #[test]
    fn a_metric_without_labels_has_no_braces() {
        static BARE: Metric = Metric { labels: &[], form: Form::Gauge, ..BARE_COPY };
        const BARE_COPY: Metric =
            Metric { name: "g", page: "g", unit: "1", form: Form::Gauge, labels: &[], most: 1, step: 1.0, help: "G." };
        let page = render(&[Reading::new(&BARE).with(&[], 0.0)], Format::Text);
        assert_eq!(page, "# HELP g G.\n# TYPE g gauge\ng 0\n");
    }
}
