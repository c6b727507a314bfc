//! Site: keeps pages of other sites away from a listener that has no token.
//!
//! Such a listener is on loopback, where the browsers of that host reach it too. A page may have its own name lead to
//! loopback (DNS rebinding), which the Host tells; and a page of any site may send requests, which the Origin tells.

use std::net::{IpAddr, Ipv6Addr};

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};

use super::problem::Problem;

/// Refuses what a page of another site may have sent.
pub(super) fn refuse_others(request: &Request) -> Result<(), Problem> {
    let refused = |what: &str| {
        let error = format!("{what}; this listener has no token (admin.token)");
        Err(Problem::new(StatusCode::FORBIDDEN, error))
    };
    let Some(host) = host(request) else {
        return refused("expected localhost or an IP address as the host");
    };
    let origins = request.headers().get_all(header::ORIGIN);
    if !origins.iter().all(|origin| is_of(origin, &host)) {
        return refused("expected no request of a page of another origin");
    }
    Ok(())
}

/// The host that the request names, if all places name the same, and no name that others could give out.
fn host(request: &Request) -> Option<Authority> {
    let stated = one(request.headers());
    let host = request.uri().authority().cloned().or_else(|| stated.clone())?;
    let is_agreed = !request.headers().contains_key(header::HOST) || stated.as_ref() == Some(&host);
    (is_agreed && is_local(&host)).then_some(host)
}

/// The one Host header.
fn one(headers: &HeaderMap) -> Option<Authority> {
    let mut all = headers.get_all(header::HOST).iter();
    let host = all.next()?;
    Authority::try_from(host.as_bytes()).ok().filter(|_| all.next().is_none())
}

fn is_local(host: &Authority) -> bool {
    let name = host.host();
    let inner = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let is_address = inner.map_or_else(|| name.parse::<IpAddr>().is_ok(), |name| name.parse::<Ipv6Addr>().is_ok());
    // Neither a user before it nor a name behind its brackets.
    let is_whole = host.as_str().strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'));
    is_whole && (name.eq_ignore_ascii_case("localhost") || is_address)
}

/// Whether a page of `origin` came from this listener. It speaks clear text.
fn is_of(origin: &HeaderValue, host: &Authority) -> bool {
    let origin = origin.as_bytes().strip_prefix(b"http://").and_then(|origin| Authority::try_from(origin).ok());
    let port = |authority: &Authority| authority.port_u16().unwrap_or(80);
    origin.is_some_and(|o| o.host().eq_ignore_ascii_case(host.host()) && port(&o) == port(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_taken(host: &str, origin: Option<&str>) -> bool {
        let mut request = Request::builder().uri("/state").header(header::HOST, host);
        if let Some(origin) = origin {
            request = request.header(header::ORIGIN, origin);
        }
        refuse_others(&request.body(axum::body::Body::empty()).unwrap()).is_ok()
    }

    #[test]
    fn names_that_others_give_out_are_refused() {
        for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "10.0.0.1:80", "[::1]", "[::1]:9090"] {
            assert!(is_taken(host, None), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example", "[::1].evil.example", "a@localhost", "::1", "[a]"] {
            assert!(!is_taken(host, None), "{host}");
        }
        assert!(refuse_others(&Request::new(axum::body::Body::empty())).is_err(), "no host at all");
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        assert!(is_taken("localhost", Some("http://LocalHost:80")));
        assert!(is_taken("[::1]:9090", Some("http://[::1]:9090")));
        for origin in ["http://localhost:3000", "https://localhost", "null", "", "http://evil.example"] {
            assert!(!is_taken("localhost", Some(origin)), "{origin}");
        }
    }
}
