//! Adding up the series of a page: per figure, per data-parallel rank, and all together.
//!
//! All is kept in whole numbers, so the order of the lines never matters: ratios are fixed-point, and
//! sums stop at the greatest number.

use super::names::Figure;
use super::series::{LabelText, MAX_COUNT, Series};
use super::{Figures, Rank};
use crate::order;

/// Most data-parallel ranks that are told apart: one more than an engine may have to be sent requests
/// by rank, so that no larger one is taken for it.
pub const MAX_RANKS: usize = crate::address::MAX_RANKS as usize + 1;

/// The ratio 1: finer than a single float, with room for the sum of 16 million series.
const ONE: u64 = 1 << 40;
/// Rounding may lift a ratio a little above 1; what is beyond this is no ratio.
const MAX_RATIO: f64 = 1.01;

/// The series of one figure that count: those with the lowest order.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// Level of the name, then shard.
    order: u64,
    series: u64,
    sum: u64,
    max: u64,
}

impl Tally {
    fn add(&mut self, order: u64, value: u64) {
        if self.series == 0 || order < self.order {
            *self = Self {
                order,
                ..Self::default()
            };
        }
        if order == self.order {
            self.series += 1;
            self.sum = self.sum.saturating_add(value);
            self.max = self.max.max(value);
        }
    }

    fn level(&self) -> Option<u64> {
        (self.series > 0).then_some(self.order >> 32)
    }

    /// Of two tallies of one figure, the sum, or the one whose level is lower.
    fn merge(self, other: Self) -> Self {
        match (self.level(), other.level()) {
            (_, None) => self,
            (None, _) => other,
            (Some(mine), Some(theirs)) if mine < theirs => self,
            (Some(mine), Some(theirs)) if mine > theirs => other,
            _ => Self {
                order: self.order.min(other.order),
                series: self.series + other.series,
                sum: self.sum.saturating_add(other.sum),
                max: self.max.max(other.max),
            },
        }
    }
}

/// The figures of one rank, or of all series without one.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    rank: Option<u32>,
    tallies: [Tally; Figure::COUNT],
    is_sleeping: bool,
    is_awake: bool,
}

impl Slot {
    fn get(&self, figure: Figure) -> Tally {
        self.tallies
            .get(figure as usize)
            .copied()
            .unwrap_or_default()
    }

    fn merge(mut self, other: &Self) -> Self {
        for (mine, theirs) in self.tallies.iter_mut().zip(other.tallies) {
            *mine = mine.merge(theirs);
        }
        self.is_sleeping |= other.is_sleeping;
        self.is_awake |= other.is_awake;
        self
    }

    fn sum(&self, figure: Figure) -> Option<u64> {
        let tally = self.get(figure);
        (tally.series > 0).then_some(tally.sum)
    }

    fn max(&self, figure: Figure) -> Option<u64> {
        let tally = self.get(figure);
        (tally.series > 0).then_some(tally.max)
    }

    fn requests(&self, figure: Figure) -> Option<u32> {
        let sum = self.sum(figure)?;
        Some(u32::try_from(sum).unwrap_or(u32::MAX))
    }

    fn mean(&self, figure: Figure) -> Option<f32> {
        let tally = self.get(figure);
        let mean = tally.sum as f64 / tally.series as f64 / ONE as f64;
        (tally.series > 0).then_some(mean as f32)
    }

    /// Capacity by blocks: blocks of several models are added, their size is the greatest of all.
    fn blocks(&self) -> Option<u64> {
        let tokens = self.max(Figure::BlockTokens)?;
        Some(self.sum(Figure::Blocks)?.saturating_mul(tokens))
    }

    /// `capacity` is that of the whole engine or of this rank.
    fn figures(&self, capacity: Option<u64>) -> Figures {
        let hits = self.sum(Figure::PrefixHits);
        // Without the hits, what was computed does not tell what was asked.
        let asked = || Some(self.sum(Figure::PrefixMisses)?.saturating_add(hits?));
        Figures {
            running: self.requests(Figure::Running),
            waiting: self.requests(Figure::Waiting),
            kv_usage: self.mean(Figure::KvUsage),
            prefix_queries_tokens: self.sum(Figure::PrefixQueries).or_else(asked),
            prefix_hits_tokens: hits,
            prefix_hit_rate: self.mean(Figure::HitRate),
            kv_capacity_tokens: capacity,
            finished: self.sum(Figure::Finished),
            generated_tokens: self.sum(Figure::Generated),
            is_sleeping: (self.is_sleeping || self.is_awake).then_some(self.is_sleeping),
        }
    }
}

/// All figures of a page.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    /// In the order of their first series.
    ranks: Vec<Slot>,
    rest: Slot,
}

impl Tallies {
    /// Counts a value of a series, unless it is absurd.
    pub(super) fn add(&mut self, series: &Series<'_>, figure: Figure, level: u8, value: f64) {
        let value = if figure.is_ratio() {
            if value > MAX_RATIO {
                return;
            }
            (value.min(1.0) * ONE as f64).round() as u64
        } else {
            let most = match figure {
                Figure::Running | Figure::Waiting => u64::from(u32::MAX),
                _ => MAX_COUNT,
            };
            if value > most as f64 {
                return;
            }
            value as u64
        };
        let slot = self.slot(series);
        // Ranks that are not told apart must not be taken for shards of each other.
        let is_own = slot.rank == series.labels.rank;
        let shard = if is_own { series.labels.shard } else { 0 };
        let order = (u64::from(level) << 32) | u64::from(shard);
        if let Some(tally) = slot.tallies.get_mut(figure as usize) {
            tally.add(order, value);
        }
    }

    /// Counts a series of the sleep state: of the states, the present one is 1 and the others are 0.
    pub(super) fn sleep(&mut self, series: &Series<'_>) {
        let is_awake_state = match series.labels.get(LabelText::SleepState) {
            b"awake" => true,
            b"weights_offloaded" | b"discard_all" => false,
            _ => return,
        };
        let slot = self.slot(series);
        if series.value == 1.0 {
            slot.is_awake |= is_awake_state;
            slot.is_sleeping |= !is_awake_state;
        } else if series.value == 0.0 && is_awake_state {
            slot.is_sleeping = true;
        }
    }

    fn slot(&mut self, series: &Series<'_>) -> &mut Slot {
        let Some(rank) = series.labels.rank else {
            return &mut self.rest;
        };
        let at = match self.ranks.iter().position(|slot| slot.rank == Some(rank)) {
            Some(at) => at,
            None if self.ranks.len() < MAX_RANKS => {
                self.ranks.push(Slot {
                    rank: Some(rank),
                    ..Slot::default()
                });
                self.ranks.len() - 1
            }
            None => return &mut self.rest,
        };
        self.ranks.get_mut(at).unwrap_or(&mut self.rest)
    }

    /// The whole engine and its ranks by number.
    pub(super) fn finish(mut self) -> (Figures, Vec<Rank>) {
        order::sort(&mut self.ranks, |one, other| one.rank.cmp(&other.rank));
        let all = self.ranks.iter().fold(self.rest, Slot::merge);
        let slots = || self.ranks.iter().chain([&self.rest]);
        let blocks = slots().filter_map(Slot::blocks).reduce(u64::saturating_add);
        let shared = all.max(Figure::SharedCapacity);
        let sharers = slots().filter_map(|slot| slot.max(Figure::SharedCapacity));
        let share = shared.zip(u64::try_from(sharers.count()).ok());
        let share = share.and_then(|(shared, sharers)| shared.checked_div(sharers));
        let capacity = all.sum(Figure::Capacity).or(blocks).or(shared);
        let ranks = self.ranks.iter().map(|slot| {
            let has_share = slot.max(Figure::SharedCapacity).is_some();
            let capacity = slot.sum(Figure::Capacity).or(slot.blocks());
            Rank {
                number: slot.rank.unwrap_or_default(),
                figures: slot.figures(capacity.or(share.filter(|_| has_share))),
            }
        });
        let ranks = ranks.collect();
        (all.figures(capacity), ranks)
    }
}
