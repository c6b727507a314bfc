//! Limit: one limit as an argument, such as `requests=10/second`.

use clap::Args;
use serde_json::{Value, json};

const METRICS: [&str; 6] = ["requests", "input_tokens", "output_tokens", "total_tokens", "concurrency", "spend"];
const UNITS: [&str; 5] = ["second", "minute", "hour", "day", "month"];

/// One limit, as the admin API takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit(pub Value);

/// All limits of a subject.
#[derive(Args, Clone, Debug)]
#[group(id = "new_limits", required = true, multiple = false)]
pub struct Limits {
    /// METRIC=AMOUNT/UNIT, such as requests=10/second, total_tokens=1000000/day, spend=25/month, or concurrency=4;
    /// followed by what it is for where that is not everything: ,model=meta/* ,pool=NAME ,operation=ID; and by
    /// ,count_cached=false where what a cache knew does not count. Repeat for more.
    /// All together replace those that were.
    #[arg(long = "limit", value_name = "LIMIT", value_parser = parse)]
    pub limits: Vec<Limit>,
    /// None at all.
    #[arg(long)]
    pub no_limits: bool,
}

impl Limits {
    /// The body of a request.
    pub(super) fn body(&self) -> Value {
        json!({ "limits": values(&self.limits) })
    }
}

/// As a list of JSON.
pub(super) fn values(limits: &[Limit]) -> Vec<&Value> {
    limits.iter().map(|Limit(value)| value).collect()
}

/// Reads `METRIC=AMOUNT[/UNIT][,model=…][,pool=…][,operation=…][,count_cached=…]`.
pub(super) fn parse(text: &str) -> Result<Limit, String> {
    let mut parts = text.split(',');
    let head = parts.next().unwrap_or_default();
    let form = "expected METRIC=AMOUNT/UNIT, such as requests=10/second";
    let (metric, rest) = head.split_once('=').ok_or(form)?;
    if !METRICS.contains(&metric) {
        return Err(format!("{metric} is nothing that is counted; expected one of {}", METRICS.join(", ")));
    }
    let (amount, unit) = rest.split_once('/').map_or((rest, None), |(amount, unit)| (amount, Some(unit)));
    let number = amount.replace('_', "");
    let number = if metric == "spend" {
        number.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0).map(Value::from)
    } else {
        number.parse::<u64>().ok().map(Value::from)
    };
    let mut limit = json!({ metric: number.ok_or_else(|| format!("{amount} is no amount of {metric}"))? });
    match unit {
        Some(unit) if UNITS.contains(&unit) => limit["per"] = unit.into(),
        Some(unit) => return Err(format!("{unit} is no unit of time; expected one of {}", UNITS.join(", "))),
        None if metric == "concurrency" => {}
        None => return Err(form.into()),
    }
    for part in parts {
        if let Some(counts) = part.trim().strip_prefix("count_cached=") {
            limit["count_cached"] =
                counts.parse::<bool>().map_err(|_| format!("{part}: expected true or false"))?.into();
            continue;
        }
        let filter = part.split_once('=').and_then(|(name, pattern)| {
            let list = [("model", "models"), ("pool", "pools"), ("operation", "operations")];
            list.into_iter().find(|(one, _)| *one == name.trim()).map(|(_, list)| (list, pattern))
        });
        let (list, pattern) =
            filter.ok_or_else(|| format!("{part} is no filter; expected model=, pool= or operation="))?;
        if let Some(patterns) = limit.as_object_mut().map(|limit| limit.entry(list).or_insert_with(|| json!([])))
            && let Some(patterns) = patterns.as_array_mut()
        {
            patterns.push(pattern.into());
        }
    }
    Ok(Limit(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_reads_as_it_is_said() {
        for (text, wanted) in [
            ("requests=10/second", json!({ "requests": 10, "per": "second" })),
            ("total_tokens=1_000_000/day", json!({ "total_tokens": 1_000_000, "per": "day" })),
            ("concurrency=4", json!({ "concurrency": 4 })),
            (
                "input_tokens=5/day,count_cached=false",
                json!({ "input_tokens": 5, "per": "day", "count_cached": false }),
            ),
            ("spend=2.5/month", json!({ "spend": 2.5, "per": "month" })),
            (
                "requests=1/minute,model=meta/*,model=b,pool=p",
                json!({ "requests": 1, "per": "minute", "models": ["meta/*", "b"], "pools": ["p"] }),
            ),
        ] {
            assert_eq!(parse(text), Ok(Limit(wanted)), "{text}");
        }
        for wrong in
            ["", "requests", "requests=10", "sheep=1/day", "requests=-1/day", "requests=1/week", "requests=1/day,x=y"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
