//! The figures of pools and their endpoints: who there is, what each has in flight, and what engines show of
//! themselves when they are asked.

use super::super::Sink;
use super::{Endpoint, Recorder, ms};
use crate::load::Load;
use crate::router::State;

/// What an engine's metrics say; `None` where it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scrape {
    /// Requests that it works on.
    pub running: Option<u64>,
    /// Requests queued in it.
    pub waiting: Option<u64>,
    /// Requests completed since it started.
    pub finished: Option<u64>,
    /// How full its KV cache is, 0 to 1.
    pub kv_usage: Option<f64>,
    /// How much its KV cache holds.
    pub kv_capacity_tokens: Option<u64>,
    /// Share of prompt tokens that it had cached, 0 to 1.
    pub prefix_hits: Option<f64>,
    /// Time since it started.
    pub uptime_s: Option<u64>,
}

impl<K: Sink> Recorder<K> {
    /// What is in flight at an endpoint. A gauge.
    pub fn load(&mut self, endpoint: Endpoint, load: &Load) {
        self.gauges(endpoint, |series| {
            [
                (series.in_flight, u64::from(load.in_flight)),
                (series.waiting, u64::from(load.waiting)),
                (series.queued_tokens, load.prefill_tokens),
                (series.context_tokens, load.context_tokens),
            ]
        });
    }

    /// What the filter makes of an endpoint. A gauge.
    pub fn state(&mut self, endpoint: Endpoint, state: State) {
        self.gauges(endpoint, |series| [(series.state, state.code())]);
    }

    /// An engine of a pool has shown its metrics, which took so long. A histogram.
    pub fn scrape_took(&mut self, pool: usize, took_us: u64) {
        self.in_pool(pool, |registry, series| {
            registry.observe(series.scrape_duration, ms(took_us));
        });
    }

    /// What an engine, or one of its ranks, has shown. Gauges.
    pub fn scraped(&mut self, endpoint: Endpoint, scrape: &Scrape) {
        self.gauges(endpoint, |series| {
            let told = [
                (series.engine_running, scrape.running),
                (series.engine_waiting, scrape.waiting),
                (series.engine_finished, scrape.finished),
                (series.engine_kv_usage, scrape.kv_usage.map(permille)),
                (series.engine_kv_capacity, scrape.kv_capacity_tokens),
                (series.engine_prefix_hits, scrape.prefix_hits.map(permille)),
                (series.engine_uptime, scrape.uptime_s),
            ];
            told.into_iter()
                .filter_map(|(handle, value)| Some((handle, value?)))
        });
    }

    /// How old the last scrape of an endpoint is. A gauge.
    pub fn scrape_age(&mut self, endpoint: Endpoint, age_us: u64) {
        self.gauges(endpoint, |series| [(series.scrape_age, ms(age_us))]);
    }

    /// An engine did not show its metrics.
    pub fn scrape_failed(&mut self, endpoint: Endpoint) {
        self.at(endpoint, |registry, series| {
            registry.add(series.scrape_errors, 1)
        });
    }

    /// How many endpoints a pool has, and to how many of them requests are sent. Gauges.
    pub fn pool_size(&mut self, pool: usize, known: usize, usable: usize) {
        self.has_gauges = true;
        self.in_pool(pool, |registry, series| {
            registry.set(series.known, known as u64);
            registry.set(series.usable, usable as u64);
        });
    }

    /// Of how many endpoints of a pool the figures are too old to be used. A gauge.
    pub fn pool_stale(&mut self, pool: usize, stale: usize) {
        self.in_pool(pool, |registry, series| {
            registry.set(series.stale, stale as u64);
        });
    }

    /// An endpoint has left its pool. Its gauges become 0, the code of what is gone: a metric cannot
    /// be removed. For every worker, and any number of times.
    pub fn gone(&mut self, endpoint: Endpoint) {
        self.at(endpoint, |registry, series| {
            if !series.shared {
                series
                    .gauges()
                    .iter()
                    .for_each(|gauge| registry.set(*gauge, 0));
            }
        });
    }

    /// A pool's set of endpoints has changed.
    pub fn discovery_changed(&mut self, pool: usize) {
        self.in_pool(pool, |registry, series| {
            registry.add(series.discovery_changes, 1)
        });
    }
}

/// Thousandths of a share; 0 for what is none.
fn permille(share: f64) -> u64 {
    (share.clamp(0.0, 1.0) * 1000.0).round() as u64
}
