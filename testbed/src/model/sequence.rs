//! One request inside the engine: how far its prompt and output are, and which blocks it keeps.
//!
//! The one idea: `computed` prompt tokens only grow, and a full prompt block gets its name in the
//! step that computes its last token. All operations are O(blocks touched).

use super::cache::{BlockCache, CacheChange, Holding};
use super::{Backlog, ModelParams, Step, Submission, TokenEvent};

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Sequence {
    id: u64,
    blocks: Vec<u64>,
    block_tokens: u32,
    prompt_tokens: u32,
    output_tokens: u32,
    external_tokens: u32,
    keep: bool,
    /// Prompt tokens done, cached ones included. Before admission: the expected hit.
    computed: u32,
    hit_tokens: u32,
    emitted: u32,
    holding: Holding,
}

impl Sequence {
    /// A request that has not been admitted.
    pub(super) fn new(submission: Submission, block_tokens: u32) -> Self {
        Self {
            id: submission.id,
            blocks: submission.blocks,
            block_tokens,
            prompt_tokens: submission.prompt_tokens.max(1),
            output_tokens: submission.output_tokens.max(1),
            external_tokens: submission.external_tokens,
            keep: submission.keep,
            computed: 0,
            hit_tokens: 0,
            emitted: 0,
            holding: Holding::default(),
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// Prompt tokens served from the cache.
    pub(super) fn hit_tokens(&self) -> u32 {
        self.hit_tokens
    }

    /// Prompt tokens that the KV of another engine spared, if there is such KV.
    pub(super) fn external_hit_tokens(&self) -> Option<u32> {
        let sent = self.external_tokens.min(self.prompt_tokens);
        (sent > 0).then(|| sent.saturating_sub(self.hit_tokens))
    }

    /// Whether the blocks stay taken after the last output token.
    pub(super) fn keeps(&self) -> bool {
        self.keep
    }

    /// Whether the last output token is out.
    pub(super) fn is_finished(&self) -> bool {
        self.emitted >= self.output_tokens
    }

    /// Blocks for the whole prompt and output.
    pub(super) fn need_blocks(&self) -> u32 {
        let tokens = u64::from(self.prompt_tokens) + u64::from(self.output_tokens);
        u32::try_from(tokens.div_ceil(u64::from(self.block_tokens))).unwrap_or(u32::MAX)
    }

    /// The blocks that a hit may cover: full ones that end before the last prompt token.
    pub(super) fn cacheable(&self) -> &[u64] {
        let full = ((self.prompt_tokens - 1) / self.block_tokens) as usize;
        self.blocks.get(..full).unwrap_or(&self.blocks)
    }

    /// Notes what the cache would serve if the request were admitted now.
    pub(super) fn expect_hit(&mut self, tokens: u32) {
        let sent = self.external_tokens.min(self.prompt_tokens - 1);
        self.computed = tokens.max(sent);
    }

    /// Takes the request's blocks from the cache; false, and no change, when they do not fit.
    pub(super) fn admit(&mut self, cache: &mut BlockCache) -> bool {
        let matched = cache.matched(self.cacheable());
        let hits = self.blocks.get(..matched as usize).unwrap_or_default();
        let Some(holding) = cache.admit(hits, self.need_blocks() - matched) else {
            return false;
        };
        self.holding = holding;
        self.hit_tokens = matched * self.block_tokens;
        self.computed = self.hit_tokens;
        let sent = self.external_tokens.min(self.prompt_tokens - 1);
        if sent > self.computed {
            self.fill_to(sent, cache);
        }
        true
    }

    /// Gives the request its part of the step's budget and returns the time it costs.
    pub(super) fn advance(
        &mut self,
        params: &ModelParams,
        cache: &mut BlockCache,
        budget: &mut u32,
        step: &mut Step,
    ) -> f64 {
        let cost_us = if self.computed < self.prompt_tokens {
            self.prefill(params, cache, budget, step)
        } else {
            *budget -= 1;
            step.decode_seqs += 1;
            self.decode_us(params)
        };
        if self.computed == self.prompt_tokens {
            if self.emitted == 0 {
                step.finished_prompts_tokens += u64::from(self.prompt_tokens);
            }
            step.tokens.push(TokenEvent {
                id: self.id,
                index: self.emitted,
                finished: self.emitted + 1 == self.output_tokens,
                cached_tokens: self.hit_tokens,
            });
            self.emitted += 1;
        }
        cost_us
    }

    /// Computes the next chunk of the prompt and names the blocks it completes.
    fn prefill(
        &mut self,
        params: &ModelParams,
        cache: &mut BlockCache,
        budget: &mut u32,
        step: &mut Step,
    ) -> f64 {
        let from = self.computed;
        let chunk = (self.prompt_tokens - from).min(*budget);
        *budget -= chunk;
        step.prefill_tokens += chunk;
        self.fill_to(from + chunk, cache);
        params.prefill_us(from, self.computed)
    }

    /// The prompt is done up to `to`: names the blocks that this completes.
    fn fill_to(&mut self, to: u32, cache: &mut BlockCache) {
        let completed =
            (self.computed / self.block_tokens) as usize..(to / self.block_tokens) as usize;
        self.computed = to;
        let blocks = self.blocks.iter().enumerate().take(completed.end);
        for (block, &hash) in blocks.skip(completed.start) {
            if cache.name(&mut self.holding, hash) {
                let request = self.id;
                cache.note(CacheChange::Stored { request, block });
            }
        }
    }

    /// Time that one decode step of this request takes.
    fn decode_us(&self, params: &ModelParams) -> f64 {
        let context = f64::from(self.prompt_tokens) + f64::from(self.emitted);
        params.decode_seq_us + context * params.decode_context_ns / 1000.0
    }

    /// Adds what this request keeps a later one waiting for.
    pub(super) fn add_to(&self, backlog: &mut Backlog, params: &ModelParams) {
        if self.emitted > 0 {
            backlog.step_us += self.decode_us(params);
        } else {
            backlog.prefill_tokens += u64::from(self.prompt_tokens - self.computed);
            backlog.prefill_us += params.prefill_us(self.computed, self.prompt_tokens);
        }
    }

    /// The blocks to give back.
    pub(super) fn into_holding(self) -> Holding {
        self.holding
    }
}
