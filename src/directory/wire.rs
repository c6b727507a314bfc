//! Wire: the records as they lie in Redis, and the scripts that read and write them.
//!
//! All lies in one slot of a cluster: the hash `records` and the hash `version` with the `number` that every change
//! raises, and the `epoch`, which is another one after data was lost.

use std::sync::LazyLock;

use redis::{ErrorKind, FromRedisValue, RedisError, RedisResult, Script, Value};

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

impl Head {
    /// What was stored, if it is one; what is not there is the beginning. The scripts have the same rule.
    fn read(number: Option<&[u8]>, epoch: Option<&[u8]>) -> Option<Self> {
        let epoch = epoch.unwrap_or_default();
        let is_epoch = epoch.len() <= 64 && epoch.iter().all(u8::is_ascii_alphanumeric);
        let epoch = String::from_utf8(epoch.to_vec()).ok().filter(|_| is_epoch)?;
        number.map_or(Some(0), whole).map(|number| Self { epoch, number })
    }
}

/// A number as Redis itself writes it, which a script holds exactly.
fn whole(text: &[u8]) -> Option<u64> {
    let is_plain = text.len() <= 15 && text.iter().all(u8::is_ascii_digit) && (text == b"0" || !text.starts_with(b"0"));
    std::str::from_utf8(text).ok().filter(|_| is_plain)?.parse().ok()
}

/// What Redis says of its own state.
pub(super) struct Shown {
    /// Absent when what is stored there is none.
    pub(super) head: Option<Head>,
    /// What its epoch was restored from.
    base: u64,
}

impl Shown {
    /// Whether data that `known` had is not there any more.
    pub(super) fn has_lost(&self, known: &Head) -> bool {
        match &self.head {
            None => true,
            Some(head) if head.epoch == known.epoch => head.number < known.number,
            Some(_) => self.base < known.number,
        }
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
    let stored = asked.query_async::<Value>(link).await.and_then(taken::<[Option<Vec<u8>>; 3]>)?;
    let [number, epoch, base] = stored.each_ref().map(Option::as_deref);
    Ok(Shown { head: Head::read(number, epoch), base: base.and_then(whole).unwrap_or_default() })
}

/// Reads a reply. One of another shape came over a good connection, which the client's own errors would not tell.
fn taken<T: FromRedisValue>(reply: Value) -> RedisResult<T> {
    T::from_redis_value(reply).map_err(|_| unexpected("a reply of another shape"))
}

fn unexpected(what: &'static str) -> RedisError {
    RedisError::from((ErrorKind::UnexpectedReturnType, what))
}

/// Text that is none is not taken for a record: it comes back with what can be read of it.
pub(super) async fn load(store: &Store, link: &mut Link) -> RedisResult<(Head, Vec<(String, String)>)> {
    let [head, records] = keys(store);
    let reply = LOAD.key(head).key(records).invoke_async::<Value>(link).await?;
    let ((number, epoch), flat) = taken::<((Vec<u8>, Vec<u8>), Vec<Vec<u8>>)>(reply)?;
    let head = Head::read(Some(&number), Some(&epoch)).ok_or_else(|| unexpected("a version that is none"))?;
    let text =
        |bytes: Vec<u8>| String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into());
    let mut flat = flat.into_iter().map(text);
    let mut pairs = Vec::with_capacity(flat.len() / 2);
    while let (Some(field), Some(record)) = (flat.next(), flat.next()) {
        pairs.push((field, record));
    }
    Ok((head, pairs))
}

pub(super) async fn write(store: &Store, link: &mut Link, known: &Head, change: &Change<'_>) -> RedisResult<Outcome> {
    let [head, records] = keys(store);
    let mut call = WRITE.prepare_invoke();
    call.key(head).key(records);
    call.arg(&known.epoch).arg(known.number).arg(new_epoch()).arg(u8::from(change.is_strict)).arg(change.field);
    call.arg(u8::from(change.expected.is_some())).arg(change.expected.unwrap_or_default());
    call.arg(u8::from(change.new.is_some())).arg(change.new.unwrap_or_default());
    let (status, number) = call.invoke_async::<Value>(link).await.and_then(taken::<(i64, u64)>)?;
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
    call.invoke_async::<Value>(link).await.and_then(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_version_is_not_taken_for_one() {
        let read = |number: &str, epoch: &str| Head::read(Some(number.as_bytes()), Some(epoch.as_bytes()));
        assert_eq!(read("12", "0a"), Some(Head { epoch: "0a".into(), number: 12 }));
        assert_eq!(Head::read(None, None), Some(Head::default()));
        assert_eq!(read("0", ""), Some(Head::default()));
        for number in ["", "garbage", "-1", "+1", "1.0", "1e3", "007", " 1", "1000000000000000"] {
            assert_eq!(read(number, ""), None, "{number}");
        }
        for epoch in ["a b", "a-b", "\u{e9}", &"a".repeat(65)] {
            assert_eq!(read("1", epoch), None, "{epoch}");
        }
        assert_eq!(Head::read(Some(b"1"), Some(b"\xff")), None);
    }
}
