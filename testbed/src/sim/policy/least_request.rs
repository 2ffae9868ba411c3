//! Fewest requests in flight, over all engines or over two random ones, as Envoy's LEAST_REQUEST.

use rand::Rng;
use rand::rngs::SmallRng;

use super::{FleetView, Policy, Setup, SimRequest, cheapest};
use crate::sim::fleet::InFlight;

/// The least of all engines; ties fall at random.
#[derive(Debug)]
pub struct LeastRequest {
    in_flight: InFlight,
    rng: SmallRng,
}

impl LeastRequest {
    /// One router.
    pub fn new(setup: &Setup) -> Self {
        Self {
            in_flight: InFlight::new(setup.engines),
            rng: setup.rng(),
        }
    }
}

impl Policy for LeastRequest {
    fn route(&mut self, _req: &SimRequest, _fleet: &FleetView<'_>, _now_us: u64) -> usize {
        let counts = self.in_flight.counts().iter();
        let engine = cheapest(counts.map(|n| f64::from(*n)), &mut self.rng);
        self.in_flight.add(engine);
        engine
    }

    fn done(&mut self, _req: &SimRequest, engine: usize, _now_us: u64) {
        self.in_flight.remove(engine);
    }
}

/// The lesser of two distinct random engines.
#[derive(Debug)]
pub struct PowerOfTwo {
    in_flight: InFlight,
    rng: SmallRng,
}

impl PowerOfTwo {
    /// One router.
    pub fn new(setup: &Setup) -> Self {
        Self {
            in_flight: InFlight::new(setup.engines),
            rng: setup.rng(),
        }
    }
}

impl Policy for PowerOfTwo {
    fn route(&mut self, _req: &SimRequest, fleet: &FleetView<'_>, _now_us: u64) -> usize {
        let first = self.rng.random_range(0..fleet.len());
        let second = (first + self.rng.random_range(1..fleet.len().max(2))) % fleet.len();
        let engine = if self.in_flight.get(second) < self.in_flight.get(first) {
            second
        } else {
            first
        };
        self.in_flight.add(engine);
        engine
    }

    fn done(&mut self, _req: &SimRequest, engine: usize, _now_us: u64) {
        self.in_flight.remove(engine);
    }
}
