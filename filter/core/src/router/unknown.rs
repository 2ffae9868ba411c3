//! Pools of which nobody has told yet what endpoints they have: Envoy knows, so it is left to Envoy.
//!
//! That is so from the start until the first answer of Envoy's admin interface has come round to this
//! worker, and for as long as there is none. A request for such a pool goes on to the pool's cluster without
//! a ranking, if any host of the cluster can serve it. A pool that is known to have no endpoint is
//! another matter: it is refused. O(hosts of the cluster) for each pool with every change of the fleet, O(1) for a request.

use super::{Router, Target};
use crate::config::PoolConfig;
use crate::fleet::Fleet;
use crate::store::Store;

/// A pool that nobody has told of for this many intervals of the discovery is worth a warning.
const OVERDUE_INTERVALS: u64 = 10;

/// Whether somebody has told which endpoints a pool has.
fn is_told(pool: &PoolConfig, fleet: &Fleet, born_ms: u64) -> bool {
    if !pool.discovered {
        return true;
    }
    let Some(cluster) = fleet.clusters.get(&pool.cluster) else {
        return false;
    };
    if cluster.hosts.is_empty() {
        // Envoy lists a cluster before it has found its hosts, but takes no request before. So what was
        // told before this worker was there may have been too early.
        return cluster.told_ms > born_ms;
    }
    let engines = cluster.hosts.keys().map(|at| fleet.engines.get(at));
    let mut engines = engines.flatten();
    !pool.discover_models || engines.any(|engine| engine.models.is_some())
}

/// Whether every host of a pool's cluster can serve its requests, and serve them alone.
fn any_host_serves(pool: &PoolConfig) -> bool {
    let options = pool.disaggregation.as_ref();
    pool.role.is_none() && options.is_none_or(|it| it.connector.decodes_alone())
}

impl<S: Store> Router<S> {
    /// Whether requests for a pool go on by Envoy's own load balancing, because nobody has told what
    /// endpoints it has.
    pub(crate) fn leaves_to_envoy(&self, pool: usize) -> bool {
        let untold = self.pools.get(pool).is_some_and(|pool| !pool.told);
        untold && self.config.pools.get(pool).is_some_and(any_host_serves)
    }

    /// Where a model may be served that no pool is known to serve: the first pool of which nobody has told
    /// yet what its engines serve.
    pub(crate) fn untold_models_target(&self) -> Option<Target> {
        let pools = self.config.pools.iter().enumerate();
        let mut untold =
            pools.filter(|(at, pool)| pool.discover_models && self.leaves_to_envoy(*at));
        let (pool, _) = untold.next()?;
        Some(Target {
            pool,
            rename: None,
            group: 0,
            adapter: None,
        })
    }

    /// Pools of which nobody has told for so long that something must be wrong; by position in the config.
    pub fn overdue_pools(&self, now_us: u64) -> impl Iterator<Item = usize> {
        let interval_ms = self.config.discovery.as_ref().map(|it| it.interval_ms);
        let patience_us = interval_ms.map(|ms| ms.saturating_mul(OVERDUE_INTERVALS * 1000));
        let age_us = now_us.saturating_sub(self.born_us);
        let overdue = patience_us.is_some_and(|patience_us| age_us >= patience_us);
        let pools = self.pools.iter().enumerate();
        pools
            .filter(move |(_, pool)| overdue && !pool.told)
            .map(|(at, _)| at)
    }

    /// Takes over of which pools the fleet tells.
    pub(super) fn note_told(&mut self) {
        let fleet = self.scout.fleet();
        for (pool, config) in self.pools.iter_mut().zip(&self.config.pools) {
            pool.told = is_told(config, fleet, self.born_us / 1000);
        }
    }
}
