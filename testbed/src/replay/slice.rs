//! A part of a trace, ready to be sent: the simulator's own [`Workload`] of some of its records.
//!
//! Closed-loop conversations are taken whole, in order of their starts: were they cut, all that are
//! under way would begin at once and cold, which no load of the trace ever does to a fleet. Time is
//! stretched as for the whole trace.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, ensure};

use crate::sim::rates::Calibration;
use crate::sim::workload::Workload;
use crate::trace::format::{self, Record};

/// How densely requests come.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// In percent of the rate that is 100 %.
    pub percent: f64,
    /// That rate per second; absent: as calibrated.
    pub rate_per_s: Option<f64>,
    /// Engines in the pool.
    pub engines: usize,
    /// KV capacity of each.
    pub kv_tokens: u64,
}

/// Requests and when they are sent.
#[derive(Debug)]
pub struct Slice {
    /// The requests.
    pub workload: Workload,
    /// Arrival times are multiplied by this.
    pub time_scale: f64,
}

impl Slice {
    /// Cuts `requests` records out of a trace, after the first `skip`; in a closed loop as many
    /// whole conversations as have these many, or a few more.
    ///
    /// # Errors
    /// The trace cannot be read or ends before, or its rate is not known.
    pub fn cut(
        trace: &Path,
        skip: usize,
        requests: usize,
        load: &Load,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let known = Calibration::find(trace, load.kv_tokens);
        Self::of(&format::read(trace)?, known, skip, requests, load, seed)
    }

    /// The same of records that were read; `known` is their calibration.
    pub fn of(
        records: &[Record],
        known: Option<&Calibration>,
        skip: usize,
        requests: usize,
        load: &Load,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let calibrated = known.map(|line| line.rate_per_s(load.engines));
        let full_per_s = load
            .rate_per_s
            .or(calibrated)
            .context("no calibrated rate for this trace and KV size: give --rate")?;
        let rate_per_s = full_per_s * load.percent / 100.0;
        ensure!(rate_per_s > 0.0, "--load and --rate must be more than 0");
        ensure!(
            requests > 0 && skip + requests <= records.len(),
            "--skip and --requests: the trace has {} requests",
            records.len()
        );
        let wanted = if records.iter().any(|record| record.delay_ms.is_some()) {
            conversations(records, skip, requests)
        } else {
            records.iter().skip(skip).take(requests).cloned().collect()
        };
        let block_tokens = known.map(|line| line.block_tokens);
        let copies = known.map_or(1, |line| line.copies);
        let whole = Workload::new(records, block_tokens, copies, seed)?;
        Ok(Self {
            workload: Workload::new(&wanted, block_tokens, copies, seed)?,
            time_scale: whole.rate_per_s() / rate_per_s,
        })
    }

    /// Requests with a time of their own, in order: modelled microseconds from the first, position.
    pub fn arrivals(&self) -> impl Iterator<Item = (u64, usize)> + '_ {
        let start_us = self
            .workload
            .arrivals
            .first()
            .map_or(0, |(at_us, _)| *at_us);
        let arrivals = self.workload.arrivals.iter();
        arrivals.map(move |&(at_us, request)| {
            let scaled_us = (at_us - start_us) as f64 * self.time_scale;
            (scaled_us as u64, request)
        })
    }
}

/// The requests of whole conversations: those that start after conversations of `skip` requests,
/// until there are `requests`.
fn conversations(records: &[Record], skip: usize, requests: usize) -> Vec<Record> {
    let name = |(at, record): (usize, &Record)| record.session.ok_or(at);
    let mut turns = HashMap::new();
    for named in records.iter().enumerate().map(name) {
        *turns.entry(named).or_insert(0) += 1;
    }
    let (mut skipped, mut found) = (0, 0);
    let (mut seen, mut taken) = (HashSet::new(), HashSet::new());
    for named in records.iter().enumerate().map(name) {
        if found >= requests {
            break;
        }
        if !seen.insert(named) {
            continue;
        }
        let length = turns.get(&named).copied().unwrap_or(0);
        if skipped < skip {
            skipped += length;
        } else {
            taken.insert(named);
            found += length;
        }
    }
    let numbered = records.iter().enumerate();
    let wanted = numbered.filter(|it| taken.contains(&name(*it)));
    wanted.map(|(_, record)| record.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::generate;

    const LOAD: Load = Load {
        percent: 50.0,
        rate_per_s: Some(2.0),
        engines: 2,
        kv_tokens: 100_000,
    };

    #[test]
    fn conversations_are_taken_whole_at_the_time_scale_of_their_trace() {
        let records = generate::conversations(200, 40, 1).unwrap();
        let whole = Slice::of(&records, None, 0, 200, &LOAD, 1).unwrap();
        let part = Slice::of(&records, None, 50, 60, &LOAD, 1).unwrap();
        assert_eq!(whole.workload.requests.len(), 200);
        assert_eq!(whole.workload.rate_per_s() / whole.time_scale, 1.0);
        assert_eq!(part.time_scale, whole.time_scale);
        let sessions = |slice: &Slice| -> HashMap<Option<u64>, usize> {
            let mut turns = HashMap::new();
            for request in &slice.workload.requests {
                *turns.entry(request.session).or_insert(0) += 1;
            }
            turns
        };
        let (all, taken) = (sessions(&whole), sessions(&part));
        assert!(taken.len() < all.len());
        assert!(taken.iter().all(|(name, turns)| all[name] == *turns));
        let most = all.values().max().unwrap();
        assert!((60..60 + most).contains(&part.workload.requests.len()));
    }

    #[test]
    fn an_open_loop_is_cut_where_asked() {
        let mut records = generate::conversations(200, 40, 1).unwrap();
        records.iter_mut().for_each(|record| record.delay_ms = None);
        let part = Slice::of(&records, None, 50, 60, &LOAD, 1).unwrap();
        let tokens = part.workload.requests.iter().map(|it| it.prompt_tokens);
        let wanted = records[50..110].iter().map(|it| it.input_tokens);
        assert!(tokens.eq(wanted));
        let times: Vec<u64> = part.arrivals().map(|(at_us, _)| at_us).collect();
        assert_eq!((times.len(), times.first()), (60, Some(&0)));
        assert!(times.is_sorted());
    }

    #[test]
    fn a_slice_beyond_the_trace_is_refused() {
        let records = generate::conversations(20, 4, 1).unwrap();
        assert!(Slice::of(&records, None, 15, 6, &LOAD, 1).is_err());
        let unknown = Load {
            rate_per_s: None,
            ..LOAD
        };
        assert!(Slice::of(&records, None, 0, 20, &unknown, 1).is_err());
    }
}
