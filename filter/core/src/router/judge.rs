//! Judging endpoints: who may be used, and what a request's fate says of those it met.
//!
//! Four things are put together: Envoy's health checks and outlier detection (from the
//! [fleet](crate::fleet)), what engines say of themselves (asleep), what requests came to
//! ([fitness](crate::fitness)), and how long an endpoint has been back (slow start). The result
//! changes rarely, so each group keeps its list of usable members until something changes.

use super::account::Charge;
use super::{Router, Target};
use crate::answer::Answer;
use crate::fitness::{Cause, Fitness};
use crate::fleet::{Host, HostHealth};
use crate::policy::Group;
use crate::store::Store;

/// Pause after a busy answer that does not say how long.
const BUSY_US: u64 = 1_000_000;
/// Longest time after which a client is asked to try again.
const LONGEST_RETRY_S: u64 = 30;
/// Least share of the others' load that an endpoint takes right after it came back.
const LEAST_RAMP: f64 = 0.1;

/// The state of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// In full use.
    Healthy,
    /// In use, with less than its share for a while.
    SlowStart,
    /// Left out after failures, or being probed.
    CoolingDown,
    /// Left out because it said that it is busy.
    Backpressure,
    /// Left out because it has work and gives no token.
    Stalled,
    /// Failed Envoy's active health check.
    Unhealthy,
    /// Ejected by Envoy's outlier detection.
    Ejected,
    /// Being taken out of service.
    Draining,
    /// Asleep.
    Sleeping,
}

impl State {
    /// All states, in the order of their codes.
    pub const ALL: [State; 9] = [
        State::Healthy,
        State::SlowStart,
        State::CoolingDown,
        State::Backpressure,
        State::Stalled,
        State::Unhealthy,
        State::Ejected,
        State::Draining,
        State::Sleeping,
    ];

    /// The name in metrics and on the status page.
    pub fn name(self) -> &'static str {
        match self {
            State::Healthy => "healthy",
            State::SlowStart => "slow_start",
            State::CoolingDown => "cooling_down",
            State::Backpressure => "backpressure",
            State::Stalled => "stalled",
            State::Unhealthy => "unhealthy",
            State::Ejected => "ejected",
            State::Draining => "draining",
            State::Sleeping => "sleeping",
        }
    }

    /// The value of the metric; 0 stands for an endpoint that is gone.
    pub fn code(self) -> u64 {
        self as u64 + 1
    }

    /// Whether Envoy alone has put it aside: neither a request nor the engine itself says so.
    fn is_envoys_verdict(self) -> bool {
        matches!(self, State::Unhealthy | State::Ejected | State::Draining)
    }

    /// Whether requests may go there.
    pub fn is_usable(self) -> bool {
        matches!(self, State::Healthy | State::SlowStart)
    }
}

/// A response's head, as far as it says something of the endpoint that gave it.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// Its status.
    pub status: u16,
    /// The `ip:port` that answered, or was asked last.
    pub address: &'a [u8],
    /// Whether an engine gave it, not Envoy for want of an answer.
    pub by_engine: bool,
    /// What a busy engine asks to wait.
    pub retry_after_s: Option<u64>,
}

/// Members of a pool, or those that serve one model, and which of them are usable.
#[derive(Debug)]
pub(super) struct Members {
    /// Positions of all.
    pub(super) all: Vec<usize>,
    /// Those to rank.
    pub(super) group: Group,
    /// Number of usable ones among all.
    pub(super) usable: usize,
    /// What their state asks of a ranking.
    pub(super) care: Care,
    /// The judgement that `group` is of.
    judged: Option<u64>,
}

/// The members of a group that are to be ranked.
pub(super) struct Fit {
    /// Their positions; all of the group's if they are the last resort.
    pub(super) ranked: Vec<usize>,
    /// How many of the group are usable.
    pub(super) usable: usize,
    /// What their state asks of a ranking.
    pub(super) care: Care,
}

/// What a ranking must heed beyond the pool's policy.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Care {
    /// Whether any endpoint is in slow start.
    pub(super) slow: bool,
    /// The endpoint to put to the test.
    pub(super) probe: Option<usize>,
}

impl Members {
    pub(super) fn new(all: Vec<usize>, identities: &[u64]) -> Self {
        Members {
            group: Group::new(Vec::new(), identities, None),
            usable: 0,
            care: Care::default(),
            judged: None,
            all,
        }
    }
}

impl<S: Store> Router<S> {
    /// The state of a pool's endpoint.
    pub fn state(&self, pool: usize, position: usize, now_us: u64) -> State {
        let Some(endpoint) = self.endpoints.get(position) else {
            return State::Unhealthy;
        };
        let fitness = self.fitness.total(position).copied().unwrap_or_default();
        match fitness.cause(now_us) {
            Cause::Failures => return State::CoolingDown,
            Cause::Backpressure => return State::Backpressure,
            Cause::Stalled => return State::Stalled,
            Cause::None => {}
        }
        let cluster = self
            .config
            .pools
            .get(pool)
            .map_or("", |pool| pool.cluster.as_str());
        let now_ms = now_us / 1000;
        match self
            .scout
            .health(&self.config, cluster, &endpoint.at.socket, now_ms)
        {
            HostHealth::Unhealthy => return State::Unhealthy,
            HostHealth::Ejected => return State::Ejected,
            HostHealth::Draining => return State::Draining,
            HostHealth::Healthy => {}
        }
        let engine = self.scout.fleet().engine(&endpoint.at);
        let sleeping = engine.is_some_and(|engine| {
            engine.sleeping && engine.is_fresh(now_ms, crate::scout::Scout::stale_ms(&self.config))
        });
        if sleeping {
            return State::Sleeping;
        }
        match self.ramp(pool, position, now_us) {
            Some(_) => State::SlowStart,
            None => State::Healthy,
        }
    }

    /// What Envoy last told of a pool's endpoint.
    pub(super) fn host(&self, pool: usize, position: usize) -> Option<&Host> {
        let endpoint = self.endpoints.get(position)?;
        let cluster = &self.config.pools.get(pool)?.cluster;
        let cluster = self.scout.fleet().clusters.get(cluster)?;
        cluster.hosts.get(&endpoint.at.socket)
    }

    /// When an endpoint came into its state, as far as that is known.
    pub(super) fn state_since_us(&self, pool: usize, position: usize, now_us: u64) -> Option<u64> {
        let told_us = self.host(pool, position).map_or(0, Host::since_us);
        let fitness = self.fitness.total(position).copied().unwrap_or_default();
        let since_us = match self.state(pool, position, now_us) {
            State::CoolingDown | State::Backpressure | State::Stalled => fitness.event_us(),
            State::Healthy | State::SlowStart => told_us.max(fitness.recovered_us()),
            // Envoy and the engines tell what is, not since when.
            State::Unhealthy | State::Ejected | State::Draining | State::Sleeping => 0,
        };
        Some(since_us).filter(|since_us| (1..=now_us).contains(since_us))
    }

    /// The share of the others' load that an endpoint in slow start may have, 0 to 1.
    fn ramp(&self, pool: usize, position: usize, now_us: u64) -> Option<f64> {
        let slow_us = self.config.health.slow_start_us;
        let told_us = self.host(pool, position).map_or(0, Host::since_us);
        let seen_us = self
            .fitness
            .total(position)
            .map_or(0, Fitness::recovered_us);
        let back_us = Some(told_us.max(seen_us)).filter(|back_us| *back_us > 0)?;
        let age_us = now_us.checked_sub(back_us)?;
        (slow_us > 0 && age_us < slow_us).then(|| (age_us as f64 / slow_us as f64).max(LEAST_RAMP))
    }

    /// Brings a group's list of usable members up to date. Whether it is the last resort.
    pub(super) fn judge(&mut self, pool: usize, group: usize, now_us: u64) -> bool {
        self.fitness.refresh(&self.store, now_us);
        let seen = self.fitness.changes();
        if seen != self.judged_changes || now_us >= self.judge_again_us {
            self.judged_changes = seen;
            self.judged = self.judged.wrapping_add(1);
            let ends =
                (0..self.endpoints.len()).filter_map(|position| self.fitness.total(position));
            let ends = ends
                .map(Fitness::until_us)
                .filter(|until_us| *until_us > now_us);
            // What Envoy and the engines say grows old without a word.
            self.judge_again_us = ends
                .min()
                .unwrap_or(u64::MAX)
                .min(now_us.saturating_add(1_000_000));
        }
        let judged = self.judged;
        let members = |router: &Self| {
            let members = router
                .pools
                .get(pool)
                .and_then(|pool| pool.groups.get(group));
            members
                .filter(|members| members.judged != Some(judged))
                .map(|members| members.all.clone())
        };
        if let Some(all) = members(self) {
            let fit = self.fit(pool, &all, now_us);
            let weights = self.weights(pool, &fit.ranked);
            let slot = self
                .pools
                .get_mut(pool)
                .and_then(|pool| pool.groups.get_mut(group));
            if let Some(slot) = slot {
                slot.judged = Some(judged);
                slot.usable = fit.usable;
                slot.care = fit.care;
                let known = slot.group.members() == fit.ranked.as_slice();
                if !known || slot.group.weights() != weights.as_ref() {
                    slot.group = Group::new(fit.ranked, &self.identities, weights);
                }
            }
        }
        let slot = self.pools.get(pool).and_then(|pool| pool.groups.get(group));
        slot.is_some_and(|slot| slot.usable < slot.group.members().len())
    }

    /// Which of a group's members are to be ranked.
    pub(super) fn fit(&self, pool: usize, all: &[usize], now_us: u64) -> Fit {
        let mut slow = false;
        let mut ranked = Vec::with_capacity(all.len());
        let mut doubted = Vec::new();
        for position in all {
            let state = self.state(pool, *position, now_us);
            slow |= state == State::SlowStart;
            if state.is_usable() {
                ranked.push(*position);
            } else if state.is_envoys_verdict() {
                doubted.push(*position);
            }
        }
        let usable = ranked.len();
        let health = &self.config.health;
        let panics = usable * 100 < all.len() * usize::from(health.panic_percent);
        let resorts = usable == 0 && health.last_resort;
        if resorts && !doubted.is_empty() {
            // Envoy may be wrong about all at once, as when it was busy itself while its checks ran
            // out of time. What requests came to, and what engines say, is certain.
            ranked = doubted;
        } else if panics || resorts {
            ranked = all.to_vec();
        }
        let probe = self.probe_due(&ranked, now_us);
        Fit {
            ranked,
            usable,
            care: Care { slow, probe },
        }
    }

    pub(super) fn members(&self, target: &Target) -> Option<&Members> {
        self.pools.get(target.pool)?.groups.get(target.group)
    }

    /// The answer when no endpoint may be used: again when the first of them may be.
    pub(super) fn refusal(&self, target: &Target, now_us: u64) -> Answer {
        let name = self
            .config
            .pools
            .get(target.pool)
            .map_or("", |pool| pool.name.as_str());
        let all = self.members(target).map(|members| members.all.as_slice());
        let ends = all.unwrap_or_default().iter().filter_map(|position| {
            let until_us = self.fitness.total(*position)?.until_us();
            (until_us > now_us).then_some(until_us)
        });
        let wait_us = ends.min().map_or(BUSY_US, |until_us| until_us - now_us);
        Answer {
            retry_after_s: Some(wait_us.div_ceil(1_000_000).clamp(1, LONGEST_RETRY_S) as u32),
            ..Answer::no_endpoint(name)
        }
    }

    /// Puts endpoints in slow start that have their share already behind the others.
    pub(super) fn spare(&self, pool: usize, ranked: &mut [usize], members: &Group, now_us: u64) {
        let count = members.members().len();
        if count < 2 {
            return;
        }
        let in_flight =
            |position: usize| self.loads.total(position).map_or(0, |load| load.in_flight);
        let is_full = |position: usize| {
            let Some(ramp) = self.ramp(pool, position, now_us) else {
                return false;
            };
            let own = in_flight(position);
            let all: u32 = members
                .members()
                .iter()
                .map(|other| in_flight(*other))
                .sum();
            let others = all.saturating_sub(own) as f64 / (count - 1) as f64;
            let place = members.place(position);
            let speed = place.map_or(1.0, |place| members.speed(place));
            f64::from(own) >= 1.0 + ramp * speed * others
        };
        let (full, open): (Vec<usize>, Vec<usize>) =
            ranked.iter().partition(|position| is_full(**position));
        for (place, position) in ranked.iter_mut().zip(open.into_iter().chain(full)) {
            *place = position;
        }
    }

    /// Whoever is asked first after its cool-down is probed by this request alone.
    pub(super) fn probe(&mut self, position: usize, now_us: u64) {
        let awaits = self
            .fitness
            .total(position)
            .is_some_and(|it| it.awaits_probe(now_us));
        if awaits {
            let options = self.config.health;
            self.mark(position, now_us, |fitness, _| {
                fitness.probe(&options, now_us)
            });
        }
    }

    /// Takes a response for what it says of the endpoints that the request met.
    pub fn responded(&mut self, charge: &mut Charge, response: Response, now_us: u64) {
        self.recent.change(charge.recent, |entry| {
            entry.status = Some(response.status);
            entry.position = charge.position;
        });
        charge.refused = response.status >= 400;
        let ranked = std::mem::take(&mut charge.ranked);
        let at = ranked
            .iter()
            .position(|position| self.address(*position).as_bytes() == response.address);
        // Envoy walks the list: those before the one that answered did not.
        for position in ranked.iter().take(at.unwrap_or_default()) {
            self.failed_engine(*position, now_us);
        }
        let Some(position) = at.and_then(|at| ranked.get(at)).copied() else {
            return;
        };
        match response.status {
            429 | 503 if response.by_engine => {
                let length_us = response
                    .retry_after_s
                    .map_or(BUSY_US, |s| s.saturating_mul(1_000_000));
                self.mark(position, now_us, |fitness, _| {
                    fitness.backpressure(length_us, now_us)
                });
            }
            // Of Envoy, for want of an answer.
            500.. if !response.by_engine => self.failed_engine(position, now_us),
            500.. => self.failed(position, now_us),
            // What the client did wrong says nothing of the engine, but that it answers.
            400..=499 => {}
            _ => self.succeeded(position, false, now_us),
        }
    }

    /// The answer to a request came to its end: its endpoint gives whole answers.
    pub fn answered(&mut self, charge: &Charge, now_us: u64) {
        self.succeeded(charge.position(), true, now_us);
    }

    /// The endpoint broke off its answer to a request.
    pub fn broke_off(&mut self, charge: &Charge, now_us: u64) {
        let options = self.config.health;
        self.mark(charge.position(), now_us, |fitness, strikes| {
            fitness.broke_off_an_answer(strikes, &options, now_us);
        });
    }

    /// An endpoint failed a request.
    pub(super) fn failed(&mut self, position: usize, now_us: u64) {
        let options = self.config.health;
        self.mark(position, now_us, |fitness, strikes| {
            fitness.failed(strikes, &options, now_us);
        });
    }

    /// An engine gave no answer: that says as much of each of its ranks. One that is fit all the same
    /// shows it by its next success.
    fn failed_engine(&mut self, position: usize, now_us: u64) {
        let endpoint = self.endpoints.get(position);
        let Some(socket) = endpoint.map(|it| it.at.socket) else {
            return;
        };
        let ranks: Vec<usize> = self.positions_at(socket).collect();
        for rank in ranks {
            self.failed(rank, now_us);
        }
    }

    fn succeeded(&mut self, position: usize, whole: bool, now_us: u64) {
        let (all, own) = (self.fitness.total(position), self.fitness.own(position));
        if all.is_some_and(Fitness::is_stalled) {
            // Its front sends headers before there is a token.
            return;
        }
        let breaks_off = [all, own].into_iter().flatten().any(Fitness::broke_off);
        if breaks_off && !whole {
            return;
        }
        let struck = own.is_some_and(|own| own.strikes() > 0);
        if struck || self.fitness.total(position).is_some_and(Fitness::is_marked) {
            self.mark(position, now_us, |fitness, _| fitness.succeeded(now_us));
        }
    }

    pub(super) fn mark(
        &mut self,
        position: usize,
        now_us: u64,
        change: impl Fn(&mut Fitness, u16),
    ) {
        // Our own column takes over what all have seen: the event follows from it.
        let total = self.fitness.total(position).copied().unwrap_or_default();
        let strikes = total.strikes();
        self.fitness.change(position, |fitness| {
            fitness.adopt(&total);
            change(fitness, strikes);
        });
        self.judged = self.judged.wrapping_add(1);
        if let Some(column) = self.column {
            self.fitness.publish(&self.store, column, now_us);
        }
    }
}
