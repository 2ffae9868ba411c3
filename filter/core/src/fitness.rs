//! What this process has seen itself of an endpoint's fitness: cool-downs and backpressure.
//!
//! Envoy's own health checks see an engine that does not answer `/health`. They do not see one that
//! answers it and fails every request, and such an engine, idle as it is, looks like the least loaded
//! of all. So failures are counted here. After `failures` in a row ([`HealthOptions`]) the endpoint is
//! left out for a cool-down, then one request probes it; the cool-down doubles while probes fail.
//! A client's own mistake (4xx) says nothing about an endpoint; 429 and 503 say that it is busy, and
//! leave it out for as long as its `Retry-After` asks. Who breaks its answers off answers at first: after
//! that only a whole answer is a success. An endpoint that has work and gives no token
//! ([`crate::pulse`]) is left out as after failures; it takes a token to be fit again.
//!
//! Every worker writes what it saw into its own column ([`crate::board`]). Merged, the latest event
//! of any worker is the state, and the strikes of all workers add up, so all workers leave a failing
//! endpoint at the same time and one of them probes it.

use crate::board::Row;

/// Longest cool-down and backpressure: nothing that one answer says holds for longer.
pub const LONGEST_US: u64 = 600_000_000;
/// Doublings after which a cool-down has any configured length.
const MOST_LEVELS: u8 = 16;
/// Mark of an encoded cause: a probe is under way.
const PROBING: u8 = 0x80;
/// Mark of an encoded cause: it broke off an answer.
const BROKE_OFF: u8 = 0x40;

/// How failures are taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HealthOptions {
    /// Failures in a row after which an endpoint cools down.
    pub failures: u16,
    /// Length of the first cool-down.
    pub cool_down_us: u64,
    /// Length of the longest.
    pub max_cool_down_us: u64,
    /// Least silence after which an endpoint with work is stalled; 0: none is.
    pub stall_us: u64,
    /// How long an endpoint that came, or came back, is brought up to its full share.
    pub slow_start_us: u64,
    /// Share of usable endpoints, in percent, below which all are used. 0: only if there is none.
    pub panic_percent: u8,
    /// Whether requests go to unfit endpoints when there is no other; else they are answered 503.
    pub last_resort: bool,
}

impl Default for HealthOptions {
    fn default() -> Self {
        HealthOptions {
            failures: 3,
            cool_down_us: 2_000_000,
            max_cool_down_us: 30_000_000,
            stall_us: 10_000_000,
            slow_start_us: 10_000_000,
            panic_percent: 0,
            last_resort: true,
        }
    }
}

/// Why an endpoint is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cause {
    /// It is not.
    #[default]
    None,
    /// It failed too often.
    Failures,
    /// It said that it is busy.
    Backpressure,
    /// It has work and gives no token.
    Stalled,
}

/// The state of one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fitness {
    /// Failures since the last success.
    strikes: u16,
    /// Cool-downs in a row.
    level: u8,
    cause: Cause,
    /// Whether a probe is under way.
    probing: bool,
    /// Whether it broke off an answer since it last gave a whole one.
    broke_off: bool,
    /// When the fields around were last set.
    event_us: u64,
    /// Until when it is left out; past, with a cause, it awaits the outcome of a probe.
    until_us: u64,
    /// When it last came back.
    recovered_us: u64,
}

impl Cause {
    /// The cause whose discriminant is `byte`; of any other number none.
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Cause::Failures,
            2 => Cause::Backpressure,
            3 => Cause::Stalled,
            _ => Cause::None,
        }
    }
}

impl Fitness {
    /// What somebody else found at `event_us`.
    pub fn told(cause: Cause, event_us: u64, until_us: u64) -> Self {
        Fitness {
            cause,
            event_us,
            until_us,
            ..Fitness::default()
        }
    }

    /// Why the endpoint is left out at `now_us`.
    pub fn cause(&self, now_us: u64) -> Cause {
        // An end further ahead than any is of a clock that was set back since.
        let left = self.until_us.saturating_sub(now_us);
        if left == 0 || left > LONGEST_US {
            return Cause::None;
        }
        self.cause
    }

    /// When the state changes by time alone.
    pub fn until_us(&self) -> u64 {
        self.until_us
    }

    /// When something last happened to it; 0 if nothing did.
    pub fn event_us(&self) -> u64 {
        self.event_us
    }

    /// When it last came back; 0 if it never went.
    pub fn recovered_us(&self) -> u64 {
        self.recovered_us
    }

    /// Whether the next request is a probe: its cool-down is over and no success was seen since.
    pub fn awaits_probe(&self, now_us: u64) -> bool {
        matches!(self.cause, Cause::Failures | Cause::Stalled) && self.cause(now_us) == Cause::None
    }

    /// Whether it gave no sign of life when it last should have, whether it is left out or not.
    pub fn is_stalled(&self) -> bool {
        self.cause == Cause::Stalled
    }

    /// Whether it is, or was until a success, left out for any cause.
    pub fn is_marked(&self) -> bool {
        self.cause != Cause::None
    }

    /// A request goes there to see whether it is fit again: no other does for a while.
    pub fn probe(&mut self, options: &HealthOptions, now_us: u64) {
        if self.probing && self.is_stalled() {
            // The one before was never answered.
            self.level = self.level.saturating_add(1).min(MOST_LEVELS);
        }
        let length_us = length_us(options, self.level);
        self.set(self.cause, now_us.saturating_add(length_us), now_us);
        self.probing = true;
    }

    /// Whether it takes a whole answer to be fit again: it begins answers that it does not end.
    pub fn broke_off(&self) -> bool {
        self.broke_off
    }

    /// It answered as an engine does.
    pub fn succeeded(&mut self, now_us: u64) {
        self.strikes = 0;
        self.broke_off = false;
        if matches!(self.cause, Cause::Failures | Cause::Stalled) {
            self.recovered_us = now_us;
        }
        self.set(Cause::None, 0, now_us);
    }

    /// It failed; `strikes` is what all workers have counted before.
    pub fn failed(&mut self, strikes: u16, options: &HealthOptions, now_us: u64) {
        self.strikes = self.strikes.saturating_add(1);
        let again = matches!(self.cause, Cause::Failures | Cause::Stalled);
        if again || strikes.saturating_add(1) >= options.failures {
            // Who gives no token fails requests, too, when Envoy gives them up.
            let cause = match self.cause {
                Cause::Stalled => Cause::Stalled,
                _ => Cause::Failures,
            };
            self.cool_down(cause, options, now_us);
        }
    }

    /// It failed with an answer that had begun; `strikes` as for [`Fitness::failed`].
    pub fn broke_off_an_answer(&mut self, strikes: u16, options: &HealthOptions, now_us: u64) {
        self.broke_off = true;
        self.failed(strikes, options, now_us);
    }

    /// Leaves it out for a cool-down.
    pub fn cool_down(&mut self, cause: Cause, options: &HealthOptions, now_us: u64) {
        let cooling = matches!(self.cause, Cause::Failures | Cause::Stalled);
        if cooling && !self.probing && self.cause(now_us) != Cause::None {
            // What was in flight when it was left out fails late: that says nothing new.
            return;
        }
        let soon = now_us.saturating_sub(self.recovered_us) < options.max_cool_down_us;
        let in_a_row = cooling || (self.recovered_us > 0 && soon);
        self.level = match in_a_row {
            true => self.level.saturating_add(1).min(MOST_LEVELS),
            false => 1,
        };
        let length_us = length_us(options, self.level);
        self.set(cause, now_us.saturating_add(length_us), now_us);
    }

    /// It said that it is busy.
    pub fn backpressure(&mut self, length_us: u64, now_us: u64) {
        if matches!(self.cause, Cause::Failures | Cause::Stalled) && self.until_us > now_us {
            return;
        }
        let until_us = now_us.saturating_add(length_us.min(LONGEST_US));
        self.set(Cause::Backpressure, until_us, now_us);
    }

    /// Takes over the state that all workers agree on, but for the strikes, which add up, and for what
    /// they are of.
    pub fn adopt(&mut self, all: &Fitness) {
        *self = Fitness {
            strikes: self.strikes,
            broke_off: self.broke_off || all.broke_off,
            ..*all
        };
    }

    /// Failures since the last success, of all workers if this is their sum.
    pub fn strikes(&self) -> u16 {
        self.strikes
    }

    fn set(&mut self, cause: Cause, until_us: u64, now_us: u64) {
        self.cause = cause;
        self.probing = false;
        self.until_us = until_us;
        // Two events within one microsecond still have an order.
        self.event_us = now_us.max(self.event_us.saturating_add(1));
    }
}

fn length_us(options: &HealthOptions, level: u8) -> u64 {
    let doublings = u32::from(level.saturating_sub(1).min(MOST_LEVELS));
    let length_us = options.cool_down_us.saturating_mul(1 << doublings);
    length_us.min(options.max_cool_down_us).min(LONGEST_US)
}

impl Row for Fitness {
    const BYTES: usize = 28;
    const KEY: &'static str = "warmpath/fitness";
    // Events are rare, and a few requests more to a failing endpoint cost a retry each.
    const READ_SPACING_US: u64 = 5_000;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.strikes.to_le_bytes());
        out.push(self.level);
        let probing = if self.probing { PROBING } else { 0 };
        let broke_off = if self.broke_off { BROKE_OFF } else { 0 };
        out.push(self.cause as u8 | probing | broke_off);
        out.extend_from_slice(&self.event_us.to_le_bytes());
        out.extend_from_slice(&self.until_us.to_le_bytes());
        out.extend_from_slice(&self.recovered_us.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut bytes = crate::codec::Bytes(bytes);
        let (strikes, level, cause) = (bytes.u16()?, bytes.u8()?, bytes.u8()?);
        Some(Fitness {
            strikes,
            level: level.min(MOST_LEVELS),
            probing: cause & PROBING != 0,
            broke_off: cause & BROKE_OFF != 0,
            cause: Cause::from_byte(cause & !(PROBING | BROKE_OFF)),
            event_us: bytes.u64()?,
            until_us: bytes.u64()?,
            recovered_us: bytes.u64()?,
        })
    }

    fn merge(&mut self, other: &Self) {
        let strikes = self.strikes.saturating_add(other.strikes);
        let recovered_us = self.recovered_us.max(other.recovered_us);
        if other.event_us > self.event_us {
            *self = *other;
        }
        self.strikes = strikes;
        self.recovered_us = recovered_us;
    }

    fn is_idle(&self, now_us: u64) -> bool {
        let forgotten = now_us.saturating_sub(self.event_us) > LONGEST_US;
        self.event_us == 0 && self.strikes == 0
            || forgotten && self.cause(now_us) == Cause::None && !self.awaits_probe(now_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn fail(fitness: &mut Fitness, now_us: u64) {
        let strikes = fitness.strikes();
        fitness.failed(strikes, &HealthOptions::default(), now_us);
    }

    #[test]
    fn failures_in_a_row_cool_it_down_and_a_probe_decides() {
        let options = HealthOptions::default();
        let mut it = Fitness::default();
        fail(&mut it, SECOND);
        fail(&mut it, SECOND);
        assert_eq!(it.cause(SECOND), Cause::None);
        it.succeeded(SECOND);
        fail(&mut it, SECOND);
        fail(&mut it, SECOND);
        assert_eq!(it.cause(SECOND), Cause::None, "a success in between");
        fail(&mut it, SECOND);
        assert_eq!(it.cause(3 * SECOND - 1), Cause::Failures);
        assert!(it.awaits_probe(3 * SECOND));
        it.probe(&options, 3 * SECOND);
        assert_eq!(
            it.cause(3 * SECOND + 1),
            Cause::Failures,
            "one probe at a time"
        );
        fail(&mut it, 3 * SECOND + 1);
        assert_eq!(it.until_us(), 7 * SECOND + 1, "twice as long");
        fail(&mut it, 3 * SECOND + 2);
        assert_eq!(
            it.until_us(),
            7 * SECOND + 1,
            "what was under way says nothing new"
        );
        it.probe(&options, 8 * SECOND);
        it.succeeded(8 * SECOND + 1);
        assert_eq!(it.cause(8 * SECOND + 2), Cause::None);
        assert_eq!(it.recovered_us(), 8 * SECOND + 1);
        assert!(!it.is_marked());
    }

    #[test]
    fn cool_downs_grow_while_probes_fail_and_have_a_bound() {
        let options = HealthOptions::default();
        let mut it = Fitness::default();
        let mut now_us = SECOND;
        let mut lengths = Vec::new();
        it.cool_down(Cause::Failures, &options, now_us);
        for _ in 0..30 {
            lengths.push(it.until_us() - now_us);
            now_us = it.until_us();
            fail(&mut it, now_us);
        }
        assert_eq!(
            lengths.iter().take(5).copied().collect::<Vec<_>>(),
            [2, 4, 8, 16, 30].map(|s| s * SECOND)
        );
        assert_eq!(lengths.last(), Some(&(30 * SECOND)));
    }

    #[test]
    fn backpressure_ends_by_itself() {
        let mut it = Fitness::default();
        it.backpressure(5 * SECOND, SECOND);
        assert_eq!(it.cause(6 * SECOND - 1), Cause::Backpressure);
        assert_eq!(it.cause(6 * SECOND), Cause::None);
        assert!(!it.awaits_probe(6 * SECOND));
        it.backpressure(u64::MAX, SECOND);
        assert_eq!(it.until_us(), SECOND + LONGEST_US);
    }

    #[test]
    fn the_latest_event_of_any_worker_holds_and_strikes_add_up() {
        let options = HealthOptions::default();
        let (mut mine, mut theirs) = (Fitness::default(), Fitness::default());
        fail(&mut mine, SECOND);
        fail(&mut theirs, SECOND + 1);
        let mut sum = mine;
        sum.merge(&theirs);
        assert_eq!(sum.strikes(), 2);
        theirs.failed(sum.strikes(), &options, SECOND + 2);
        mine.merge(&theirs);
        assert_eq!(mine.cause(SECOND + 3), Cause::Failures);
        let mut bytes = Vec::new();
        mine.encode(&mut bytes);
        assert_eq!(
            (bytes.len(), Fitness::decode(&bytes)),
            (Fitness::BYTES, Some(mine))
        );
    }

    #[test]
    fn a_clock_set_back_leaves_nobody_out_for_ever() {
        let mut it = Fitness::default();
        it.cool_down(Cause::Failures, &HealthOptions::default(), 10 * LONGEST_US);
        assert_eq!(it.cause(SECOND), Cause::None);
    }
}
