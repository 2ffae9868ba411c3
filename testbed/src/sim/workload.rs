//! A trace made ready to run: blocks merged, copies added, conversations linked.
//!
//! Requests either arrive at a time of their own (open loop, and the first turn of a closed-loop
//! conversation) or a delay after another one completed. Only the former are scaled with load.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{bail, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::request::SimRequest;
use crate::trace::format::Record;

/// A block id has this many bits; the copy's number stands above them.
const ID_BITS: u32 = 48;
/// Open-loop copies are shifted against each other within this, so that bursts do not add up.
const COPY_SHIFT_US: u64 = 60_000_000;

/// Requests and when they are sent.
#[derive(Debug, Clone)]
pub struct Workload {
    /// All requests; `id` is the position.
    pub requests: Vec<SimRequest>,
    /// Requests with an arrival time of their own, in order: time in microseconds, position.
    pub arrivals: Vec<(u64, usize)>,
    /// For each request the one that follows its completion: position, delay in microseconds.
    pub follow: Vec<Option<(usize, u64)>>,
    /// Tokens in a block.
    pub block_tokens: u32,
}

impl Workload {
    /// Prepares `records` at blocks of `block_tokens` (a multiple of the trace's), `copies` times.
    ///
    /// # Errors
    /// Empty trace, blocks that do not divide, or block sizes that differ within the trace.
    pub fn new(
        records: &[Record],
        block_tokens: Option<u32>,
        copies: u32,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let Some(native) = records.first().map(|record| record.block_tokens.max(1)) else {
            bail!("the trace is empty");
        };
        let block_tokens = block_tokens.unwrap_or(native);
        ensure!(
            block_tokens >= native && block_tokens.is_multiple_of(native),
            "--block-tokens: got {block_tokens}, want a multiple of the trace's {native}"
        );
        ensure!(
            records.iter().all(|record| record.block_tokens == native),
            "the trace mixes block sizes"
        );
        let mut workload = Self {
            requests: Vec::with_capacity(records.len() * copies as usize),
            arrivals: Vec::new(),
            follow: Vec::new(),
            block_tokens,
        };
        let mut rng = SmallRng::seed_from_u64(seed);
        for copy in 0..u64::from(copies.max(1)) {
            let start_us = start_times(records, copy, u64::from(copies.max(1)), &mut rng);
            workload.add_copy(records, copy, block_tokens / native, &start_us);
        }
        workload.arrivals.sort_unstable();
        workload.set_keys(seed);
        Ok(workload)
    }

    /// Requests with a time of their own (whole conversations, in a closed loop) per second.
    pub fn rate_per_s(&self) -> f64 {
        match (self.arrivals.first(), self.arrivals.last()) {
            (Some(first), Some(last)) if last.0 > first.0 => {
                self.arrivals.len() as f64 / ((last.0 - first.0) as f64 / 1e6)
            }
            _ => 1.0,
        }
    }

    /// How many requests, of those sent first, do not count: a tenth.
    pub fn warm_up(&self) -> usize {
        self.requests.len() / 10
    }

    /// Whether conversations wait for their own answers.
    pub fn is_closed_loop(&self) -> bool {
        self.arrivals.len() < self.requests.len()
    }

    /// Appends one copy of the trace.
    fn add_copy(&mut self, records: &[Record], copy: u64, merge: u32, start_us: &[u64]) {
        let mut last_turn: HashMap<u64, usize> = HashMap::new();
        for (record, &start_us) in records.iter().zip(start_us) {
            let at = self.requests.len();
            let session = record.session.map(|session| session | copy << ID_BITS);
            let blocks: Arc<[u64]> = merged(&record.hash_ids, merge as usize)
                .map(|id| id | copy << ID_BITS)
                .collect();
            self.requests.push(SimRequest {
                id: at as u64,
                session,
                key: 0,
                blocks,
                block_tokens: self.block_tokens,
                prompt_tokens: record.input_tokens.max(1),
                output_tokens: record.output_tokens.max(1),
            });
            self.follow.push(None);
            let previous = session.and_then(|session| last_turn.insert(session, at));
            match (
                record.delay_ms,
                previous.and_then(|p| self.follow.get_mut(p)),
            ) {
                (Some(delay_ms), Some(slot)) => *slot = Some((at, delay_ms * 1000)),
                _ => self.arrivals.push((start_us, at)),
            }
        }
    }

    /// Sets every request's key; see [`SimRequest::key`]. Its hash depends on the seed, since where
    /// a few hundred keys fall decides how well placement by key does.
    fn set_keys(&mut self, seed: u64) {
        let mut sharers: HashMap<u64, usize> = HashMap::new();
        for id in self.requests.iter().flat_map(|r| r.blocks.iter()) {
            *sharers.entry(*id).or_insert(0) += 1;
        }
        let common = self.requests.len().div_ceil(100).max(2);
        for request in &mut self.requests {
            let rare = |id: &&u64| sharers.get(*id).is_none_or(|n| *n < common);
            let named = request
                .session
                .or_else(|| request.blocks.iter().find(rare).copied())
                .or_else(|| request.blocks.last().copied())
                .unwrap_or(request.id);
            request.key = xxh3_64_with_seed(&named.to_le_bytes(), seed);
        }
    }
}

/// Ids of blocks `merge` times as long. The last id of a group names it, since ids are chained.
fn merged(ids: &[u64], merge: usize) -> impl Iterator<Item = u64> + '_ {
    ids.chunks(merge.max(1))
        .filter_map(|group| group.last().copied())
}

/// Arrival time of each record in this copy. Every arrival is moved by up to one mean gap, which
/// makes runs with different seeds different samples of the same load. In further copies open-loop
/// arrivals are shifted, and each conversation takes the start of another one.
fn start_times(records: &[Record], copy: u64, copies: u64, rng: &mut SmallRng) -> Vec<u64> {
    let is_first = |record: &&Record| record.delay_ms.is_none();
    let mut starts: Vec<u64> = records
        .iter()
        .filter(is_first)
        .map(|record| record.t_ms * 1000)
        .collect();
    let gap_us = starts.iter().max().copied().unwrap_or(0) / starts.len().max(1) as u64;
    let shift_us = if starts.len() == records.len() {
        COPY_SHIFT_US * copy / copies
    } else {
        let turn = starts.len() as u64 * copy / copies;
        starts.rotate_left(turn as usize);
        0
    };
    let mut starts = starts.into_iter();
    records
        .iter()
        .map(|record| match record.delay_ms {
            Some(_) => record.t_ms * 1000,
            None => starts.next().unwrap_or(0) + shift_us + rng.random_range(0..=gap_us),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(t_ms: u64, session: Option<u64>, ids: &[u64], delay_ms: Option<u64>) -> Record {
        Record {
            t_ms,
            session,
            hash_ids: ids.to_vec(),
            block_tokens: 64,
            input_tokens: ids.len() as u32 * 64,
            output_tokens: 1,
            delay_ms,
        }
    }

    #[test]
    fn blocks_merge_into_longer_ones_named_by_their_last() {
        let records = [record(0, None, &[1, 2, 3, 4, 5], None)];
        let workload = Workload::new(&records, Some(128), 1, 1).unwrap();
        assert_eq!(*workload.requests[0].blocks, [2, 4, 5]);
        assert!(Workload::new(&records, Some(96), 1, 1).is_err());
        assert!(Workload::new(&[], None, 1, 1).is_err());
    }

    #[test]
    fn turns_follow_each_other_and_copies_are_apart() {
        let records = [
            record(5, Some(1), &[1], None),
            record(6, Some(2), &[9], None),
            record(9, Some(1), &[1, 2], Some(30)),
        ];
        let workload = Workload::new(&records, None, 2, 1).unwrap();
        assert_eq!(workload.follow[0], Some((2, 30_000)));
        assert_eq!(workload.follow[3], Some((5, 30_000)));
        assert_eq!(workload.arrivals.len(), 4);
        assert!(workload.is_closed_loop());
        assert_ne!(workload.requests[0].blocks, workload.requests[3].blocks);
        assert_ne!(workload.requests[0].key, workload.requests[3].key);
    }

    #[test]
    fn seeds_move_arrivals_by_less_than_a_gap() {
        let records: Vec<Record> = (0..100).map(|n| record(n * 10, None, &[n], None)).collect();
        let arrivals = |seed| Workload::new(&records, None, 1, seed).unwrap().arrivals;
        assert_eq!(arrivals(1), arrivals(1));
        assert_ne!(arrivals(1), arrivals(2));
        for (at_us, n) in arrivals(3) {
            assert!((n as u64 * 10_000..=n as u64 * 10_000 + 10_000).contains(&at_us));
        }
    }

    #[test]
    fn the_key_is_the_session_or_else_the_first_rare_block() {
        let mut records: Vec<Record> = (0..10)
            .map(|n| record(n, None, &[7, 100 + n], None))
            .collect();
        records.push(record(11, Some(3), &[7, 5], None));
        let workload = Workload::new(&records, None, 1, 1).unwrap();
        let key = |name: u64| xxh3_64_with_seed(&name.to_le_bytes(), 1);
        assert_eq!(workload.requests[4].key, key(104));
        assert_eq!(workload.requests[10].key, key(3));
    }
}
