//! Hold: how NVCF keeps a request that is not answered yet, and how it is asked again.
//!
//! Facts are those of NVIDIA/nvcf's invocation service and worker.

use std::time::Duration;

use super::STATUS;

/// The longest hold that NVCF takes; more is refused.
pub const LONGEST: Duration = Duration::from_secs(3600);
/// NVCF answers so much later than the hold says, at most.
pub const GRACE: Duration = Duration::from_secs(2);
/// The gap between polls that always is allowed.
const SHORTEST_LEASH: Duration = Duration::from_secs(10);

/// The value of `NVCF-POLL-SECONDS` for a request that may be held for so long: whole seconds, at least one.
pub fn seconds(time: Duration) -> u64 {
    time.min(LONGEST).as_secs().max(1)
}

/// The longest time from one poll to the next; a job whose caller stays away for longer is cancelled.
pub fn leash(hold: Duration) -> Duration {
    (hold * 2).max(SHORTEST_LEASH)
}

/// Where to ask for a request again; nothing for what is no id of a request.
pub fn status_path(id: &str) -> Option<String> {
    let is_hex = |part: &str, length: usize| part.len() == length && part.bytes().all(|b| b.is_ascii_hexdigit());
    let mut parts = id.split('-');
    let is_uuid = [8, 4, 4, 4, 12].into_iter().all(|length| parts.next().is_some_and(|part| is_hex(part, length)));
    (is_uuid && parts.next().is_none()).then(|| format!("{STATUS}{id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_are_whole_seconds_within_what_nvcf_takes() {
        let of = |millis| seconds(Duration::from_millis(millis));
        assert_eq!([of(0), of(999), of(2999), of(3_600_000), of(90_000_000)], [1, 1, 2, 3600, 3600]);
    }

    #[test]
    fn the_leash_is_twice_the_hold_but_ten_seconds_at_least() {
        assert_eq!(leash(Duration::from_secs(1)), Duration::from_secs(10));
        assert_eq!(leash(Duration::from_secs(60)), Duration::from_secs(120));
    }

    #[test]
    fn only_ids_make_a_path() {
        let id = "0b1f0c7e-8f5b-4d3e-9a55-1f2e3d4c5b6a";
        assert_eq!(status_path(id).unwrap(), format!("/v2/nvcf/pexec/status/{id}"));
        for wrong in
            ["", "x", "../functions", "0b1f0c7e-8f5b-4d3e-9a55-1f2e3d4c5b6a-1", "0b1f0c7e_8f5b-4d3e-9a55-1f2e3d4c5b6a"]
        {
            assert_eq!(status_path(wrong), None, "{wrong}");
        }
    }
}
