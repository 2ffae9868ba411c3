//! The cost formula of the `prefix` policy on an idealised table, as a yardstick for the real one.
//!
//! All in tokens, per engine: `queued work + alpha x this prompt's uncached part + 100 x requests
//! in flight + 0.03 x context in flight`, alpha = 1 + 4q where q is the mean number of requests per
//! engine without a first token. Ideal is the table: exact and unbounded, one entry a block, in the
//! order in which the engine itself would evict. `true_cache` replaces it by the engines' caches; `home` takes nine
//! tenths off the prompt's cost on the engine that its key's rendezvous rank names first.
//! O(engines x prompt blocks).

use std::collections::HashMap;
use std::fmt;

use anyhow::bail;
use hashlink::{DefaultHashBuilder, LinkedHashSet};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{FleetView, Policy, Setup, SimRequest};

/// Growth of alpha with the mean queue.
const STICKINESS: f64 = 4.0;
const QUEUE_CAP: f64 = 8.0;
const REQUEST_COST_TOKENS: f64 = 100.0;
const CONTEXT_WEIGHT: f64 = 0.03;
/// What a request is expected to generate.
const EXPECTED_OUTPUT_TOKENS: u64 = 300;
/// Even a prompt that is cached whole costs something.
const LEAST_WORK_TOKENS: u32 = 16;
const HOME_AFFINITY: f64 = 0.9;
/// Table capacity over KV capacity, before the context of decoding requests is taken off.
const HORIZON: f64 = 1.05;

/// Variants of the policy.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Options {
    true_cache: bool,
    home: bool,
}

impl Options {
    /// Words separated by `/`: `true_cache`, `home`.
    ///
    /// # Errors
    /// Any other word.
    pub fn parse(text: Option<&str>) -> anyhow::Result<Self> {
        let mut options = Self::default();
        for word in text.into_iter().flat_map(|text| text.split('/')) {
            match word {
                "true_cache" => options.true_cache = true,
                "home" => options.home = true,
                _ => bail!("ours_reference: got {word}, want true_cache or home"),
            }
        }
        Ok(options)
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.true_cache, self.home) {
            (false, false) => "",
            (true, false) => "=true_cache",
            (false, true) => "=home",
            (true, true) => "=true_cache/home",
        })
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Ours {
    options: Options,
    horizon_tokens: f64,
    engines: Vec<EngineTable>,
    /// Work of each request that awaits its first token.
    pending: HashMap<u64, u32, DefaultHashBuilder>,
}

/// What is known of one engine.
#[derive(Debug, Default)]
struct EngineTable {
    /// Blocks of requests in flight, with their number.
    in_use: HashMap<u64, u32, DefaultHashBuilder>,
    /// All other blocks, least recently released first.
    idle: LinkedHashSet<u64>,
    /// Prompt tokens to compute for requests without a first token.
    work_tokens: u64,
    waiting: u32,
    in_flight: u32,
    context_tokens: u64,
    /// The part of `context_tokens` whose requests have their first token.
    decoding_tokens: u64,
}

impl EngineTable {
    /// Depth of the deepest known block; chained ids make it attest all before it.
    fn matched_blocks(&self, blocks: &[u64]) -> usize {
        let known = |id: &u64| self.in_use.contains_key(id) || self.idle.contains(id);
        blocks.iter().rposition(known).map_or(0, |at| at + 1)
    }

    fn mark_in_use(&mut self, blocks: &[u64]) {
        for &id in blocks {
            self.idle.remove(&id);
            *self.in_use.entry(id).or_insert(0) += 1;
        }
    }

    /// Deepest first, so that the shared part outlives the rest.
    fn release(&mut self, blocks: &[u64]) {
        for &id in blocks.iter().rev() {
            if let Some(users) = self.in_use.get_mut(&id) {
                *users -= 1;
                if *users == 0 {
                    self.in_use.remove(&id);
                    self.idle.insert(id);
                }
            }
        }
    }

    /// Forgets what the engine must have evicted.
    fn trim(&mut self, horizon_tokens: f64, block_tokens: u32) {
        let room = (horizon_tokens - self.decoding_tokens as f64).max(0.0);
        while self.idle.len() as f64 * f64::from(block_tokens) > room {
            self.idle.pop_front();
        }
    }
}

/// Full blocks only: a partial one is never cached.
fn full_blocks(req: &SimRequest) -> &[u64] {
    let full = (req.prompt_tokens / req.block_tokens) as usize;
    req.blocks.get(..full).unwrap_or(&req.blocks)
}

fn context_tokens(req: &SimRequest) -> u64 {
    u64::from(req.prompt_tokens) + EXPECTED_OUTPUT_TOKENS
}

/// Rendezvous rank of an engine for a key: the same for every router.
fn rank(key: u64, engine: usize) -> u64 {
    xxh3_64_with_seed(&key.to_le_bytes(), engine as u64)
}

impl Ours {
    /// One router.
    pub fn new(options: &Options, setup: &Setup) -> Self {
        Self {
            options: options.clone(),
            horizon_tokens: HORIZON * setup.kv_tokens as f64,
            engines: (0..setup.engines).map(|_| EngineTable::default()).collect(),
            pending: HashMap::default(),
        }
    }

    /// Tokens of the prompt that the engine would have to compute.
    fn own_work(&self, req: &SimRequest, fleet: &FleetView<'_>, engine: usize) -> u32 {
        let matched = if self.options.true_cache {
            fleet.cached_tokens(engine, req)
        } else {
            let table = self.engines.get(engine);
            req.tokens_in(table.map_or(0, |table| table.matched_blocks(full_blocks(req))))
        };
        (req.prompt_tokens - matched).max(LEAST_WORK_TOKENS)
    }
}

impl Policy for Ours {
    fn route(&mut self, req: &SimRequest, fleet: &FleetView<'_>, _now_us: u64) -> usize {
        let waiting: u32 = self.engines.iter().map(|table| table.waiting).sum();
        let queue = (f64::from(waiting) / fleet.len() as f64).min(QUEUE_CAP);
        let alpha = 1.0 + STICKINESS * queue;
        let home = (0..fleet.len()).max_by_key(|engine| rank(req.key, *engine));
        let home = home.filter(|_| self.options.home);
        let mut best = (f64::INFINITY, 0, 0, 0);
        for (engine, table) in self.engines.iter().enumerate() {
            let work = self.own_work(req, fleet, engine);
            let away = if home == Some(engine) {
                1.0 - HOME_AFFINITY
            } else {
                1.0
            };
            let cost = table.work_tokens as f64
                + alpha * away * f64::from(work)
                + REQUEST_COST_TOKENS * f64::from(table.in_flight)
                + CONTEXT_WEIGHT * table.context_tokens as f64;
            let rank = rank(req.key, engine);
            if cost < best.0 || (cost == best.0 && rank > best.1) {
                best = (cost, rank, engine, work);
            }
        }
        let (_, _, engine, work) = best;
        if let Some(table) = self.engines.get_mut(engine) {
            table.mark_in_use(full_blocks(req));
            table.work_tokens += u64::from(work);
            table.waiting += 1;
            table.in_flight += 1;
            table.context_tokens += context_tokens(req);
        }
        self.pending.insert(req.id, work);
        engine
    }

    fn first_token(&mut self, req: &SimRequest, engine: usize, _now_us: u64) {
        let work = self.pending.remove(&req.id).unwrap_or(0);
        if let Some(table) = self.engines.get_mut(engine) {
            table.work_tokens -= u64::from(work);
            table.waiting -= 1;
            table.decoding_tokens += context_tokens(req);
            table.trim(self.horizon_tokens, req.block_tokens);
        }
    }

    fn done(&mut self, req: &SimRequest, engine: usize, _now_us: u64) {
        if let Some(table) = self.engines.get_mut(engine) {
            table.release(full_blocks(req));
            table.in_flight -= 1;
            table.context_tokens -= context_tokens(req);
            table.decoding_tokens -= context_tokens(req);
            table.trim(self.horizon_tokens, req.block_tokens);
        }
    }
}
