//! Asset: carries large media of a request to NVCF beside its body, and takes it away again.
//!
//! Functions refuse large bodies, but take references to assets. So data URLs above a size go to NVCF's object store,
//! and the body says which asset holds them. The store's URLs are secrets: whoever has one needs no credential.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use pingora_core::protocols::http::server::Session as ServerSession;
use pingora_http::RequestHeader;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::body::{Edit, edited};
use super::context::{Admitted, RequestContext};
use super::course;
use super::exchange::Payload;
use super::fetch::results::is_public;
use super::fetch::{Fetcher, Peer};
use super::hedge::whole;
use super::snapshot::{PoolState, Snapshot};
use crate::failure::Failure;
use crate::ids::{PoolIndex, RequestId};
use crate::record::Recorder;
use crate::schema::Pattern;
use crate::upstream::{Event, Manner};

/// Most media of a request that are uploaded; further ones stay where they are.
const MOST: usize = 32;
/// The longest answer of NVCF's about an asset.
const LONGEST_ANSWER: usize = 64 * 1024;
/// What every asset is called; the store wants the same words again.
const DESCRIPTION: &str = "input";
const ASSETS: &str = "/v2/nvcf/assets";
/// Deletions under way or waiting; NVCF deletes what is left over after a day.
static DELETIONS: Semaphore = Semaphore::const_new(1024);
/// How long a deletion may take, and how often and after which pause it is tried.
const DELETE_TIME: Duration = Duration::from_secs(10);
const DELETE_PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(4)];

/// The assets of a request: deleted when it ends, however it does.
pub struct Assets {
    ids: Vec<String>,
    account: Account,
}

/// NVCF as the owner of assets, at one endpoint of a pool.
#[derive(Clone)]
struct Account {
    snapshot: Arc<Snapshot>,
    pool: PoolIndex,
    peer: Peer,
    authority: String,
    request_id: RequestId,
    recorder: Arc<Recorder>,
}

/// A data URL to upload.
struct Media {
    place: Range<usize>,
    kind: String,
    data: Bytes,
}

/// Where NVCF wants an asset.
struct Upload {
    id: String,
    url: Uri,
}

/// Uploads the large media of a request whose pool wants that, and puts references in their place.
pub(super) async fn upload(
    session: &mut ServerSession,
    ctx: &mut RequestContext,
    admitted: &mut Admitted,
    payload: Payload,
    recorder: &Arc<Recorder>,
) -> Result<Payload, Failure> {
    let patterns = &ctx.snapshot.catalogue.operation(admitted.operation).media;
    let above = ctx.snapshot.pool(admitted.pool).settings.assets_above.filter(|_| !patterns.is_empty());
    match above.filter(|above| payload.len().is_some_and(|length| length > *above)) {
        None => Ok(payload),
        // Boxed, or every request's future would be as large.
        Some(above) => Box::pin(upload_above(above, session, ctx, admitted, payload, recorder)).await,
    }
}

async fn upload_above(
    above: usize,
    session: &mut ServerSession,
    ctx: &mut RequestContext,
    admitted: &mut Admitted,
    payload: Payload,
    recorder: &Arc<Recorder>,
) -> Result<Payload, Failure> {
    let snapshot = Arc::clone(&ctx.snapshot);
    let state = snapshot.pool(admitted.pool);
    let patterns = &snapshot.catalogue.operation(admitted.operation).media;
    let body = whole(payload);
    let patterns = patterns.iter().filter_map(|pattern| Pattern::read(pattern)).collect();
    let media = read(body.clone(), patterns, above).await?;
    if media.is_empty() {
        return Ok(Payload::Buffered(vec![body]));
    }
    let Some(lease) = ctx.course.next() else { return Err(Failure::Internal("no endpoint was picked".into())) };
    let account = Account {
        snapshot: Arc::clone(&snapshot),
        pool: admitted.pool,
        peer: Peer::of(lease),
        authority: state.settings.authority(lease.endpoint().settings()),
        request_id: ctx.request_id.clone(),
        recorder: Arc::clone(recorder),
    };
    let end = course::end(ctx, state.settings.timeouts.total);
    let (done, outcome) = oneshot::channel();
    // A task of its own: an asset that is made while its client leaves has to be deleted all the same.
    tokio::spawn(account.bring(media, end, done));
    let (assets, edits) = outcome_or_leave(session, outcome, end).await?;
    ctx.assets = Some(assets);
    let payload = edited(body, edits);
    admitted.length = payload.len();
    Ok(payload)
}

type Outcome = Result<(Assets, Vec<Edit>), Failure>;

async fn outcome_or_leave(
    session: &mut ServerSession,
    mut outcome: oneshot::Receiver<Outcome>,
    end: Instant,
) -> Outcome {
    loop {
        tokio::select! {
            biased;
            done = &mut outcome => {
                return done.unwrap_or_else(|_| Err(Failure::Internal("an upload ended without a word".into())));
            }
            () = tokio::time::sleep_until(end) => return Err(Failure::TotalTimeout),
            left = session.read_body_or_idle(true) => {
                if left.is_err() {
                    return Err(Failure::ClientClosed);
                }
            }
        }
    }
}

/// The media above a size, off the worker: decoding takes time.
async fn read(body: Bytes, patterns: Vec<Pattern>, above: usize) -> Result<Vec<Media>, Failure> {
    let read = move || {
        let places = Pattern::find(&patterns, &body, MOST);
        places.into_iter().filter_map(|place| Media::read(&body, place, above)).collect()
    };
    tokio::task::spawn_blocking(read).await.map_err(|e| Failure::Internal(e.to_string()))
}

impl Media {
    /// `data:TYPE;base64,DATA`; whatever else stands there is for the container to judge.
    fn read(body: &[u8], place: Range<usize>, above: usize) -> Option<Self> {
        let text: Cow<'_, str> = serde_json::from_slice(&body[place.clone()]).ok()?;
        let (kind, data) = text.strip_prefix("data:")?.split_once(";base64,")?;
        if data.len() / 4 * 3 <= above || kind.is_empty() || HeaderValue::from_str(kind).is_err() {
            return None;
        }
        let data = STANDARD.decode(data.as_bytes()).ok()?;
        Some(Self { place, kind: kind.to_owned(), data: data.into() })
    }
}

impl Account {
    /// Uploads one after the other; all are deleted when one can not be, or nobody waits any more.
    async fn bring(self, media: Vec<Media>, end: Instant, mut done: oneshot::Sender<Outcome>) {
        let mut assets = Assets { ids: Vec::new(), account: self.clone() };
        let mut edits = Vec::new();
        for media in media {
            let upload = match self.create(&media, end).await {
                Ok(upload) => upload,
                Err(failure) => return self.give_up(failure, done),
            };
            assets.ids.push(upload.id.clone());
            let text = format!("\"data:{};asset_id,{}\"", media.kind, upload.id);
            edits.push(Edit::replace(media.place.clone(), text));
            tokio::select! {
                put = self.put(media, &upload.url, end) => match put {
                    Ok(()) => self.count("uploaded"),
                    Err(failure) => return self.give_up(failure, done),
                },
                () = done.closed() => return,
            }
        }
        // Whoever left meanwhile drops them.
        let _ = done.send(Ok((assets, edits)));
    }

    fn give_up(&self, failure: Failure, done: oneshot::Sender<Outcome>) {
        self.count("failed");
        let _ = done.send(Err(failure));
    }

    fn count(&self, result: &'static str) {
        self.recorder.asset(&self.state().settings.name, result);
    }

    fn state(&self) -> &PoolState {
        self.snapshot.pool(self.pool)
    }

    async fn create(&self, media: &Media, end: Instant) -> Result<Upload, Failure> {
        let asked = json!({ "contentType": media.kind, "description": DESCRIPTION });
        let answer = self.ask(Method::POST, ASSETS, asked.to_string().into(), end).await?;
        let made = || {
            let answer: Value = serde_json::from_slice(&answer).ok()?;
            let text = |name: &str| answer.get(name)?.as_str();
            let id = text("assetId").filter(|id| is_id(id))?.to_owned();
            Some(Upload { id, url: text("uploadUrl")?.parse().ok()? })
        };
        made().ok_or_else(|| self.unusable())
    }

    /// Puts the bytes where NVCF wants them: with the very headers that its signature covers, and no credential.
    async fn put(&self, media: Media, url: &Uri, end: Instant) -> Result<(), Failure> {
        let peer = self.store(url).await?;
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let internal = |e: Box<pingora_error::Error>| Failure::Internal(e.to_string());
        let mut request = RequestHeader::build(Method::PUT, path.as_bytes(), Some(4)).map_err(internal)?;
        let authority = url.authority().map_or("", |authority| authority.as_str()).to_owned();
        request.insert_header(header::HOST, authority).map_err(internal)?;
        request.insert_header(header::CONTENT_TYPE, media.kind).map_err(internal)?;
        request.insert_header(header::CONTENT_LENGTH, media.data.len()).map_err(internal)?;
        request.insert_header("x-amz-meta-nvcf-asset-description", DESCRIPTION).map_err(internal)?;
        let is_secure = url.scheme_str() == Some("https");
        let fetcher = self.state().store_fetcher();
        let answer = fetcher.send_to(&peer, is_secure, request, media.data, Some(end)).await?;
        // Whatever its store says is no word of the platform about our credential.
        let status = answer.header.status;
        if status.is_success() { Ok(()) } else { Err(self.failure(500, &HeaderMap::new(), &[])) }
    }

    /// The store behind a URL. What is private is refused, unless the platform itself is.
    async fn store(&self, url: &Uri) -> Result<Peer, Failure> {
        let refused = || self.unusable();
        let is_secure = match url.scheme_str() {
            Some("https") => true,
            Some("http") if self.state().settings.tls.is_none() => false,
            _ => return Err(refused()),
        };
        let authority = url.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(refused)?;
        let port = authority.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let mut found = tokio::net::lookup_host((host, port)).await.map_err(|_| Failure::ConnectFailed)?;
        let may_be_private = !is_public(self.peer.address.ip());
        let address = found.find(|address: &SocketAddr| may_be_private || is_public(address.ip()));
        Ok(Peer { address: address.ok_or_else(refused)?, host: authority.host().to_owned() })
    }

    /// What an answer means that is none to what was asked.
    fn failure(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> Failure {
        let reading = self.state().settings.kind.read_answer(Manner::Other, status, headers, body);
        reading.map_or_else(|| self.unusable(), |reading| Failure::Upstream(reading.row))
    }

    /// An answer without what it has to hold.
    fn unusable(&self) -> Failure {
        Failure::Upstream(self.state().settings.kind.event(Event::AnswerIncomplete))
    }

    async fn delete(&self, id: &str) -> Result<(), Failure> {
        let end = Instant::now() + DELETE_TIME;
        self.ask(Method::DELETE, &format!("{ASSETS}/{id}"), Bytes::new(), end).await.map(|_| ())
    }

    /// Asks the platform with the pool's credential; the body of a good answer.
    async fn ask(&self, method: Method, path: &str, body: Bytes, end: Instant) -> Result<Bytes, Failure> {
        let internal = |e: Box<pingora_error::Error>| Failure::Internal(e.to_string());
        let state = self.state();
        let mut request = RequestHeader::build(method, path.as_bytes(), Some(8)).map_err(internal)?;
        request.insert_header(header::HOST, &self.authority).map_err(internal)?;
        request.insert_header("x-request-id", self.request_id.as_str()).map_err(internal)?;
        if !body.is_empty() {
            request.insert_header(header::CONTENT_TYPE, "application/json").map_err(internal)?;
            request.insert_header(header::CONTENT_LENGTH, body.len()).map_err(internal)?;
        }
        for (name, value) in &state.settings.inject {
            request.insert_header(name, value.clone()).map_err(internal)?;
        }
        let fetcher: &Fetcher = state.fetcher();
        let mut answer = fetcher.send_to(&self.peer, state.settings.tls.is_some(), request, body, Some(end)).await?;
        let status = answer.header.status;
        let read = answer.body.collect(LONGEST_ANSWER).await?.unwrap_or_default();
        if status.is_success() {
            return Ok(read);
        }
        Err(self.failure(status.as_u16(), &answer.header.headers, &read))
    }
}

impl Assets {
    /// The pool whose credential they belong to.
    pub(super) fn pool(&self) -> PoolIndex {
        self.account.pool
    }

    /// Their ids as NVCF's headers list them.
    pub(super) fn listed(&self) -> String {
        self.ids.join(",")
    }
}

impl Drop for Assets {
    fn drop(&mut self) {
        for id in std::mem::take(&mut self.ids) {
            let account = self.account.clone();
            match (DELETIONS.try_acquire(), tokio::runtime::Handle::try_current()) {
                (Ok(permit), Ok(runtime)) => drop(runtime.spawn(async move {
                    account.remove(&id).await;
                    drop(permit);
                })),
                _ => account.count("left"),
            }
        }
    }
}

impl Account {
    /// Deletes an asset, as far as that can be had.
    async fn remove(&self, id: &str) {
        for pause in DELETE_PAUSES {
            tokio::time::sleep(pause).await;
            if self.delete(id).await.is_ok() {
                return self.count("deleted");
            }
        }
        self.count("left");
    }
}

/// Ids go into paths and headers.
fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_data_urls_above_the_size_are_media() {
        let read = |text: &str| {
            let media = Media::read(text.as_bytes(), 0..text.len(), 5)?;
            Some((media.kind, media.data.to_vec()))
        };
        let wanted = Some(("image/png".to_owned(), vec![255; 6]));
        assert_eq!(read(r#""data:image/png;base64,////////""#), wanted);
        assert_eq!(read(r#""data:image\/png;base64,\/\/\/\/\/\/\/\/""#), wanted);
        for none in [
            r#""data:image/png;base64,AAAA""#,
            r#""data:image/png;base64,!!!!!!!!""#,
            r#""data:;base64,////////""#,
            r#""data:a\nb;base64,////////""#,
            r#""https://example.com/cat.png""#,
        ] {
            assert_eq!(read(none), None, "{none}");
        }
    }
}
