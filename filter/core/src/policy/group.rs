//! The endpoints that a policy ranks, and what it compares them by.
//!
//! Each figure stands in a column, one place for each member, and only the places of endpoints that
//! changed are renewed before a decision ([`Group::catch_up`]): O(changes). A group that is not asked
//! costs nothing, whatever changes meanwhile.

use super::shortlist::BLOCK;
use super::{Foreign, Keys, Shortlist, Weights};
use crate::board::Board;
use crate::hash::{Mixer, Prepared};
use crate::load::Load;
use crate::rate::Rate;
use std::cmp::Reverse;

/// Waiting requests beyond which endpoints are not told apart.
pub const MOST_WAITING: usize = 12;

/// Members of a pool, or those that serve one model.
#[derive(Debug)]
pub struct Group {
    members: Vec<usize>,
    identities: Vec<Prepared>,
    weights: Option<Weights>,
    /// Place among the members, by position of the endpoint in the router.
    places: Vec<Option<u16>>,
    loads_seen: Option<u64>,
    in_flight: Vec<u32>,
    usage: Keys<(u32, u64)>,
    costs: Keys<f64>,
    waiting: Vec<u8>,
    with_waiting: [u32; MOST_WAITING + 1],
    total_in_flight: u32,
    rates_seen: Option<RatesSeen>,
    requests: Keys<RateKey>,
}

/// Requests of a window and those that are not ours, both scaled, and the time of the last use.
pub type RateKey = (u32, u32, u64);

impl Group {
    /// A group of the endpoints at these distinct positions; `identities` are those of all endpoints
    /// of the router, the hashes of their addresses; `weights` those of the members.
    pub fn new(members: Vec<usize>, identities: &[u64], weights: Option<Weights>) -> Self {
        let mut places = vec![None; identities.len()];
        for (place, position) in members.iter().enumerate() {
            if let Some(entry) = places.get_mut(*position) {
                *entry = u16::try_from(place).ok();
            }
        }
        let identity = |position: &usize| identities.get(*position).copied().map(Prepared::new);
        Group {
            identities: members.iter().filter_map(identity).collect(),
            members,
            weights,
            places,
            loads_seen: None,
            in_flight: Vec::new(),
            usage: Keys::new(Vec::new()),
            costs: Keys::new(Vec::new()),
            waiting: Vec::new(),
            with_waiting: [0; MOST_WAITING + 1],
            total_in_flight: 0,
            rates_seen: None,
            requests: Keys::new(Vec::new()),
        }
    }

    /// Positions in the router, in the order of the config.
    pub fn members(&self) -> &[usize] {
        &self.members
    }

    /// What the members can take, if they differ.
    pub fn weights(&self) -> Option<&Weights> {
        self.weights.as_ref()
    }

    /// Speed of the member at a place, as a multiple of the mean.
    pub fn speed(&self, place: usize) -> f64 {
        self.weights.as_ref().map_or(1.0, |it| it.speed(place))
    }

    /// The speed of the fastest member.
    pub fn most_speed(&self) -> f64 {
        self.weights.as_ref().map_or(1.0, Weights::most)
    }

    /// Requests at the member of a place, as they compare with those at others.
    pub fn scaled(&self, place: usize, requests: u32) -> u32 {
        match &self.weights {
            Some(weights) => weights.scaled(place, requests),
            None => requests,
        }
    }

    /// Place of an endpoint among the members.
    pub fn place(&self, position: usize) -> Option<usize> {
        self.places.get(position)?.map(usize::from)
    }

    /// The first owners of a key: the positions with the highest scores, at most `count`.
    ///
    /// O(members), at less than a nanosecond for each.
    pub fn owners(&self, key: u64, count: usize) -> Vec<usize> {
        let mut list: Shortlist<(Reverse<u64>, usize)> = Shortlist::new(count);
        if self.weights.is_some() {
            let scores = self.scores(key);
            scores.for_each(|(score, position)| list.offer((Reverse(score), position)));
            return positions(list);
        }
        let mixer = Mixer::new(key);
        let mut floor = 0;
        for (identity, position) in self.identities.iter().zip(&self.members) {
            if let Some(score) = mixer.at_least(*identity, floor) {
                list.offer((Reverse(score), *position));
                floor = list.worst().map_or(0, |worst| worst.0.0);
            }
        }
        positions(list)
    }

    /// How strongly each member claims a key, with its position; the highest score owns the key.
    pub fn scores(&self, key: u64) -> impl Iterator<Item = (u64, usize)> {
        let mixer = Mixer::new(key);
        let score = move |(place, identity): (usize, &Prepared)| {
            let fair = mixer.at_least(*identity, 0).unwrap_or_default();
            let weights = self.weights.as_ref();
            weights.map_or(fair, |weights| weights.score(place, fair))
        };
        let scores = self.identities.iter().enumerate().map(score);
        scores.zip(self.members.iter().copied())
    }

    /// Position of the member at a place.
    pub fn position(&self, place: usize) -> usize {
        self.members.get(place).copied().unwrap_or_default()
    }

    /// Requests in flight, [scaled](Group::scaled), and time of the last use, by place.
    pub fn usage(&self) -> &Keys<(u32, u64)> {
        &self.usage
    }

    /// Requests in flight, by place.
    pub fn in_flight(&self) -> &[u32] {
        &self.in_flight
    }

    /// The sum of [`Group::in_flight`].
    pub fn total_in_flight(&self) -> u32 {
        self.total_in_flight
    }

    /// Most minus fewest requests in flight, and the fewest.
    pub fn spread(&self) -> (u32, u32) {
        let most = self.in_flight.iter().max().copied().unwrap_or_default();
        let fewest = self.in_flight.iter().min().copied().unwrap_or_default();
        (most - fewest, fewest)
    }

    /// What the load of each member costs, by place, as [`Group::catch_up`] was told, over its speed.
    pub fn costs(&self) -> &Keys<f64> {
        &self.costs
    }

    /// Identities and positions of the members, in the blocks of [`Keys::blocks`].
    pub fn blocks(&self) -> impl Iterator<Item = (&[Prepared], &[usize])> {
        self.identities
            .chunks(BLOCK)
            .zip(self.members.chunks(BLOCK))
    }

    /// Identity of an endpoint that is a member.
    pub fn identity(&self, position: usize) -> Option<Prepared> {
        self.identities.get(self.place(position)?).copied()
    }

    /// How many members have 0, 1, 2... requests waiting; the last counts those with more, too.
    pub fn with_waiting(&self) -> &[u32; MOST_WAITING + 1] {
        &self.with_waiting
    }

    /// What `lowest_qps` compares, by place, as of [`Group::catch_up_rates`].
    pub fn requests(&self) -> &Keys<RateKey> {
        &self.requests
    }

    /// Takes over the loads that changed since the last time, with the engines' words added to them;
    /// a change of a word must have been noted in `loads`, and `cost` must be the same every time.
    pub fn catch_up(
        &mut self,
        loads: &Board<Load>,
        foreign: &[Foreign],
        cost: impl Fn(&Load) -> f64,
    ) {
        let load = |position| seen(loads, foreign, position);
        let seen = self.loads_seen.replace(loads.changes());
        if let Some(changed) = seen.and_then(|seen| loads.changed_since(seen)) {
            for position in changed {
                self.renew(position, load(position), &cost);
            }
            return;
        }
        let idle = Load::default();
        let size = self.members.len();
        self.in_flight = vec![0; size];
        let usage = (0..size).map(|place| (self.scaled(place, 0), 0));
        self.usage = Keys::new(usage.collect());
        let costs = (0..size).map(|place| cost(&idle) / self.speed(place));
        self.costs = Keys::new(costs.collect());
        self.waiting = vec![0; size];
        self.with_waiting = [0; MOST_WAITING + 1];
        self.with_waiting[0] = size as u32;
        self.total_in_flight = 0;
        for place in 0..size {
            let position = self.position(place);
            self.renew(position, load(position), &cost);
        }
    }

    fn renew(&mut self, position: usize, load: Load, cost: impl Fn(&Load) -> f64) {
        let Some(place) = self.place(position) else {
            return;
        };
        if let Some(in_flight) = self.in_flight.get_mut(place) {
            let others = self.total_in_flight.saturating_sub(*in_flight);
            self.total_in_flight = others.saturating_add(load.in_flight);
            *in_flight = load.in_flight;
        }
        let in_flight = self.scaled(place, load.in_flight);
        self.usage.set(place, (in_flight, load.last_used_us));
        self.costs.set(place, cost(&load) / self.speed(place));
        if let Some(waiting) = self.waiting.get_mut(place) {
            let now = load.waiting.min(MOST_WAITING as u32) as u8;
            let before = std::mem::replace(waiting, now);
            for (class, step) in [(before, u32::MAX), (now, 1)] {
                if let Some(members) = self.with_waiting.get_mut(usize::from(class)) {
                    *members = members.wrapping_add(step);
                }
            }
        }
    }

    /// Takes over the request counts of the window that ends with `bucket`, and when members were last
    /// used: what changed since the last time, or all when it was in another bucket.
    pub fn catch_up_rates(
        &mut self,
        rates: &Board<Rate>,
        loads: &Board<Load>,
        foreign: &[Foreign],
        bucket: u32,
    ) {
        let seen = self.rates_seen.replace(RatesSeen {
            bucket,
            rates: rates.changes(),
            loads: loads.changes(),
        });
        let weights = self.weights.as_ref();
        let places = &self.places;
        let scaled = |position: usize, requests: u32| {
            let place = places.get(position).copied().flatten();
            let scale = weights.zip(place);
            scale.map_or(requests, |(it, place)| it.scaled(place.into(), requests))
        };
        let key = |position: usize| {
            let requests = rates
                .total(position)
                .map_or(0, |rate| rate.requests(bucket));
            let last_used_us = loads.total(position).map_or(0, |load| load.last_used_us);
            let not_ours = foreign.get(position).map_or(0, |word| word.requests);
            (
                scaled(position, requests),
                scaled(position, not_ours),
                last_used_us,
            )
        };
        let changed = seen.filter(|seen| seen.bucket == bucket).and_then(|seen| {
            let of_rates = rates.changed_since(seen.rates)?;
            Some(of_rates.chain(loads.changed_since(seen.loads)?))
        });
        let Some(changed) = changed else {
            let keys = self.members.iter().map(|position| key(*position));
            self.requests = Keys::new(keys.collect());
            return;
        };
        for position in changed {
            if let Some(place) = self.place(position) {
                self.requests.set(place, key(position));
            }
        }
    }
}

fn positions(owners: Shortlist<(Reverse<u64>, usize)>) -> Vec<usize> {
    let owners = owners.into_items().into_iter();
    owners.map(|(_, position)| position).collect()
}

/// The load of an endpoint with the engine's word added to it.
pub(super) fn seen(loads: &Board<Load>, foreign: &[Foreign], position: usize) -> Load {
    let own = loads.total(position).copied().unwrap_or_default();
    let word = foreign.get(position).copied().unwrap_or_default();
    word.added_to(&own)
}

/// What [`Group::requests`] was made of.
#[derive(Debug)]
struct RatesSeen {
    bucket: u32,
    rates: u64,
    loads: u64,
}
