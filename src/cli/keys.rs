//! Keys: made offline for the keys file, or by the admin API of a running gateway.

use std::io::Write;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::limit::{Limit, Limits, parse, values};
use super::remote::{Remote, Shape, query};
use super::table;
use crate::auth::NewKey;
use crate::config::{Form, Known, callers, file};
use crate::directory::encoded;

/// What to do with keys.
#[derive(Subcommand, Debug)]
pub enum Keys {
    /// Print a new key, once, and the record to put into the keys file.
    New(NewKeyArgs),
    /// List the keys of a running gateway.
    List {
        /// Only those of this organisation.
        #[arg(long)]
        org: Option<String>,
        /// Only those of teams of this name.
        #[arg(long)]
        team: Option<String>,
        /// How it is printed.
        #[command(flatten)]
        shape: Shape,
        /// Which gateway.
        #[command(flatten)]
        remote: Remote,
    },
    /// Show a key and how its limits stand.
    Show(One),
    /// Make a key in Redis, and print it, once.
    Create {
        /// What it is for.
        #[command(flatten)]
        key: NewKeyArgs,
        /// A limit, such as requests=10/second; see `nimgate keys limits --help`. Repeat for more.
        #[arg(long = "limit", value_name = "LIMIT", value_parser = parse)]
        limits: Vec<Limit>,
        /// How it is printed.
        #[command(flatten)]
        shape: Shape,
        /// Which gateway.
        #[command(flatten)]
        remote: Remote,
    },
    /// Give a key a new secret, and print it, once.
    Rotate {
        /// How long the old secret goes on working: seconds, or such as 30m, 12h, 7d.
        #[arg(long, value_name = "TIME", default_value = "3600", value_parser = seconds)]
        overlap: u32,
        /// Which key.
        #[command(flatten)]
        one: One,
    },
    /// Switch a key off.
    Disable(One),
    /// Switch a key on again.
    Enable(One),
    /// Take a key away.
    Delete(One),
    /// Replace the limits of a key.
    Limits {
        /// The new limits.
        #[command(flatten)]
        limits: Limits,
        /// Which key.
        #[command(flatten)]
        one: One,
    },
}

/// One key of a running gateway.
#[derive(Args, Debug)]
pub struct One {
    /// What stands between ngk_ and the next _.
    pub id: String,
    /// How it is printed.
    #[command(flatten)]
    shape: Shape,
    /// Which gateway.
    #[command(flatten)]
    remote: Remote,
}

/// What the new key is for.
#[derive(Args, Debug)]
pub struct NewKeyArgs {
    /// The organisation.
    #[arg(long, default_value = "default")]
    pub org: String,
    /// The team.
    #[arg(long, default_value = "default")]
    pub team: String,
    /// What it is for.
    #[arg(long, default_value = "")]
    pub name: String,
    /// A scope that it grants; repeat for more. `*` grants all.
    #[arg(long = "scope", default_value = "invoke_function")]
    pub scopes: Vec<String>,
    /// A model that it may use; repeat for more. None means all.
    #[arg(long = "model")]
    pub models: Vec<String>,
    /// A pool that it may use; repeat for more. None means all.
    #[arg(long = "pool")]
    pub pools: Vec<String>,
    /// When a pool is full: high goes before normal before low.
    #[arg(long, default_value = "normal", value_parser = ["high", "normal", "low"])]
    pub priority: String,
    /// Its share of a full pool against that of other keys of its priority.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub weight: u32,
    /// When it ends, such as 2027-01-31T00:00:00Z.
    #[arg(long)]
    pub expires: Option<chrono::DateTime<chrono::Utc>>,
}

pub(super) fn run(command: Keys, out: &mut impl Write) -> Result<()> {
    match command {
        Keys::New(key) => new_key(&key, out),
        Keys::List { org, team, shape, remote } => {
            let query = query(&[("limit", Some("1000")), ("org", org.as_deref()), ("team", team.as_deref())]);
            list(out, &remote.list(&format!("/keys?{query}"), "keys")?, shape)
        }
        Keys::Show(one) => {
            let key = one.ask(Method::GET, "", None)?;
            one.show(out, &key)
        }
        Keys::Create { key, limits, shape, remote } => {
            let mut body = json!({
                "org": key.org, "team": key.team, "name": key.name, "scopes": key.scopes, "models": key.models,
                "pools": key.pools, "limits": values(&limits), "priority": key.priority, "weight": key.weight,
            });
            if let Some(expires) = key.expires {
                body["expires"] = expires.to_rfc3339().into();
            }
            show_new(out, &remote.json(Method::POST, "/keys", Some(&body))?, shape)
        }
        Keys::Rotate { overlap, one } => {
            let made = one.ask(Method::POST, "/rotate", Some(&json!({ "overlap_s": overlap })))?;
            show_new(out, &made, one.shape)
        }
        Keys::Disable(one) => one.switch(out, true),
        Keys::Enable(one) => one.switch(out, false),
        Keys::Delete(one) => {
            one.ask(Method::DELETE, "", None)?;
            if !one.shape.json {
                writeln!(out, "the key {} is deleted", one.id)?;
            }
            Ok(())
        }
        Keys::Limits { limits, one } => {
            let key = one.ask(Method::PUT, "/limits", Some(&limits.body()))?;
            one.show(out, &key)
        }
    }
}

impl One {
    fn ask(&self, method: Method, below: &str, body: Option<&Value>) -> Result<Value> {
        ensure!(!self.id.is_empty(), "a key has an id; `nimgate keys list` shows those that there are");
        self.remote.json(method, &format!("/keys/{}{below}", encoded(&self.id)), body)
    }

    fn switch(&self, out: &mut impl Write, disabled: bool) -> Result<()> {
        let key = self.ask(Method::PATCH, "", Some(&json!({ "disabled": disabled })))?;
        self.show(out, &key)
    }

    fn show(&self, out: &mut impl Write, key: &Value) -> Result<()> {
        if self.shape.json { table::json(out, key) } else { show(out, key) }
    }
}

fn list(out: &mut impl Write, keys: &[Value], shape: Shape) -> Result<()> {
    if shape.json {
        return table::json(out, &keys.into());
    }
    let row = |key: &Value| {
        let whose = format!("{}/{}", table::cell(&key["org"]), table::cell(&key["team"]));
        let whose = if key["org"].is_null() { String::new() } else { whose };
        vec![table::cell(&key["id"]), whose, table::cell(&key["name"]), state(key), table::limits(&key["limits"])]
    };
    table::print(out, &["id", "org/team", "name", "state", "limits"], &keys.iter().map(row).collect::<Vec<_>>())
}

/// Whether it works, and from when it does not.
fn state(key: &Value) -> String {
    if key["broken"].is_string() {
        "broken".into()
    } else if key["disabled"] == true {
        "disabled".into()
    } else {
        key["expires"].as_str().map_or_else(|| "active".into(), |end| format!("until {end}"))
    }
}

fn show(out: &mut impl Write, key: &Value) -> Result<()> {
    let mut members = vec![("state", state(key))];
    let names = ["id", "org", "team", "name", "scopes", "models", "pools", "previous_until", "source", "broken"];
    members.extend(names.into_iter().map(|name| (name, table::cell(&key[name]))));
    for (name, text) in members.into_iter().filter(|(_, text)| !text.is_empty()) {
        writeln!(out, "{:15} {}", format!("{}:", name.replace('_', " ")), table::plain(&text))?;
    }
    let all = [&key["limits"], &key["above"]];
    table::standings(out, all.into_iter().filter_map(Value::as_array).flatten())
}

fn show_new(out: &mut impl Write, made: &Value, shape: Shape) -> Result<()> {
    if shape.json {
        return table::json(out, made);
    }
    let text = table::cell(&made["key"]);
    writeln!(out, "# The key. It is shown this once; hand it to its holder.\n{text}\n")?;
    show(out, &made["record"])
}

/// Seconds, or a number with `s`, `m`, `h` or `d`.
fn seconds(text: &str) -> Result<u32, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
    let found = units.into_iter().find_map(|(unit, length)| Some((text.strip_suffix(unit)?, length)));
    let (digits, length) = found.unwrap_or((text, 1));
    let time = digits.parse::<u32>().ok().and_then(|number| number.checked_mul(length));
    time.ok_or_else(|| "expected seconds, or a time such as 30m, 12h or 7d".into())
}

fn new_key(args: &NewKeyArgs, out: &mut impl Write) -> Result<()> {
    for (list, what) in [(&args.scopes, "scope"), (&args.models, "model"), (&args.pools, "pool")] {
        ensure!(list.iter().all(|name| !name.is_empty()), "a {what} has a name");
    }
    let key = NewKey::generate().context("the system gives no random numbers")?;
    fits(args, &key)?;
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let list = |items: &[String]| format!("[{}]", items.iter().map(|i| quoted(i)).collect::<Vec<_>>().join(", "));
    writeln!(out, "# The key. It is shown this once; hand it to its holder.\n{}\n", key.text)?;
    writeln!(out, "# The record, for the list `keys` of the keys file:")?;
    writeln!(out, "  - id: {}\n    sha256: {}", quoted(key.id.as_str()), quoted(&key.hash_text()))?;
    writeln!(
        out,
        "    org: {}\n    team: {}\n    name: {}",
        quoted(&args.org),
        quoted(&args.team),
        quoted(&args.name)
    )?;
    writeln!(out, "    scopes: {}", list(&args.scopes))?;
    writeln!(out, "    models: {}\n    pools: {}", list(&args.models), list(&args.pools))?;
    if args.priority != "normal" || args.weight != 1 {
        writeln!(out, "    priority: {}\n    weight: {}", args.priority, args.weight)?;
    }
    if let Some(expires) = args.expires {
        writeln!(out, "    expires: {}", quoted(&expires.to_rfc3339()))?;
    }
    Ok(())
}

/// Holds what would be printed against what a keys file may have. What it names may be anywhere.
fn fits(args: &NewKeyArgs, key: &NewKey) -> Result<()> {
    let form = Form::<file::Key>::new().map_err(|reason| anyhow!(reason))?;
    let record = json!({
        "id": key.id.as_str(), "sha256": key.hash_text(), "org": args.org, "team": args.team, "name": args.name,
        "scopes": args.scopes, "models": args.models, "pools": args.pools,
    });
    let findings = match form.read(record) {
        Ok(key) => callers(file::Keys { keys: vec![key], ..file::Keys::default() }, &Known::default()).findings,
        Err(findings) => findings,
    };
    let told = findings.iter().filter(|finding| !finding.is_dangling).map(|finding| {
        let option = finding.pointer.strip_prefix("/keys/0").unwrap_or(&finding.pointer).trim_start_matches('/');
        format!("--{option}: {}", finding.reason)
    });
    let told: Vec<String> = told.collect();
    if told.is_empty() { Ok(()) } else { bail!("{}", told.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_may_have_a_unit() {
        let read = ["90", "90s", "30m", "12h", "7d"].map(seconds);
        assert_eq!(read, [Ok(90), Ok(90), Ok(1800), Ok(43_200), Ok(604_800)]);
        assert!(["", "m", "-1", "1w", "99999999d"].into_iter().all(|wrong| seconds(wrong).is_err()));
    }
}
