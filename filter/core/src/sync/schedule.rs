//! When to make which call: the others are told once in an interval and read twice, and not so often
//! while the store fails. O(1).

use super::Sync;

/// What is new waits for a tick: a small part of an interval.
const TICKS_PER_INTERVAL: u64 = 4;
const SHORTEST_TICK_MS: u64 = 25;
const LONGEST_TICK_MS: u64 = 500;
/// Longest pause after calls that failed.
pub(super) const MAX_PAUSE_MS: u64 = 1000;

/// How often workers look whether there is something to tell or to read, in ms.
pub fn tick_ms(interval_ms: u64) -> u64 {
    (interval_ms / TICKS_PER_INTERVAL).clamp(SHORTEST_TICK_MS, LONGEST_TICK_MS)
}

/// What a call is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// To read what the others told.
    Read,
    /// And to tell them.
    Tell,
}

impl Sync {
    /// A call is made.
    pub fn called(&mut self, now_us: u64) {
        let pause_ms = self.options.interval_ms / 2;
        self.next_ms = (now_us / 1000).saturating_add(pause_ms);
    }

    /// What to do now, if anything: to tell an interval after the last time; and to read half an interval after
    /// the last call. What is read late is decided on wrongly, and nothing is cheaper than to read.
    pub fn due(&self, now_us: u64) -> Option<Due> {
        let (now_ms, interval_ms) = (now_us / 1000, self.options.interval_ms);
        // A clock that was set back does not end the calls.
        let far_ms = now_ms.saturating_add(interval_ms.max(MAX_PAUSE_MS));
        let is_over = |end_ms: u64| now_ms >= end_ms || end_ms > far_ms;
        let is_past = |time_ms: u64| is_over(time_ms.saturating_add(interval_ms));
        let early = self.placed && self.failures == 0 && self.before.is_none();
        let early = early && is_past(self.told_ms);
        match is_over(self.next_ms) {
            true if early || is_past(self.spoken_ms) => Some(Due::Tell),
            true => Some(Due::Read),
            false => early.then_some(Due::Tell),
        }
    }
}
