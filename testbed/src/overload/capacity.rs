//! What a pool can do: the highest rate of requests at which 99 of 100 have their first token in
//! time, found by bisection in the simulator, which has the same engines and the same policy.
//!
//! About ten runs of the simulator.

use anyhow::ensure;

use super::mix;
use crate::model::ModelParams;
use crate::sim::policy::Spec;
use crate::sim::world::{self, Scenario};

/// The first bracket, in requests per second and engine.
const LOWEST_PER_S: f64 = 0.05;
const HIGHEST_PER_S: f64 = 500.0;
const PRECISION: f64 = 0.01;

/// What is asked of the simulator.
#[derive(Debug, Clone)]
pub(super) struct Fleet {
    /// Engines in the pool.
    pub(super) engines: usize,
    /// Each engine's size and speed.
    pub(super) params: ModelParams,
    /// Worker threads of Envoy.
    pub(super) workers: usize,
    /// When a first token is late, in seconds.
    pub(super) ttft_s: f64,
    /// Requests of a run; some minutes of them make the figure steady.
    pub(super) requests: usize,
    /// Seed of requests and choices.
    pub(super) seed: u64,
}

/// Requests per second of the whole pool.
///
/// # Errors
/// Even a handful of requests is too much, or no rate is.
pub(super) fn per_s(fleet: &Fleet) -> anyhow::Result<f64> {
    let workload = mix::workload(fleet.requests, fleet.seed)?;
    let policy = Spec::parse("prefix")?.with_max_tokens();
    let holds = |rate_per_s: f64| {
        let scenario = Scenario {
            engines: fleet.engines,
            params: fleet.params.clone(),
            routers: fleet.workers,
            shared: true,
            sync: None,
            seed: fleet.seed,
            time_scale: workload.rate_per_s() / rate_per_s,
            scrape_interval_ms: None,
        };
        let summary = world::run(&workload, &policy, &scenario, |_| {}).summary();
        summary.refused == 0 && summary.ttft_p99_s <= fleet.ttft_s
    };
    let engines = fleet.engines as f64;
    let (mut low, mut high) = (LOWEST_PER_S * engines, HIGHEST_PER_S * engines);
    ensure!(holds(low), "engines are too slow for {} s", fleet.ttft_s);
    while high / low > 1.0 + PRECISION {
        let middle = (low * high).sqrt();
        match holds(middle) {
            true => low = middle,
            false => high = middle,
        }
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_of_half_the_speed_do_about_half() {
        let fleet = |slower: f64| Fleet {
            engines: 2,
            params: ModelParams {
                block_tokens: 64,
                kv_blocks: 6250,
                prefill_token_us: 50.0 * slower,
                ..ModelParams::default()
            },
            workers: 1,
            ttft_s: 2.0,
            requests: 400,
            seed: 1,
        };
        let (fast, slow) = (per_s(&fleet(1.0)).unwrap(), per_s(&fleet(2.0)).unwrap());
        assert!((1.6..2.6).contains(&(fast / slow)), "{fast} {slow}");
    }
}
