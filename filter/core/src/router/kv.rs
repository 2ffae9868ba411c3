//! What a KV index service says of a prompt, from the question to the ranking.
//!
//! A request of a `kv_aware` pool first looks here for what is known of its conversation. If nothing is,
//! and a lookup is worth it, it asks an engine for its tokens and the service who holds them (`calls`);
//! `exchange` makes these calls, one after the other. Everything that goes wrong ends in the decision of
//! `prefix`. O(endpoints that hold anything) for each answer.

mod calls;

pub(crate) use calls::Sender;

use super::decide::PromptFacts;
use super::{Router, Target};
use crate::admission::Priority;
use crate::call::Pending;
use crate::config::KvAwareOptions;
use crate::kv::{Answers, Directory, Known, Outcome, Rest, Skip, Tally, Told, add};
use crate::policy::{self, Group, Holders, Word};
use crate::scan::CHUNK_BYTES;
use crate::store::Store;
use crate::wire::kv_index::Overlap;
use std::net::IpAddr;

/// The label that names an endpoint's instance at the index service.
pub const INSTANCE_LABEL: &str = "kv_instance";

/// What one worker knows of the index of one pool.
#[derive(Debug)]
pub(super) struct KvPool {
    answers: Answers,
    rest: Rest,
    directory: Directory,
    tally: Tally,
    pending: Pending,
}

/// What to do about a prompt's cache before it is routed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Inquiry {
    /// Nothing.
    None,
    /// This is known of it.
    Told(Told),
    /// Ask the engine at this position for its tokens.
    Ask(usize),
}

impl KvPool {
    pub(super) fn new(options: &KvAwareOptions) -> Self {
        KvPool {
            answers: Answers::new(options.answer_ttl_us),
            rest: Rest::new(options.cool_down_us),
            directory: Directory::default(),
            tally: Tally::default(),
            pending: Pending::default(),
        }
    }
}

impl<S: Store> Router<S> {
    /// Whether any pool asks an index service.
    pub(crate) fn asks_index(&self) -> bool {
        self.kv.iter().any(Option::is_some)
    }

    fn kv_options(&self, pool: usize) -> Option<&KvAwareOptions> {
        self.config.pools.get(pool)?.policy.kv_aware()
    }

    fn kv_pool(&mut self, pool: usize) -> Option<&mut KvPool> {
        self.kv.get_mut(pool)?.as_mut()
    }

    /// How long a request of a pool may wait.
    pub(crate) fn kv_budget_us(&self, pool: usize) -> u64 {
        self.kv_options(pool).map_or(0, |options| options.budget_us)
    }

    /// What is known of a prompt's cache, or who is to be asked. `tokenizable` says that an engine can
    /// tell its tokens. Who is told to ask counts as waiting until [`Router::kv_ended`].
    pub(crate) fn kv_inquire(
        &mut self,
        target: &Target,
        prompt: &PromptFacts,
        tokenizable: bool,
        priority: Priority,
        now_us: u64,
    ) -> Inquiry {
        let Some(options) = self.kv_options(target.pool) else {
            return Inquiry::None;
        };
        let (least_tokens, most) = (options.least_tokens, options.max_pending);
        self.join(now_us);
        self.follow(now_us);
        if let Some(told) = self.kv_recall(target, prompt, now_us) {
            self.kv_count(target.pool, Outcome::Remembered, None);
            return Inquiry::Told(told);
        }
        self.judge(target.pool, target.group, now_us);
        let members = self.members(target).map(|members| members.group.members());
        if self
            .shed(target, members.unwrap_or_default(), priority)
            .is_some()
        {
            // It will be refused.
            return Inquiry::None;
        }
        let engine = self.tokenizer(target);
        let adapter = self
            .members(target)
            .is_some_and(|members| self.adapter(target, &members.group).is_some());
        let Some(kv) = self.kv_pool(target.pool) else {
            return Inquiry::None;
        };
        let skip = if prompt.bytes < CHUNK_BYTES || prompt.tokens() < least_tokens {
            Some(Skip::Short)
        } else if !tokenizable || adapter {
            Some(Skip::Form)
        } else if !kv.pending.begin(most) {
            Some(Skip::Full)
        } else if engine.is_none() || !kv.rest.may_ask(now_us) {
            kv.pending.end();
            Some(Skip::Resting)
        } else {
            None
        };
        match (skip, engine) {
            (None, Some(engine)) => Inquiry::Ask(engine),
            (skip, _) => {
                kv.tally.skip(skip.unwrap_or(Skip::Resting));
                Inquiry::None
            }
        }
    }

    /// What the answers about a conversation are known by: clients cannot compute it.
    pub(super) fn kv_key(&self, prompt: &PromptFacts) -> u64 {
        self.chain_seed(prompt.conversation)
    }

    /// What the last answer about a conversation says of a prompt.
    pub(super) fn kv_recall(
        &self,
        target: &Target,
        prompt: &PromptFacts,
        now_us: u64,
    ) -> Option<Told> {
        let kv = self.kv.get(target.pool)?.as_ref()?;
        kv.answers
            .recall(self.kv_key(prompt), &prompt.chain, prompt.bytes, now_us)
    }

    /// The less busy of two usable engines.
    fn tokenizer(&mut self, target: &Target) -> Option<usize> {
        let draws = [(); 2].map(|()| policy::next_random(&mut self.random));
        let members = self.members(target)?.group.members();
        let drawn = draws.map(|draw| members.get(policy::below(draw, members.len())).copied());
        let drawn = drawn.into_iter().flatten();
        drawn.min_by_key(|position| self.in_flight(*position))
    }

    /// What overlaps with a prompt of so many tokens mean for the endpoints of a pool, remembered for the
    /// next turns of its conversation.
    pub(crate) fn kv_told(
        &mut self,
        pool: usize,
        prompt: &PromptFacts,
        tokens: u64,
        overlaps: &[Overlap],
        now_us: u64,
    ) -> Told {
        let mut held: Vec<(usize, u64)> = Vec::new();
        let directory = self
            .kv
            .get(pool)
            .and_then(Option::as_ref)
            .map(|kv| &kv.directory);
        for overlap in overlaps.iter().filter(|overlap| overlap.tokens > 0) {
            let positions = directory.map_or(&[][..], |it| it.find(&overlap.instance));
            let is_it = |position: &&usize| match (self.rank(**position), overlap.rank) {
                (Some(own), Some(rank)) => own == rank,
                // A service that does not tell ranks apart, or an engine that has one only.
                _ => true,
            };
            for position in positions.iter().filter(is_it) {
                let upto = overlap.tokens.min(tokens);
                match held.iter_mut().find(|(other, _)| other == position) {
                    Some((_, known)) => *known = upto.max(*known),
                    None => held.push((*position, upto)),
                }
            }
        }
        let told = Told { tokens, held };
        let key = self.kv_key(prompt);
        if let Some(kv) = self.kv_pool(pool) {
            let (chain, bytes) = (&prompt.chain, prompt.bytes);
            kv.answers.learn(key, chain, bytes, &told, now_us);
        }
        told
    }

    /// A lookup ended, so long after it began.
    pub(crate) fn kv_ended(&mut self, pool: usize, outcome: Outcome, took_us: u64) {
        if let Some(kv) = self.kv_pool(pool) {
            kv.pending.end();
        }
        self.kv_count(pool, outcome, Some(took_us));
    }

    /// A request that waited for a lookup is gone.
    pub(crate) fn kv_abandoned(&mut self, pool: usize) {
        if let Some(kv) = self.kv_pool(pool) {
            kv.pending.end();
        }
    }

    fn kv_count(&mut self, pool: usize, outcome: Outcome, took_us: Option<u64>) {
        if let Some(kv) = self.kv_pool(pool) {
            kv.tally.count(outcome, took_us);
        }
    }

    /// What became of lookups since this was last asked, by pool.
    pub fn take_kv_tallies(&mut self) -> impl Iterator<Item = (usize, Tally)> {
        let pools = self.kv.iter_mut().enumerate();
        pools.filter_map(|(pool, kv)| Some((pool, std::mem::take(&mut kv.as_mut()?.tally))))
    }

    /// What the service's word comes to among the members of a group.
    pub(super) fn kv_word(&self, pool: usize, told: Option<&Told>, group: &Group) -> Word {
        let (Some(options), Some(told)) = (self.kv_options(pool), told) else {
            return Word::None;
        };
        let members = told
            .held
            .iter()
            .filter(|(at, _)| group.place(*at).is_some());
        let most = members.map(|(_, tokens)| *tokens).max().unwrap_or_default();
        let least = options
            .threshold_tokens
            .map_or(1, |threshold| told.tokens.saturating_sub(threshold).max(1));
        match most >= least {
            true => Word::Matched,
            false => Word::Unmatched,
        }
    }

    /// The same for a target, before it is decided where a request goes.
    pub(crate) fn kv_outcome(&self, target: &Target, told: &Told) -> Outcome {
        let group = self.members(target).map(|members| &members.group);
        let word = group.map(|group| self.kv_word(target.pool, Some(told), group));
        match word {
            Some(Word::Matched) => Outcome::Matched,
            _ => Outcome::Unmatched,
        }
    }

    /// Who holds how much of a prompt, as the service says and as was routed a moment ago: the more of
    /// both.
    pub(super) fn look_up_told(
        &self,
        pool: usize,
        prompt: &PromptFacts,
        told: &Told,
        holders: &mut Holders,
    ) {
        holders.clear();
        let predicts = self
            .kv_options(pool)
            .is_some_and(|options| options.prediction_us > 0);
        if let Some(replica) = self.replica.as_ref().filter(|_| predicts) {
            replica.lookup_lately(&prompt.chain, |engine, link| {
                if let Some(position) = self.positions.get(&engine) {
                    holders.set(*position, prompt.tokens_upto(link.end));
                }
            });
        }
        for (position, tokens) in &told.held {
            if *tokens > holders.tokens(*position) {
                holders.set(*position, *tokens);
            }
        }
    }

    /// A prompt of which this is known goes to an endpoint.
    pub(super) fn kv_routed(&mut self, pool: usize, prompt: &PromptFacts, position: usize) {
        let key = self.kv_key(prompt);
        if let (Some(kv), Some(told)) = (self.kv_pool(pool), &prompt.told) {
            let held = told.held.iter().find(|(other, _)| *other == position);
            kv.tally.overlap_tokens += held.map_or(0, |(_, tokens)| *tokens);
            let (chain, bytes) = (&prompt.chain, prompt.bytes);
            kv.answers.routed(key, chain, bytes, told, position);
        }
    }

    /// An endpoint failed a prompt of this conversation.
    pub(super) fn kv_forget(&mut self, pool: usize, key: u64) {
        if let Some(kv) = self.kv_pool(pool) {
            kv.answers.forget(key);
        }
    }

    /// Takes over where the instances of each index are, by the configuration and the labels.
    pub(super) fn set_directories(&mut self) {
        let mut all = std::mem::take(&mut self.kv);
        for (pool, kv) in all.iter_mut().enumerate() {
            if let (Some(kv), Some(options)) = (kv, self.kv_options(pool)) {
                let (given, by_ip) = self.instances(pool, options);
                kv.directory.set(given, by_ip);
                kv.answers.clear();
            }
        }
        self.kv = all;
    }

    fn instances(&self, pool: usize, options: &KvAwareOptions) -> (Known<String>, Known<IpAddr>) {
        let mut given: Known<String> = Vec::new();
        let mut by_ip: Known<IpAddr> = Vec::new();
        let groups = self.pools.get(pool).map(|pool| pool.groups.as_slice());
        let all = groups.and_then(|groups| groups.first());
        for position in all
            .map(|members| members.all.as_slice())
            .unwrap_or_default()
        {
            let Some(socket) = self.socket(*position) else {
                continue;
            };
            let configured = options.index.instances.iter();
            let configured = configured.filter(|(_, address)| *address == socket);
            let names: Vec<&str> = match configured.map(|(name, _)| name.as_str()).collect() {
                names if Vec::is_empty(&names) => {
                    self.label(*position, INSTANCE_LABEL).into_iter().collect()
                }
                names => names,
            };
            for name in names {
                add(&mut given, name.to_owned(), *position);
            }
            add(&mut by_ip, socket.ip(), *position);
        }
        // Several engines at one address cannot be told apart by it; ranks of one can.
        by_ip.retain(|(_, positions)| {
            let mut sockets = positions.iter().map(|position| self.socket(*position));
            let first = sockets.next();
            sockets.all(|socket| Some(socket) == first)
        });
        (given, by_ip)
    }
}
