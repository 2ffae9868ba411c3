//! When to ask whom: the timetable of periodic calls.
//!
//! Every engine has its own minute hand: its calls fall on multiples of the interval, shifted by a
//! hash of its address, so the calls of a fleet spread over the interval and stay where they are. One
//! call at most is under way to each; a slow engine misses its own turns and delays nobody's.

use crate::hash;
use crate::sorted::Sorted;
use std::net::SocketAddr;

/// Models change rarely; they are asked for with every so many scrapes.
const MODELS_EVERY: u64 = 10;
/// So does what is written about endpoints; it is asked for with every so many lists of them.
const METADATA_EVERY: u64 = 10;
/// A call of which nothing is heard for this many times its timeout is lost.
const LOST_AFTER: u64 = 3;

/// A call to make.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// Envoy's list of endpoints.
    Endpoints,
    /// What is written about them in the configuration of their clusters.
    Metadata,
    /// An engine's metrics page.
    Metrics(SocketAddr),
    /// The models an engine serves.
    Models(SocketAddr),
    /// The other Envoys, through their store.
    Peers,
}

/// The turns of one target.
#[derive(Clone, Copy, Debug, Default)]
struct Turns {
    /// Turns are at this time plus multiples of the interval, in ms.
    phase_ms: u64,
    /// Number of the last turn taken.
    last: u64,
    /// When the call under way was made.
    since_ms: Option<u64>,
}

impl Turns {
    fn new(phase_ms: u64) -> Self {
        Turns {
            phase_ms,
            ..Turns::default()
        }
    }

    /// The number of the turn that is due, counted from the epoch, and marks it as taken.
    fn take(&mut self, interval_ms: u64, timeout_ms: u64, now_ms: u64) -> Option<u64> {
        let interval_ms = interval_ms.max(1);
        let turn = now_ms.saturating_sub(self.phase_ms) / interval_ms;
        let lost = |since_ms: u64| {
            let age = now_ms.checked_sub(since_ms);
            age.is_none_or(|age| age > timeout_ms.saturating_mul(LOST_AFTER))
        };
        // A clock that was set back makes another turn, too.
        if turn == self.last || self.since_ms.is_some_and(|since_ms| !lost(since_ms)) {
            return None;
        }
        self.last = turn;
        self.since_ms = Some(now_ms);
        Some(turn)
    }
}

/// The timetable of one VM.
#[derive(Debug, Default)]
pub struct Timetable {
    endpoints: Turns,
    metadata: Turns,
    /// Whether the metadata is asked for without waiting for its turn.
    wants_metadata: bool,
    engines: Sorted<SocketAddr, (Turns, bool)>,
}

impl Timetable {
    /// Takes over whom to scrape.
    pub fn set_engines(&mut self, addresses: impl Iterator<Item = SocketAddr>, interval_ms: u64) {
        let mut before = std::mem::take(&mut self.engines);
        for address in addresses {
            let known = before.get_mut(&address).map(std::mem::take);
            let turns = known.unwrap_or_else(|| {
                let phase = hash::hash(address.to_string().as_bytes()) % interval_ms.max(1);
                (Turns::new(phase), true)
            });
            self.engines.insert(address, turns);
        }
    }

    /// Whether Envoy is to be asked now.
    pub fn endpoints_due(&mut self, interval_ms: u64, timeout_ms: u64, now_ms: u64) -> bool {
        let turn = self.endpoints.take(interval_ms, timeout_ms, now_ms);
        turn.is_some()
    }

    /// Endpoints came of which nothing is known: their metadata is due now.
    pub fn want_metadata(&mut self) {
        self.wants_metadata = true;
    }

    /// Whether the metadata of the endpoints is to be asked for now; the interval is that of their list.
    pub fn metadata_due(&mut self, interval_ms: u64, timeout_ms: u64, now_ms: u64) -> bool {
        if std::mem::take(&mut self.wants_metadata) {
            // As if no turn had been taken: 0 is past.
            self.metadata.last = 0;
        }
        let interval_ms = interval_ms.saturating_mul(METADATA_EVERY);
        let turn = self.metadata.take(interval_ms, timeout_ms, now_ms);
        turn.is_some()
    }

    /// The engines to scrape now, and for each whether its models are due as well: at first, and
    /// every so often.
    pub fn engines_due(
        &mut self,
        interval_ms: u64,
        timeout_ms: u64,
        now_ms: u64,
    ) -> Vec<(SocketAddr, bool)> {
        let mut due = Vec::new();
        for (address, (turns, is_new)) in self.engines.iter_mut() {
            if let Some(turn) = turns.take(interval_ms, timeout_ms, now_ms) {
                due.push((*address, *is_new || turn % MODELS_EVERY == 0));
                *is_new = false;
            }
        }
        due
    }

    /// A call has ended, however it did.
    pub fn ended(&mut self, call: &Call) {
        match call {
            Call::Endpoints => self.endpoints.since_ms = None,
            Call::Metadata => self.metadata.since_ms = None,
            Call::Metrics(address) => {
                if let Some((turns, _)) = self.engines.get_mut(address) {
                    turns.since_ms = None;
                }
            }
            Call::Models(_) | Call::Peers => {}
        }
    }

    /// Forgets the calls under way: this VM has lost the lease.
    pub fn abandon(&mut self) {
        self.endpoints.since_ms = None;
        self.metadata.since_ms = None;
        self.engines
            .values_mut()
            .for_each(|(turns, _)| turns.since_ms = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    #[test]
    fn each_engine_has_one_turn_an_interval_spread_over_it() {
        let mut table = Timetable::default();
        table.set_engines((1..=100).map(address), 1000);
        let mut calls = BTreeMap::new();
        let mut busiest = 0;
        for now_ms in (5_000..25_000).step_by(100) {
            let due = table.engines_due(1000, 500, now_ms);
            busiest = busiest.max(if now_ms >= 6000 { due.len() } else { 0 });
            for (address, _) in due {
                *calls.entry(address).or_insert(0) += 1;
                table.ended(&Call::Metrics(address));
            }
        }
        assert_eq!(calls.len(), 100);
        assert!(
            calls.values().all(|count| (20..=21).contains(count)),
            "{calls:?}"
        );
        assert!(busiest < 25, "{busiest} of 100 in a tenth of the interval");
    }

    #[test]
    fn a_slow_engine_misses_turns_and_a_lost_call_is_given_up() {
        let mut table = Timetable::default();
        table.set_engines([address(1), address(2)].into_iter(), 100);
        assert_eq!(table.engines_due(100, 500, 1000).len(), 2);
        table.ended(&Call::Metrics(address(2)));
        let due = table.engines_due(100, 500, 1100);
        assert_eq!(
            due.iter().map(|(it, _)| *it).collect::<Vec<_>>(),
            [address(2)]
        );
        table.ended(&Call::Metrics(address(2)));
        assert_eq!(table.engines_due(100, 500, 2600).len(), 2);
    }

    #[test]
    fn models_are_asked_for_at_first_and_then_rarely() {
        let mut table = Timetable::default();
        table.set_engines([address(1)].into_iter(), 1000);
        let mut asked = 0;
        for second in 100..150 {
            for (_, models) in table.engines_due(1000, 500, second * 1000) {
                asked += u32::from(models);
                table.ended(&Call::Metrics(address(1)));
            }
        }
        assert!((5..=6).contains(&asked), "{asked}");
    }

    #[test]
    fn metadata_is_asked_for_at_first_rarely_and_when_it_is_wanted() {
        let mut table = Timetable::default();
        let mut asked = Vec::new();
        for second in 1000..1040 {
            if second == 1013 {
                table.want_metadata();
            }
            if table.metadata_due(1000, 500, second * 1000) {
                asked.push(second);
                table.ended(&Call::Metadata);
            }
        }
        assert_eq!(asked, [1000, 1010, 1013, 1020, 1030]);
        assert!(table.metadata_due(1000, 500, 1_040_000));
        table.want_metadata();
        let again = table.metadata_due(1000, 500, 1_041_000);
        assert!(!again, "one is under way");
    }

    #[test]
    fn who_stays_keeps_its_turn() {
        let mut table = Timetable::default();
        table.set_engines([address(1)].into_iter(), 1000);
        assert_eq!(table.engines_due(1000, 500, 50_000).len(), 1);
        table.set_engines([address(1), address(2)].into_iter(), 1000);
        let due = table.engines_due(1000, 500, 50_001);
        assert_eq!(
            due.iter().map(|(it, _)| *it).collect::<Vec<_>>(),
            [address(2)]
        );
    }
}
