//! Counter: how much of one limit this replica has used, and how much it may.
//!
//! What Redis has granted is an absolute number for the window: the replica may use so much and no more. Reports are
//! absolute too, so a lost reply, a repeated one and a Redis that lost its data are all mended by the next report.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::OnOutage;
use super::limit::Unit;
use super::window::Window;

/// Demand for this long, in microseconds, is asked for in advance.
const HORIZON: u64 = 50_000;

/// A reply that is not there after so many microseconds is lost.
const LOST: u64 = 1_000_000;

/// How late a time may be that was read before a window began, in microseconds. Any earlier, and the clock went back.
const LATE: u64 = 5_000_000;

/// Who decides whether there is something left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Authority {
    /// This replica is the only one.
    Local,
    /// Redis.
    Shared,
    /// Redis is away; so many replicas share the limits, and places are held for so long, in microseconds.
    Away(OnOutage, u64, u64),
}

/// What became of an attempt to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// Taken, in the window that starts then.
    Done(u64),
    /// Redis has to be asked.
    Short,
    /// There is not enough left.
    Refused,
}

/// One count of one limit. What each check touches comes first and fits a line of the processor's cache: thousands of
/// counters are checked in no order, and threads that share one pass its lines to and fro.
#[repr(C, align(64))]
pub(super) struct Counter {
    state: Mutex<State>,
    /// Whether it stands in the list of counters in use.
    pub(super) is_listed: AtomicBool,
    /// The window's unit; none when it is held, not counted.
    pub(super) unit: Option<Unit>,
    /// Names it in Redis and in the state file, without its window.
    pub(super) id: Arc<str>,
    /// The organisation, percent-encoded: its counters share a slot of Redis Cluster.
    pub(super) tag: Arc<str>,
}

/// All that the only replica touches comes before `left`; a lock of eight bytes stands before it.
const _: () = assert!(std::mem::offset_of!(State, left) + size_of::<Mutex<()>>() <= 64);

#[repr(C)]
struct State {
    window: Window,
    /// The amount; a changed limit changes it in place.
    limit: u64,
    /// Used by this replica in this window; of what is held, at this moment.
    taken: u64,
    /// Granted to this replica in this window.
    granted: u64,
    /// When Redis replied; 0 for not in this window.
    looked: u64,
    /// When something was taken last.
    used: u64,
    /// What nobody had been granted, by Redis's last reply.
    left: u64,
    demand: Demand,
    /// When the last report was answered.
    reported: u64,
    /// When more was called for before it was needed; 0 once it came.
    called: u64,
    /// When a report was sent whose reply is not there: Redis may have granted what is not known here. 0 for none.
    asked: u64,
    /// Whether others were refused a moment ago, by Redis's last reply.
    is_wanted: bool,
    /// Whether the courier knows that places came free.
    is_told: bool,
}

/// How much is taken within [`HORIZON`]. What a lease should last for follows from it, so it outlives reports and windows.
#[derive(Clone, Copy, Default)]
struct Demand {
    /// When counting began.
    since: u64,
    count: u64,
    /// What the time before that came to.
    before: u64,
}

/// What is told and asked about a counter in one round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) window: Window,
    /// What this replica holds as granted.
    pub(super) granted: u64,
    /// Asked for on top, for requests that wait.
    pub(super) want: u64,
    /// The smallest of those requests: less than this is no use.
    pub(super) least: u64,
    /// Welcome beyond that.
    pub(super) extra: u64,
}

/// What Redis says to a report.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply {
    /// Granted on top.
    pub(super) more: u64,
    /// What nobody was granted.
    pub(super) left: u64,
    /// Whether others were refused a moment ago.
    pub(super) is_wanted: bool,
}

impl Counter {
    pub(super) fn new(id: Arc<str>, tag: Arc<str>, unit: Option<Unit>, limit: u64) -> Self {
        let window = if unit.is_none() { Window::ALWAYS } else { Window { start: 0, end: 0 } };
        let state = Mutex::new(State::new(window, limit));
        Self { state, is_listed: AtomicBool::new(false), unit, id, tag }
    }

    pub(super) fn limit(&self) -> u64 {
        self.state().limit
    }

    /// Changes the amount. What nobody was granted changes by as much.
    pub(super) fn set_limit(&self, limit: u64) {
        let mut state = self.state();
        let before = std::mem::replace(&mut state.limit, limit);
        state.left =
            state.left.saturating_add(limit.saturating_sub(before)).saturating_sub(before.saturating_sub(limit));
    }

    /// The window that `now` lies in.
    pub(super) fn window(&self, now: u64) -> Window {
        self.at(now).window
    }

    /// Takes in that so much was granted to all replicas together, in the window that started at `window`.
    pub(super) fn seen(&self, now: u64, window: u64, granted: u64) {
        let mut state = self.at(now);
        if state.window.start != window {
            return;
        }
        state.left = state.limit.saturating_sub(granted.max(state.granted));
        state.looked = now.max(1);
    }

    fn at(&self, now: u64) -> MutexGuard<'_, State> {
        let mut state = self.state();
        // A time that was read before the window began is no reason to begin an earlier one.
        let is_late = now < state.window.start && state.window.start - now < LATE;
        if !state.window.holds(now) && !is_late {
            let new = State::new(Window::of(self.unit, now), state.limit);
            *state = State { demand: state.demand, reported: now, ..new };
        }
        state
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `amount` if it may.
    #[cfg(test)]
    pub(super) fn take(&self, now: u64, amount: u64, authority: Authority) -> Take {
        self.at(now).take(now, amount, authority)
    }

    /// The same, and says whether more should be asked for before somebody waits for it: to the first who finds that the
    /// lease runs low, until the reply is there.
    pub(super) fn take_ahead(&self, now: u64, amount: u64, authority: Authority) -> (Take, bool) {
        let mut state = self.at(now);
        let take = state.take(now, amount, authority);
        let calls = matches!((take, authority), (Take::Done(_), Authority::Shared))
            && self.unit.is_some()
            && state.calls_for_more(now);
        (take, calls)
    }

    /// Whether a lease runs low, so that more should be asked for before somebody waits for it.
    pub(super) fn runs_low(&self, now: u64) -> bool {
        self.at(now).runs_low(now)
    }

    /// The same, but only to the first who asks, until the reply is there.
    #[cfg(test)]
    pub(super) fn calls_for_more(&self, now: u64) -> bool {
        self.at(now).calls_for_more(now)
    }

    /// Gives back what was taken in the window that started at `window`. `true` when others were refused for want of it
    /// and the courier does not know yet that something came free.
    pub(super) fn give_back(&self, window: u64, amount: u64) -> bool {
        let mut state = self.state();
        if state.window.start == window {
            state.taken = state.taken.saturating_sub(amount);
        }
        state.is_wanted && !std::mem::replace(&mut state.is_told, true)
    }

    /// Whether something is free that others wait for, after this replica's own requests had their chance.
    pub(super) fn is_free(&self) -> bool {
        let mut state = self.state();
        state.is_told = false;
        state.is_wanted && state.granted > state.taken
    }

    /// Takes what has been used already, whether or not it was left.
    pub(super) fn overdraw(&self, now: u64, amount: u64) {
        let mut state = self.at(now);
        state.taken = state.taken.saturating_add(amount);
        state.used = now;
    }

    /// The limit, what is left of it as far as is known here, and the window.
    pub(super) fn standing(&self, now: u64, authority: Authority) -> (u64, u64, Window) {
        let state = self.at(now);
        let left = match authority {
            Authority::Shared | Authority::Away(..) if state.looked > 0 => {
                (state.left + state.granted).saturating_sub(state.taken).min(state.limit)
            }
            _ => state.limit.saturating_sub(state.taken),
        };
        (state.limit, left, state.window)
    }

    /// Prepares a report. `want` is what waiting requests need, `least` the least of them. A lease that nobody uses is
    /// given back; all of it when `is_final`.
    pub(super) fn report(&self, now: u64, want: u64, least: u64, is_final: bool) -> Report {
        let mut state = self.at(now);
        state.is_told = false;
        state.asked = now.max(1);
        state.granted = state.granted.max(state.taken);
        let spare = state.granted - state.taken;
        let soon = state.demand.at(now);
        let idle = is_final || now.saturating_sub(state.used) > 2 * HORIZON || state.is_scarce(self.unit);
        let keep = match want {
            0 if idle => 0,
            0 => spare.min(soon.saturating_mul(2)),
            _ => spare,
        };
        state.granted = state.taken + keep;
        let soon = soon.saturating_add(want);
        let net = want.saturating_sub(keep);
        let extra = if is_final || idle && want == 0 { 0 } else { soon.saturating_sub(keep.saturating_sub(want)) };
        Report {
            window: state.window,
            granted: state.granted,
            want: net,
            least: least.saturating_sub(keep).min(net),
            extra,
        }
    }

    /// Takes in the reply to a report.
    pub(super) fn granted(&self, report: &Report, now: u64, reply: Reply) {
        let Reply { more, left, is_wanted } = reply;
        let mut state = self.state();
        if state.window.start != report.window.start {
            return;
        }
        state.granted = state.granted.saturating_add(more);
        (state.left, state.is_wanted) = (left, is_wanted);
        state.looked = now.max(1);
        state.reported = now;
        state.called = 0;
        state.asked = 0;
    }

    /// Takes in that Redis granted nothing, since the report was not of its window.
    pub(super) fn not_granted(&self) {
        self.state().asked = 0;
    }

    /// Whether a report is due: something idles, was overdrawn, is held and was not told for `silence` microseconds, or
    /// the reply to the last one is lost.
    pub(super) fn is_due(&self, now: u64, silence: u64) -> bool {
        let state = self.at(now);
        if state.asked > 0 && now.saturating_sub(state.asked) > LOST {
            return true;
        }
        if state.taken == 0 && state.granted == 0 {
            return false;
        }
        let spare = state.granted.saturating_sub(state.taken);
        let idle = spare > 0 && now.saturating_sub(state.used) > 2 * HORIZON;
        let surplus = spare.saturating_sub(state.demand.at(now).saturating_mul(2)) > state.limit / 50;
        let wanted = spare > 0 && state.is_scarce(self.unit);
        let silent = self.unit.is_none() && now.saturating_sub(state.reported) > silence;
        idle || surplus || wanted || silent || state.taken > state.granted
    }

    /// Whether it can be left alone until it is used again.
    pub(super) fn is_resting(&self, now: u64) -> bool {
        let state = self.at(now);
        let is_free = state.taken == 0 && state.granted == 0;
        state.asked == 0 && (is_free || (self.unit.is_some() && now.saturating_sub(state.used) > 40 * HORIZON))
    }

    /// Whether nothing is used or held in the window that `now` lies in, here or by what Redis may think.
    pub(super) fn is_idle(&self, now: u64) -> bool {
        let state = self.at(now);
        state.taken == 0 && state.granted == 0 && state.asked == 0
    }

    /// The start of the window and what was used in it.
    pub(super) fn used(&self, now: u64) -> (u64, u64) {
        let state = self.at(now);
        (state.window.start, state.taken)
    }

    /// Takes up a count from before a restart.
    pub(super) fn restore(&self, now: u64, window: u64, taken: u64) {
        let mut state = self.at(now);
        if state.window.start == window && self.unit.is_some() {
            state.taken = state.taken.saturating_add(taken);
        }
    }
}

/// How long a refusal by Redis is believed, in microseconds: of what is held, of a second, of a longer window.
const BELIEF: [u64; 3] = [10_000, 50_000, 250_000];

impl State {
    fn new(window: Window, limit: u64) -> Self {
        Self {
            window,
            limit,
            taken: 0,
            granted: 0,
            looked: 0,
            used: 0,
            left: 0,
            demand: Demand::default(),
            reported: 0,
            called: 0,
            asked: 0,
            is_wanted: false,
            is_told: false,
        }
    }

    fn take(&mut self, now: u64, amount: u64, authority: Authority) -> Take {
        if self.taken.saturating_add(amount) <= self.allowed(now, authority) {
            self.taken += amount;
            // Nobody leases anything to the only replica.
            if authority != Authority::Local {
                self.demand.add(now, amount);
                self.used = now;
            }
            return Take::Done(self.window.start);
        }
        match authority {
            Authority::Shared if amount <= self.limit && !self.is_known_short(now, amount) => Take::Short,
            _ => Take::Refused,
        }
    }

    fn calls_for_more(&mut self, now: u64) -> bool {
        let calls = self.runs_low(now) && now.saturating_sub(self.called) > HORIZON;
        if calls {
            self.called = now;
        }
        calls
    }

    /// How much may be taken in all.
    fn allowed(&self, now: u64, authority: Authority) -> u64 {
        let limit = self.limit;
        match authority {
            Authority::Local => limit,
            Authority::Shared | Authority::Away(OnOutage::Deny, ..) => self.granted.min(limit),
            // Whatever places anybody held when Redis was there are free again.
            Authority::Away(OnOutage::LocalShare, replicas, hold)
                if self.window == Window::ALWAYS && now.saturating_sub(self.looked) > hold =>
            {
                limit / replicas.max(1)
            }
            Authority::Away(OnOutage::LocalShare, replicas, _) if self.looked > 0 => {
                self.granted.saturating_add(self.left / replicas.max(1)).min(limit)
            }
            Authority::Away(OnOutage::LocalShare, replicas, _) => self.granted.max(limit / replicas.max(1)),
            Authority::Away(OnOutage::Allow, ..) => u64::MAX,
        }
    }

    /// Whether Redis said a moment ago that there is not so much.
    fn is_known_short(&self, now: u64, amount: u64) -> bool {
        let belief = match self.window.length() {
            u64::MAX => BELIEF[0],
            0..=1_000_000 => BELIEF[1],
            _ => BELIEF[2],
        };
        let spare = self.granted.saturating_sub(self.taken);
        self.looked > 0 && now.saturating_sub(self.looked) < belief && amount > spare.saturating_add(self.left)
    }

    /// Whether others may be refused for places that stay empty here.
    fn is_scarce(&self, unit: Option<Unit>) -> bool {
        unit.is_none() && (self.left == 0 || self.is_wanted)
    }

    /// Whether what is left of the lease lasts for less than half of what one should.
    fn runs_low(&self, now: u64) -> bool {
        let spare = self.granted.saturating_sub(self.taken);
        self.looked > 0 && self.left > 0 && spare < self.demand.at(now) / 2
    }
}

impl Demand {
    fn add(&mut self, now: u64, amount: u64) {
        if now.checked_sub(self.since).is_none_or(|age| age >= HORIZON) {
            *self = Self { since: now, count: 0, before: self.at(now) };
        }
        self.count = self.count.saturating_add(amount);
    }

    /// A pace that rises counts at once, one that falls when the time is over.
    fn at(&self, now: u64) -> u64 {
        match now.checked_sub(self.since) {
            Some(age) if age < HORIZON => self.count.max(self.before),
            Some(age) => (self.count as f64 * HORIZON as f64 / age as f64) as u64,
            // The clock went back.
            None => 0,
        }
    }
}
