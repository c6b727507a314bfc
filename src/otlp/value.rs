//! Values of attributes and bodies.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue};

/// The longest text of an attribute; what is longer is cut.
const LONGEST: usize = 4096;

/// An attribute of text.
pub fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(bounded(value.into())))
}

/// An attribute that is a whole number.
pub fn integer(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

/// An attribute that is a number.
pub fn number(key: &str, value: f64) -> KeyValue {
    attribute(key, Value::DoubleValue(value))
}

/// An attribute that is true or false.
pub fn boolean(key: &str, value: bool) -> KeyValue {
    attribute(key, Value::BoolValue(value))
}

/// An attribute that is a list of one text.
pub fn list(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::ArrayValue(ArrayValue { values: vec![body(value)] }))
}

/// An attribute.
pub fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// Text as a body.
pub fn body(text: impl Into<String>) -> AnyValue {
    AnyValue { value: Some(Value::StringValue(bounded(text.into()))) }
}

fn bounded(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(text.len().min(LONGEST)));
    text
}

/// Nanoseconds since 1970.
pub fn now() -> u64 {
    nanos(SystemTime::now())
}

/// A time in nanoseconds since 1970.
pub fn nanos(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}
