//! The calls of the scout: made with ticks, and answered to the root context.

use crate::host;
use crate::worker::Worker;
use log::{info, warn};
use warmpath_core::call::{HttpCall, Reply};
use warmpath_core::fleet::Engine;
use warmpath_core::scrape::Call;
use warmpath_core::sync::View;
use warmpath_core::telemetry::{Endpoint, Scrape};

impl Worker {
    /// The calls that are due.
    pub fn calls(&mut self) -> Vec<(Call, HttpCall)> {
        let before = self.router.scout().holds_lease();
        let calls = self.router.calls(host::now_us());
        if self.router.scout().holds_lease() && !before {
            self.metrics.lease_changed();
        }
        calls
    }

    /// A call was made, or could not be.
    pub fn call_started(&mut self, call: Call, started: Result<u32, Reply>) {
        let now_us = host::now_us();
        match started {
            Ok(token) => {
                self.calls.insert(token, (call, now_us));
            }
            Err(reply) => self.call_ended(&call, reply, 0),
        }
    }

    /// A call was answered, or failed.
    pub fn call_answered(&mut self, token: u32, headers: usize, size: usize) {
        let Some((call, started_us)) = self.calls.remove(&token) else {
            return;
        };
        let took_us = host::now_us().saturating_sub(started_us);
        let mut body = Vec::new();
        let most_bytes = self.router.most_bytes(&call);
        let reply = host::call_reply(headers, size, most_bytes, &mut body);
        self.call_ended(&call, reply, took_us);
    }

    fn call_ended(&mut self, call: &Call, reply: Reply, took_us: u64) {
        let now_us = host::now_us();
        let learned = self.router.call_ended(call, reply, now_us);
        match call {
            Call::Metrics(socket) => {
                for (number, row) in self.router.engine(socket).enumerate() {
                    let at = Endpoint {
                        pool: row.pool,
                        address: row.address,
                    };
                    match row.engine.filter(|_| learned) {
                        Some(engine) => self.metrics.scraped(at, &scrape(engine, now_us)),
                        None => self.metrics.scrape_failed(at),
                    }
                    if learned && number == 0 {
                        self.metrics.scrape_took(row.pool, took_us);
                    }
                }
            }
            Call::Endpoints | Call::Metadata if !learned => self.metrics.discovery_failed(),
            Call::Endpoints | Call::Metadata | Call::Models(_) | Call::Peers => {}
        }
        if matches!(reply, Reply::NoCluster) && !self.warned_of_cluster {
            self.warned_of_cluster = true;
            info!("Envoy has no cluster for {call:?}: add it, or turn off what needs it");
        }
    }
}

impl Worker {
    /// Says once of which pools nobody tells what endpoints they have.
    pub fn warn_of_unknown(&mut self, now_us: u64) {
        if self.warned_of_unknown {
            return;
        }
        let pools = &self.router.config().pools;
        let overdue = self.router.overdue_pools(now_us);
        let overdue: Vec<String> = overdue
            .filter_map(|at| pools.get(at))
            .map(|pool| format!("`{}` (cluster `{}`)", pool.name, pool.cluster))
            .collect();
        if overdue.is_empty() {
            return;
        }
        self.warned_of_unknown = true;
        warn!(
            "nobody has told yet which endpoints these pools have: {}: look at \
             `warmpath_discovery_errors_total`; Envoy's admin interface must list the cluster, and with \
             `discover_models` an engine must say what it serves",
            overdue.join(", ")
        );
    }

    /// Tells what goes on between the Envoys, and logs when that changes.
    pub fn survey_peers(&mut self) {
        let tally = self.router.sync_tally();
        self.metrics.peers(tally);
        let Some(tally) = tally else {
            self.view = View::Idle;
            return;
        };
        if tally.view == self.view {
            return;
        }
        self.view = tally.view;
        match tally.view {
            View::Blind => warn!("the store of the fleet does not answer: {}", tally.error),
            View::Unseen => warn!("no other Envoy has written to the store of late"),
            View::Idle | View::Warming => {}
            View::Whole => info!("in one view with {} other Envoy(s)", tally.peers),
        }
    }
}

/// An engine's figures as they are shown.
fn scrape(engine: &Engine, now_us: u64) -> Scrape {
    let hits = engine.queried_tokens.zip(engine.hit_tokens);
    Scrape {
        running: engine.running.map(u64::from),
        waiting: engine.waiting.map(u64::from),
        finished: engine.finished,
        kv_usage: engine.kv_usage.map(f64::from),
        kv_capacity_tokens: engine.kv_capacity_tokens,
        prefix_hits: hits
            .filter(|(queried, _)| *queried > 0)
            .map(|(queried, hit)| hit as f64 / queried as f64),
        uptime_s: engine
            .started_s
            .map(|started_s| (now_us / 1_000_000).saturating_sub(started_s)),
    }
}
