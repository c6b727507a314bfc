//! A failure in the words of gRPC: a status, a message, and for how long to wait.

use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::Failure;

/// What does not stand in `grpc-message` as it is, besides what is not ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// The `grpc-status` of a failure.
/// <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>
pub fn code(failure: &Failure) -> u16 {
    const CANCELLED: u16 = 1;
    const INVALID_ARGUMENT: u16 = 3;
    const DEADLINE_EXCEEDED: u16 = 4;
    const NOT_FOUND: u16 = 5;
    const PERMISSION_DENIED: u16 = 7;
    const RESOURCE_EXHAUSTED: u16 = 8;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const UNAUTHENTICATED: u16 = 16;
    match failure.status() {
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 | 410 => NOT_FOUND,
        405 | 415 => UNIMPLEMENTED,
        408 | 504 => DEADLINE_EXCEEDED,
        413 | 429 | 431 => RESOURCE_EXHAUSTED,
        499 => CANCELLED,
        502 | 503 => UNAVAILABLE,
        400..=499 => INVALID_ARGUMENT,
        _ => INTERNAL,
    }
}

/// Its `grpc-message`: what the caller reads, and further words of the operator for callers who ask too much.
pub fn message(failure: &Failure, words: Option<&str>) -> String {
    let mut message = failure.message();
    if let Some(words) = words.filter(|_| failure.status() == 429) {
        message = format!("{message} {words}");
    }
    utf8_percent_encode(&message, ENCODED).to_string()
}

/// Its `grpc-retry-pushback-ms`, by which clients with a policy of retries wait, where it is known; a negative number
/// tells them to give up.
/// <https://github.com/grpc/proposal/blob/master/A6-client-retries.md>
pub fn pushback(failure: &Failure) -> Option<i64> {
    let ms = |wait: Duration| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX).max(1);
    match failure {
        Failure::Exceeded(exceeded) => Some(exceeded.retry_after.map_or(-1, ms)),
        Failure::QueueFull(wait)
        | Failure::CallerQueueFull(wait)
        | Failure::QueueTimeout(wait)
        | Failure::DeadlineUnmet(wait) => Some(ms(*wait)),
        Failure::LimitsUnknown | Failure::KeysUnknown => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::NotAllowed;

    #[test]
    fn statuses_are_those_that_clients_act_upon() {
        for (failure, wanted) in [
            (Failure::KeyMissing, 16),
            (Failure::NotAllowed(NotAllowed::Scope("s".into())), 7),
            (Failure::PoolNotFound("p".into()), 5),
            (Failure::WrongProtocol("w"), 12),
            (Failure::CallerQueueFull(Duration::from_secs(1)), 8),
            (Failure::ConnectFailed, 14),
            (Failure::QueueFull(Duration::from_secs(1)), 14),
            (Failure::TotalTimeout, 4),
            (Failure::ClientClosed, 1),
            (Failure::MalformedRequest("m"), 3),
            (Failure::Internal("i".into()), 13),
        ] {
            assert_eq!(code(&failure), wanted, "{failure}");
        }
    }

    #[test]
    fn messages_are_percent_encoded() {
        let failure = Failure::PoolNotFound("100 % größe\n".into());
        assert_eq!(message(&failure, Some("not for this")), "There is no pool `100 %25 gr%C3%B6%C3%9Fe%0A`.");
        let failure = Failure::CallerQueueFull(Duration::from_millis(1500));
        assert!(message(&failure, Some("Ask ops.")).ends_with("wait for it as may. Ask ops."));
        assert_eq!(pushback(&failure), Some(1500));
    }
}
