//! The request as it goes to the backend, and the peer that it goes to.

use std::net::SocketAddr;

use http::{HeaderName, Uri, header};
use pingora_core::protocols::ALPN;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorType, OrErr, Result};
use pingora_http::RequestHeader;

use super::context::{Admitted, RequestContext};
use super::respond::into_error;
use super::snapshot::PoolState;
use super::{course, held};
use crate::balance::Lease;
use crate::catalogue::Operation;
use crate::upstream::Kind;

/// Most streams on one HTTP/2 connection to a backend; pingora's own default is one.
const H2_STREAMS: usize = 100;

/// Names the endpoint of the next attempt as pingora's peer.
pub async fn peer(ctx: &mut RequestContext) -> Result<Box<HttpPeer>> {
    if let Some(failure) = ctx.course.take_failed() {
        course::go_on(ctx, failure).await.map_err(into_error)?;
    }
    let snapshot = std::sync::Arc::clone(&ctx.snapshot);
    let state = snapshot.pool(ctx.admitted()?.pool);
    let lease = ctx.course.take_next();
    let lease = lease.ok_or_else(|| Error::explain(ErrorType::InternalError, "no endpoint was picked"))?;
    ctx.trail.endpoint = Some(lease.endpoint().name().to_owned());
    ctx.attempt(lease.endpoint().name());
    let peer = build_peer(state, lease.address(), &lease.endpoint().settings().host);
    ctx.lease = Some(lease);
    Ok(Box::new(peer))
}

fn build_peer(state: &PoolState, address: SocketAddr, host: &str) -> HttpPeer {
    let settings = &state.settings;
    let server_name = match &settings.tls {
        Some(tls) => tls.server_name.clone().unwrap_or_else(|| host.to_owned()),
        None => String::new(),
    };
    let mut peer = HttpPeer::new(address, settings.tls.is_some(), server_name);
    peer.group_key = state.connection_group;
    let options = &mut peer.options;
    options.connection_timeout = Some(settings.timeouts.connect);
    options.total_connection_timeout = Some(settings.timeouts.connect);
    options.idle_timeout = Some(settings.idle_timeout);
    options.write_timeout = Some(settings.timeouts.between_chunks);
    options.max_h2_streams = H2_STREAMS;
    options.ca.clone_from(&state.authorities);
    if settings.http2 {
        match settings.tls {
            Some(_) => options.alpn = ALPN::H2H1,
            None => options.set_http_version(2, 2),
        }
    }
    peer
}

/// Rewrites the request for the leased endpoint. Runs at every attempt on a fresh copy of the client's request.
pub fn prepare(request: &mut RequestHeader, ctx: &RequestContext) -> Result<()> {
    let lease = ctx.lease.as_ref().ok_or_else(|| Error::explain(ErrorType::InternalError, "no lease"))?;
    let admitted = ctx.admitted()?;
    rewrite(request, ctx, admitted, ctx.snapshot.pool(admitted.pool), lease)
}

/// Rewrites the request for an endpoint of a pool.
pub fn rewrite(
    request: &mut RequestHeader,
    ctx: &RequestContext,
    admitted: &Admitted,
    state: &PoolState,
    lease: &Lease,
) -> Result<()> {
    let operation = ctx.snapshot.catalogue.operation(admitted.operation);
    strip(request, operation);
    let asked = request.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let path = state.settings.kind.path(&asked[admitted.prefix.min(asked.len())..]);
    // An absolute target would go on with the authority that the client made up.
    if request.raw_path() != path.as_bytes() {
        request.set_uri(path.parse::<Uri>().or_err(ErrorType::InternalError, "upstream path")?);
    }
    if let Some(length) = admitted.length {
        request.remove_header(&header::TRANSFER_ENCODING);
        request.remove_header(&header::CONTENT_LENGTH);
        if length > 0 || operation.method != http::Method::GET {
            request.insert_header(header::CONTENT_LENGTH, length)?;
        }
    }
    request.insert_header(header::HOST, state.settings.authority(lease.endpoint().settings()))?;
    request.insert_header("x-request-id", ctx.request_id.as_str())?;
    if let Some(trace) = &ctx.trail.trace {
        request.insert_header("traceparent", trace.parent_for(lease.endpoint().name()))?;
    }
    if state.settings.scrape.as_ref().is_some_and(|scrape| scrape.in_answers) {
        request.insert_header("endpoint-load-metrics-format", "TEXT")?;
    }
    for (name, value) in held::headers(request, ctx, state) {
        request.insert_header(name, value)?;
    }
    for (name, value) in &state.settings.inject {
        request.insert_header(name, value.clone())?;
    }
    if let Some(assets) = ctx.assets.as_ref().filter(|assets| assets.pool() == admitted.pool) {
        request.insert_header("nvcf-input-asset-references", assets.listed())?;
        request.insert_header("nvcf-function-asset-ids", assets.listed())?;
    }
    Ok(())
}

/// Drops what must not pass: the caller's credential, routing of NVCF that the operation does not document, identity
/// that only we may state, and `Accept-Encoding`, since answers are read here.
fn strip(request: &mut RequestHeader, operation: &Operation) {
    let is_dropped = |name: &&HeaderName| Kind::drops_request_header(name) && !operation.headers.contains(name);
    let mut dropped: Vec<HeaderName> = request.headers.keys().filter(is_dropped).cloned().collect();
    dropped.extend([
        header::EXPECT,
        header::ACCEPT_ENCODING,
        header::AUTHORIZATION,
        header::UPGRADE,
        header::CONNECTION,
    ]);
    for name in dropped {
        request.remove_header(&name);
    }
}
