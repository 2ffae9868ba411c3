//! What one worker says for all: the load of every endpoint, and how many workers there are.

use super::{Router, State};
use crate::fleet::Engine;
use crate::load::Load;
use crate::prefix::Replica;
use crate::scout::Scout;
use crate::store::Store;
use crate::sync::relay;
use std::net::SocketAddr;

/// An endpoint, as all workers together know it.
#[derive(Clone, Copy, Debug)]
pub struct Surveyed<'a> {
    /// Position of the first pool that has the endpoint.
    pub pool: usize,
    /// `ip:port`, with its rank if it has one.
    pub address: &'a str,
    /// Its data-parallel rank.
    pub rank: Option<u16>,
    /// What its metadata or its label `role` says that it is for.
    pub role: Option<&'a str>,
    /// Its load, summed over all workers.
    pub load: &'a Load,
    /// Whether it is in use, and if not, why.
    pub state: State,
    /// When it came into this state, as far as that is known.
    pub state_since_us: Option<u64>,
    /// The weight of its address.
    pub weight: f64,
    /// Age of what it said of itself, if it ever did.
    pub scrape_age_us: Option<u64>,
    /// What it said.
    pub engine: Option<&'a Engine>,
    /// The models that its engine said it serves.
    pub models: Option<&'a [String]>,
}

/// What an engine said of itself.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Position of the first pool that has it.
    pub pool: usize,
    /// `ip:port`, with its rank if it has one.
    pub address: &'a str,
    /// What it said, if it ever did.
    pub engine: Option<&'a Engine>,
}

impl<S: Store> Router<S> {
    /// Whether this VM is the one that speaks for all: the holder of the lease, or, if there is
    /// nothing to hold it for, the worker with the lowest column that beats.
    pub fn speaks_for_all(&self) -> bool {
        if self.config.discovery.is_some() || self.config.scrape.is_some() {
            return self.scout.holds_lease();
        }
        self.leads
    }

    /// Workers that are alive and have had a request.
    pub fn workers(&self) -> usize {
        let workers = self.loads.peers().filter(relay::is_worker);
        workers.count() + usize::from(self.column.is_some())
    }

    /// Reads what the others have in flight and returns every endpoint. Costs a read of each other
    /// worker's column: not for each request.
    pub fn survey(&mut self, now_us: u64) -> impl Iterator<Item = Surveyed<'_>> {
        self.loads.refresh(&self.store, now_us);
        self.fitness.refresh(&self.store, now_us);
        let homes = self.homes();
        let router: &Self = self;
        let positions = homes.into_iter().enumerate();
        positions.filter_map(move |(position, home)| router.surveyed(home?, position, now_us))
    }

    /// The endpoints of a pool, in the order of the config; as of the last look at the other workers.
    pub fn pool_members(&self, pool: usize, now_us: u64) -> impl Iterator<Item = Surveyed<'_>> {
        let groups = self.pools.get(pool).map(|pool| pool.groups.as_slice());
        let all = groups.unwrap_or_default().first();
        let all = all.map(|all| all.all.as_slice()).unwrap_or_default();
        all.iter()
            .filter_map(move |position| self.surveyed(pool, *position, now_us))
    }

    fn surveyed(&self, pool: usize, position: usize, now_us: u64) -> Option<Surveyed<'_>> {
        let endpoint = self.endpoints.get(position)?;
        let engine = self.scout.fleet().engine(&endpoint.at);
        let told_ms = engine
            .map(|engine| engine.told_ms)
            .filter(|told_ms| *told_ms > 0);
        Some(Surveyed {
            pool,
            address: &endpoint.name,
            rank: endpoint.at.rank,
            role: self.role(position),
            load: self.loads.total(position)?,
            state: self.state(pool, position, now_us),
            state_since_us: self.state_since_us(pool, position, now_us),
            weight: self.weight(pool, position),
            scrape_age_us: told_ms
                .map(|told_ms| now_us.saturating_sub(told_ms.saturating_mul(1000))),
            engine,
            models: self
                .scout
                .fleet()
                .engines
                .get(&endpoint.at.socket)
                .and_then(|engine| engine.models.as_deref()),
        })
    }

    /// Number of this worker among those that are alive, once it has had a request.
    pub fn worker(&self) -> Option<u16> {
        self.column.map(|column| column.slot)
    }

    /// What an engine said of itself, for each of its ranks that are in use.
    pub fn engine(&self, socket: &SocketAddr) -> impl Iterator<Item = Told<'_>> {
        let positions = self.positions_at(*socket);
        positions.filter_map(|position| {
            let mut pools = self.pools.iter();
            let has = |pool: &super::Pool| {
                let all = pool.groups.first();
                all.is_some_and(|all| all.all.contains(&position))
            };
            let endpoint = self.endpoints.get(position)?;
            Some(Told {
                pool: pools.position(has)?,
                address: &endpoint.name,
                engine: self.scout.fleet().engine(&endpoint.at),
            })
        })
    }

    /// How many endpoints each pool has, and how many of them are usable, in the order of the config.
    pub fn pool_sizes(&self, now_us: u64) -> Vec<(usize, usize)> {
        let size = |(index, pool): (usize, &super::Pool)| {
            let all = pool.groups.first().map(|group| group.all.as_slice());
            let all = all.unwrap_or_default();
            let usable = |position: &&usize| self.state(index, **position, now_us).is_usable();
            (all.len(), all.iter().filter(usable).count())
        };
        self.pools.iter().enumerate().map(size).collect()
    }

    /// How many endpoints of each pool told of themselves once, but too long ago for decisions.
    pub fn stale_sizes(&self, now_us: u64) -> Vec<usize> {
        let stale_ms = Scout::stale_ms(&self.config);
        let is_stale = |position: &&usize| {
            let endpoint = self.endpoints.get(**position);
            let engine = endpoint.and_then(|it| self.scout.fleet().engine(&it.at));
            engine.is_some_and(|it| it.told_ms > 0 && !it.is_fresh(now_us / 1000, stale_ms))
        };
        let all = self.pools.iter().map(|pool| pool.groups.first());
        all.map(|all| all.map_or(0, |all| all.all.iter().filter(is_stale).count()))
            .collect()
    }

    /// Bytes, room and live entries of this worker's prefix table, if it has one in use.
    pub fn table_size(&self) -> Option<(u64, u64, u64)> {
        let replica = self.replica.as_ref().filter(|_| self.joined)?;
        let entries = replica.census();
        let table = replica.index().table();
        Some((table.bytes() as u64, table.capacity() as u64, entries))
    }

    /// How many entries of this worker's prefix table gave way before their time since this was last
    /// asked.
    pub fn take_evicted(&mut self) -> u64 {
        self.replica.as_mut().map_or(0, Replica::take_evicted)
    }

    /// Pool and address of the endpoints that left since this was last asked.
    pub fn take_departed(&mut self) -> Vec<(usize, String)> {
        std::mem::take(&mut self.departed)
    }

    /// The pools whose endpoints changed since this was last asked. Only the holder of the lease
    /// tells, once for all.
    pub fn take_changed_pools(&mut self) -> Vec<usize> {
        let changed = std::mem::take(&mut self.changed_pools);
        changed
            .into_iter()
            .filter(|_| self.scout.holds_lease())
            .collect()
    }

    /// The first pool of each endpoint, by position.
    pub(super) fn homes(&self) -> Vec<Option<usize>> {
        let mut homes = vec![None; self.endpoints.len()];
        for (at, pool) in self.pools.iter().enumerate() {
            let all = pool.groups.first().map(|group| group.all.as_slice());
            for position in all.unwrap_or_default() {
                if let Some(home) = homes.get_mut(*position) {
                    *home = home.or(Some(at));
                }
            }
        }
        homes
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::router::{Ask, Router};
    use crate::store::MemoryStore;

    const CONFIG: &[u8] = br#"{"default_pool": "p", "discovery": "off", "scrape": "off", "pools": [
        {"name": "p", "models": ["m"], "endpoints": {"static": [{"address": "10.0.0.1:1"}]}},
        {"name": "q", "models": ["n"], "endpoints": {"static": [
            {"address": "10.0.0.1:1"}, {"address": "10.0.0.2:1"}]}}
    ]}"#;

    #[test]
    fn one_of_all_speaks_and_knows_what_the_others_do() {
        let store = MemoryStore::new();
        let router = || Router::new(Config::parse(CONFIG).unwrap(), &store, 0);
        let (mut first, mut second) = (router(), router());
        assert!(!first.speaks_for_all(), "it has had no request");
        let mut charges = Vec::new();
        for (at, router) in [&mut first, &mut second].into_iter().enumerate() {
            let target = router.target(b"m").unwrap().clone();
            let ask = Ask {
                target: &target,
                key: None,
                prompt: None,
                priority: Default::default(),
            };
            charges.push(router.decide(ask, at as u64).unwrap().1);
        }
        first.tick(500_000);
        second.tick(500_000);
        assert_eq!(
            (first.speaks_for_all(), second.speaks_for_all()),
            (true, false)
        );
        assert_eq!((first.workers(), second.workers()), (2, 2));
        let seen: Vec<_> = first
            .survey(500_001)
            .map(|row| (row.pool, row.address.to_owned(), row.load.in_flight))
            .collect();
        let want = [
            (0, "10.0.0.1:1".to_owned(), 2),
            (1, "10.0.0.2:1".to_owned(), 0),
        ];
        assert_eq!(seen, want, "once each, in the first pool that has it");
        assert_eq!(first.pool_sizes(500_001), [(1, 1), (2, 2)]);
        first.leave();
        second.tick(1_000_000);
        assert!(second.speaks_for_all());
    }
}
