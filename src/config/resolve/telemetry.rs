//! Telemetry: where it goes. What the file leaves open, the variables of OpenTelemetry's specification say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;

use super::{MIB, Resolver, beside, ms, pem};
use crate::config::check::escaped;
use crate::config::file::{self, OtlpCompression, OtlpProtocol};
use crate::log;
use crate::otlp::{Bounds, Identity, Protocol, Settings, Signal, Target, Tls};

/// Headers that the protocol itself has.
const OWN_HEADERS: [HeaderName; 8] = [
    header::HOST,
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::TE,
    header::USER_AGENT,
];
const MOST_ATTRIBUTES: usize = 64;
const AN_ENDPOINT: &str = "expected http://host:port or https://host:port, without a user, a query or a fragment";

impl Resolver<'_> {
    /// What is sent by OTLP; nothing where neither the file nor the environment names a collector.
    pub(super) fn otlp(&mut self, telemetry: &file::Telemetry) -> Option<Settings> {
        let resource = self.resource(telemetry);
        let otlp = telemetry.otlp.clone().unwrap_or_default();
        let [traces, metrics, logs] = Signal::ALL.map(|signal| self.target(&otlp, signal));
        let names = Signal::ALL.map(|signal| signal_variable(signal, "ENDPOINT"));
        let is_named =
            otlp.endpoint.is_some() || names.into_iter().chain([general("ENDPOINT")]).any(|n| variable(&n).is_some());
        if telemetry.otlp.is_some() && !is_named {
            self.mistake(
                "/telemetry/otlp",
                "the key endpoint is required where OTEL_EXPORTER_OTLP_ENDPOINT is not set",
            );
        }
        let is_disabled = variable("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"));
        if is_disabled || [&traces, &metrics, &logs].iter().all(|target| target.is_none()) {
            return None;
        }
        Some(Settings {
            traces,
            metrics,
            logs,
            resource,
            bounds: Bounds {
                records: otlp.queue,
                bytes: otlp.queue_mib * MIB,
                batch: otlp.batch,
                delay: ms(otlp.delay_ms),
            },
            metrics_interval: Duration::from_secs(otlp.metrics_interval_s),
        })
    }

    pub(super) fn log(&mut self, written: &file::Log) -> log::Settings {
        if let Err(reason) = log::check(&written.level) {
            self.mistake("/log/level", reason);
        }
        log::Settings {
            level: written.level.clone(),
            is_text: written.format == file::LogFormat::Text,
            per_second: written.per_second,
        }
    }

    /// What is said of this process: by the environment, and above that by the file.
    fn resource(&mut self, telemetry: &file::Telemetry) -> BTreeMap<String, String> {
        let mut resource = self.pairs("OTEL_RESOURCE_ATTRIBUTES").into_iter().collect::<BTreeMap<_, _>>();
        resource.extend(variable("OTEL_SERVICE_NAME").map(|name| ("service.name".to_owned(), name)));
        if telemetry.resource.len() > MOST_ATTRIBUTES {
            self.mistake("/telemetry/resource", format!("expected at most {MOST_ATTRIBUTES} attributes"));
        }
        for (key, text) in &telemetry.resource {
            if key.is_empty() || key.len() > 256 || text.len() > 4096 {
                let reason = "expected a name of 1 to 256 characters and a value of at most 4096";
                self.mistake(&format!("/telemetry/resource/{}", escaped(key)), reason);
            }
            resource.insert(key.clone(), text.clone());
        }
        resource.extend(telemetry.service.clone().map(|name| ("service.name".to_owned(), name)));
        resource
    }

    fn target(&mut self, otlp: &file::Otlp, signal: Signal) -> Option<Target> {
        let is_on = match signal {
            Signal::Traces => otlp.traces,
            Signal::Metrics => otlp.metrics,
            Signal::Logs => otlp.logs,
        };
        if !is_on {
            return None;
        }
        let protocol = otlp.protocol.map(protocol).or_else(|| self.stated(signal, "PROTOCOL", protocol_word));
        let protocol = protocol.unwrap_or(Protocol::Http);
        let endpoint = self.endpoint(otlp, signal, protocol)?;
        let gzip = otlp.compression.map(|compression| compression == OtlpCompression::Gzip);
        let gzip = gzip.or_else(|| self.stated(signal, "COMPRESSION", compression_word)).unwrap_or(false);
        let timeout = otlp.timeout_ms.or_else(|| self.stated(signal, "TIMEOUT", timeout_word)).map_or(10_000, |ms| ms);
        let headers = self.otlp_headers(otlp, signal);
        let tls = self.otlp_tls(otlp, signal);
        Some(Target { endpoint, protocol, headers, timeout: ms(timeout), gzip, tls })
    }

    /// Where a signal is posted. The general endpoint is what stands before the path of each signal.
    fn endpoint(&mut self, otlp: &file::Otlp, signal: Signal, protocol: Protocol) -> Option<Uri> {
        let own = signal_variable(signal, "ENDPOINT");
        let (pointer, name, text, is_whole) = if let Some(text) = &otlp.endpoint {
            ("/telemetry/otlp/endpoint", None, text.clone(), false)
        } else if let Some(text) = variable(&own) {
            ("/telemetry/otlp", Some(own), text, true)
        } else {
            ("/telemetry/otlp", Some(general("ENDPOINT")), variable(&general("ENDPOINT"))?, false)
        };
        let found = collector(&text, signal, protocol, is_whole);
        if found.is_none() {
            // Once for all signals.
            let reason = name.map_or(AN_ENDPOINT.to_owned(), |name| format!("{name}: {AN_ENDPOINT}"));
            self.mistake_once(pointer, reason);
        }
        found
    }

    fn otlp_headers(&mut self, otlp: &file::Otlp, signal: Signal) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let own = signal_variable(signal, "HEADERS");
        let name = if variable(&own).is_some() { own } else { general("HEADERS") };
        if otlp.headers.is_empty() {
            for (key, text) in self.pairs(&name) {
                match header_of(&key, &text) {
                    Some((key, value)) => drop(headers.insert(key, value)),
                    None => self.mistake_once("/telemetry/otlp", format!("{name}: {A_HEADER}")),
                }
            }
        }
        for (key, secret) in &otlp.headers {
            let pointer = format!("/telemetry/otlp/headers/{}", escaped(key));
            if self.mistakes.iter().any(|mistake| mistake.key == crate::config::check::dotted(&pointer)) {
                continue;
            }
            let Some(secret) = self.secret(&pointer, secret) else { continue };
            match header_of(key, secret.reveal()) {
                Some((key, value)) => drop(headers.insert(key, value)),
                None => self.mistake(&pointer, A_HEADER),
            }
        }
        headers
    }

    fn otlp_tls(&mut self, otlp: &file::Otlp, signal: Signal) -> Tls {
        let authorities =
            self.otlp_file(otlp.ca_file.as_deref(), "ca_file", signal, "CERTIFICATE").map(|(at, path)| {
                let found: Vec<Vec<u8>> = pem::certificates(&path).into_iter().map(|der| der.to_vec()).collect();
                if found.is_empty() && path.exists() {
                    self.mistake_once(&at, format!("{}: {}", path.display(), pem::ONE_CERTIFICATE));
                }
                found
            });
        let chain = self.otlp_file(otlp.certificate_file.as_deref(), "certificate_file", signal, "CLIENT_CERTIFICATE");
        let key = self.otlp_file(otlp.key_file.as_deref(), "key_file", signal, "CLIENT_KEY");
        let identity = match (chain, key) {
            (Some((at, chain)), Some((_, key))) => {
                if let Err(reason) = pem::certified(&chain, &key) {
                    self.mistake_once(&at, reason);
                }
                PrivateKeyDer::from_pem_file(&key).ok().map(|key| Identity {
                    chain: pem::certificates(&chain).into_iter().map(|der| der.to_vec()).collect(),
                    key: Arc::new(key),
                })
            }
            (None, None) => None,
            _ => {
                self.mistake_once("/telemetry/otlp", "certificate_file and key_file go together");
                None
            }
        };
        Tls { authorities, identity }
    }

    /// A file that this key names, or this variable, and where that stands.
    fn otlp_file(
        &mut self,
        named: Option<&Path>,
        key: &str,
        signal: Signal,
        variable_end: &str,
    ) -> Option<(String, PathBuf)> {
        let stated = || {
            let name = [signal_variable(signal, variable_end), general(variable_end)];
            name.iter().find_map(|name| variable(name)).map(PathBuf::from)
        };
        let (pointer, path) = match named {
            Some(named) => (format!("/telemetry/otlp/{key}"), beside(self.path, named)),
            None => ("/telemetry/otlp".to_owned(), stated()?),
        };
        if let Err(e) = std::fs::File::open(&path) {
            self.mistake_once(&pointer, format!("{} can not be read: {e}", path.display()));
        }
        Some((pointer, path))
    }

    /// What a variable says of one signal, or of all.
    fn stated<T>(&mut self, signal: Signal, end: &str, read: fn(&str) -> Result<T, &'static str>) -> Option<T> {
        let names = [signal_variable(signal, end), general(end)];
        let (name, text) = names.into_iter().find_map(|name| variable(&name).map(|text| (name, text)))?;
        read(&text).map_err(|reason| self.mistake_once("/telemetry/otlp", format!("{name}: {reason}"))).ok()
    }

    /// The pairs of a variable: `a=b,c=d`, percent-encoded.
    fn pairs(&mut self, name: &str) -> Vec<(String, String)> {
        let Some(text) = variable(name) else { return Vec::new() };
        let decoded = |text: &str| {
            let text = percent_encoding::percent_decode_str(text.trim()).decode_utf8().ok()?;
            Some(text.into_owned())
        };
        let pair = |part: &str| {
            let (key, value) = part.split_once('=')?;
            Some((decoded(key)?, decoded(value)?))
        };
        let read: Option<Vec<_>> = text.split(',').filter(|part| !part.trim().is_empty()).map(pair).collect();
        if read.is_none() {
            self.mistake_once("/telemetry", format!("{name}: expected key=value,key=value, percent-encoded"));
        }
        read.unwrap_or_default()
    }

    /// A mistake that several signals share.
    fn mistake_once(&mut self, pointer: &str, reason: impl Into<String>) {
        let reason = reason.into();
        if !self.mistakes.iter().any(|mistake| mistake.reason == reason) {
            self.mistake(pointer, reason);
        }
    }
}

const A_HEADER: &str = "expected the name of a header that the protocol does not have itself, and one line of text";

fn header_of(key: &str, text: &str) -> Option<(HeaderName, HeaderValue)> {
    let key = HeaderName::try_from(key).ok()?;
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    let is_free = !OWN_HEADERS.contains(&key) && !key.as_str().starts_with("grpc-");
    is_free.then_some((key, value))
}

/// Where exports of a signal are posted, by the text that names a collector.
fn collector(text: &str, signal: Signal, protocol: Protocol, is_whole: bool) -> Option<Uri> {
    let uri = text.parse::<Uri>().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let is_bare = !authority.as_str().contains('@') && uri.query().is_none() && !text.contains('#');
    if !is_bare || !matches!(scheme, "http" | "https") || authority.host().is_empty() {
        return None;
    }
    let path = match protocol {
        Protocol::Grpc => "/".to_owned(),
        Protocol::Http if is_whole => uri.path().to_owned(),
        Protocol::Http => format!("{}/v1/{}", uri.path().trim_end_matches('/'), signal.word()),
    };
    Uri::builder().scheme(scheme).authority(authority.clone()).path_and_query(path).build().ok()
}

fn protocol(stated: OtlpProtocol) -> Protocol {
    match stated {
        OtlpProtocol::Grpc => Protocol::Grpc,
        OtlpProtocol::Http => Protocol::Http,
    }
}

fn protocol_word(text: &str) -> Result<Protocol, &'static str> {
    match text {
        "grpc" => Ok(Protocol::Grpc),
        "http/protobuf" => Ok(Protocol::Http),
        _ => Err("expected grpc or http/protobuf"),
    }
}

fn compression_word(text: &str) -> Result<bool, &'static str> {
    match text {
        "gzip" => Ok(true),
        "none" => Ok(false),
        _ => Err("expected gzip or none"),
    }
}

fn timeout_word(text: &str) -> Result<u64, &'static str> {
    let read = text.parse().ok().filter(|ms| (10..=600_000).contains(ms));
    read.ok_or("expected a whole number of milliseconds from 10 to 600000")
}

fn general(end: &str) -> String {
    format!("OTEL_EXPORTER_OTLP_{end}")
}

fn signal_variable(signal: Signal, end: &str) -> String {
    format!("OTEL_EXPORTER_OTLP_{}_{end}", signal.word().to_ascii_uppercase())
}

/// A variable; an empty one counts as none.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectors_are_named_by_scheme_host_and_port() {
        let whole = |text: &str, protocol, is_whole| {
            collector(text, Signal::Traces, protocol, is_whole).map(|uri| uri.to_string())
        };
        for (text, protocol, is_whole, wanted) in [
            ("http://c:4318", Protocol::Http, false, Some("http://c:4318/v1/traces")),
            ("https://c/otlp/", Protocol::Http, false, Some("https://c/otlp/v1/traces")),
            ("http://c:4318/in", Protocol::Http, true, Some("http://c:4318/in")),
            ("http://[::1]:4317", Protocol::Grpc, false, Some("http://[::1]:4317/")),
            ("http://c:4317/ignored", Protocol::Grpc, true, Some("http://c:4317/")),
            ("c:4317", Protocol::Grpc, false, None),
            ("ftp://c", Protocol::Http, false, None),
            ("http://user:secret@c", Protocol::Http, false, None),
            ("http://c?key=secret", Protocol::Http, false, None),
            ("", Protocol::Http, false, None),
        ] {
            assert_eq!(whole(text, protocol, is_whole).as_deref(), wanted, "{text}");
        }
    }

    #[test]
    fn headers_of_the_protocol_can_not_be_set() {
        for key in ["content-type", "grpc-timeout", "TE", "a b", ""] {
            assert!(header_of(key, "x").is_none(), "{key}");
        }
        assert!(header_of("x-key", "two\nlines").is_none());
        let (_, value) = header_of("Authorization", "Bearer x").unwrap();
        assert!(value.is_sensitive());
    }
}
