//! How many data-parallel ranks each engine has: as configured, else as its metrics told.

use super::{Engine, Fleet};
use crate::config::{Config, MAX_ENDPOINTS};
use std::collections::BTreeMap;
use std::net::SocketAddr;

impl Fleet {
    /// The numbers of ranks that the configuration gives, by engine; where several pools have an engine
    /// the first that gives one counts. O(endpoints).
    pub fn configured_ranks(&self, config: &Config) -> BTreeMap<SocketAddr, u16> {
        let mut given = BTreeMap::new();
        for pool in &config.pools {
            for one in &pool.endpoints {
                if let Some(ranks) = pool.ranks_of(one) {
                    given.entry(one.address).or_insert(ranks);
                }
            }
            let cluster = self.clusters.get(&pool.cluster).filter(|_| pool.discovered);
            for socket in cluster.into_iter().flat_map(|it| it.hosts.keys()) {
                if let Some(ranks) = pool.data_parallel_size {
                    given.entry(*socket).or_insert(ranks);
                }
            }
        }
        given
    }

    /// How many ranks an engine told; 0 if it did not.
    pub fn told_ranks(&self, socket: SocketAddr) -> u16 {
        let ranks = self.ranks.range((socket, 0)..=(socket, u16::MAX));
        u16::try_from(ranks.count()).unwrap_or(u16::MAX)
    }

    /// What an engine's ranks said, in order.
    pub fn ranks_of(&self, socket: SocketAddr) -> impl Iterator<Item = &Engine> {
        let ranks = self.ranks.range((socket, 0)..=(socket, u16::MAX));
        ranks.map(|(_, engine)| engine)
    }

    /// Replaces what an engine's ranks said. Those that are beyond the bound are left out.
    pub fn tell_ranks(&mut self, socket: SocketAddr, told: Vec<Engine>) {
        for rank in told.len()..usize::from(self.told_ranks(socket)) {
            self.ranks.remove(&(socket, rank as u16));
        }
        for (rank, engine) in told.into_iter().enumerate() {
            let key = (socket, rank as u16);
            if self.ranks.len() < MAX_ENDPOINTS || self.ranks.contains_key(&key) {
                self.ranks.insert(key, engine);
            }
        }
    }
}
