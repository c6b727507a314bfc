//! Seen: what the admin API said at one moment.

use anyhow::Result;
use serde_json::Value;

use super::super::remote::Line;

/// One look.
pub(super) struct Seen {
    pub(super) state: Value,
    pub(super) ready: Value,
    pub(super) live: Value,
    pub(super) failed: Value,
}

impl Seen {
    pub(super) fn ask(line: &Line) -> Result<Self> {
        Ok(Self {
            live: line.page("/live")?,
            state: line.page("/state")?,
            ready: line.page("/readyz")?,
            failed: line.page("/recent?kind=failed&limit=100")?,
        })
    }

    /// A figure, second by second.
    pub(super) fn column(&self, name: &str) -> Vec<f64> {
        numbers(&self.live["series"][name])
    }

    /// Tokens in and out, second by second.
    pub(super) fn tokens(&self) -> Vec<f64> {
        let output = self.column("output_tokens");
        self.column("input_tokens").iter().zip(output).map(|(input, output)| input + output).collect()
    }

    /// The last minute of a pool.
    pub(super) fn sum(&self, pool: &str) -> &Value {
        list(&self.live["pools"]).iter().find(|sum| sum["pool"] == pool).unwrap_or(&Value::Null)
    }
}

/// A list, or none.
pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn numbers(value: &Value) -> Vec<f64> {
    list(value).iter().map(|number| number.as_f64().unwrap_or_default()).collect()
}
