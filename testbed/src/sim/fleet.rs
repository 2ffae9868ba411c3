//! The engines of a simulation, and what a policy may see of them.

use super::request::SimRequest;
use crate::model::{EngineModel, ModelParams, Stats, Step};

/// One engine and the step it is in.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) model: EngineModel,
    /// The step under way, whose effects are due at `step_end_us`.
    pub(super) step: Option<Step>,
    pub(super) step_end_us: u64,
    /// Requests here whose first token has not been delivered.
    pub(super) awaiting_first: u32,
    /// The last scrape.
    pub(super) scraped: Stats,
}

impl Engine {
    /// An idle engine.
    pub(super) fn new(params: ModelParams) -> Self {
        Self {
            model: EngineModel::new(params),
            step: None,
            step_end_us: 0,
            awaiting_first: 0,
            scraped: Stats::default(),
        }
    }
}

/// What a policy may look at when it routes. Real policies have only [`scraped`](Self::scraped);
/// the rest is the truth, for oracles.
#[derive(Debug, Clone, Copy)]
pub struct FleetView<'a> {
    engines: &'a [Engine],
    now_us: u64,
}

impl<'a> FleetView<'a> {
    pub(super) fn new(engines: &'a [Engine], now_us: u64) -> Self {
        Self { engines, now_us }
    }

    /// Engines, numbered from 0.
    pub fn len(&self) -> usize {
        self.engines.len()
    }

    /// The engine's metrics at the last scrape, of an age up to the policy's scrape period.
    pub fn scraped(&self, engine: usize) -> Stats {
        self.engines
            .get(engine)
            .map(|e| e.scraped)
            .unwrap_or_default()
    }

    /// What the engine's metrics page would say at this moment, and its size.
    pub fn told(&self, engine: usize) -> Option<(Stats, &'a ModelParams)> {
        let engine = self.engines.get(engine)?;
        Some((engine.model.stats(), engine.model.params()))
    }

    /// Truth: prompt tokens that the engine's cache would serve now.
    pub fn cached_tokens(&self, engine: usize, request: &SimRequest) -> u32 {
        self.engines.get(engine).map_or(0, |e| {
            let blocks = e.model.matched_blocks(&request.blocks);
            let tokens = blocks.saturating_mul(request.block_tokens);
            tokens.min(request.prompt_tokens - 1)
        })
    }

    /// Truth: time until the engine has computed the prompts it has now.
    pub fn wait_us(&self, engine: usize) -> f64 {
        self.engines.get(engine).map_or(0.0, |e| {
            let under_way = match e.step {
                Some(_) => e.step_end_us.saturating_sub(self.now_us) as f64,
                None => 0.0,
            };
            let backlog = e.model.backlog();
            let budget = f64::from(e.model.params().token_budget);
            let steps = (backlog.prefill_tokens as f64 / budget).ceil();
            under_way + backlog.prefill_us + steps * backlog.step_us
        })
    }

    /// Truth: time of the request's own prompt on that engine, given what is cached there.
    pub fn prefill_us(&self, engine: usize, request: &SimRequest) -> f64 {
        let cached = self.cached_tokens(engine, request);
        self.engines.get(engine).map_or(0.0, |e| {
            e.model.params().prefill_us(cached, request.prompt_tokens)
        })
    }

    /// Truth: requests on the engine whose first token has not been delivered.
    pub fn awaiting_first(&self, engine: usize) -> u32 {
        self.engines.get(engine).map_or(0, |e| e.awaiting_first)
    }
}

/// Requests in flight, for the policies that count their own. O(1) an event.
#[derive(Debug, Default)]
pub struct InFlight {
    counts: Vec<u32>,
}

impl InFlight {
    /// None on each of `engines`.
    pub fn new(engines: usize) -> Self {
        Self {
            counts: vec![0; engines],
        }
    }

    /// Requests on the engine.
    pub fn get(&self, engine: usize) -> u32 {
        self.counts.get(engine).copied().unwrap_or(0)
    }

    /// All counts, by engine.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// A request was sent.
    pub fn add(&mut self, engine: usize) {
        if let Some(count) = self.counts.get_mut(engine) {
            *count += 1;
        }
    }

    /// A request ended.
    pub fn remove(&mut self, engine: usize) {
        if let Some(count) = self.counts.get_mut(engine) {
            *count = count.saturating_sub(1);
        }
    }
}
