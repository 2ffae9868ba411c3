//! Keeping up with the other workers: heartbeats, columns, logs.

use super::{Charge, Router};
use crate::address::EngineAddress;
use crate::board::READ_SPACING_US;
use crate::call::{HttpCall, Reply};
use crate::ids::{self, EndpointId};
use crate::load::Load;
use crate::scout::Scout;
use crate::scrape::Call;
use crate::store::Store;
use crate::sync::webdis;
use crate::wire::orca::OrcaLoad;
use crate::workers;

/// Workers mostly start together, each with its first request: in this time a worker that sees no
/// other does not take itself for alone.
const STARTING_US: u64 = 10_000_000;

impl<S: Store> Router<S> {
    /// Renews what must be renewed while time passes; about twice a second.
    pub fn tick(&mut self, now_us: u64) {
        if self.scout.follow(&self.store) {
            self.follow_fleet(now_us);
        }
        self.forget_words(now_us);
        if let Some(replica) = self.replica.as_mut() {
            replica.grow(self.table_bytes);
        }
        if !self.joined {
            self.watch(now_us);
            return;
        }
        self.beat(now_us);
        self.drain(now_us);
        self.follow(now_us);
        self.watch_tick(now_us);
        self.publish_recent();
        if let Some(replica) = self.replica.as_mut() {
            replica.tick(&self.store, self.leads);
        }
        let now_ms = now_us / 1000;
        if now_ms.saturating_sub(self.touched_ms) >= ids::TOUCH_MS {
            self.touched_ms = now_ms;
            // The answer is what we have: an id does not change while it is in use.
            let _: Vec<Option<EndpointId>> = ids::resolve(&self.store, &self.identities, now_ms);
        }
    }

    /// Learns what the other workers know without deciding anything. A worker that has had no request
    /// joins them.
    pub fn attend(&mut self, now_us: u64) {
        self.join(now_us);
        self.follow(now_us);
        self.drain(now_us);
        self.fitness.refresh(&self.store, now_us);
        self.rates.refresh(&self.store, now_us);
    }

    /// Reads what the other workers published, if it is due.
    pub(super) fn follow(&mut self, now_us: u64) {
        self.loads.refresh(&self.store, now_us);
        let Some(replica) = self.replica.as_mut() else {
            return;
        };
        replica.turn_lately(now_us);
        // Events and the cache taken by running requests belong together: of two views of
        // different age the clocks would count a prompt twice, and forget too much.
        if !replica.follow(&self.store, now_us) {
            return;
        }
        let tokens = |load: Option<&Load>| load.map_or(0, |load| load.kept_tokens);
        for position in 0..self.endpoints.len() {
            let own = tokens(self.loads.own(position));
            if let Some(busy) = self.peers_busy.get_mut(position) {
                *busy = tokens(self.loads.total(position)).saturating_sub(own);
            }
            self.tell_busy(position);
        }
    }

    /// The calls to make now, with what they are as HTTP; none unless this VM holds the lease.
    pub fn calls(&mut self, now_us: u64) -> Vec<(Call, HttpCall)> {
        let mut calls = self.fleet_calls(now_us);
        calls.extend(self.peers_call(now_us).map(|http| (Call::Peers, http)));
        calls
    }

    /// Those of them that are about the fleet: to engines and to Envoy.
    pub fn fleet_calls(&mut self, now_us: u64) -> Vec<(Call, HttpCall)> {
        let calls = self.scout.calls(&self.store, &self.config, now_us / 1000);
        let http = |call: Call| Some((self.scout.http(&self.config, &call)?, call));
        let calls = calls.into_iter().filter_map(http);
        calls.map(|(http, call)| (call, http)).collect()
    }

    /// Longest body of a call's answer that is read.
    pub fn most_bytes(&self, call: &Call) -> usize {
        if *call == Call::Peers {
            return webdis::MAX_REPLY_BYTES;
        }
        let http = self.scout.http(&self.config, call);
        http.map_or(0, |http| http.max_bytes)
    }

    /// A call has ended. Whether anything was learned from it.
    pub fn call_ended(&mut self, call: &Call, reply: Reply, now_us: u64) -> bool {
        if *call == Call::Peers {
            return self.peers_answered(reply, now_us);
        }
        let Call::Metrics(socket) = call else {
            return self
                .scout
                .ended(&self.config, call, reply, |_| 0, now_us / 1000);
        };
        self.loads.refresh(&self.store, now_us);
        let (endpoints, loads) = (&self.endpoints, &self.loads);
        let in_flight = |rank: Option<u16>| {
            let all = endpoints.iter().enumerate();
            let all = all.filter(|(_, one)| one.at.socket == *socket && !one.retired);
            let here = all.filter(|(_, one)| rank.is_none() || one.at.rank == rank);
            let loads = here.filter_map(|(position, _)| loads.total(position));
            let in_flight = loads.map(|load| load.in_flight);
            in_flight.fold(0, u32::saturating_add)
        };
        self.scout
            .ended(&self.config, call, reply, in_flight, now_us / 1000)
    }

    /// The engine that serves a charge told its load with a whole answer: of what is in flight there,
    /// this request is over. What an engine of several ranks tells is of any of them: not believed.
    pub fn load_told(&mut self, charge: &Charge, load: &OrcaLoad, now_us: u64) {
        let position = charge.position();
        let endpoint = self.endpoints.get(position);
        let Some(endpoint) = endpoint.filter(|it| it.at.rank.is_none()) else {
            return;
        };
        let in_flight = self.in_flight(position).saturating_sub(1);
        self.scout
            .hear(endpoint.at.socket, load, in_flight, now_us / 1000);
    }

    /// What is known of the engines, and who keeps it known.
    pub fn scout(&self) -> &Scout {
        &self.scout
    }

    /// Follows the others' figures without a column of its own: a VM that serves no requests, as the
    /// main thread's, may hold the lease all the same.
    fn watch(&mut self, now_us: u64) {
        if !self.scout.holds_lease() {
            return;
        }
        let limits = &self.config.limits;
        let mut peers = workers::living(&self.store, limits.worker_expiry_ms, now_us / 1000);
        self.rates.set_peers(&peers);
        self.pulses.set_peers(&peers);
        peers.extend(self.peers_column(now_us));
        self.loads.set_peers(&peers);
        self.fitness.set_peers(&peers);
    }

    /// Takes over what the fleet has become.
    fn follow_fleet(&mut self, now_us: u64) {
        let names = self.scout.shape();
        if names != self.shape {
            self.shape = names;
            self.lay_out(now_us);
        } else {
            self.note_told();
            self.set_capacities();
            self.hear(now_us);
        }
        self.forget_restarted();
        self.judged = self.judged.wrapping_add(1);
    }

    /// An engine whose counters went back was started anew, with an empty cache.
    fn forget_restarted(&mut self) {
        let engines = self.endpoints.iter().filter(|endpoint| !endpoint.retired);
        let mut queried: Vec<(EngineAddress, (u64, u64))> = engines
            .filter_map(|endpoint| {
                let engine = self.scout.fleet().engine(&endpoint.at)?;
                Some((endpoint.at, (engine.told_ms, engine.queried_tokens?)))
            })
            .collect();
        for (at, told) in &mut queried {
            let before = self.queried.get(at).copied().unwrap_or_default();
            if told.0 < before.0 {
                // Who takes the lease goes on from what was written last: that may be less than what
                // the one before it knew.
                *told = before;
            }
            let position = self.by_address.get(at).filter(|_| told.1 < before.1);
            let id = position.and_then(|position| self.endpoints.get(*position)?.id);
            if let (Some(id), Some(replica)) = (id, self.replica.as_mut()) {
                replica.forget(id);
            }
        }
        self.queried = queried.into();
    }

    /// Takes this worker's figures out of the sum; nothing of it is in flight any more. What it
    /// learned is left to the others.
    pub fn leave(&mut self) {
        self.scout.leave(&self.store);
        if self.joined {
            if let Some(replica) = self.replica.as_mut() {
                replica.publish(&self.store, self.column);
            }
            workers::leave(&self.store, self.owner);
            self.joined = false;
            self.column = None;
            self.leads = false;
        }
    }

    /// Takes a column with the first request: the main thread's VM never needs one.
    pub(super) fn join(&mut self, now_us: u64) {
        if !self.joined {
            self.joined = true;
            self.joined_us = now_us;
            if let Some(replica) = self.replica.as_mut() {
                replica.warm_up(&self.store);
            }
            self.beat(now_us);
        }
    }

    fn beat(&mut self, now_us: u64) {
        let limits = &self.config.limits;
        let now_ms = now_us / 1000;
        let roll = workers::beat(
            &self.store,
            self.owner,
            limits.workers,
            limits.worker_expiry_ms,
            now_ms,
        );
        let Some(mut roll) = roll else { return };
        self.rates.set_peers(&roll.peers);
        self.pulses.set_peers(&roll.peers);
        // To what follows the other Envoys are one more worker.
        roll.peers.extend(self.peers_column(now_us));
        self.loads.set_peers(&roll.peers);
        self.fitness.set_peers(&roll.peers);
        if let Some(replica) = self.replica.as_mut() {
            replica.set_peers(&self.store, &roll.peers);
        }
        if roll.peers.is_empty() {
            self.peers_busy.fill(0);
        }
        self.column = roll.own;
        self.leads = roll.leads;
        self.publish_now(now_us);
    }

    /// Makes our figures and events known, if anybody is there to read them. Alone, the tick does
    /// it: who joins later knows all but the last tick's.
    pub(super) fn publish(&mut self, now_us: u64) {
        let starting = now_us.saturating_sub(self.joined_us) < STARTING_US;
        if starting || !self.loads.is_alone() {
            self.publish_now(now_us);
        }
    }

    /// The same for what others need not know at once, if they can know it only later anyway.
    pub(super) fn publish_soon(&mut self, now_us: u64) {
        let fresh = |age_us: u64| age_us < READ_SPACING_US;
        if !now_us.checked_sub(self.published_us).is_some_and(fresh) {
            self.publish(now_us);
        }
    }

    fn publish_now(&mut self, now_us: u64) {
        let Some(column) = self.column else { return };
        self.published_us = now_us;
        self.loads.publish(&self.store, column, now_us);
        if self.counts_rates {
            self.rates.publish(&self.store, column, now_us);
        }
        if let Some(replica) = self.replica.as_mut() {
            replica.publish(&self.store, self.column);
        }
    }
}
