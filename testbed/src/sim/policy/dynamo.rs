//! NVIDIA Dynamo's KV router without engine events ("approximate" mode; `selector.rs` and the
//! active-sequence tracker, defaults: overlap credit 1, prefill load scale 1, temperature 0).
//!
//! The cost is in blocks: those of prompts still to be computed there, this one's included, less the
//! overlap, plus the distinct blocks in use there, this request's included; ties fall at random.
//! The overlap is what was routed there within the last 120 s. O(engines x prompt blocks).

use std::collections::HashMap;

use hashlink::DefaultHashBuilder;
use rand::rngs::SmallRng;

use super::{FleetView, Policy, Setup, SimRequest, cheapest};

const TTL_US: u64 = 120_000_000;

/// See the module documentation.
#[derive(Debug)]
pub struct Dynamo {
    workers: Vec<Worker>,
    /// Tokens without overlap of each request that awaits its first token.
    pending: HashMap<u64, u64, DefaultHashBuilder>,
    rng: SmallRng,
}

#[derive(Debug, Default)]
struct Worker {
    /// When each block was last routed here.
    routed_us: HashMap<u64, u64, DefaultHashBuilder>,
    /// Requests that use each block.
    active: HashMap<u64, u32, DefaultHashBuilder>,
    prefill_tokens: u64,
}

impl Worker {
    fn overlap_blocks(&self, req: &SimRequest, now_us: u64) -> usize {
        req.blocks
            .iter()
            .take_while(|id| {
                self.routed_us
                    .get(*id)
                    .is_some_and(|at| now_us - at < TTL_US)
            })
            .count()
    }

    fn cost(&self, req: &SimRequest, now_us: u64) -> f64 {
        let block = f64::from(req.block_tokens);
        let overlap = req.tokens_in(self.overlap_blocks(req, now_us));
        let prefill = self.prefill_tokens + u64::from(req.prompt_tokens - overlap);
        let fresh = req
            .blocks
            .iter()
            .filter(|id| !self.active.contains_key(*id));
        prefill as f64 / block + (self.active.len() + fresh.count()) as f64
    }
}

impl Dynamo {
    /// One router.
    pub fn new(setup: &Setup) -> Self {
        Self {
            workers: (0..setup.engines).map(|_| Worker::default()).collect(),
            pending: HashMap::default(),
            rng: setup.rng(),
        }
    }
}

impl Policy for Dynamo {
    fn route(&mut self, req: &SimRequest, _fleet: &FleetView<'_>, now_us: u64) -> usize {
        let costs = self.workers.iter().map(|worker| worker.cost(req, now_us));
        let engine = cheapest(costs, &mut self.rng);
        if let Some(worker) = self.workers.get_mut(engine) {
            let overlap = req.tokens_in(worker.overlap_blocks(req, now_us));
            let tokens = u64::from(req.prompt_tokens - overlap);
            worker.prefill_tokens += tokens;
            self.pending.insert(req.id, tokens);
            for &id in req.blocks.iter() {
                worker.routed_us.insert(id, now_us);
                *worker.active.entry(id).or_insert(0) += 1;
            }
        }
        engine
    }

    fn first_token(&mut self, req: &SimRequest, engine: usize, _now_us: u64) {
        let tokens = self.pending.remove(&req.id).unwrap_or(0);
        if let Some(worker) = self.workers.get_mut(engine) {
            worker.prefill_tokens -= tokens;
        }
    }

    fn done(&mut self, req: &SimRequest, engine: usize, _now_us: u64) {
        let Some(worker) = self.workers.get_mut(engine) else {
            return;
        };
        for id in req.blocks.iter() {
            if let Some(users) = worker.active.get_mut(id) {
                *users -= 1;
                if *users == 0 {
                    worker.active.remove(id);
                }
            }
        }
    }
}
