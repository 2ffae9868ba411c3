//! Ranking the endpoints for one request, and counting it at the first of them.

use super::account::{Charge, Held};
use super::judge::Care;
use super::{Router, Target, count};
use crate::admission::Priority;
use crate::answer::Answer;
use crate::board::Board;
use crate::config::PolicyConfig;
use crate::decision::{Decision, Fallback, Reason};
use crate::kv::Told;
use crate::load::Load;
use crate::policy::prefix::{Warmth, work};
use crate::policy::{self, Adapter, Foreign, Group, Holders, Ranking, View, Word};
use crate::prefix::{self, BYTES_PER_TOKEN, CHUNK_TOKENS, Event, Kind};
use crate::rate;
use crate::recent::Entry;
use crate::scan::Link;
use crate::splice::Change;
use crate::store::Store;

/// Output tokens that are expected of a request which does not say.
const EXPECTED_OUTPUT_TOKENS: u64 = 300;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// Where the model leads.
    pub target: &'a Target,
    /// Hash of the session key.
    pub key: Option<u64>,
    /// The prompt, if the pool's policy looks at it and it could be read.
    pub prompt: Option<PromptFacts>,
    /// Its class, where pools refuse requests.
    pub priority: Priority,
}

/// What a decision needs to know of a prompt.
#[derive(Clone, Debug, Default)]
pub struct PromptFacts {
    /// Its hash chain.
    pub chain: Vec<Link>,
    /// Its length in bytes of canonical text.
    pub bytes: usize,
    /// What all turns of the conversation share.
    pub conversation: u64,
    /// Whether the answer is streamed, so that its first token can be seen.
    pub streamed: bool,
    /// Most output tokens, if the request says.
    pub output_tokens: Option<u32>,
    /// What an index service says of it, if it was asked.
    pub told: Option<Told>,
}

impl Ask<'_> {
    /// What an index service says of the prompt.
    fn told(&self) -> Option<&Told> {
        self.prompt.as_ref()?.told.as_ref()
    }
}

impl PromptFacts {
    /// Its length in tokens.
    pub(super) fn tokens(&self) -> u64 {
        let estimate = || (self.bytes / BYTES_PER_TOKEN) as u64;
        self.told.as_ref().map_or_else(estimate, |told| told.tokens)
    }

    /// Tokens of its first bytes.
    pub(super) fn tokens_upto(&self, bytes: usize) -> u64 {
        let Some(told) = &self.told else {
            return (bytes / BYTES_PER_TOKEN) as u64;
        };
        let upto = u128::from(told.tokens) * bytes as u128 / self.bytes.max(1) as u128;
        u64::try_from(upto).unwrap_or(u64::MAX)
    }

    /// Bytes of its first tokens.
    fn bytes_upto(&self, tokens: u64) -> usize {
        let Some(told) = &self.told else {
            return (tokens as usize).saturating_mul(BYTES_PER_TOKEN);
        };
        let upto = u128::from(tokens) * self.bytes as u128 / u128::from(told.tokens.max(1));
        usize::try_from(upto).unwrap_or(usize::MAX)
    }

    pub(super) fn warmth<'a>(&self, key: Option<u64>, holders: &'a Holders) -> Warmth<'a> {
        Warmth {
            tokens: self.tokens(),
            holders,
            conversation: key.unwrap_or(self.conversation),
        }
    }
}

/// What of a request its ranking depends on.
pub(super) struct Weighing<'a> {
    pub(super) key: Option<u64>,
    pub(super) warmth: Option<Warmth<'a>>,
    pub(super) word: Word,
    pub(super) unseen_tokens: f64,
    pub(super) turn: u64,
    pub(super) draw: u64,
    pub(super) priority: Priority,
}

impl<'a> Weighing<'a> {
    /// The same as a policy sees it.
    pub(super) fn view(
        &self,
        group: &'a Group,
        loads: &'a Board<Load>,
        words: (&'a [Foreign], Option<Adapter<'a>>),
        candidates: usize,
    ) -> View<'a> {
        View {
            group,
            loads,
            foreign: words.0,
            adapter: words.1,
            key: self.key,
            warmth: self.warmth,
            word: self.word,
            unseen_tokens: self.unseen_tokens,
            turn: self.turn,
            draw: self.draw,
            candidates,
        }
    }
}

/// Where the turns of a group are counted for all workers.
pub(super) fn turn_key(pool: &str, group: usize) -> String {
    format!("warmpath/turn/{pool}/{group}")
}

impl<S: Store> Router<S> {
    /// Ranks the endpoints of a target and counts the request as in flight at the first.
    ///
    /// # Errors
    /// The answer to give when no endpoint can take the request, or none takes one more.
    pub fn decide(&mut self, ask: Ask, now_us: u64) -> Result<(Decision, Charge), Answer> {
        self.decide_part(ask, false, now_us)
    }

    /// The same of a request whose prompt another engine computes and hands over, if `prefilled`: it
    /// brings no prefill work.
    ///
    /// # Errors
    /// As [`Router::decide`].
    pub fn decide_part(
        &mut self,
        ask: Ask,
        prefilled: bool,
        now_us: u64,
    ) -> Result<(Decision, Charge), Answer> {
        self.join(now_us);
        self.follow(now_us);
        self.drain(now_us);
        let target = ask.target;
        let mut last_resort = self.judge(target.pool, target.group, now_us);
        if self
            .members(target)
            .is_some_and(|it| it.care.probe.is_some())
        {
            // A probe may be lost: another worker's, sent a moment ago, is enough.
            self.fitness.make_due();
            last_resort = self.judge(target.pool, target.group, now_us);
        }
        let members = self.members(target).map(|members| members.group.members());
        if let Some(answer) = self.shed(target, members.unwrap_or_default(), ask.priority) {
            return Err(answer);
        }
        let word = self.members(target).map_or(Word::None, |members| {
            self.kv_word(target.pool, ask.told(), &members.group)
        });
        let group = self
            .pools
            .get_mut(target.pool)
            .and_then(|pool| pool.groups.get_mut(target.group))
            .map(|members| &mut members.group);
        let (Some(pool), Some(group)) = (self.config.pools.get(target.pool), group) else {
            return Err(Answer::no_endpoint(""));
        };
        let deciding = policy::effective(&pool.policy, ask.key.is_some(), word);
        let window_us = match deciding {
            PolicyConfig::LowestQps { window_us } => Some(*window_us),
            _ => None,
        };
        if window_us.is_some() {
            self.rates.refresh(&self.store, now_us);
        }
        let draw = policy::next_random(&mut self.random);
        let turn = match deciding {
            PolicyConfig::RoundRobin => count(&self.store, &turn_key(&pool.name, target.group)),
            _ => None,
        };
        policy::catch_up(
            deciding,
            &pool.policy,
            group,
            &self.loads,
            self.words.foreign(),
            &self.rates,
            now_us,
        );
        // Whoever stands in for `kv_aware`, prompts are remembered.
        let remembers = pool.transfers() || pool.policy.kv_aware().is_some();
        let looks = deciding.kv_tokens().is_some() || remembers;
        let prompt = ask.prompt.filter(|_| looks);
        let mut holders = std::mem::take(&mut self.holders);
        self.look_up(target.pool, prompt.as_ref(), &mut holders);
        self.holders = holders;
        let weighing = Weighing {
            key: ask.key,
            warmth: prompt
                .as_ref()
                .map(|prompt| prompt.warmth(ask.key, &self.holders)),
            word,
            unseen_tokens: self.unseen_tokens(target.pool),
            turn: turn.unwrap_or(draw),
            draw,
            priority: ask.priority,
        };
        let ranking = match self.members(target) {
            Some(members) => self.ranking(target, &members.group, members.care, &weighing, now_us),
            None => return Err(Answer::no_endpoint("")),
        };
        let ranked = ranking.ranked;
        let Some(position) = ranked.first().copied() else {
            return Err(self.refusal(target, now_us));
        };
        let own_work = weighing.warmth.filter(|_| !prefilled);
        let work_tokens = own_work.map_or(0, |warmth| work(&warmth, position));
        let warmth_known = weighing.warmth.is_some();
        if let Some(window_us) = window_us {
            let bucket = rate::bucket(now_us, window_us);
            self.rates.change(position, |rate| rate.count(bucket));
        }
        self.probe(position, now_us);
        if warmth_known {
            self.words.learn_work(work_tokens);
        }
        let told = prompt.as_ref().filter(|prompt| prompt.told.is_some());
        let told = told.map(|prompt| (target.pool, self.kv_key(prompt)));
        if let Some(prompt) = &prompt {
            self.kv_routed(target.pool, prompt, position);
        }
        let mut charge = self.charge(position, work_tokens, prompt, now_us);
        charge.told = told;
        charge.ranked.clone_from(&ranked);
        charge.recent = self.recent.enter(Entry {
            decided_us: now_us,
            pool: target.pool,
            policy: ranking.policy,
            reason: ranking.reason,
            position,
            prompt_tokens: charge.prompt_tokens,
            predicted_cached_tokens: charge.cached_tokens,
            reported_cached_tokens: None,
            status: None,
            ttft_us: None,
        });
        let decision = Decision {
            pool: target.pool,
            policy: ranking.policy,
            reason: ranking.reason,
            ranked,
            changes: Vec::new(),
            headers: Vec::new(),
            beside: None,
            fallback: last_resort.then_some(Fallback::LastResort),
        };
        Ok((decision, charge))
    }

    /// Finds out who holds how much of a prompt.
    pub(super) fn look_up(&self, pool: usize, prompt: Option<&PromptFacts>, holders: &mut Holders) {
        let (Some(prompt), Some(replica)) = (prompt, &self.replica) else {
            return;
        };
        if let Some(told) = &prompt.told {
            return self.look_up_told(pool, prompt, told, holders);
        }
        holders.clear();
        replica.index().lookup(&prompt.chain, |engine, link| {
            if let Some(position) = self.positions.get(&engine) {
                holders.set(*position, (link.end / BYTES_PER_TOKEN) as u64);
            }
        });
    }

    /// Ranks the members of a group that was caught up.
    pub(super) fn ranking(
        &self,
        target: &Target,
        group: &Group,
        care: Care,
        weighing: &Weighing,
        now_us: u64,
    ) -> Ranking {
        let mut ranking = match self.config.pools.get(target.pool) {
            Some(pool) => policy::rank(
                &pool.policy,
                &weighing.view(
                    group,
                    &self.loads,
                    (self.words.foreign(), self.adapter(target, group)),
                    self.wanted_candidates(target, pool.candidates),
                ),
            ),
            None => Ranking {
                ranked: Vec::new(),
                policy: "",
                reason: Reason::Draw,
            },
        };
        if care.slow {
            self.spare(target.pool, &mut ranking.ranked, group, now_us);
        }
        self.pass_by_full(target, &mut ranking, group, weighing.priority);
        if let Some(probe) = care.probe.filter(|probe| group.members().contains(probe)) {
            let ranked = &mut ranking.ranked;
            ranked.retain(|position| *position != probe);
            ranked.insert(0, probe);
            ranking.reason = Reason::Probe;
        }
        self.keep_one_rank(target, &mut ranking.ranked, group);
        ranking
    }

    /// Counts a request at an endpoint, and its prompt as held there.
    fn charge(
        &mut self,
        position: usize,
        work_tokens: u64,
        prompt: Option<PromptFacts>,
        now_us: u64,
    ) -> Charge {
        let mut charge = Charge::new(position, now_us);
        if let Some(prompt) = prompt {
            charge.output_tokens = prompt
                .output_tokens
                .map_or(EXPECTED_OUTPUT_TOKENS, u64::from)
                .min(EXPECTED_OUTPUT_TOKENS);
            charge.work_tokens = work_tokens;
            charge.context_tokens = prompt.tokens().saturating_add(charge.output_tokens);
            charge.streamed = prompt.streamed;
            let held_tokens = self.holders.tokens(position);
            charge.prompt_tokens = prompt.tokens();
            charge.cached_tokens = held_tokens.min(prompt.tokens());
            charge.held = Some(Held::new(&prompt, held_tokens));
        }
        self.hold(&mut charge);
        self.begin(&mut charge, now_us);
        charge
    }

    /// Enters the prompt of a charge as held by its engine.
    pub(super) fn hold(&mut self, charge: &mut Charge) {
        let id = self
            .endpoints
            .get(charge.position)
            .and_then(|endpoint| endpoint.id);
        let (Some(held), Some(engine), Some(replica)) =
            (charge.held.as_mut(), id, self.replica.as_mut())
        else {
            return;
        };
        let event = Event {
            kind: Kind::Pin,
            engine,
            extra_chunks: 0,
            marks: std::mem::take(&mut held.marks),
        };
        let pinned = replica.record(&event, &self.store, self.column);
        held.marks = event.marks;
        let tokens = |chunks: u32| u64::from(chunks) * CHUNK_TOKENS;
        let fresh_tokens = tokens(pinned.fresh_chunks)
            .saturating_add(held.tail_tokens)
            .saturating_add(charge.output_tokens);
        // An engine gives room to a prompt when it begins to compute it. While others wait before
        // it, that is taken to be the first token.
        let waits = self
            .loads
            .total(charge.position)
            .is_some_and(|load| load.waiting > 0);
        let kept_tokens = tokens(pinned.idle_chunks);
        (charge.kept_tokens, charge.grow_tokens) = match waits {
            true => (kept_tokens, fresh_tokens),
            false => (kept_tokens.saturating_add(fresh_tokens), 0),
        };
    }
}

impl Held {
    fn new(prompt: &PromptFacts, held_tokens: u64) -> Held {
        let held_bytes = prompt.bytes_upto(held_tokens);
        let marks = prefix::marks(&prompt.chain);
        let covered = prompt.chain.last().map_or(0, |link| link.end);
        let stored = prefix::ruler(prompt.chain.len());
        let known = stored
            .filter_map(|(index, _)| prompt.chain.get(index))
            .take_while(|link| link.end <= held_bytes)
            .count();
        let tail_tokens = prompt.tokens_upto(prompt.bytes.saturating_sub(covered));
        Held {
            marks,
            known,
            tail_tokens,
        }
    }
}

/// Completes a decision with what only the request's way can tell.
pub fn completed(
    mut decision: Decision,
    changes: Vec<Change>,
    fallback: Option<Fallback>,
) -> Decision {
    decision.changes = changes;
    decision.fallback = fallback.or(decision.fallback);
    decision
}
