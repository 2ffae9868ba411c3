//! Finds the arrival rate that is called 100 % load: the highest at which the best oracle (alpha 1,
//! 2, 4) keeps the mean time to first token within five times that of an unloaded fleet.
//!
//! The mean grows with the rate, so the rate is bracketed by doubling and then bisected to 1 %: a
//! dozen runs of each oracle.

use anyhow::ensure;

use super::policy::Spec;
use super::workload::Workload;
use super::world::{Scenario, run};

/// Allowed mean TTFT over the unloaded one.
const SLOWDOWN: f64 = 5.0;
/// "Unloaded": arrivals this many times as far apart as in the trace.
const UNLOADED_SCALE: f64 = 1000.0;
/// The trace's own rate is changed by at most this factor.
const WIDEST: f64 = 256.0;
const PRECISION: f64 = 0.01;

/// The rate in arrivals per second (see [`Workload::rate_per_s`]) on the scenario's fleet.
///
/// # Errors
/// No rate within reach loads the fleet, or every rate overloads it.
pub fn calibrate(
    workload: &Workload,
    scenario: &Scenario,
    mut note: impl FnMut(f64, f64),
) -> anyhow::Result<f64> {
    let oracles = ["oracle=1", "oracle=2", "oracle=4"]
        .iter()
        .map(|name| Spec::parse(name))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mean = |spec: &Spec, time_scale: f64| {
        let scenario = Scenario {
            time_scale,
            ..scenario.clone()
        };
        run(workload, spec, &scenario, |_| {}).summary().ttft_mean_s
    };
    let best = |time_scale: f64, enough: f64| {
        let mut least = f64::INFINITY;
        for spec in &oracles {
            least = least.min(mean(spec, time_scale));
            if least <= enough {
                break;
            }
        }
        least
    };
    let limit_s = SLOWDOWN * best(UNLOADED_SCALE, 0.0);
    let native = workload.rate_per_s();
    let mut holds = |rate: f64| {
        let mean_s = best(native / rate, limit_s);
        note(rate, mean_s);
        mean_s <= limit_s
    };
    let (mut low, mut high) = bracket(native, &mut holds)?;
    while high / low > 1.0 + PRECISION {
        let middle = (low * high).sqrt();
        if holds(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// A rate that holds and its double, which does not.
fn bracket(native: f64, holds: &mut impl FnMut(f64) -> bool) -> anyhow::Result<(f64, f64)> {
    let mut low = native;
    if holds(low) {
        while holds(low * 2.0) {
            low *= 2.0;
            ensure!(
                low < native * WIDEST,
                "{low:.3} per second do not load this fleet: conversations wait for their own \
                 answers; try --copies, or fewer engines"
            );
        }
    } else {
        low /= 2.0;
        while !holds(low) {
            low /= 2.0;
            ensure!(
                low > native / WIDEST,
                "{low:.3} per second are too many for this fleet"
            );
        }
    }
    Ok((low, low * 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bracket_holds_the_limit_from_both_sides() {
        for limit in [0.3, 1.0, 1.5, 40.0] {
            let (low, high) = bracket(1.0, &mut |rate| rate <= limit).unwrap();
            assert!(low <= limit && limit < high, "{low} {limit} {high}");
        }
        assert!(bracket(1.0, &mut |_| true).is_err());
        assert!(bracket(1.0, &mut |_| false).is_err());
    }
}
