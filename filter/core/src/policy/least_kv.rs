//! Lowest use of KV memory, as the engines told it; among equals, as `least_request` ranks.
//!
//! What was told is a second old, so it is carried on: each of our requests that came or went since
//! counts with the memory that a request takes on average. An engine without a fresh word is taken for
//! one like the others, with as much more or less as it has more or fewer of our requests: if nobody
//! tells, our requests alone decide. O(members) for each decision.

use super::{View, least};
use crate::decision::Reason;

/// Memory of a request where engines tell of none, in millionths.
const REQUEST_PPM: i64 = 1000;
/// Differences below this say nothing: a hundredth, in millionths.
const STEP_PPM: i64 = 10_000;

pub(super) fn rank(view: &View) -> (Vec<usize>, Reason) {
    let members = view.group.members();
    let usage = |position: usize| view.foreign.get(position).and_then(|word| word.usage);
    let ours = |position: usize| {
        let own = view.loads.total(position);
        own.map_or(0, |load| i64::from(load.in_flight))
    };
    let (mut known, mut sum_ppm, mut requests, mut sum_ours) = (0, 0, 0, 0);
    for position in members {
        if let Some(usage) = usage(*position) {
            known += 1;
            sum_ppm += i64::from(usage.ppm);
            requests += i64::from(usage.requests);
            sum_ours += ours(*position);
        }
    }
    let (mean_ppm, mean_ours) = (sum_ppm / known.max(1), sum_ours / known.max(1));
    let request_ppm = (sum_ppm / requests.max(1)).clamp(REQUEST_PPM, 1_000_000);
    let key = |position: &usize| {
        let load = view.load(*position);
        let (told_ppm, then) = usage(*position).map_or((mean_ppm, mean_ours), |usage| {
            (i64::from(usage.ppm), i64::from(usage.ours))
        });
        let ppm = told_ppm + (ours(*position) - then) * request_ppm;
        (
            ppm.max(0) / STEP_PPM,
            load.in_flight,
            load.last_used_us,
            *position,
        )
    };
    let ranked = least(members.iter().map(key), view.candidates).into_iter();
    (ranked.map(|key| key.3).collect(), Reason::LowestUsage)
}
