//! How much prefill work the other Envoys may have sent that nobody here knows of yet.
//!
//! A batch tells of what its sender has in flight. By how much that grows from one batch to the next is
//! about the work it has sent meanwhile: less, by what was computed in so short a time. From the rate of
//! it, over some seconds, follows what is on its way to us: as much as comes in the time that news take.

use super::batch::EngineLoad;
use crate::sorted::Sorted;

/// The time over which the rate is taken.
const SPAN_US: u64 = 5_000_000;

/// Work that was told lately, by position of the engine.
#[derive(Debug, Default)]
pub(super) struct Unseen {
    /// Fading sums, in tokens.
    tokens: Vec<f64>,
    faded_us: u64,
}

impl Unseen {
    /// Starts with so many positions and nothing told.
    pub(super) fn new(positions: usize) -> Self {
        Unseen {
            tokens: vec![0.0; positions],
            faded_us: 0,
        }
    }

    /// Work was told.
    pub(super) fn add(&mut self, position: usize, tokens: u64) {
        if let Some(sum) = self.tokens.get_mut(position) {
            *sum += tokens as f64;
        }
    }

    /// Lets the past count less. A clock that was set back changes nothing.
    pub(super) fn fade(&mut self, now_us: u64) {
        let age_us = now_us.saturating_sub(self.faded_us).min(SPAN_US);
        self.faded_us = now_us;
        let rest = 1.0 - age_us as f64 / SPAN_US as f64;
        self.tokens.iter_mut().for_each(|sum| *sum *= rest);
    }

    /// What comes in this time, in tokens by position; positions without any are left out.
    pub(super) fn within(&self, time_us: u64) -> impl Iterator<Item = (usize, u32)> {
        let share = time_us as f64 / SPAN_US as f64;
        let all = self.tokens.iter().enumerate();
        // The cast ends at the bound.
        let all = all.map(move |(position, sum)| (position, (sum * share) as u32));
        all.filter(|(_, tokens)| *tokens > 0)
    }
}

/// By how much work the load of each engine has grown, in tokens.
pub(super) fn growth<'a>(
    before: &'a Sorted<u64, EngineLoad>,
    after: &'a [(u64, EngineLoad)],
) -> impl Iterator<Item = (u64, u64)> {
    after.iter().filter_map(|(engine, load)| {
        let before = before.get(engine).map_or(0, |load| load.prefill_tokens);
        let grown = load.prefill_tokens.saturating_sub(before);
        (grown > 0).then_some((*engine, grown))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn load(prefill_tokens: u64) -> EngineLoad {
        EngineLoad {
            prefill_tokens,
            ..EngineLoad::default()
        }
    }

    #[test]
    fn a_steady_rate_is_found() {
        let mut unseen = Unseen::new(2);
        for tick in 0..1000 {
            unseen.fade(tick * SECOND / 10);
            unseen.add(1, 500);
        }
        let within: Vec<_> = unseen.within(SECOND / 5).collect();
        let [(1, tokens)] = within[..] else {
            panic!("{within:?}");
        };
        assert!((950..=1050).contains(&tokens), "{tokens}");
    }

    #[test]
    fn what_is_long_ago_is_nothing() {
        let mut unseen = Unseen::new(1);
        unseen.fade(SECOND);
        unseen.add(0, u64::MAX);
        assert_eq!(unseen.within(u64::MAX).collect::<Vec<_>>(), [(0, u32::MAX)]);
        unseen.fade(0);
        unseen.add(7, 1);
        assert_eq!(unseen.within(SECOND).count(), 1);
        unseen.fade(2 * SPAN_US);
        assert_eq!(unseen.within(SECOND).count(), 0);
    }

    #[test]
    fn only_growth_counts() {
        let before = vec![(1, load(100)), (2, load(50))].into();
        let after = [(1, load(130)), (2, load(20)), (3, load(7))];
        let grown: Vec<_> = growth(&before, &after).collect();
        assert_eq!(grown, [(1, 30), (3, 7)]);
    }
}
