//! Wire: the records as they lie in Redis, and the scripts that read and write them.
//!
//! All lies in one slot of a cluster: the hash `records` and the hash `version` with the `number` that every change
//! raises, and the `epoch`, which is another one after data was lost.

use std::sync::LazyLock;

use redis::{RedisResult, Script};

use crate::store::{Link, Store};

static WRITE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("write.lua")));
static LOAD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("load.lua")));
static RESTORE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("restore.lua")));

/// Which state of the records it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) epoch: String,
    pub(super) number: u64,
}

/// What Redis says of its own state.
pub(super) struct Shown {
    pub(super) head: Head,
    /// What its epoch was restored from.
    base: u64,
}

impl Shown {
    /// Whether data that `known` had is not there any more.
    pub(super) fn has_lost(&self, known: &Head) -> bool {
        if self.head.epoch == known.epoch { self.head.number < known.number } else { self.base < known.number }
    }
}

/// A change of one record.
pub(super) struct Change<'a> {
    pub(super) field: &'a str,
    pub(super) expected: Option<&'a str>,
    pub(super) new: Option<&'a str>,
    /// Whether nothing else may have changed either.
    pub(super) is_strict: bool,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is done; the number after it.
    Done(u64),
    /// Something else was found than expected.
    Conflict,
    /// Redis does not have what this replica knows.
    Lost,
}

/// A name for a new epoch.
fn new_epoch() -> String {
    format!("{:016x}", fastrand::u64(..))
}

fn keys(store: &Store) -> [String; 2] {
    ["version", "records"].map(|rest| store.key("keys", rest))
}

pub(super) async fn show(store: &Store, link: &mut Link) -> RedisResult<Shown> {
    let [head, _] = keys(store);
    let mut asked = redis::cmd("HMGET");
    asked.arg(head).arg("number").arg("epoch").arg("base");
    let (number, epoch, base) = asked.query_async::<(Option<u64>, Option<String>, Option<u64>)>(link).await?;
    let head = Head { epoch: epoch.unwrap_or_default(), number: number.unwrap_or_default() };
    Ok(Shown { head, base: base.unwrap_or_default() })
}

/// Text that is none is not taken for a record: it comes back with what can be read of it.
pub(super) async fn load(store: &Store, link: &mut Link) -> RedisResult<(Head, Vec<(String, String)>)> {
    let [head, records] = keys(store);
    let ((number, epoch), flat) =
        LOAD.key(head).key(records).invoke_async::<((u64, String), Vec<Vec<u8>>)>(link).await?;
    let text =
        |bytes: Vec<u8>| String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into());
    let mut flat = flat.into_iter().map(text);
    let mut pairs = Vec::with_capacity(flat.len() / 2);
    while let (Some(field), Some(record)) = (flat.next(), flat.next()) {
        pairs.push((field, record));
    }
    Ok((Head { epoch, number }, pairs))
}

pub(super) async fn write(store: &Store, link: &mut Link, known: &Head, change: &Change<'_>) -> RedisResult<Outcome> {
    let [head, records] = keys(store);
    let mut call = WRITE.prepare_invoke();
    call.key(head).key(records);
    call.arg(&known.epoch).arg(known.number).arg(new_epoch()).arg(u8::from(change.is_strict)).arg(change.field);
    call.arg(u8::from(change.expected.is_some())).arg(change.expected.unwrap_or_default());
    call.arg(u8::from(change.new.is_some())).arg(change.new.unwrap_or_default());
    let (status, number) = call.invoke_async::<(i64, u64)>(link).await?;
    Ok(match status {
        1 => Outcome::Done(number),
        0 => Outcome::Conflict,
        _ => Outcome::Lost,
    })
}

/// Whether anything was missing.
pub(super) async fn restore<'a>(
    store: &Store,
    link: &mut Link,
    known: &Head,
    held: impl Iterator<Item = (&'a str, &'a str)>,
) -> RedisResult<bool> {
    let [head, records] = keys(store);
    let mut call = RESTORE.prepare_invoke();
    call.key(head).key(records).arg(&known.epoch).arg(known.number).arg(new_epoch());
    for (field, record) in held {
        call.arg(field).arg(record);
    }
    call.invoke_async::<bool>(link).await
}
