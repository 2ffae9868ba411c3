//! The engine model: an LLM engine in the manner of vLLM V1, without a clock, threads or sockets.
//!
//! One idea: an engine is a loop of steps, and a step is a pure function of the queue. The caller
//! submits requests, calls [`EngineModel::step`], and lets [`Step::duration_us`] pass, in simulated
//! or real time, before it delivers the step's tokens and calls again.
//!
//! A step spends a budget of tokens: running requests first (one token each when decoding, a chunk
//! of the prompt otherwise), then waiting ones in order of arrival. A request is admitted when its
//! whole KV need fits (prompt and output; nothing is ever preempted); one that does not fit blocks
//! those behind it. A prompt block can be hit from the moment it is scheduled. The last prompt
//! token is always computed, since its logits give the first output token.
//!
//! Cost: a step is O(running requests + prompt blocks scheduled), a submission O(prompt blocks).
//! Memory is bounded by the KV blocks plus the prompts submitted and not finished.
//!
//! ```text
//! engine.submit(Submission { id: 1, blocks, prompt_tokens: 4000, output_tokens: 200 })?;
//! while let Some(step) = engine.step() {
//!     now_us += step.duration_us;
//!     deliver(step.tokens, now_us);
//! }
//! ```

mod cache;
mod sequence;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::fmt;

pub use cache::CacheChange;
use cache::{BlockCache, Holding};
use sequence::Sequence;

/// Size and speed of an engine. The default is a model of the Llama-3-8B class on one H100.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelParams {
    /// Tokens in a KV block.
    pub block_tokens: u32,
    /// KV blocks in the engine.
    pub kv_blocks: u32,
    /// Most tokens, prompt and output together, that one step computes.
    pub token_budget: u32,
    /// Most requests running at a time.
    pub max_num_seqs: u32,
    /// Time of an empty step.
    pub step_base_us: f64,
    /// Added for each prompt token computed.
    pub prefill_token_us: f64,
    /// Added for each prompt token computed, times its position in the prompt.
    pub prefill_position_ns: f64,
    /// Added for each request that decodes.
    pub decode_seq_us: f64,
    /// Added for each token of context of each request that decodes.
    pub decode_context_ns: f64,
}

impl Default for ModelParams {
    fn default() -> Self {
        Self {
            block_tokens: 16,
            kv_blocks: 25_000,
            token_budget: 8192,
            max_num_seqs: 256,
            step_base_us: 8000.0,
            prefill_token_us: 50.0,
            prefill_position_ns: 2.0,
            decode_seq_us: 30.0,
            decode_context_ns: 50.0,
        }
    }
}

impl ModelParams {
    /// Time to compute the prompt tokens `from..to`, without the step's base.
    pub fn prefill_us(&self, from: u32, to: u32) -> f64 {
        let (from, to) = (f64::from(from), f64::from(to));
        let positions = (to - from).max(0.0) * (from + to) / 2.0;
        (to - from).max(0.0) * self.prefill_token_us + positions * self.prefill_position_ns / 1000.0
    }

    /// KV capacity in tokens.
    pub fn kv_tokens(&self) -> u64 {
        u64::from(self.kv_blocks) * u64::from(self.block_tokens)
    }
}

/// A request handed to the engine.
#[derive(Debug, Clone, Default)]
pub struct Submission {
    /// Unique among the requests in the engine.
    pub id: u64,
    /// Chained hash of each prompt block, the last of which may be partial. Blocks left out are
    /// computed but never cached.
    pub blocks: Vec<u64>,
    /// Length of the prompt; 0 counts as 1.
    pub prompt_tokens: u32,
    /// Tokens to generate; 0 counts as 1.
    pub output_tokens: u32,
    /// Leading prompt tokens whose KV another engine has sent. The last prompt token is computed all
    /// the same.
    pub external_tokens: u32,
    /// Whether the blocks stay taken when it is finished, until [`EngineModel::let_go`].
    pub keep: bool,
}

/// Why a submission was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Prompt and output together need more blocks than the engine has.
    TooLarge {
        /// Blocks that the request needs.
        need_blocks: u32,
        /// Blocks that the engine has.
        kv_blocks: u32,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge {
                need_blocks,
                kv_blocks,
            } => write!(
                f,
                "request needs {need_blocks} KV blocks, the engine has {kv_blocks}"
            ),
        }
    }
}

impl std::error::Error for Refusal {}

/// One output token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenEvent {
    /// The request.
    pub id: u64,
    /// Position in the output, from 0.
    pub index: u32,
    /// Whether this is the last token; the engine has forgotten the request.
    pub finished: bool,
    /// Prompt tokens that were served from the prefix cache.
    pub cached_tokens: u32,
}

/// What one step did. Its effects are due when its duration has passed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// How long the step takes; at least 1.
    pub duration_us: u64,
    /// Tokens that come out at the end of the step, at most one a request.
    pub tokens: Vec<TokenEvent>,
    /// Prompt tokens computed.
    pub prefill_tokens: u32,
    /// Requests that decoded.
    pub decode_seqs: u32,
    /// Total length of the prompts whose last token was computed.
    pub finished_prompts_tokens: u64,
}

/// Gauges and monotonic counters, as an engine's metrics page has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests admitted and not finished.
    pub running: u32,
    /// Requests submitted and not admitted.
    pub waiting: u32,
    /// Blocks that live requests keep.
    pub kv_used_blocks: u32,
    /// Blocks in the engine.
    pub kv_blocks: u32,
    /// Prompt tokens of all admitted requests.
    pub prefix_queries_tokens: u64,
    /// Those served from the prefix cache.
    pub prefix_hits_tokens: u64,
    /// Prompt tokens of all admitted requests that came with KV of another engine, without those
    /// served from the prefix cache.
    pub external_queries_tokens: u64,
    /// Those that the other engine's KV spared.
    pub external_hits_tokens: u64,
    /// Prompt tokens of all requests whose prompt is done.
    pub prompt_tokens: u64,
    /// Output tokens.
    pub generation_tokens: u64,
    /// Always 0: a request is admitted with all the blocks it will need.
    pub preemptions: u64,
}

impl Stats {
    /// Those of two engines together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            running: self.running + other.running,
            waiting: self.waiting + other.waiting,
            kv_used_blocks: self.kv_used_blocks + other.kv_used_blocks,
            kv_blocks: self.kv_blocks + other.kv_blocks,
            prefix_queries_tokens: self.prefix_queries_tokens + other.prefix_queries_tokens,
            prefix_hits_tokens: self.prefix_hits_tokens + other.prefix_hits_tokens,
            external_queries_tokens: self.external_queries_tokens + other.external_queries_tokens,
            external_hits_tokens: self.external_hits_tokens + other.external_hits_tokens,
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            generation_tokens: self.generation_tokens + other.generation_tokens,
            preemptions: self.preemptions + other.preemptions,
        }
    }
}

/// Work ahead of a request that would be submitted now.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Backlog {
    /// Prompt tokens to compute before it.
    pub prefill_tokens: u64,
    /// Time to compute them, without step bases.
    pub prefill_us: f64,
    /// Time that the base and the requests decoding now add to every step.
    pub step_us: f64,
}

/// See the module documentation.
#[derive(Debug)]
pub struct EngineModel {
    params: ModelParams,
    cache: BlockCache,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    /// What finished requests keep.
    kept: HashMap<u64, Holding>,
    counters: Stats,
}

impl EngineModel {
    /// An idle engine with an empty cache.
    pub fn new(params: ModelParams) -> Self {
        let params = ModelParams {
            block_tokens: params.block_tokens.max(1),
            token_budget: params.token_budget.max(1),
            max_num_seqs: params.max_num_seqs.max(1),
            ..params
        };
        Self {
            cache: BlockCache::new(params.kv_blocks),
            waiting: VecDeque::new(),
            running: Vec::new(),
            kept: HashMap::new(),
            counters: Stats::default(),
            params,
        }
    }

    /// Size and speed, as given.
    pub fn params(&self) -> &ModelParams {
        &self.params
    }

    /// Puts a request at the end of the queue.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] when it could never be admitted.
    pub fn submit(&mut self, submission: Submission) -> Result<(), Refusal> {
        let mut sequence = Sequence::new(submission, self.params.block_tokens);
        if sequence.need_blocks() > self.cache.capacity() {
            return Err(Refusal::TooLarge {
                need_blocks: sequence.need_blocks(),
                kv_blocks: self.cache.capacity(),
            });
        }
        let expected_blocks = self.cache.matched(sequence.cacheable());
        sequence.expect_hit(expected_blocks * self.params.block_tokens);
        self.waiting.push_back(sequence);
        Ok(())
    }

    /// Forgets a request and gives its blocks back. False when it is not here (any more).
    pub fn abort(&mut self, id: u64) -> bool {
        if let Some(at) = self.waiting.iter().position(|s| s.id() == id) {
            self.waiting.remove(at);
            return true;
        }
        let Some(at) = self.running.iter().position(|s| s.id() == id) else {
            return false;
        };
        self.cache.release(self.running.remove(at).into_holding());
        true
    }

    /// Gives back what a finished request kept. False when it keeps nothing (any more).
    pub fn let_go(&mut self, id: u64) -> bool {
        match self.kept.remove(&id) {
            Some(holding) => {
                self.cache.release(holding);
                true
            }
            None => false,
        }
    }

    /// Whether no request is waiting or running.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Schedules and runs one step; `None` when the engine is idle.
    pub fn step(&mut self) -> Option<Step> {
        if self.is_idle() {
            return None;
        }
        let mut step = Step::default();
        let mut budget = self.params.token_budget;
        let mut cost_us = self.params.step_base_us;
        for sequence in &mut self.running {
            if budget == 0 {
                break;
            }
            cost_us += sequence.advance(&self.params, &mut self.cache, &mut budget, &mut step);
        }
        while budget > 0 {
            let Some(mut sequence) = self.admit_next() else {
                break;
            };
            cost_us += sequence.advance(&self.params, &mut self.cache, &mut budget, &mut step);
            self.running.push(sequence);
        }
        self.count(&step);
        self.retire();
        step.duration_us = (cost_us.round() as u64).max(1);
        Some(step)
    }

    /// Prompt tokens of a live request that were served from the prefix cache; `None` until it is
    /// admitted and after it finished ([`TokenEvent::cached_tokens`] has the figure as well).
    #[cfg(test)]
    pub fn cached_tokens(&self, id: u64) -> Option<u32> {
        let sequence = self.running.iter().find(|s| s.id() == id)?;
        Some(sequence.hit_tokens())
    }

    /// Gauges and counters, including the effects of the last step.
    pub fn stats(&self) -> Stats {
        Stats {
            running: u32::try_from(self.running.len()).unwrap_or(u32::MAX),
            waiting: u32::try_from(self.waiting.len()).unwrap_or(u32::MAX),
            kv_used_blocks: self.cache.used(),
            kv_blocks: self.cache.capacity(),
            ..self.counters
        }
    }

    /// How many leading blocks of a prompt are in the cache now. A prompt that is covered whole
    /// still has its last token computed.
    pub fn matched_blocks(&self, blocks: &[u64]) -> u32 {
        self.cache.matched(blocks)
    }

    /// Work ahead of a new request, as far as it is known before the waiting requests are admitted.
    /// O(requests in the engine).
    pub fn backlog(&self) -> Backlog {
        let mut backlog = Backlog {
            step_us: self.params.step_base_us,
            ..Backlog::default()
        };
        for sequence in self.running.iter().chain(&self.waiting) {
            sequence.add_to(&mut backlog, &self.params);
        }
        backlog
    }

    /// Notes from now on what changes in the prefix cache; it must be fetched, or it piles up.
    pub fn note_cache_changes(&mut self) {
        self.cache.note_changes();
    }

    /// What has changed in the prefix cache since this was last asked, oldest first.
    pub fn take_cache_changes(&mut self) -> Vec<CacheChange> {
        self.cache.take_changes()
    }

    /// Drops every block that no live request keeps, as an engine's cache reset does.
    pub fn flush_cache(&mut self) {
        self.cache.flush();
    }

    /// Admits the first waiting request, if a slot is free and its blocks fit.
    fn admit_next(&mut self) -> Option<Sequence> {
        if self.running.len() >= self.params.max_num_seqs as usize {
            return None;
        }
        if !self.waiting.front_mut()?.admit(&mut self.cache) {
            return None;
        }
        let sequence = self.waiting.pop_front()?;
        self.counters.prefix_queries_tokens += u64::from(sequence.prompt_tokens());
        self.counters.prefix_hits_tokens += u64::from(sequence.hit_tokens());
        if let Some(sent) = sequence.external_hit_tokens() {
            let asked = sequence.prompt_tokens() - sequence.hit_tokens();
            self.counters.external_queries_tokens += u64::from(asked);
            self.counters.external_hits_tokens += u64::from(sent);
        }
        Some(sequence)
    }

    /// Adds a step's tokens to the counters.
    fn count(&mut self, step: &Step) {
        self.counters.generation_tokens += step.tokens.len() as u64;
        self.counters.prompt_tokens += step.finished_prompts_tokens;
    }

    /// Removes the requests that finished in this step.
    fn retire(&mut self) {
        if !self.running.iter().any(Sequence::is_finished) {
            return;
        }
        let (done, live) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(Sequence::is_finished);
        self.running = live;
        let done: Vec<Sequence> = done;
        for sequence in done {
            let (id, keeps) = (sequence.id(), sequence.keeps());
            let holding = sequence.into_holding();
            if keeps {
                self.kept.insert(id, holding);
            } else {
                self.cache.release(holding);
            }
        }
    }
}
