//! Answer: what a collector says to an export, by gRPC and by HTTP.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bytes::{Buf as _, Bytes};
use http::{HeaderMap, StatusCode, header};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use prost::Message;

/// What became of an export.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The collector took it, but for so many records, and had this to say.
    Taken { refused: u64, message: String },
    /// The collector will not take it.
    Refused(String),
    /// It may be taken later.
    Failed { reason: String, after: Option<Duration> },
}

impl Outcome {
    pub(super) fn failed(reason: impl Into<String>) -> Self {
        Self::Failed { reason: reason.into(), after: None }
    }
}

/// An answer, read whole.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) trailers: HeaderMap,
}

impl Answer {
    /// What an answer to a call of gRPC means.
    pub(super) fn of_call(&self) -> Outcome {
        if self.status != StatusCode::OK {
            return self.by_status("");
        }
        let told = |name: &str| self.trailers.get(name).or_else(|| self.headers.get(name)).map(|v| v.as_bytes());
        let code = told("grpc-status").and_then(|code| std::str::from_utf8(code).ok()?.parse::<u32>().ok());
        let Some(code) = code else { return Outcome::Refused("the answer is none of gRPC".into()) };
        if code == 0 {
            // One message behind its frame; without compression, since none was asked for.
            let mut message = self.body.clone();
            message.advance(message.len().min(5));
            return taken(&message);
        }
        let message = told("grpc-message").unwrap_or_default();
        let message = percent_encoding::percent_decode(message).decode_utf8_lossy();
        let reason = format!("status {code} of gRPC: {message}");
        let after = told("grpc-status-details-bin").and_then(retry_delay);
        // CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE and DATA_LOSS; RESOURCE_EXHAUSTED where it is
        // said when to come again (OTLP's specification, failures).
        match code {
            1 | 4 | 10 | 11 | 14 | 15 => Outcome::Failed { reason, after },
            8 if after.is_some() => Outcome::Failed { reason, after },
            _ => Outcome::Refused(reason),
        }
    }

    /// What an answer to a POST means.
    pub(super) fn of_post(&self) -> Outcome {
        if self.status.is_success() {
            return taken(&self.body);
        }
        let is_protobuf = self.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/x-protobuf");
        let stated = is_protobuf.then(|| Status::decode(self.body.clone()).ok()).flatten();
        self.by_status(&stated.map(|status| status.message).unwrap_or_default())
    }

    fn by_status(&self, message: &str) -> Outcome {
        let reason = format!("status {}: {message}", self.status.as_u16());
        match self.status.as_u16() {
            429 | 502..=504 => Outcome::Failed { reason, after: retry_after(&self.headers) },
            _ => Outcome::Refused(reason),
        }
    }
}

/// The answers of all signals have the same form.
fn taken(body: &[u8]) -> Outcome {
    let told = ExportLogsServiceResponse::decode(body).ok().and_then(|answer| answer.partial_success);
    let told = told.unwrap_or_default();
    let refused = u64::try_from(told.rejected_log_records).unwrap_or_default();
    Outcome::Taken { refused, message: told.error_message }
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    delay: Option<Delay>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, PartialEq, Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// When to come again by `grpc-status-details-bin`.
fn retry_delay(details: &[u8]) -> Option<Duration> {
    const BASE64: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let status = Status::decode(Bytes::from(BASE64.decode(details).ok()?)).ok()?;
    let info = status.details.into_iter().find(|any| any.kind.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(info.value).ok()?.delay.unwrap_or_default();
    Some(Duration::new(delay.seconds.try_into().ok()?, delay.nanos.try_into().ok()?))
}

/// When to come again by `Retry-After`: seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = chrono::DateTime::parse_from_rfc2822(text).ok()?;
    (date.to_utc() - chrono::Utc::now()).to_std().ok()
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

    use super::*;

    fn answer(status: u16, headers: &[(&str, &str)]) -> Answer {
        let map = headers.iter().map(|(name, value)| {
            (http::HeaderName::try_from(*name).unwrap(), http::HeaderValue::from_str(value).unwrap())
        });
        let status = StatusCode::from_u16(status).unwrap();
        Answer { status, headers: map.collect(), body: Bytes::new(), trailers: HeaderMap::new() }
    }

    fn after(outcome: &Outcome) -> Option<Option<u64>> {
        match outcome {
            Outcome::Failed { after, .. } => Some(after.map(|after| after.as_secs())),
            _ => None,
        }
    }

    #[test]
    fn statuses_say_whether_to_come_again() {
        for (status, again) in [(400, false), (404, false), (429, true), (500, false), (502, true), (503, true)] {
            assert_eq!(after(&answer(status, &[]).of_post()).is_some(), again, "{status}");
            assert_eq!(after(&answer(status, &[]).of_call()).is_some(), again, "{status}");
        }
        assert_eq!(after(&answer(429, &[("retry-after", "7")]).of_post()), Some(Some(7)));
        let dated = after(&answer(503, &[("retry-after", "Sat, 06 Nov 2094 08:49:37 GMT")]).of_post());
        assert!(dated.flatten() > Some(1_000_000));
        assert_eq!(after(&answer(503, &[("retry-after", "soon")]).of_post()), Some(None));
    }

    #[test]
    fn codes_say_whether_to_come_again() {
        for code in 0..=16 {
            let outcome = answer(200, &[("grpc-status", &code.to_string())]).of_call();
            let again = [1, 4, 10, 11, 14, 15].contains(&code);
            assert_eq!(after(&outcome).is_some(), again, "{code}");
            assert_eq!(matches!(outcome, Outcome::Taken { .. }), code == 0, "{code}");
        }
        assert!(matches!(answer(200, &[]).of_call(), Outcome::Refused(_)));
    }

    #[test]
    fn an_exhausted_collector_says_when_to_come_again() {
        let delay = Some(Delay { seconds: 3, nanos: 0 });
        let value = Bytes::from(RetryInfo { delay }.encode_to_vec());
        let other = Any { kind: "type.googleapis.com/google.rpc.Help".into(), value: Bytes::new() };
        let info = Any { kind: "type.googleapis.com/google.rpc.RetryInfo".into(), value };
        let details = Status { message: String::new(), details: vec![other, info] }.encode_to_vec();
        for text in [STANDARD_NO_PAD.encode(&details), STANDARD.encode(&details)] {
            let told = [("grpc-status", "8"), ("grpc-status-details-bin", text.as_str())];
            assert_eq!(after(&answer(200, &told).of_call()), Some(Some(3)));
        }
        let told = [("grpc-status", "8"), ("grpc-status-details-bin", "!!")];
        assert_eq!(after(&answer(200, &told).of_call()), None);
    }
}
