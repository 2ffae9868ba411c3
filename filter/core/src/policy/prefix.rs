//! The warm path: where cached prefix and queued work together give the earliest first token.
//!
//! Every engine gets a cost in tokens of prefill work, and the cheapest is asked:
//!
//! ```text
//! cost = (W + alpha * u * (1 - home_affinity * [engine is the conversation's home])
//!          + request_tokens * n + context_weight * c + lora_tokens * s + unseen * (1 - r)) / speed
//! u     = max(16, prompt tokens - tokens held by the engine)
//! alpha = 1 + stickiness * q
//! q     = mean over engines of the requests without a first token, each counted to at most twice
//!         the least of them and 2 more; at most 8
//! ```
//!
//! `W` is the prefill work that awaits a first token at the engine, `n` its requests in flight, `c`
//! their context tokens, `s` how far it is from having the request's [LoRA adapter](super::Adapter)
//! loaded, `speed` its [weight](super::Weights) over the mean of all. `u` is our own work there; it
//! weighs more the more is queued anywhere, because work done twice delays everybody behind it
//! (`alpha`; a greedy router has alpha 1 and tips over at saturation). Equal costs, as those of a cold
//! prompt on an idle fleet, are decided by the conversation's rendezvous rank, so that replicas which
//! share nothing still agree.
//!
//! `unseen` stands for the work that other Envoys may have sent since they were last heard; 0 if there are
//! none. All look for the cheapest engine at once, and would find the same one: old load figures make herds
//! (Mitzenmacher, How Useful Is Old Information?, 2000). In the balance of that game each engine gets a share
//! of the unseen work, by as much as it is cheaper than the dearest that gets any, and then none is better
//! than another. With `r`, the conversation's rendezvous score as a number from 0 to 1, added to a multiple of the
//! unseen work, the choices of many conversations come close to these shares, and those of one agree.
//!
//! With an `imbalance_threshold` the least loaded engine wins before any of this, once the most and
//! the least loaded differ by that many requests.

use super::shortlist::BLOCK;
use super::{Group, Holders, Shortlist, View, least_request};
use crate::decision::Reason;
use crate::hash::Mixer;
use crate::load::Load;
use std::cmp::Reverse;

/// What of a prompt is known, and where it is held.
#[derive(Clone, Copy, Debug)]
pub struct Warmth<'a> {
    /// Tokens of the prompt.
    pub tokens: u64,
    /// Who holds how much of it.
    pub holders: &'a Holders,
    /// Hash of the session key, or of what all turns of the conversation share.
    pub conversation: u64,
}

/// The options of the policy.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefixOptions {
    /// KV capacity of one endpoint in tokens.
    pub kv_tokens: u64,
    /// Whether an engine's own word on its capacity counts instead.
    pub learns_kv_tokens: bool,
    /// How much the cost of prefill counts more for each request that waits, per engine.
    pub stickiness: f64,
    /// Discount of the prefill cost at the conversation's home, 0 to 1.
    pub home_affinity: f64,
    /// Cost of a request in flight, in tokens.
    pub request_tokens: f64,
    /// Cost of a context token in flight, in tokens.
    pub context_weight: f64,
    /// Cost of each step that an engine is from having the request's LoRA adapter loaded, in tokens.
    pub lora_tokens: f64,
    /// Difference in requests at which only load counts.
    pub imbalance_threshold: Option<u32>,
}

/// No engine computes less than a block again.
const LEAST_WORK_TOKENS: u64 = 16;
/// How far a queue counts while an engine has none. What waits at one engine says little about the
/// cost of doing work twice while another is idle, and more the more all have to do.
const MOST_BESIDE_IDLE: usize = 2;
/// Beyond this many waiting requests per engine, more do not make a hit worth more.
const MOST_MEAN_WAITING: f64 = 8.0;

/// What an engine's load costs a request, in tokens: the part that is the same for all requests.
pub fn load_cost(options: &PrefixOptions, load: &Load) -> f64 {
    let [queue, requests, context] = load_terms(options, load);
    (queue + requests + context).max(0.0)
}

/// The terms of [`load_cost`]: queue, requests, context.
pub fn load_terms(options: &PrefixOptions, load: &Load) -> [f64; 3] {
    [
        load.prefill_tokens as f64,
        options.request_tokens * f64::from(load.in_flight),
        options.context_weight * load.context_tokens as f64,
    ]
}

/// What a decision weighs a request's own work by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// How much work counts.
    pub alpha: f64,
    /// Where the conversation lives, if that counts.
    pub home: Option<usize>,
    /// How much work that nobody has told yet may count, in tokens.
    pub unseen_tokens: f64,
}

/// The scale of a decision among the members of a group.
pub fn scale(options: &PrefixOptions, group: &Group, warmth: &Warmth, unseen_tokens: f64) -> Scale {
    Scale {
        alpha: 1.0 + options.stickiness * mean_queue(group.with_waiting()),
        home: (options.home_affinity > 0.0)
            .then(|| group.owners(warmth.conversation, 1).first().copied())
            .flatten(),
        unseen_tokens,
    }
}

/// What may have been sent to an engine that has this rendezvous score for the conversation.
pub fn unseen_cost(unseen_tokens: f64, score: u64) -> f64 {
    unseen_tokens * (1.0 - score as f64 / u64::MAX as f64)
}

/// What a request's own prefill costs it, in tokens; `alpha` as above.
pub fn work_cost(options: &PrefixOptions, alpha: f64, work_tokens: u64, is_home: bool) -> f64 {
    let discount = if is_home {
        1.0 - options.home_affinity
    } else {
        1.0
    };
    (alpha * work_tokens as f64 * discount).max(0.0)
}

/// The mean queue, each counted as far as the shortest allows; `members` has the number of engines
/// by the length of their queue.
fn mean_queue(members: &[u32]) -> f64 {
    let shortest = members.iter().position(|members| *members > 0);
    let longest = 2 * shortest.unwrap_or_default() + MOST_BESIDE_IDLE;
    let (mut queued, mut count) = (0, 0);
    for (queue, members) in members.iter().enumerate() {
        queued += queue.min(longest) as u32 * members;
        count += members;
    }
    (f64::from(queued) / f64::from(count.max(1))).min(MOST_MEAN_WAITING)
}

pub(super) fn rank(view: &View, options: &PrefixOptions) -> (Vec<usize>, Reason) {
    let group = view.group;
    if options
        .imbalance_threshold
        .is_some_and(|threshold| group.spread().0 >= threshold)
    {
        return (least_request::rank(view).0, Reason::Imbalance);
    }
    let Some(warmth) = view.warmth else {
        return least_request::rank(view);
    };
    let Scale { alpha, home, .. } = scale(options, group, &warmth, view.unseen_tokens);
    let work_cost = |position| {
        let is_home = home == Some(position);
        self::work_cost(options, alpha, work(&warmth, position), is_home)
    };
    let cold_cost = self::work_cost(options, alpha, warmth.tokens.max(LEAST_WORK_TOKENS), false);
    let ranked = cheapest(
        view,
        &warmth,
        home,
        cold_cost,
        options.lora_tokens,
        work_cost,
    );
    let reason = reason(group, &warmth, ranked.first().copied());
    (ranked, reason)
}

/// The cheapest members: first the few that hold something or are the home, each by its own
/// `work_cost`; then the others, to all of which the work is the same `cold_cost`.
///
/// Equal costs are told apart by rendezvous rank, computed only for those that may enter the list.
fn cheapest(
    view: &View,
    warmth: &Warmth,
    home: Option<usize>,
    cold_cost: f64,
    lora_tokens: f64,
    work_cost: impl Fn(usize) -> f64,
) -> Vec<usize> {
    let group = view.group;
    // The bits of a float that is not negative are in its order.
    let cost = |load_cost: f64, work_cost: f64| (load_cost + work_cost).to_bits();
    let away = |position| {
        view.adapter
            .map_or(0.0, |it| lora_tokens * f64::from(it.steps(position)))
    };
    let unseen = |score| unseen_cost(view.unseen_tokens, score);
    let conversation = Mixer::new(warmth.conversation);
    let mut list: Shortlist<(u64, Reverse<u64>, usize)> = Shortlist::new(view.candidates);
    let holds = |position| warmth.holders.tokens(position) > 0;
    let cold_home = home.filter(|home| !holds(*home));
    for position in warmth.holders.positions().iter().copied().chain(cold_home) {
        if let Some(place) = group.place(position)
            && let Some(identity) = group.identity(position)
            && let Some(score) = conversation.at_least(identity, 0)
        {
            let load_cost = group.costs().get(place).unwrap_or_default();
            let own_cost = work_cost(position) + away(position) + unseen(score);
            let cost = cost(load_cost, own_cost / group.speed(place));
            list.offer((cost, Reverse(score), position));
        }
    }
    // A member that costs more than the last of the list, or as much but ranks lower, is passed by.
    let bar = |list: &Shortlist<(u64, Reverse<u64>, usize)>| {
        list.worst()
            .map_or((u64::MAX, 0), |worst| (worst.0, worst.1.0))
    };
    let (mut most, mut floor) = bar(&list);
    let least_cost = cold_cost / group.most_speed();
    let blocks = group.costs().blocks().zip(group.blocks());
    for (block, ((least, costs), (identities, members))) in blocks.enumerate() {
        if cost(least, least_cost) > most {
            continue;
        }
        let members = costs.iter().zip(identities).zip(members).enumerate();
        for (offset, ((load_cost, identity), position)) in members {
            let speed = group.speed(block * BLOCK + offset);
            let own_cost = cold_cost + away(*position);
            let least = cost(*load_cost, own_cost / speed);
            if least > most {
                continue;
            }
            let least_score = if least == most { floor } else { 0 };
            if let Some(score) = conversation.at_least(*identity, least_score)
                && !holds(*position)
                && home != Some(*position)
            {
                let cost = cost(*load_cost, (own_cost + unseen(score)) / speed);
                list.offer((cost, Reverse(score), *position));
                (most, floor) = bar(&list);
            }
        }
    }
    let ranked = list.into_items().into_iter();
    ranked.map(|(_, _, position)| position).collect()
}

/// Tokens that an endpoint would have to prefill.
pub fn work(warmth: &Warmth, position: usize) -> u64 {
    let held = warmth.holders.tokens(position);
    warmth.tokens.saturating_sub(held).max(LEAST_WORK_TOKENS)
}

impl Warmth<'_> {
    /// The members of a group that hold anything, and how many tokens.
    pub fn holders_in(&self, group: &Group) -> impl Iterator<Item = (usize, u64)> {
        let holders = self.holders.positions().iter().copied();
        let members = holders.filter(|position| group.place(*position).is_some());
        members.map(|position| (position, self.holders.tokens(position)))
    }

    /// The most that a member of a group holds, in tokens.
    pub fn most_held(&self, group: &Group) -> u64 {
        let held = self.holders_in(group).map(|(_, tokens)| tokens);
        held.max().unwrap_or_default()
    }
}

fn reason(group: &Group, warmth: &Warmth, first: Option<usize>) -> Reason {
    let most = warmth.most_held(group);
    match first.map(|position| warmth.holders.tokens(position)) {
        _ if most == 0 => Reason::ColdPrefix,
        Some(held) if held == most => Reason::LongestPrefix,
        _ => Reason::LoadOverPrefix,
    }
}
