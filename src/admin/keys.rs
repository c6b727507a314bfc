//! Keys: made, shown, changed, rotated and taken away.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use axum::extract::{Path, Request, State as Extract};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use chrono::{Duration, SecondsFormat, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::State;
use super::groups::Limits;
use super::problem::{Problem, fit, page_size, query, read, read_if_any};
use super::shown::{self, Check};
use crate::auth::NewKey;
use crate::config::{Form, file};
use crate::directory::{self, Record, Subject, compact};
use crate::proxy::snapshot::Callers;

/// What may be said about a key.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Body {
    #[schemars(length(min = 1, max = 128))]
    org: Option<String>,
    #[schemars(length(min = 1, max = 128))]
    team: Option<String>,
    #[schemars(length(max = 200))]
    name: String,
    #[schemars(length(max = 100), inner(length(min = 1, max = 200)))]
    scopes: Option<Vec<String>>,
    #[schemars(length(max = 1000), inner(length(min = 1, max = 200)))]
    models: Vec<String>,
    #[schemars(length(max = 1000), inner(length(min = 1, max = 200)))]
    pools: Vec<String>,
    #[schemars(length(max = 32))]
    limits: Vec<file::Limit>,
    priority: Option<file::Priority>,
    #[schemars(range(min = 1, max = 1000))]
    weight: Option<u32>,
    expires: Option<String>,
    disabled: bool,
}

const MEMBERS: [&str; 11] =
    ["org", "team", "name", "scopes", "models", "pools", "limits", "priority", "weight", "expires", "disabled"];

/// How a key is rotated.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Rotation {
    /// How long the old secret goes on working.
    #[schemars(range(max = 2_592_000))]
    overlap_s: u32,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { overlap_s: 3600 }
    }
}

static BODY: LazyLock<Result<Form<Body>, String>> = LazyLock::new(Form::new);
static ROTATION: LazyLock<Result<Form<Rotation>, String>> = LazyLock::new(Form::new);

pub(super) async fn list(Extract(state): Extract<State>, uri: Uri) -> Result<Json<Value>, Problem> {
    let asked = query(&uri, &["org", "team", "limit", "after"])?;
    let size = page_size(&asked)?;
    let callers = state.snapshot.load().callers.load_full();
    let records = state.directory.state();
    let roster = &records.roster;
    let is_filtered = asked.contains_key("org") || asked.contains_key("team");
    let broken = roster.broken.keys().filter_map(|subject| match subject {
        Subject::Key(id) if !is_filtered => Some(id.as_str()),
        _ => None,
    });
    let fits = |asked: Option<&String>, held: &str| asked.is_none_or(|asked| asked == held);
    let whole = roster
        .keys
        .iter()
        .filter(|(_, (key, _))| fits(asked.get("org"), &key.org) && fits(asked.get("team"), &key.team));
    let ids: BTreeSet<&str> = whole.map(|(id, _)| id.as_str()).chain(broken).collect();
    let after = asked.get("after").map_or("", String::as_str);
    let mut rest = ids.into_iter().filter(|id| *id > after);
    let page: Vec<&str> = rest.by_ref().take(size).collect();
    let next = rest.next().and(page.last());
    let one = |id: &&str| page_of(&state, roster, &callers, id);
    Ok(Json(json!({ "keys": page.iter().filter_map(one).collect::<Vec<_>>(), "next": next })))
}

pub(super) async fn show(Extract(state): Extract<State>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    shown_key(&state, &id).await.map(Json)
}

async fn shown_key(state: &State, id: &str) -> Result<Value, Problem> {
    let records = state.directory.state();
    let callers = state.snapshot.load().callers.load_full();
    if let Some((key, _)) = records.roster.keys.get(id) {
        state.look(callers.book.account(&key.id).map(std::convert::AsRef::as_ref)).await;
    }
    let page = page_of(state, &records.roster, &callers, id);
    page.ok_or_else(|| Problem::missing(&Subject::Key(id.to_owned())))
}

/// A key as far as it can be understood, and why it does not work.
fn page_of(state: &State, roster: &directory::Roster, callers: &Callers, id: &str) -> Option<Value> {
    let reason = roster.broken.get(&Subject::Key(id.to_owned()));
    let Some((key, origin)) = roster.keys.get(id) else { return reason.map(|reason| shown::broken("id", id, reason)) };
    let mut page = shown::key(key, *origin, callers, &state.limiter);
    if let Some(reason) = reason {
        page["broken"] = reason.as_str().into();
    }
    Some(page)
}

pub(super) async fn create(Extract(state): Extract<State>, request: Request) -> Result<Response, Problem> {
    let value = read(request).await?;
    let new = NewKey::generate().map_err(Problem::internal)?;
    let subject = Subject::Key(new.id.to_string());
    state.is_writable(&subject, &state.directory.state().roster)?;
    let key = record(fit(&BODY, value)?, new.id.as_str(), new.hash_text(), None)?;
    let made = state.directory.change(&subject, true, |records| {
        Check { key: Some(key.clone()), ..Check::default() }.run(&records.roster)?;
        if records.stored(&subject).is_some() || records.roster.keys.contains_key(new.id.as_str()) {
            return Err(Problem::conflict("the new id is taken; try again"));
        }
        Ok(Some(Record::Key(key.clone())))
    });
    made.await?;
    tracing::info!(key = %new.id, org = key.org, team = key.team, "a key was created");
    let location = format!("/keys/{}", new.id);
    let page = json!({ "key": new.text, "record": shown_key(&state, new.id.as_str()).await? });
    let headers = [(header::LOCATION, location.as_str()), (header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, headers, Json(page)).into_response())
}

pub(super) async fn patch(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let patch = read(request).await?;
    let touched: Vec<String> = patch.as_object().into_iter().flat_map(Map::keys).cloned().collect();
    if let Some(unknown) = touched.iter().find(|name| !MEMBERS.contains(&name.as_str())) {
        let error = format!("unknown key; expected one of {}", MEMBERS.join(", "));
        return Err(Problem::parameter(unknown, error));
    }
    let is_moved = touched.iter().any(|name| name == "org" || name == "team");
    edit(&state, &id, is_moved, |key, roster| {
        let mut value = body_of(key);
        merge(&mut value, patch.clone());
        let key = record(fit(&BODY, value)?, &key.id, key.sha256.clone(), key.previous.clone())?;
        Check { key: Some(key.clone()), touched: Some(&touched), ..Check::default() }.run(roster)?;
        Ok(key)
    })
    .await?;
    tracing::info!(key = id, changed = touched.join(","), "a key was changed");
    shown_key(&state, &id).await.map(Json)
}

pub(super) async fn put_limits(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let limits = Limits::read(request).await?;
    let touched = ["limits".to_owned()];
    edit(&state, &id, false, |key, roster| {
        let key = file::Key { limits: limits.clone(), ..key.clone() };
        Check { key: Some(key.clone()), touched: Some(&touched), ..Check::default() }.run(roster)?;
        Ok(key)
    })
    .await?;
    tracing::info!(key = id, "the limits of a key were changed");
    shown_key(&state, &id).await.map(Json)
}

pub(super) async fn rotate(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let Rotation { overlap_s } = fit(&ROTATION, read_if_any(request).await?)?;
    let new = NewKey::renewed(&id).map_err(Problem::internal)?;
    let until = Utc::now() + Duration::seconds(overlap_s.into());
    edit(&state, &id, false, |key, _| {
        let until = until.to_rfc3339_opts(SecondsFormat::Secs, true);
        let previous = file::Previous { sha256: key.sha256.clone(), until };
        let previous = Some(previous).filter(|_| overlap_s > 0);
        Ok(file::Key { sha256: new.hash_text(), previous, ..key.clone() })
    })
    .await?;
    tracing::info!(key = id, overlap_s, "a key was rotated");
    let page = json!({ "key": new.text, "record": shown_key(&state, &id).await? });
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(page)).into_response())
}

pub(super) async fn delete(Extract(state): Extract<State>, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    let subject = Subject::Key(id);
    let gone = state.directory.change(&subject, false, |records| {
        state.is_writable(&subject, &records.roster)?;
        records.stored(&subject).map(|_| None).ok_or_else(|| Problem::missing(&subject))
    });
    first_writable(&state, &subject)?;
    gone.await?;
    tracing::info!(%subject, "a record was deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// Says what is in a file before it is found that there is no Redis.
pub(super) fn first_writable(state: &State, subject: &Subject) -> Result<(), Problem> {
    state.is_writable(subject, &state.directory.state().roster)
}

async fn edit(
    state: &State,
    id: &str,
    is_strict: bool,
    change: impl Fn(&file::Key, &directory::Roster) -> Result<file::Key, Problem>,
) -> Result<(), Problem> {
    let subject = Subject::Key(id.to_owned());
    first_writable(state, &subject)?;
    let changed = state.directory.change(&subject, is_strict, |records| {
        state.is_writable(&subject, &records.roster)?;
        let stored = records.stored(&subject).ok_or_else(|| Problem::missing(&subject))?;
        match &stored.record {
            Ok(Record::Key(key)) => change(key, &records.roster).map(|key| Some(Record::Key(key))),
            Ok(_) => Err(Problem::missing(&subject)),
            Err(reason) => {
                let error = format!("the record can not be understood ({reason}); delete it and make another");
                Err(Problem::conflict(error))
            }
        }
    });
    changed.await
}

/// A whole record: what is left out has the defaults of the keys file.
fn record(body: Body, id: &str, sha256: String, previous: Option<file::Previous>) -> Result<file::Key, Problem> {
    let value = compact(serde_json::to_value(body).map_err(Problem::internal)?);
    let Value::Object(mut members) = value else { return Err(Problem::internal("a key is an object")) };
    members.insert("id".into(), id.into());
    members.insert("sha256".into(), sha256.into());
    let key: file::Key = serde_json::from_value(Value::Object(members)).map_err(Problem::internal)?;
    Ok(file::Key { previous, ..key })
}

/// The part of a record that may be changed.
fn body_of(key: &file::Key) -> Value {
    let mut value = compact(serde_json::to_value(key).unwrap_or_default());
    if let Some(members) = value.as_object_mut() {
        members.retain(|name, _| MEMBERS.contains(&name.as_str()));
    }
    value
}

/// RFC 7396: null takes a member away, objects merge, all else replaces.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(members) = target.as_object_mut() else { return };
    for (name, change) in patch {
        if change.is_null() {
            members.remove(&name);
        } else {
            merge(members.entry(name).or_insert(Value::Null), change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_merges_as_rfc_7396_says() {
        for (target, patch, wanted) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ] {
            let mut merged = target.clone();
            merge(&mut merged, patch.clone());
            assert_eq!(merged, wanted, "{target} {patch}");
        }
    }

    #[test]
    fn the_members_of_a_patch_are_those_of_a_key() {
        let Ok(Value::Object(members)) = serde_json::to_value(Body::default()) else { panic!() };
        assert_eq!(members.keys().map(String::as_str).collect::<BTreeSet<_>>(), MEMBERS.into_iter().collect());
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let body = json!({"scopes": [], "limits": [{"requests": 1, "per": "day"}], "expires": "2027-01-31T00:00:00Z"});
        let key = record(fit(&BODY, body.clone()).unwrap(), "a", "00".repeat(32), None).unwrap();
        let mut shown = body_of(&key);
        for (name, value) in [("org", "default"), ("team", "default")] {
            assert_eq!(shown.as_object_mut().unwrap().remove(name), Some(value.into()));
        }
        shown.as_object_mut().unwrap().retain(|name, _| body.get(name).is_some());
        assert_eq!(shown, body);
    }
}
