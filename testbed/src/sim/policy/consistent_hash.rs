//! A hash ring over the conversation's key, 160 points an engine as in vllm-project/router's
//! `consistent_hash`. Load is not looked at.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{FleetView, Policy, Setup, SimRequest};

const POINTS_PER_ENGINE: u64 = 160;

/// See the module documentation. Lookup is O(log points).
#[derive(Debug)]
pub struct ConsistentHash {
    /// Hash and owner, in order of hash.
    ring: Vec<(u64, usize)>,
}

impl ConsistentHash {
    /// The same ring for every router and seed.
    pub fn new(setup: &Setup) -> Self {
        let mut ring: Vec<_> = (0..setup.engines)
            .flat_map(|engine| {
                (1..=POINTS_PER_ENGINE).map(move |point| (hash(engine as u64, point), engine))
            })
            .collect();
        ring.sort_unstable();
        Self { ring }
    }
}

impl Policy for ConsistentHash {
    fn route(&mut self, req: &SimRequest, _fleet: &FleetView<'_>, _now_us: u64) -> usize {
        let at = self
            .ring
            .partition_point(|(point, _)| *point < hash(req.key, 0));
        let owner = self.ring.get(at).or_else(|| self.ring.first());
        owner.map_or(0, |(_, engine)| *engine)
    }
}

/// Keys have point 0, engines the others.
fn hash(value: u64, point: u64) -> u64 {
    xxh3_64_with_seed(&value.to_le_bytes(), point)
}
