//! What answers say, taken over into the fleet.
//!
//! An answer that does not read changes nothing: what was known stays, and grows old.

use super::Scout;
use crate::config::Config;
use crate::fleet::{Engine, HostHealth};
use crate::hash;
use crate::stats::{EngineStats, Figures, Names};
use crate::wire::clusters::{self, EdsHealth};
use crate::wire::{endpoint_metadata, models};
use std::net::SocketAddr;

impl Scout {
    pub(super) fn learn_endpoints(&mut self, config: &Config, body: &[u8], now_ms: u64) -> bool {
        let Ok(clusters) = clusters::parse(body) else {
            self.tally.refused = self.tally.refused.saturating_add(1);
            return false;
        };
        for cluster in clusters {
            let hosts = cluster.hosts.iter().map(|host| {
                (
                    host.address,
                    verdict(&host.health),
                    host.weight.min(u32::from(u16::MAX)) as u16,
                )
            });
            let changed = self.fleet.tell_cluster(&cluster.name, hosts, now_ms);
            if let Some(known) = self.fleet.clusters.get_mut(&cluster.name) {
                known.service = cluster.eds_service_name;
            }
            let mut pools = config.pools.iter();
            if changed && pools.any(|it| it.reads_metadata && it.cluster == cluster.name) {
                self.timetable.want_metadata();
            }
        }
        true
    }

    pub(super) fn learn_metadata(&mut self, body: &[u8]) -> bool {
        let Ok(dump) = endpoint_metadata::parse(body) else {
            self.tally.refused = self.tally.refused.saturating_add(1);
            return false;
        };
        self.fleet.tell_metadata(&dump);
        true
    }

    /// An engine did not show its metrics.
    pub(super) fn missed(&mut self, address: &SocketAddr) {
        if let Some(engine) = self.fleet.engines.get_mut(address) {
            engine.failures = engine.failures.saturating_add(1);
        }
    }

    pub(super) fn learn_metrics(
        &mut self,
        address: &SocketAddr,
        page: &[u8],
        config: &Config,
        in_flight: impl Fn(Option<u16>) -> u32,
        now_ms: u64,
    ) -> bool {
        let Some(before) = self.fleet.engines.get(address) else {
            return false;
        };
        let pool = self.paths.get(address).map(|(_, pool)| *pool);
        let pool = pool.and_then(|pool| config.pools.get(pool));
        let unnamed = Names::default();
        let names = pool.map_or(&unnamed, |pool| &pool.metric_names);
        let stats = EngineStats::read(page, names);
        if stats.total == Figures::default() && stats.adapters.is_empty() {
            // Not the page of an engine. What it said before grows old, as if it had said nothing.
            self.tally.refused = self.tally.refused.saturating_add(1);
            self.missed(address);
            return false;
        }
        let learned = stats.rank_count();
        let ranks = match self.fleet.given_ranks(config, *address) {
            Some(given) => given,
            // Of a page that was cut nobody knows what else it would have told.
            None if stats.is_cut => self.fleet.told_ranks(*address),
            None => learned.unwrap_or_default(),
        };
        // Labels that are not those of the ranks say nothing of any of them.
        let told = |rank: u16| {
            let row = stats.ranks.get(usize::from(rank));
            row.filter(|_| learned == Some(ranks))
                .map(|row| row.figures)
        };
        let nothing = Engine::default();
        let mut rows = Vec::new();
        for rank in (0..ranks).filter(|_| ranks > 1) {
            let figures = told(rank).unwrap_or_default();
            let figures = Figures {
                kv_capacity_tokens: figures.kv_capacity_tokens.or_else(|| {
                    let all = stats.total.kv_capacity_tokens?;
                    all.checked_div(u64::from(ranks))
                }),
                is_sleeping: figures.is_sleeping.or(stats.total.is_sleeping),
                ..figures
            };
            let in_flight = in_flight(Some(rank));
            let before = before.ranks.get(usize::from(rank)).unwrap_or(&nothing);
            rows.push(said(before, &stats, &figures, in_flight, now_ms));
        }
        let mut engine = said(before, &stats, &stats.total, in_flight(None), now_ms);
        engine.models.clone_from(&before.models);
        engine.ranks = rows;
        self.fleet.tell_engine(*address, engine);
        true
    }

    pub(super) fn learn_models(&mut self, address: &SocketAddr, body: &[u8]) -> bool {
        let Ok(models) = models::parse(body) else {
            self.tally.refused = self.tally.refused.saturating_add(1);
            return false;
        };
        let names: Vec<String> = models.into_iter().map(|model| model.id).collect();
        let Some(engine) = self.fleet.engines.get_mut(address) else {
            return false;
        };
        if engine.models.as_ref() != Some(&names) {
            engine.models = Some(names.clone());
            self.fleet.remember_models(&names);
        }
        true
    }
}

/// What an engine or a rank is after a page with these figures of it.
fn said(
    before: &Engine,
    stats: &EngineStats,
    figures: &Figures,
    in_flight: u32,
    now_ms: u64,
) -> Engine {
    let at_engine = figures
        .running
        .unwrap_or_default()
        .saturating_add(figures.waiting.unwrap_or_default());
    let moved = match (figures.generated_tokens, before.generated_tokens) {
        (Some(now), before) => before.is_some_and(|before| now != before),
        (None, _) => figures.finished.is_some() && figures.finished != before.finished,
    };
    Engine {
        told_ms: now_ms,
        failures: 0,
        running: figures.running,
        waiting: figures.waiting,
        foreign: at_engine.saturating_sub(in_flight),
        kv_usage: figures.kv_usage,
        // It does not change while the engine runs, but a page may come without it.
        kv_capacity_tokens: figures
            .kv_capacity_tokens
            .filter(|tokens| *tokens > 0)
            .or(before.kv_capacity_tokens),
        queried_tokens: figures.prefix_queries_tokens,
        hit_tokens: figures.prefix_hits_tokens,
        finished: figures.finished,
        generated_tokens: figures.generated_tokens,
        started_s: stats.started_s,
        moved_ms: if moved { now_ms } else { before.moved_ms },
        sleeping: figures.is_sleeping.unwrap_or_default(),
        max_loras: stats
            .max_adapters
            .map(|most| u16::try_from(most).unwrap_or(u16::MAX - 1)),
        loras: stats
            .adapters
            .iter()
            .map(|adapter| (hash::hash(adapter.name.as_bytes()), adapter.is_running))
            .collect(),
        models: None,
        ranks: Vec::new(),
    }
}

fn verdict(health: &clusters::HostHealth) -> HostHealth {
    match health.eds {
        _ if health.pending_dynamic_removal => HostHealth::Draining,
        EdsHealth::Draining => HostHealth::Draining,
        EdsHealth::Unhealthy | EdsHealth::Timeout => HostHealth::Unhealthy,
        _ if health.failed_active_health_check
            || health.active_hc_timeout
            || health.excluded_via_immediate_hc_fail =>
        {
            HostHealth::Unhealthy
        }
        _ if health.failed_outlier_check => HostHealth::Ejected,
        _ => HostHealth::Healthy,
    }
}
