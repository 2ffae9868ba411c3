//! Rankings from columns that are renewed in part, against the rules applied to every endpoint.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use proptest::collection::vec;
use proptest::prelude::*;
use std::cmp::Reverse;
use warmpath_core::board::Board;
use warmpath_core::config::PolicyConfig;
use warmpath_core::load::Load;
use warmpath_core::policy::prefix::{PrefixOptions, Warmth, load_cost, work_cost};
use warmpath_core::policy::{self, Adapter, Foreign, Group, Holders, Usage, View, Weights};
use warmpath_core::rate::{Rate, bucket};
use warmpath_core::{Config, hash};

const ENDPOINTS: usize = 100;

/// What happens between two decisions, and what the second is asked.
#[derive(Clone, Debug)]
struct Round {
    /// Endpoint, requests in flight, those that wait, tokens, last use.
    loads: Vec<(usize, u32, u32, u64, u64)>,
    /// Endpoint, requests there that are not ours, those that wait, tokens, use of memory.
    words: Vec<(usize, u32, u32, u64, Option<u32>)>,
    /// Endpoints that have the request's adapter loaded, and those that have no place for it.
    adapter: Option<(Vec<usize>, Vec<bool>)>,
    /// Endpoints that got a request.
    requests: Vec<usize>,
    /// Endpoint and the tokens it holds.
    held: Vec<(usize, u64)>,
    prompt_tokens: u64,
    key: u64,
    unseen_tokens: f64,
    later_us: u64,
}

fn round() -> impl Strategy<Value = Round> {
    // Small numbers, so that equal costs are common.
    let load = (0..ENDPOINTS, 0..6_u32, 0..14_u32, 0..4_u64, 0..3_u64);
    let usage = prop::option::of((0..5_u32).prop_map(|fifth| fifth * 200_000));
    let word = (0..ENDPOINTS, 0..4_u32, 0..3_u32, 0..3_u64, usage);
    let loaded = vec(0..ENDPOINTS, 0..20);
    let adapter = prop::option::of((loaded, vec(any::<bool>(), ENDPOINTS)));
    (
        vec(load, 0..150),
        vec(word, 0..40),
        adapter,
        vec(0..ENDPOINTS, 0..9),
        vec((0..ENDPOINTS, 0..8_u64), 0..6),
        1..8_u64,
        0..5_u64,
        prop::option::of(0.0..2000.0),
        0..2_000_000_u64,
    )
        .prop_map(
            |(loads, words, adapter, requests, held, prompt, key, unseen, later_us)| Round {
                loads,
                words,
                adapter,
                requests,
                held: held
                    .into_iter()
                    .map(|(at, tokens)| (at, tokens * 128))
                    .collect(),
                prompt_tokens: prompt * 128,
                key,
                unseen_tokens: unseen.unwrap_or_default(),
                later_us,
            },
        )
}

fn policies() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        r#""least_request""#,
        r#""least_kv""#,
        r#"{"lowest_qps": {"window_s": 5}}"#,
        r#""consistent_hash""#,
        r#"{"consistent_hash": {"bounded_load": 1.0}}"#,
        r#"{"consistent_hash": {"bounded_load": 1.5}}"#,
        r#"{"cache_aware": {"kv_tokens": 100000, "cache_threshold": 0.3, "balance_abs_threshold": 4}}"#,
        r#"{"prefix": {"kv_tokens": 100000}}"#,
        r#"{"prefix": {"kv_tokens": 100000, "home_affinity": 0.9}}"#,
        r#"{"prefix": {"kv_tokens": 100000, "stickiness": 0, "imbalance_threshold": 5}}"#,
    ])
}

fn parsed(policy: &str) -> PolicyConfig {
    let json = format!(
        r#"{{"pools": [{{"name": "p", "policy": {policy},
            "endpoints": {{"static": [{{"address": "10.0.0.1:80"}}]}}}}]}}"#
    );
    let config = Config::parse(json.as_bytes()).expect("a valid config");
    config.pools[0].policy.clone()
}

/// All that a decision may look at, without columns.
struct Naive<'a> {
    members: &'a [usize],
    identities: &'a [u64],
    weights: Option<&'a Weights>,
    loads: &'a Board<Load>,
    foreign: &'a [Foreign],
    rates: &'a Board<Rate>,
    holders: &'a Holders,
    round: &'a Round,
    now_us: u64,
}

impl Naive<'_> {
    fn load(&self, position: usize) -> Load {
        let mut load = self.loads.total(position).copied().unwrap_or_default();
        load.in_flight += self.foreign[position].requests;
        load.waiting += self.foreign[position].waiting;
        load.prefill_tokens += self.foreign[position].prefill_tokens;
        load
    }

    /// Steps of an endpoint from having the adapter loaded.
    fn steps(&self, position: usize) -> u32 {
        match &self.round.adapter {
            Some((loaded, _)) if loaded.contains(&position) => 0,
            Some((_, full)) if full[position] => 2,
            Some(_) => 1,
            None => 0,
        }
    }

    fn least_kv(&self) -> Vec<usize> {
        let ours = |at: usize| i64::from(self.loads.total(at).map_or(0, |load| load.in_flight));
        let usages = self.members.iter().filter_map(|at| {
            let usage = self.foreign[*at].usage?;
            Some((i64::from(usage.ppm), i64::from(usage.requests), ours(*at)))
        });
        let usages: Vec<(i64, i64, i64)> = usages.collect();
        let known = usages.len().max(1) as i64;
        let used: i64 = usages.iter().map(|usage| usage.0).sum();
        let requests: i64 = usages.iter().map(|usage| usage.1).sum();
        let mean_ours = usages.iter().map(|usage| usage.2).sum::<i64>() / known;
        let each = (used / requests.max(1)).clamp(1000, 1_000_000);
        self.sorted(|at| {
            let told = self.foreign[at].usage;
            let told = told.map(|usage| (i64::from(usage.ppm), i64::from(usage.ours)));
            let (ppm, then) = told.unwrap_or((used / known, mean_ours));
            let used = (ppm + (ours(at) - then) * each).max(0);
            let load = self.load(at);
            (used / 10_000, load.in_flight, load.last_used_us)
        })
    }

    fn place(&self, position: usize) -> usize {
        let mut members = self.members.iter();
        members.position(|at| *at == position).expect("a member")
    }

    fn speed(&self, position: usize) -> f64 {
        let place = self.place(position);
        self.weights.map_or(1.0, |weights| weights.speed(place))
    }

    fn scaled(&self, position: usize, requests: u32) -> u32 {
        let place = self.place(position);
        let scale = |weights: &Weights| weights.scaled(place, requests);
        self.weights.map_or(requests, scale)
    }

    fn fair_score(&self, position: usize) -> u64 {
        hash::mix(self.round.key, self.identities[position])
    }

    fn score(&self, position: usize) -> u64 {
        let (place, fair) = (self.place(position), self.fair_score(position));
        self.weights
            .map_or(fair, |weights| weights.score(place, fair))
    }

    fn sorted<K: Ord>(&self, key: impl Fn(usize) -> K) -> Vec<usize> {
        let mut all = self.members.to_vec();
        all.sort_by_key(|position| (key(*position), *position));
        all
    }

    fn least_request(&self) -> Vec<usize> {
        self.sorted(|at| {
            let in_flight = self.load(at).in_flight + 4 * self.steps(at);
            (self.scaled(at, in_flight), self.load(at).last_used_us)
        })
    }

    fn most_and_fewest(&self) -> (u32, u32) {
        let in_flight = || self.members.iter().map(|at| self.load(*at).in_flight);
        (
            in_flight().max().unwrap_or(0),
            in_flight().min().unwrap_or(0),
        )
    }

    fn prefix(&self, options: &PrefixOptions) -> Vec<usize> {
        let (most, fewest) = self.most_and_fewest();
        if options
            .imbalance_threshold
            .is_some_and(|limit| most - fewest >= limit)
        {
            return self.least_request();
        }
        let waiting = || self.members.iter().map(|at| self.load(*at).waiting);
        let longest = waiting().min().unwrap_or(0) * 2 + 2;
        let queued: u32 = waiting().map(|queue| queue.min(12).min(longest)).sum();
        let q = f64::from(queued) / self.members.len() as f64;
        let alpha = 1.0 + options.stickiness * q.min(8.0);
        let home = self
            .members
            .iter()
            .copied()
            .max_by_key(|at| self.score(*at));
        self.sorted(|at| {
            let held = self.holders.tokens(at);
            let work = self.round.prompt_tokens.saturating_sub(held).max(16);
            let own = work_cost(options, alpha, work, Some(at) == home);
            let away = options.lora_tokens * f64::from(self.steps(at));
            let load_cost = load_cost(options, &self.load(at)) / self.speed(at);
            let share = 1.0 - self.fair_score(at) as f64 / u64::MAX as f64;
            let unseen = self.round.unseen_tokens * share;
            let cost = load_cost + (own + away + unseen) / self.speed(at);
            (cost.max(0.0).to_bits(), Reverse(self.fair_score(at)))
        })
    }

    fn rank(&self, policy: &PolicyConfig) -> Vec<usize> {
        match policy {
            PolicyConfig::LeastRequest => self.least_request(),
            PolicyConfig::LeastKv => self.least_kv(),
            PolicyConfig::LowestQps { window_us } => self.sorted(|at| {
                let rate = self.rates.total(at).copied().unwrap_or_default();
                let requests = rate.requests(bucket(self.now_us, *window_us));
                (
                    self.scaled(at, requests),
                    self.scaled(at, self.foreign[at].requests),
                    self.load(at).last_used_us,
                )
            }),
            PolicyConfig::ConsistentHash { bounded_load, .. } => {
                let mut order = self.sorted(|at| Reverse(self.score(at)));
                let total: u32 = self.members.iter().map(|at| self.load(*at).in_flight).sum();
                let mean = f64::from(total + 1) / self.members.len() as f64;
                let factor = bounded_load.unwrap_or(f64::INFINITY);
                let bound = |at| (factor * mean * self.speed(at)).ceil();
                let free = |at: &usize| f64::from(self.load(*at).in_flight) < bound(*at);
                let busy = order.iter().position(free).unwrap_or(0);
                order.rotate_left(busy);
                order
            }
            PolicyConfig::CacheAware(options) => {
                let (most, fewest) = self.most_and_fewest();
                let beyond = f64::from(most) > f64::from(fewest) * options.balance_rel_threshold;
                let held = |at: usize| self.holders.tokens(at);
                let best = self.members.iter().map(|at| held(*at)).max().unwrap_or(0);
                let cold = best as f64 <= options.cache_threshold * self.round.prompt_tokens as f64;
                if cold || most - fewest > options.balance_abs_threshold && beyond {
                    return self.least_request();
                }
                self.sorted(|at| {
                    let load = self.load(at);
                    let in_flight = self.scaled(at, load.in_flight);
                    (Reverse(held(at)), in_flight, load.last_used_us)
                })
            }
            PolicyConfig::Prefix(options) => self.prefix(options),
            _ => unreachable!("not among the policies of this test"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    /// Ties included, and whatever of the columns was renewed or skipped.
    #[test]
    fn rankings_equal_those_of_a_naive_evaluation(
        policy in policies(),
        members in prop::sample::subsequence((0..ENDPOINTS).collect::<Vec<_>>(), 1..=ENDPOINTS),
        backwards in any::<bool>(),
        candidates in 1..6_usize,
        weights in prop::option::of(vec(1..4_u16, ENDPOINTS)),
        rounds in vec(round(), 1..8),
    ) {
        let policy = parsed(policy);
        let mut members = members;
        if backwards {
            members.reverse();
        }
        let identities: Vec<u64> = (0..ENDPOINTS as u64).map(|at| hash::mix(at, 7)).collect();
        let mut loads: Board<Load> = Board::new(vec![None; ENDPOINTS]);
        let mut rates: Board<Rate> = Board::new(vec![None; ENDPOINTS]);
        let weights = weights.map(|row| members.iter().map(|at| row[*at]).collect());
        let weights = weights.and_then(Weights::new);
        let mut group = Group::new(members.clone(), &identities, weights.clone());
        let mut holders = Holders::new(ENDPOINTS);
        let mut foreign = vec![Foreign::default(); ENDPOINTS];
        let mut now_us = 10_000_000;
        for round in &rounds {
            now_us += round.later_us;
            for (at, in_flight, waiting, tokens, last_used_us) in round.loads.iter().copied() {
                loads.change(at, |load| *load = Load {
                    in_flight,
                    waiting,
                    prefill_tokens: tokens * 100,
                    context_tokens: tokens * 1000,
                    kept_tokens: 0,
                    last_used_us,
                });
            }
            for (at, requests, waiting, tokens, ppm) in round.words.iter().copied() {
                foreign[at] = Foreign {
                    requests,
                    waiting,
                    prefill_tokens: tokens * 100,
                    usage: ppm.map(|ppm| Usage { ppm, requests: requests + 1, ours: waiting }),
                };
                loads.note(at);
            }
            for at in &round.requests {
                rates.change(*at, |rate| rate.count(bucket(now_us, 5_000_000)));
            }
            holders.clear();
            round.held.iter().for_each(|(at, tokens)| holders.set(*at, *tokens));
            policy::catch_up(&policy, &policy, &mut group, &loads, &foreign, &rates, now_us);
            let ranking = policy::rank(&policy, &View {
                group: &group,
                loads: &loads,
                foreign: &foreign,
                adapter: round.adapter.as_ref().map(|(loaded, full)| Adapter { loaded, full }),
                key: Some(round.key),
                unseen_tokens: round.unseen_tokens,
                word: Default::default(),
                warmth: Some(Warmth {
                    tokens: round.prompt_tokens,
                    holders: &holders,
                    conversation: round.key,
                }),
                turn: 0,
                draw: 0,
                candidates,
            });
            let naive = Naive {
                members: &members,
                identities: &identities,
                weights: weights.as_ref(),
                loads: &loads,
                foreign: &foreign,
                rates: &rates,
                holders: &holders,
                round,
                now_us,
            };
            let mut expected = naive.rank(&policy);
            expected.truncate(candidates);
            prop_assert_eq!(ranking.ranked, expected);
        }
    }
}
