//! Engines in turn: what a proxy does that knows nothing.

use super::{FleetView, Policy, SimRequest};

/// See the module documentation.
#[derive(Debug, Default)]
pub struct RoundRobin {
    next: usize,
}

impl Policy for RoundRobin {
    fn route(&mut self, _req: &SimRequest, fleet: &FleetView<'_>, _now_us: u64) -> usize {
        let engine = self.next % fleet.len();
        self.next = engine + 1;
        engine
    }
}
