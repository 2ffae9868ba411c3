//! What would be decided about a request, and what each endpoint's part in it is.
//!
//! The ranking comes from the code that decides, over figures that are put together for the occasion,
//! so nothing that a later decision depends on changes: no load, no prompt, no turn, no random number.
//! O(endpoints) where a decision costs O(changes).

use super::decide::{Weighing, turn_key};
use super::{Ask, Router, State};
use crate::answer::Answer;
use crate::config::PolicyConfig;
use crate::decision::{Fallback, Reason};
use crate::hash;
use crate::policy::prefix::{self, PrefixOptions, Scale, Warmth};
use crate::policy::{self, Group, Holders};
use crate::rate;
use crate::store::Store;

/// A decision that was not made.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    /// Position of the pool.
    pub pool: usize,
    /// Name of the policy that decides.
    pub policy: &'static str,
    /// Why the first endpoint is first; `None` where none is named.
    pub reason: Option<Reason>,
    /// Positions, best first, as [`Decision::ranked`](crate::Decision::ranked); none if Envoy's own load
    /// balancing would serve the request.
    pub ranked: Vec<usize>,
    /// Tokens of the prompt, if the policy looks at it.
    pub prompt_tokens: Option<u64>,
    /// Position of the conversation's home, if the policy has one.
    pub home: Option<usize>,
    /// How much a token of prefill work counts, if the policy weighs it.
    pub alpha: Option<f64>,
    /// What is not known, or was not enough.
    pub fallback: Option<Fallback>,
    /// Every endpoint that serves the model, usable or not.
    pub candidates: Vec<Candidate>,
}

/// An endpoint's part in a decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its position.
    pub position: usize,
    /// Its state.
    pub state: State,
    /// Tokens of the prompt that it is believed to hold.
    pub held_tokens: u64,
    /// Tokens that it would have to prefill; 0 where the policy does not look at the prompt.
    pub work_tokens: u64,
    /// What the policy compares; `None` if it adds nothing up.
    pub cost: Option<f64>,
    /// What the cost is made of, or what is compared instead; each with its name.
    pub terms: Vec<(&'static str, f64)>,
}

impl<S: Store> Router<S> {
    /// What [`Router::decide`] would do now. [`Router::attend`] makes sure that it knows what the other
    /// workers do.
    ///
    /// # Errors
    /// The answer that the request would get.
    pub fn explain(&self, ask: Ask, now_us: u64) -> Result<Explained, Answer> {
        let target = ask.target;
        let (Some(pool), Some(members)) =
            (self.config.pools.get(target.pool), self.members(target))
        else {
            return Err(Answer::no_endpoint(""));
        };
        if self.leaves_to_envoy(target.pool) {
            return Ok(Explained {
                pool: target.pool,
                policy: pool.policy.name(),
                reason: None,
                ranked: Vec::new(),
                prompt_tokens: None,
                home: None,
                alpha: None,
                fallback: Some(Fallback::EndpointsUnknown),
                candidates: Vec::new(),
            });
        }
        let fit = self.fit(target.pool, &members.all, now_us);
        let last_resort = fit.usable < fit.ranked.len();
        if let Some(answer) = self.shed(target, &fit.ranked, ask.priority) {
            return Err(answer);
        }
        let weights = self.weights(target.pool, &fit.ranked);
        let mut group = Group::new(fit.ranked, &self.identities, weights);
        let mut prompt = ask.prompt;
        if let Some(prompt) = prompt.as_mut() {
            // Nobody is asked for an explanation.
            prompt.told = self.kv_recall(target, prompt, now_us);
        }
        let told = prompt.as_ref().and_then(|prompt| prompt.told.as_ref());
        let word = self.kv_word(target.pool, told, &group);
        let deciding = policy::effective(&pool.policy, ask.key.is_some(), word);
        policy::catch_up(
            deciding,
            &pool.policy,
            &mut group,
            &self.loads,
            self.words.foreign(),
            &self.rates,
            now_us,
        );
        let looks = deciding.kv_tokens().is_some() || pool.transfers();
        let prompt = prompt.filter(|_| looks);
        let mut holders = Holders::new(self.endpoints.len());
        self.look_up(target.pool, prompt.as_ref(), &mut holders);
        // The next number, and the next turn, without taking either.
        let mut random = self.random;
        let draw = policy::next_random(&mut random);
        let weighing = Weighing {
            key: ask.key,
            warmth: prompt.as_ref().map(|it| it.warmth(ask.key, &holders)),
            word,
            unseen_tokens: self.unseen_tokens(target.pool),
            turn: match deciding {
                PolicyConfig::RoundRobin => self.turn(&turn_key(&pool.name, target.group)),
                _ => draw,
            },
            draw,
            priority: ask.priority,
        };
        let ranking = self.ranking(target, &group, fit.care, &weighing, now_us);
        if ranking.ranked.is_empty() {
            return Err(self.refusal(target, now_us));
        }
        // Both weigh alike; they differ in who says what is held.
        let deciding = match deciding {
            PolicyConfig::KvAware(options) => &options.prefix,
            other => other,
        };
        let scale = match (deciding, &weighing.warmth) {
            (PolicyConfig::Prefix(options), Some(warmth)) => Some(prefix::scale(
                options,
                &group,
                warmth,
                weighing.unseen_tokens,
            )),
            _ => None,
        };
        let candidate = |position: &usize| {
            let (mut cost, mut terms) =
                self.terms(deciding, &weighing, &group, scale, *position, now_us);
            if let (PolicyConfig::Prefix(options), Some(adapter), Some(cost)) =
                (deciding, self.adapter(target, &group), cost.as_mut())
            {
                let away = options.lora_tokens * f64::from(adapter.steps(*position));
                *cost += away;
                terms.push(("lora", away));
            }
            if let Some(cost) = cost.as_mut() {
                let place = group.place(*position);
                let speed = place.map_or(1.0, |place| group.speed(place));
                *cost /= speed;
                terms.iter_mut().for_each(|(_, term)| *term /= speed);
            }
            Candidate {
                position: *position,
                state: self.state(target.pool, *position, now_us),
                held_tokens: holders.tokens(*position),
                work_tokens: weighing
                    .warmth
                    .map_or(0, |warmth| prefix::work(&warmth, *position)),
                cost,
                terms,
            }
        };
        Ok(Explained {
            pool: target.pool,
            policy: ranking.policy,
            reason: Some(ranking.reason),
            ranked: ranking.ranked,
            prompt_tokens: prompt.as_ref().map(|prompt| prompt.tokens()),
            home: scale.and_then(|scale| scale.home),
            alpha: scale.map(|scale| scale.alpha),
            fallback: last_resort.then_some(Fallback::LastResort),
            candidates: members.all.iter().map(candidate).collect(),
        })
    }

    /// The number that the next request in turn will get.
    fn turn(&self, key: &str) -> u64 {
        let value = self.store.get(key);
        value
            .bytes
            .first_chunk()
            .map_or(0, |it| u64::from_le_bytes(*it))
    }

    /// What a policy compares of an endpoint.
    fn terms(
        &self,
        policy: &PolicyConfig,
        weighing: &Weighing,
        group: &Group,
        scale: Option<Scale>,
        position: usize,
        now_us: u64,
    ) -> (Option<f64>, Vec<(&'static str, f64)>) {
        match (policy, &weighing.warmth, scale) {
            (PolicyConfig::Prefix(options), Some(warmth), Some(scale)) => {
                self.prefix_terms(options, warmth, scale, position)
            }
            (PolicyConfig::LowestQps { window_us }, ..) => {
                let bucket = rate::bucket(now_us, *window_us);
                let rate = self.rates.total(position);
                let requests = rate.map_or(0, |rate| rate.requests(bucket));
                (None, vec![("window_requests", f64::from(requests))])
            }
            (PolicyConfig::ConsistentHash { .. }, ..) => {
                let mut scores = group.scores(weighing.key.unwrap_or_default());
                let score = scores.find(|(_, member)| *member == position);
                let score = score.map(|(score, _)| match group.weights() {
                    Some(_) => ("hash", f64::from_bits(score)),
                    None => ("hash", score as f64 / u64::MAX as f64),
                });
                (None, score.into_iter().collect())
            }
            _ => (None, Vec::new()),
        }
    }

    fn prefix_terms(
        &self,
        options: &PrefixOptions,
        warmth: &Warmth,
        scale: Scale,
        position: usize,
    ) -> (Option<f64>, Vec<(&'static str, f64)>) {
        let own = self.loads.total(position).copied().unwrap_or_default();
        let word = self.words.foreign().get(position).copied();
        let load = word.unwrap_or_default().added_to(&own);
        let [queue, requests, context] = prefix::load_terms(options, &load);
        let own_work = prefix::work(warmth, position);
        let is_home = scale.home == Some(position);
        let work = prefix::work_cost(options, scale.alpha, own_work, is_home);
        let mut terms = vec![
            ("queue", queue),
            ("work", work),
            ("requests", requests),
            ("context", context),
        ];
        let mut cost = prefix::load_cost(options, &load) + work;
        if scale.unseen_tokens > 0.0 {
            let identity = self.identities.get(position).copied().unwrap_or_default();
            let score = hash::mix(warmth.conversation, identity);
            let unseen = prefix::unseen_cost(scale.unseen_tokens, score);
            terms.push(("unseen", unseen));
            cost += unseen;
        }
        (Some(cost), terms)
    }
}
