//! What one worker says for all: the load of every endpoint, and how many workers there are.

use super::Router;
use crate::load::Load;
use crate::store::Store;

/// The load of an endpoint, summed over all workers.
#[derive(Clone, Copy, Debug)]
pub struct Surveyed<'a> {
    /// Position of the first pool that has the endpoint.
    pub pool: usize,
    /// `ip:port`.
    pub address: &'a str,
    /// Its load.
    pub load: &'a Load,
}

impl<S: Store> Router<S> {
    /// Whether this worker is the one that speaks for all: the living one with the lowest column.
    pub fn speaks_for_all(&self) -> bool {
        let lowest = |slot: u16| self.loads.peers().all(|column| column.slot > slot);
        self.column.is_some_and(|column| lowest(column.slot))
    }

    /// Workers that are alive and have had a request, this one included.
    pub fn workers(&self) -> usize {
        self.loads.peers().count() + 1
    }

    /// Reads what the others have in flight and returns the load of every endpoint. Costs a read of
    /// each other worker's column: not for each request.
    pub fn survey(&mut self, now_us: u64) -> impl Iterator<Item = Surveyed<'_>> {
        self.loads.refresh(&self.store, now_us);
        let mut home = vec![None; self.endpoints.len()];
        for (at, pool) in self.pools.iter().enumerate() {
            let all = pool.groups.first().map(|group| group.members());
            for position in all.unwrap_or_default() {
                if let Some(home) = home.get_mut(*position) {
                    *home = home.or(Some(at));
                }
            }
        }
        let endpoints = self.endpoints.iter().zip(home).enumerate();
        endpoints.filter_map(|(position, (endpoint, home))| {
            Some(Surveyed {
                pool: home?,
                address: &endpoint.address,
                load: self.loads.total(position)?,
            })
        })
    }

    /// How many endpoints each pool has, in the order of the config.
    pub fn pool_sizes(&self) -> impl Iterator<Item = usize> {
        let all = |pool: &super::Pool| pool.groups.first().map_or(0, |group| group.members().len());
        self.pools.iter().map(all)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::router::{Ask, Router};
    use crate::store::MemoryStore;

    const CONFIG: &[u8] = br#"{"default_pool": "p", "pools": [
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
        assert_eq!(first.pool_sizes().collect::<Vec<_>>(), [1, 2]);
        first.leave();
        second.tick(1_000_000);
        assert!(second.speaks_for_all());
    }
}
