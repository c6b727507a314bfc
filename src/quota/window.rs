//! Window: the piece of time in which a limit counts.

use chrono::{DateTime, Datelike as _, NaiveDate};

use super::limit::Unit;

/// A piece of time, in microseconds since the Unix epoch: from `start`, up to but without `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its first microsecond.
    pub start: u64,
    /// The first microsecond after it.
    pub end: u64,
}

const SECOND: u64 = 1_000_000;

impl Window {
    /// What is held, not counted, has one window.
    pub const ALWAYS: Self = Self { start: 0, end: u64::MAX };

    /// The window of `unit` that `now` lies in.
    pub fn of(unit: Option<Unit>, now: u64) -> Self {
        let every = |length: u64| {
            let start = now - now % length;
            Self { start, end: start.saturating_add(length) }
        };
        match unit {
            None => Self::ALWAYS,
            Some(Unit::Second) => every(SECOND),
            Some(Unit::Minute) => every(60 * SECOND),
            Some(Unit::Hour) => every(3600 * SECOND),
            Some(Unit::Day) => every(86_400 * SECOND),
            Some(Unit::Month) => month(now).unwrap_or_else(|| every(30 * 86_400 * SECOND)),
        }
    }

    /// Whether it holds `now`.
    pub fn holds(&self, now: u64) -> bool {
        self.start <= now && now < self.end
    }

    /// Its length in microseconds.
    pub fn length(&self) -> u64 {
        self.end - self.start
    }
}

fn month(now: u64) -> Option<Window> {
    let date = DateTime::from_timestamp_micros(i64::try_from(now).ok()?)?.date_naive();
    let first = NaiveDate::from_ymd_opt(date.year(), date.month(), 1)?;
    let next = first.checked_add_months(chrono::Months::new(1))?;
    let micros = |date: NaiveDate| u64::try_from(date.and_hms_opt(0, 0, 0)?.and_utc().timestamp_micros()).ok();
    Some(Window { start: micros(first)?, end: micros(next)? })
}

/// The day that `now` lies in, as `2026-11-21`, in UTC.
pub fn day(now: u64) -> NaiveDate {
    let time = i64::try_from(now).ok().and_then(DateTime::from_timestamp_micros).unwrap_or_default();
    time.date_naive()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> u64 {
        u64::try_from(DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros()).unwrap()
    }

    #[test]
    fn windows_are_those_of_the_clock_and_the_calendar() {
        let now = at("2028-02-29T13:14:15.5Z");
        for (unit, start, end) in [
            (Unit::Second, "2028-02-29T13:14:15Z", "2028-02-29T13:14:16Z"),
            (Unit::Minute, "2028-02-29T13:14:00Z", "2028-02-29T13:15:00Z"),
            (Unit::Hour, "2028-02-29T13:00:00Z", "2028-02-29T14:00:00Z"),
            (Unit::Day, "2028-02-29T00:00:00Z", "2028-03-01T00:00:00Z"),
            (Unit::Month, "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
        ] {
            let window = Window::of(Some(unit), now);
            assert_eq!((window.start, window.end), (at(start), at(end)), "{unit:?}");
            assert!(window.holds(now) && window.holds(window.start) && !window.holds(window.end));
        }
        assert_eq!(Window::of(Some(Unit::Month), at("2026-12-31T23:59:59Z")).end, at("2027-01-01T00:00:00Z"));
        assert_eq!(day(now).to_string(), "2028-02-29");
    }
}
