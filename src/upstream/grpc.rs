//! How a gRPC call ended. What that means stands in the table.

use http::HeaderMap;
use percent_encoding::percent_decode_str;

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcStatus {
    /// `grpc-status`; 0 is success.
    pub code: u16,
    /// `grpc-message`, decoded.
    pub message: String,
}

impl GrpcStatus {
    /// Reads trailers, or a header that is all of an answer; nothing where they state none.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let stated = headers.get("grpc-status")?;
        // A status that is no number is as good as UNKNOWN.
        let code = stated.to_str().ok().and_then(|text| text.trim().parse().ok()).unwrap_or(2);
        let message = headers.get("grpc-message").and_then(|text| text.to_str().ok()).unwrap_or_default();
        Some(Self { code, message: percent_decode_str(message).decode_utf8_lossy().into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Fault, Kind, Manner};
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_status_is_read_with_its_message() {
        let read = |pairs: &[(&'static str, &str)]| GrpcStatus::read(&headers(pairs));
        assert_eq!(read(&[("grpc-message", "no status")]), None);
        let status = read(&[("grpc-status", "5"), ("grpc-message", "gr%C3%B6%C3%9Fe%")]).unwrap();
        assert_eq!((status.code, status.message.as_str()), (5, "größe%"));
        assert_eq!(read(&[("grpc-status", "-1")]).unwrap().code, 2);
    }

    #[test]
    fn the_platforms_own_words_are_told_from_the_containers() {
        let told = |kind: &Kind, code: &str, message: &str, is_dispatched: bool| {
            let mut headers = headers(&[("grpc-status", code), ("grpc-message", message)]);
            if is_dispatched {
                headers.insert("nvcf-reqid", "1".parse().unwrap());
            }
            kind.read_answer(Manner::Native, 200, &headers, &[]).map(|reading| reading.row.fault)
        };
        let nvcf = Kind::Nvcf(None);
        for (code, message, platform, container) in [
            ("0", "", None, None),
            ("1", "", Some(Fault::InferenceRejected), Some(Fault::InferenceRejected)),
            ("4", "failed to establish link to worker", Some(Fault::PlatformTimeout), Some(Fault::InferenceRejected)),
            ("4", "Deadline Exceeded", Some(Fault::InferenceRejected), Some(Fault::InferenceRejected)),
            ("5", "no existing session found", Some(Fault::SessionLost), Some(Fault::InferenceRejected)),
            ("5", "model not found", Some(Fault::InferenceRejected), Some(Fault::InferenceRejected)),
            ("8", "exceeded rate limit", Some(Fault::PlatformRateLimited), Some(Fault::InferenceOverloaded)),
            ("8", "out of memory", Some(Fault::InferenceOverloaded), Some(Fault::InferenceOverloaded)),
            ("13", "", Some(Fault::InferenceError), Some(Fault::InferenceError)),
            ("14", "", Some(Fault::PlatformError), Some(Fault::InferenceOverloaded)),
            ("16", "", Some(Fault::PlatformUnauthorized), Some(Fault::InferenceRejected)),
            ("99", "", Some(Fault::InferenceError), Some(Fault::InferenceError)),
        ] {
            assert_eq!(told(&nvcf, code, message, false), platform, "{code} {message}");
            assert_eq!(told(&Kind::Nim, code, message, false), container, "{code} {message}");
        }
        assert_eq!(told(&nvcf, "14", "", true), Some(Fault::InferenceOverloaded), "a worker had it");
    }
}
