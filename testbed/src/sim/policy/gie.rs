//! The endpoint picker of the Gateway API Inference Extension (now llm-d): prefix scorer with
//! weight 3, queue 2, KV use 2, as in its default profile.
//!
//! The prefix index is an LRU of block hashes an engine, filled when a request is routed. Of a
//! prompt only the first 4096 tokens (256 blocks of 16) are indexed; `gie` lifts that cap,
//! `gie_capped` keeps it. Metrics are scraped every 50 ms. Two liberties, both in its favour: the
//! 31,250 entries an engine are blocks of the trace, which are larger, and a prompt is entered
//! deepest block first, so that its start is dropped last. O(engines x prompt blocks).

use hashlink::LinkedHashSet;
use rand::rngs::SmallRng;

use super::{FleetView, Policy, Setup, SimRequest, cheapest};

const PREFIX_WEIGHT: f64 = 3.0;
const QUEUE_WEIGHT: f64 = 2.0;
const KV_WEIGHT: f64 = 2.0;
const SCRAPE_PERIOD_US: u64 = 50_000;
/// 256 blocks of 16 tokens.
const CAP_TOKENS: u32 = 4096;
/// Entries of an engine's index.
const INDEX_BLOCKS: usize = 31_250;

/// Which of the two variants.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Index only the first 4096 tokens of a prompt.
    pub capped: bool,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Gie {
    options: Options,
    /// Blocks thought to be on each engine, least recently routed first.
    index: Vec<LinkedHashSet<u64>>,
    rng: SmallRng,
}

impl Gie {
    /// One picker.
    pub fn new(options: &Options, setup: &Setup) -> Self {
        Self {
            options: options.clone(),
            index: vec![LinkedHashSet::new(); setup.engines],
            rng: setup.rng(),
        }
    }

    /// The part of the prompt that is looked at: blocks, tokens.
    fn indexed<'r>(&self, req: &'r SimRequest) -> (&'r [u64], u32) {
        if !self.options.capped || req.prompt_tokens <= CAP_TOKENS {
            return (&req.blocks, req.prompt_tokens);
        }
        let blocks = (CAP_TOKENS / req.block_tokens) as usize;
        (req.blocks.get(..blocks).unwrap_or(&req.blocks), CAP_TOKENS)
    }
}

impl Policy for Gie {
    fn route(&mut self, req: &SimRequest, fleet: &FleetView<'_>, _now_us: u64) -> usize {
        let (blocks, tokens) = self.indexed(req);
        let queues = || (0..fleet.len()).map(|engine| fleet.scraped(engine).waiting);
        let least = queues().min().unwrap_or(0);
        let most = queues().max().unwrap_or(0);
        let costs = self.index.iter().enumerate().map(|(engine, index)| {
            let stats = fleet.scraped(engine);
            let matched = blocks.iter().take_while(|id| index.contains(*id)).count();
            let prefix = f64::from(req.tokens_in(matched).min(tokens)) / f64::from(tokens);
            let queue = if most == least {
                1.0
            } else {
                f64::from(most - stats.waiting) / f64::from(most - least)
            };
            let kv_use = f64::from(stats.kv_used_blocks) / f64::from(stats.kv_blocks.max(1));
            -(PREFIX_WEIGHT * prefix + QUEUE_WEIGHT * queue + KV_WEIGHT * (1.0 - kv_use))
        });
        let engine = cheapest(costs, &mut self.rng);
        if let Some(index) = self.index.get_mut(engine) {
            for &id in blocks.iter().rev() {
                index.replace(id);
                if index.len() > INDEX_BLOCKS {
                    index.pop_front();
                }
            }
        }
        engine
    }

    fn scrape_period_us(&self) -> Option<u64> {
        Some(SCRAPE_PERIOD_US)
    }
}
