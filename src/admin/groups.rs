//! Groups: organisations and teams, and their limits.

use std::sync::LazyLock;

use axum::extract::{Path, Request, State as Extract};
use axum::http::{StatusCode, Uri};
use axum::response::Json;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::State;
use super::keys::first_writable;
use super::problem::{Problem, fit, page_size, query, read};
use super::shown::{self, Check};
use crate::config::{Form, file};
use crate::directory::{Origin, Record, Roster, Subject, encoded};

/// A body of limits.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    #[schemars(length(max = 32))]
    limits: Vec<file::Limit>,
}

static LIMITS: LazyLock<Result<Form<Limits>, String>> = LazyLock::new(Form::new);

impl Limits {
    pub(super) async fn read(request: Request) -> Result<Vec<file::Limit>, Problem> {
        fit(&LIMITS, read(request).await?).map(|Self { limits }| limits)
    }
}

pub(super) async fn list_orgs(Extract(state): Extract<State>, uri: Uri) -> Result<Json<Value>, Problem> {
    let asked = query(&uri, &["limit", "after"])?;
    let size = page_size(&asked)?;
    let after = asked.get("after").map_or("", String::as_str);
    let (callers, records) = (state.snapshot.load().callers.load_full(), state.directory.state());
    let mut rest = records.roster.orgs.iter().filter(|(org, _)| org.as_str() > after);
    let page: Vec<_> = rest.by_ref().take(size).collect();
    let next = rest.next().and(page.last()).map(|(org, _)| org);
    let one = |(org, origin): &(&String, &Origin)| shown::group(org, None, **origin, &callers, &state.limiter);
    Ok(Json(json!({ "orgs": page.iter().map(one).collect::<Vec<_>>(), "next": next })))
}

pub(super) async fn list_teams(Extract(state): Extract<State>, uri: Uri) -> Result<Json<Value>, Problem> {
    let asked = query(&uri, &["org", "limit", "after"])?;
    let size = page_size(&asked)?;
    let (callers, records) = (state.snapshot.load().callers.load_full(), state.directory.state());
    // A place in the list as one text, whatever the names are.
    let mark = |(org, team): &(String, String)| format!("{}/{}", encoded(org), encoded(team));
    let fitting = records.roster.teams.iter().filter(|((org, _), _)| asked.get("org").is_none_or(|o| o == org));
    let mut marked: Vec<_> = fitting.map(|(team, origin)| (mark(team), team, *origin)).collect();
    marked.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    let after = asked.get("after").map_or("", String::as_str);
    let mut rest = marked.iter().filter(|(mark, ..)| mark.as_str() > after);
    let page: Vec<_> = rest.by_ref().take(size).collect();
    let next = rest.next().and(page.last()).map(|(mark, ..)| mark);
    let one = |(_, (org, team), origin): &&(String, &(String, String), Origin)| {
        shown::group(org, Some(team), *origin, &callers, &state.limiter)
    };
    Ok(Json(json!({ "teams": page.iter().map(one).collect::<Vec<_>>(), "next": next })))
}

pub(super) async fn show_org(Extract(state): Extract<State>, Path(org): Path<String>) -> Result<Json<Value>, Problem> {
    show(&state, &Subject::Org(org)).await.map(Json)
}

pub(super) async fn show_team(
    Extract(state): Extract<State>,
    Path((org, team)): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    show(&state, &Subject::Team(org, team)).await.map(Json)
}

pub(super) async fn put_org(
    Extract(state): Extract<State>,
    Path(org): Path<String>,
    request: Request,
) -> Result<(StatusCode, Json<Value>), Problem> {
    put(&state, Subject::Org(org), request).await
}

pub(super) async fn put_team(
    Extract(state): Extract<State>,
    Path((org, team)): Path<(String, String)>,
    request: Request,
) -> Result<(StatusCode, Json<Value>), Problem> {
    put(&state, Subject::Team(org, team), request).await
}

pub(super) async fn delete_org(Extract(state): Extract<State>, Path(org): Path<String>) -> Result<StatusCode, Problem> {
    delete(&state, Subject::Org(org)).await
}

pub(super) async fn delete_team(
    Extract(state): Extract<State>,
    Path((org, team)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    delete(&state, Subject::Team(org, team)).await
}

async fn show(state: &State, subject: &Subject) -> Result<Value, Problem> {
    let records = state.directory.state();
    let roster = &records.roster;
    let (found, org, team) = match subject {
        Subject::Org(org) => (roster.orgs.get(org), org, None),
        Subject::Team(org, team) => (roster.teams.get(&(org.clone(), team.clone())), org, Some(team.as_str())),
        Subject::Key(_) => return Err(Problem::missing(subject)),
    };
    if let Some(reason) = roster.broken.get(subject) {
        return Ok(shown::broken("name", team.unwrap_or(org), reason));
    }
    let origin = *found.ok_or_else(|| Problem::missing(subject))?;
    let callers = state.snapshot.load().callers.load_full();
    state.look(callers.book.group(org, team)).await;
    Ok(shown::group(org, team, origin, &callers, &state.limiter))
}

async fn put(state: &State, subject: Subject, request: Request) -> Result<(StatusCode, Json<Value>), Problem> {
    let limits = Limits::read(request).await?;
    first_writable(state, &subject)?;
    for (name, place) in names(&subject) {
        if name.is_empty() || name.chars().count() > 128 {
            return Err(Problem::parameter(place, "expected a name of 1 to 128 characters"));
        }
    }
    let status = std::sync::Mutex::new(StatusCode::OK);
    let made = state.directory.change(&subject, true, |records| {
        state.is_writable(&subject, &records.roster)?;
        let (check, record) = match &subject {
            Subject::Team(org, name) => {
                let team = file::Team { org: org.clone(), name: name.clone(), limits: limits.clone() };
                (Check { team: Some(team.clone()), ..Check::default() }, Record::Team(team))
            }
            Subject::Org(name) | Subject::Key(name) => {
                let org = file::Org { name: name.clone(), limits: limits.clone() };
                (Check { org: Some(org.clone()), ..Check::default() }, Record::Org(org))
            }
        };
        check.run(&records.roster)?;
        if records.stored(&subject).is_none()
            && let Ok(mut status) = status.lock()
        {
            *status = StatusCode::CREATED;
        }
        Ok::<_, Problem>(Some(record))
    });
    made.await?;
    tracing::info!(%subject, "limits were changed");
    let status = status.into_inner().unwrap_or(StatusCode::OK);
    Ok((status, Json(show(state, &subject).await?)))
}

fn names(subject: &Subject) -> Vec<(&str, &'static str)> {
    match subject {
        Subject::Key(id) => vec![(id, "id")],
        Subject::Org(org) => vec![(org, "org")],
        Subject::Team(org, team) => vec![(org, "org"), (team, "team")],
    }
}

async fn delete(state: &State, subject: Subject) -> Result<StatusCode, Problem> {
    first_writable(state, &subject)?;
    let gone = state.directory.change(&subject, true, |records| {
        state.is_writable(&subject, &records.roster)?;
        records.stored(&subject).ok_or_else(|| Problem::missing(&subject))?;
        is_unused(&subject, &records.roster)?;
        Ok::<_, Problem>(None)
    });
    gone.await?;
    tracing::info!(%subject, "a record was deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// Whoever is still in it has to go first.
fn is_unused(subject: &Subject, roster: &Roster) -> Result<(), Problem> {
    let (org, team) = match subject {
        Subject::Org(org) => (org, None),
        Subject::Team(org, team) => (org, Some(team)),
        Subject::Key(_) => return Ok(()),
    };
    let mut keys = roster.keys.values().filter(|(key, _)| key.org == *org && team.is_none_or(|team| key.team == *team));
    if let Some((key, _)) = keys.next() {
        let more = keys.count();
        let others = if more == 0 { String::new() } else { format!(" and {more} more") };
        return Err(Problem::conflict(format!("{subject} has keys: {}{others}; delete or move them first", key.id)));
    }
    if team.is_none()
        && let Some((_, team)) = roster.teams.keys().find(|(of, _)| of == org)
    {
        return Err(Problem::conflict(format!("{subject} has the team {team}; delete it first")));
    }
    Ok(())
}
