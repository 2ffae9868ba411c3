//! How many data-parallel ranks an engine has: as configured, else as its metrics told.

use super::{Engine, Fleet};
use crate::config::{Config, MAX_ENDPOINTS};
use std::net::SocketAddr;

impl Fleet {
    /// The number of ranks that the configuration gives an engine; where several pools have it, the
    /// first that gives one counts. O(endpoints) if any pool gives one.
    pub fn given_ranks(&self, config: &Config, socket: SocketAddr) -> Option<u16> {
        config.pools.iter().find_map(|pool| {
            if !pool.gives_ranks() {
                return None;
            }
            let cluster = self.clusters.get(&pool.cluster).filter(|_| pool.discovered);
            if cluster.is_some_and(|it| it.hosts.contains_key(&socket)) {
                return pool.data_parallel_size;
            }
            let listed = pool.endpoints.iter().find(|one| one.address == socket)?;
            pool.ranks_of(listed)
        })
    }

    /// How many ranks an engine told; 0 if it did not.
    pub fn told_ranks(&self, socket: SocketAddr) -> u16 {
        let engine = self.engines.get(&socket);
        engine.map_or(0, |engine| {
            u16::try_from(engine.ranks.len()).unwrap_or(u16::MAX)
        })
    }

    /// Replaces what an engine said, with what its ranks did as far as there is room.
    pub fn tell_engine(&mut self, socket: SocketAddr, mut engine: Engine) {
        let others = self.engines.iter().filter(|(other, _)| **other != socket);
        let others: usize = others.map(|(_, other)| other.ranks.len()).sum();
        engine.ranks.truncate(MAX_ENDPOINTS.saturating_sub(others));
        self.engines.insert(socket, engine);
    }
}
