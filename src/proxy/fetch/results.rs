//! Results: large answers, fetched from where NVCF says that it put them.
//!
//! The address is somebody else's word, so it leads to public addresses and over TLS only, unless the pool allows others,
//! and gets nothing of ours: object stores refuse a request that carries a credential beside its signature.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use pingora_http::ResponseHeader;
use tokio::time::{Instant, timeout_at};
use tower::Service;

use super::super::settings::{PoolSettings, Timeouts};
use super::{Answer, Stream, tls_config};
use crate::failure::Failure;
use crate::upstream::Wait;

/// Longest that an idle connection is kept: object stores are many, and asked seldom.
const IDLE: Duration = Duration::from_secs(5);

/// Fetches the large answers of one pool.
pub struct Results {
    client: Client<HttpsConnector<HttpConnector<Guard>>, Empty<Bytes>>,
    timeouts: Timeouts,
    wait: Wait,
}

impl Results {
    /// For a pool that waits so.
    pub fn new(settings: &PoolSettings, wait: Wait) -> Self {
        let mut http = HttpConnector::new_with_resolver(Guard { is_private: wait.is_private });
        http.enforce_http(false);
        http.set_connect_timeout(Some(settings.timeouts.connect));
        let trusted = settings.tls.clone().unwrap_or_default();
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls_config(Some(&trusted)));
        let connector = builder.https_or_http().enable_http1().wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        Self { client, timeouts: settings.timeouts, wait }
    }

    /// Fetches what stands at `location`: unpacked, with the rest of `answer`'s header.
    pub async fn fetch(
        &self,
        location: Option<&HeaderValue>,
        answer: ResponseHeader,
        end: Instant,
    ) -> Result<Answer, Failure> {
        let uri = location.and_then(|location| location.to_str().ok()?.parse::<Uri>().ok());
        let uri = uri.filter(|uri| uri.host().is_some()).ok_or(Failure::ResultLost("it does not say where it is"))?;
        if uri.scheme_str() != Some("https") && !self.wait.is_private {
            return Err(Failure::ResultLost("it is where no TLS is spoken"));
        }
        let bare = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        if bare.parse::<IpAddr>().is_ok_and(|address| !self.wait.is_private && !is_public(address)) {
            return Err(Failure::ResultLost(PRIVATE));
        }
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = uri;
        let first_byte = end.min(Instant::now() + self.timeouts.connect + self.timeouts.between_chunks);
        let found = match timeout_at(first_byte, self.client.request(request)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) if is_guarded(&error) => return Err(Failure::ResultLost(PRIVATE)),
            Ok(Err(_)) => return Err(Failure::ResultLost("where it is can not be reached")),
            Err(_) => return Err(Failure::ResultLost("where it is does not answer in time")),
        };
        if found.status() != StatusCode::OK {
            return Err(Failure::ResultLost("it can not be fetched from where it is"));
        }
        let (parts, body) = found.into_parts();
        let mut body = Stream::new(body, self.timeouts.between_chunks, end);
        let mut header = answer;
        let internal = |e: Box<pingora_error::Error>| Failure::Internal(e.to_string());
        header.set_status(StatusCode::OK).map_err(internal)?;
        for name in [header::LOCATION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONTENT_TYPE] {
            header.remove_header(&name);
        }
        let (kind, length) = match body.unpack(self.wait.largest).await? {
            Some(file) => (kind_of(body.held.front()), file.length),
            None => {
                let stated = parts.headers.get(header::CONTENT_LENGTH);
                ("application/zip", stated.and_then(|length| length.to_str().ok()?.parse().ok()))
            }
        };
        header.insert_header(header::CONTENT_TYPE, kind).map_err(internal)?;
        if let Some(length) = length {
            header.insert_header(header::CONTENT_LENGTH, length.to_string()).map_err(internal)?;
        }
        // Its status was that of the reference.
        header.insert_header("nvcf-status", "fulfilled").map_err(internal)?;
        Ok(Answer { header, body })
    }
}

const PRIVATE: &str = "it is at a private address, which function.wait.private_results allows";

/// The type is lost where the answer was packed: nearly all are JSON.
fn kind_of(first: Option<&Bytes>) -> &'static str {
    let first = first.and_then(|piece| piece.trim_ascii_start().first());
    if matches!(first, Some(b'{' | b'[')) { "application/json" } else { "application/octet-stream" }
}

/// Whether an address can be reached from everywhere.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped().or_else(|| translated(v6)) {
            Some(v4) => is_public_v4(v4),
            None => {
                let [first, ..] = v6.segments();
                let is_local = (first & 0xfe00) == 0xfc00 || (first & 0xffc0) == 0xfe80;
                !(is_local || v6.is_loopback() || v6.is_unspecified() || v6.is_multicast())
            }
        },
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [first, second, ..] = v4.octets();
    let is_shared = first == 100 && (64..128).contains(&second);
    let is_special = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_broadcast();
    !(is_special || is_shared || first == 0 || first >= 224)
}

/// The address behind one of RFC 6052's.
fn translated(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = v6.segments() else { return None };
    Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

/// Looks names up, and keeps private addresses to itself.
#[derive(Clone)]
struct Guard {
    is_private: bool,
}

/// A name leads to private addresses only.
#[derive(Debug)]
struct Guarded;

impl std::fmt::Display for Guarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the name has no public address")
    }
}

impl std::error::Error for Guarded {}

fn is_guarded(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        if inner.is::<Guarded>() {
            return true;
        }
        cause = inner.source();
    }
    false
}

impl Service<Name> for Guard {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let is_private = self.is_private;
        Box::pin(async move {
            let mut found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            found.retain(|address| is_private || is_public(address.ip()));
            if found.is_empty() { Err(Guarded.into()) } else { Ok(found.into_iter()) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_within_a_network_are_not_public() {
        let is = |text: &str| is_public(text.parse().unwrap());
        for inner in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
        ] {
            assert!(!is(inner), "{inner}");
        }
        for outer in ["8.8.8.8", "52.216.0.1", "2606:4700::1111", "::ffff:8.8.8.8"] {
            assert!(is(outer), "{outer}");
        }
    }
}
