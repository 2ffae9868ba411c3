//! Giving back what was counted: on the first token, on the end, and when another endpoint answered.
//!
//! Every way out of a request leads here exactly once. A request that is not streamed shows no first
//! token before its end; its prefill is taken for done when the engine should have worked off what
//! was queued before it, at the rate seen with streamed requests.

use super::Router;
use super::watch::Watched;
use crate::hash::Table;
use crate::load::Load;
use crate::prefix::{CHUNK_TOKENS, Event, Kind, Mark};
use crate::store::Store;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Prefill rate that is assumed before one was seen: a middling accelerator with an 8B model.
const TOKENS_PER_SECOND: f64 = 10_000.0;
/// Less work says more about the step time than about the rate.
const LEAST_SAMPLE_TOKENS: u64 = 1024;
/// Weight of a new sample.
const SAMPLE_WEIGHT: f64 = 0.1;

/// Work that is counted at an endpoint until it is given back.
#[derive(Debug)]
pub struct Charge {
    pub(super) position: usize,
    pub(super) work_tokens: u64,
    pub(super) context_tokens: u64,
    /// Output that is expected.
    pub(super) output_tokens: u64,
    /// Tokens of the engine's cache that it keeps from the decision on, and no other request did.
    pub(super) kept_tokens: u64,
    /// Those that it keeps in addition once it has its first token.
    pub(super) grow_tokens: u64,
    pub(super) streamed: bool,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) held: Option<Held>,
    /// Pool and key of the conversation, if an index service said something of it.
    pub(super) told: Option<(usize, u64)>,
    /// Whom Envoy was told to ask, in this order; taken once it is known who answered.
    pub(super) ranked: Vec<usize>,
    /// Its number among the recent decisions.
    pub(super) recent: u64,
    /// Whether the first token is awaited.
    waiting: bool,
    /// Its part in the watch of the endpoint, once it was sent as a whole.
    pub(super) watched: Option<Watched>,
    /// Whether it is answered with an error.
    pub(super) refused: bool,
    /// Name of the estimate that stands in for the first token.
    estimate: Option<u64>,
    started_us: u64,
    /// Prefill work at the endpoint when the request came, its own included.
    queued_tokens: u64,
}

/// A prompt that was entered as held.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) marks: Vec<Mark>,
    /// How many of the marks were known to be held before.
    pub(super) known: usize,
    /// The end of the prompt that no mark covers.
    pub(super) tail_tokens: u64,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The engine worked on it; with this many tokens of output, as far as is known.
    Served {
        /// Output tokens.
        output_tokens: u32,
    },
    /// The engine did not take it, or failed.
    Failed,
}

impl Charge {
    pub(super) fn new(position: usize, now_us: u64) -> Self {
        Charge {
            position,
            work_tokens: 0,
            context_tokens: 0,
            output_tokens: 0,
            kept_tokens: 0,
            grow_tokens: 0,
            streamed: true,
            prompt_tokens: 0,
            cached_tokens: 0,
            held: None,
            told: None,
            ranked: Vec::new(),
            recent: 0,
            waiting: true,
            watched: None,
            refused: false,
            estimate: None,
            started_us: now_us,
            queued_tokens: 0,
        }
    }

    /// Whether a prompt was entered as held.
    pub fn holds_prompt(&self) -> bool {
        self.held.is_some()
    }

    /// Tokens of the prompt; 0 if the pool's policy does not look at it.
    pub fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens
    }

    /// Those of them that the endpoint was believed to hold.
    pub fn cached_tokens(&self) -> u64 {
        self.cached_tokens
    }

    /// Whether the answer is a stream; true if that is not known.
    pub fn streamed(&self) -> bool {
        self.streamed
    }

    /// Position of the endpoint.
    pub fn position(&self) -> usize {
        self.position
    }

    fn take_from(&self, load: &mut Load, waiting: bool, in_flight: bool) {
        if waiting {
            load.waiting = load.waiting.saturating_sub(1);
            load.prefill_tokens = load.prefill_tokens.saturating_sub(self.work_tokens);
        }
        if in_flight {
            load.in_flight = load.in_flight.saturating_sub(1);
            load.context_tokens = load.context_tokens.saturating_sub(self.context_tokens);
        }
        let kept = load.kept_tokens;
        load.kept_tokens = match (waiting, in_flight) {
            (true, false) => kept.saturating_add(self.grow_tokens),
            (false, true) => kept.saturating_sub(self.kept_tokens.saturating_add(self.grow_tokens)),
            (true, true) => kept.saturating_sub(self.kept_tokens),
            (false, false) => kept,
        };
    }

    fn add_to(&self, load: &mut Load, now_us: u64) {
        if self.waiting {
            load.waiting = load.waiting.saturating_add(1);
            load.prefill_tokens = load.prefill_tokens.saturating_add(self.work_tokens);
        }
        load.in_flight = load.in_flight.saturating_add(1);
        let grown = if self.waiting { 0 } else { self.grow_tokens };
        let kept = self.kept_tokens.saturating_add(grown);
        load.kept_tokens = load.kept_tokens.saturating_add(kept);
        load.context_tokens = load.context_tokens.saturating_add(self.context_tokens);
        // Two decisions within one microsecond still have an order.
        load.last_used_us = now_us.max(load.last_used_us.saturating_add(1));
    }
}

/// A request whose first token will not be seen.
#[derive(Clone, Copy, Debug)]
struct Estimate {
    position: usize,
    work_tokens: u64,
    grow_tokens: u64,
}

/// Estimates of when prefill is done, for requests that do not show it.
#[derive(Debug)]
pub(super) struct Drains {
    /// Tokens per second of each endpoint.
    rates: Vec<f64>,
    due: BinaryHeap<Reverse<(u64, u64)>>,
    open: Table<u64, Estimate>,
    last: u64,
}

impl Drains {
    pub(super) fn new(endpoints: usize) -> Self {
        Drains {
            rates: vec![TOKENS_PER_SECOND; endpoints],
            due: BinaryHeap::new(),
            open: Table::default(),
            last: 0,
        }
    }

    /// For another number of endpoints; those that stay keep their position.
    pub(super) fn resize(&mut self, endpoints: usize) {
        self.rates.resize(endpoints, TOKENS_PER_SECOND);
    }

    fn learn(&mut self, position: usize, tokens: u64, took_us: u64) {
        if tokens < LEAST_SAMPLE_TOKENS || took_us == 0 {
            return;
        }
        if let Some(rate) = self.rates.get_mut(position) {
            let sample = tokens as f64 * 1e6 / took_us as f64;
            *rate += SAMPLE_WEIGHT * (sample.clamp(100.0, 1e7) - *rate);
        }
    }

    fn open(&mut self, charge: &mut Charge, now_us: u64) {
        let rate = self
            .rates
            .get(charge.position)
            .copied()
            .unwrap_or(TOKENS_PER_SECOND);
        let wait_us = charge.queued_tokens as f64 * 1e6 / rate;
        self.last += 1;
        charge.estimate = Some(self.last);
        self.due
            .push(Reverse((now_us.saturating_add(wait_us as u64), self.last)));
        let Charge {
            position,
            work_tokens,
            grow_tokens,
            ..
        } = *charge;
        let estimate = Estimate {
            position,
            work_tokens,
            grow_tokens,
        };
        self.open.insert(self.last, estimate);
    }

    /// Whether the estimate was still open.
    fn close(&mut self, estimate: u64) -> bool {
        self.open.remove(&estimate).is_some()
    }

    fn next_due(&mut self, now_us: u64) -> Option<Estimate> {
        while let Some(Reverse((due_us, name))) = self.due.peek().copied() {
            if due_us > now_us {
                return None;
            }
            self.due.pop();
            if let Some(found) = self.open.remove(&name) {
                return Some(found);
            }
        }
        None
    }
}

impl<S: Store> Router<S> {
    /// Counts a new charge.
    pub(super) fn begin(&mut self, charge: &mut Charge, now_us: u64) {
        let queued = self
            .loads
            .total(charge.position)
            .map_or(0, |load| load.prefill_tokens);
        charge.queued_tokens = queued.saturating_add(charge.work_tokens);
        self.loads
            .change(charge.position, |load| charge.add_to(load, now_us));
        self.tell_busy(charge.position);
        if !charge.streamed && charge.work_tokens > 0 {
            self.drains.open(charge, now_us);
        }
        self.publish(now_us);
    }

    /// Takes the prefill of requests that show no first token for done, when it should be.
    pub(super) fn drain(&mut self, now_us: u64) {
        while let Some(done) = self.drains.next_due(now_us) {
            self.loads.change(done.position, |load| {
                load.waiting = load.waiting.saturating_sub(1);
                load.prefill_tokens = load.prefill_tokens.saturating_sub(done.work_tokens);
                load.kept_tokens = load.kept_tokens.saturating_add(done.grow_tokens);
            });
            self.tell_busy(done.position);
        }
    }

    /// Moves a charge to the endpoint that really answers, when it is not the one charged.
    pub fn served_by(&mut self, charge: &mut Charge, address: &[u8], now_us: u64) {
        if self.address(charge.position).as_bytes() == address {
            return;
        }
        let sent = self.rank(charge.position);
        let Some(served) = self.position_of(address, sent) else {
            return;
        };
        self.settle(charge);
        let watched_tokens = self.unwatch(charge);
        self.loads.change(charge.position, |load| {
            charge.take_from(load, charge.waiting, true)
        });
        self.tell_busy(charge.position);
        self.retract(charge);
        charge.position = served;
        let id = self.endpoints.get(served).and_then(|endpoint| endpoint.id);
        if let (Some(held), Some(id), Some(replica)) = (charge.held.as_mut(), id, &self.replica) {
            held.known = replica.index().known(&held.marks, id);
            let chunks = held.marks.iter().take(held.known);
            let chunks: u64 = chunks.map(|mark| u64::from(mark.chunks)).sum();
            charge.cached_tokens = (chunks * CHUNK_TOKENS).min(charge.prompt_tokens);
        }
        self.hold(charge);
        self.begin(charge, now_us);
        self.watch_again(charge, watched_tokens, now_us);
    }

    /// The first token came: the prompt is prefilled.
    pub fn first_token(&mut self, charge: &mut Charge, now_us: u64) {
        if charge.streamed {
            self.recent.change(charge.recent, |entry| {
                entry.ttft_us = Some(now_us.saturating_sub(entry.decided_us));
            });
        }
        self.watch_first(charge, now_us);
        self.settle(charge);
        if std::mem::take(&mut charge.waiting) {
            self.loads
                .change(charge.position, |load| charge.take_from(load, true, false));
            self.tell_busy(charge.position);
            if charge.streamed {
                let took_us = now_us.saturating_sub(charge.started_us);
                self.drains
                    .learn(charge.position, charge.queued_tokens, took_us);
            }
            self.publish_soon(now_us);
        }
    }

    /// The request ended, one way or another.
    pub fn end(&mut self, mut charge: Charge, outcome: Outcome, now_us: u64) {
        self.settle(&mut charge);
        self.unwatch(&mut charge);
        let waiting = charge.waiting;
        self.loads.change(charge.position, |load| {
            charge.take_from(load, waiting, true)
        });
        self.tell_busy(charge.position);
        match outcome {
            Outcome::Failed => self.retract(&mut charge),
            Outcome::Served { output_tokens } => self.release(&mut charge, output_tokens),
        }
        self.publish(now_us);
    }

    /// Tells the index how much of an endpoint's cache running requests take.
    pub(super) fn tell_busy(&mut self, position: usize) {
        let id = self
            .endpoints
            .get(position)
            .and_then(|endpoint| endpoint.id);
        if let (Some(id), Some(load), Some(replica)) =
            (id, self.loads.own(position), self.replica.as_mut())
        {
            let peers = self.peers_busy.get(position).copied().unwrap_or_default();
            replica.set_busy(id, load.kept_tokens.saturating_add(peers));
        }
    }

    /// Ends the estimate of a charge, if there is one.
    fn settle(&mut self, charge: &mut Charge) {
        if let Some(estimate) = charge.estimate.take() {
            charge.waiting &= self.drains.close(estimate);
        }
    }

    /// Takes back what a charge entered as held; what was held before stays.
    fn retract(&mut self, charge: &mut Charge) {
        if let Some((pool, key)) = charge.told.take() {
            self.kv_forget(pool, key);
        }
        let Some(held) = charge.held.as_mut() else {
            return;
        };
        let fresh = held.marks.split_off(held.known.min(held.marks.len()));
        let known = held.marks.clone();
        held.marks.extend_from_slice(&fresh);
        self.tell(charge.position, Kind::Hold, 0, known);
        self.tell(charge.position, Kind::Drop, 0, fresh);
    }

    /// A completed request leaves its blocks as the most recently used.
    fn release(&mut self, charge: &mut Charge, output_tokens: u32) {
        let Some(held) = charge.held.take() else {
            return;
        };
        let extra_tokens = held.tail_tokens.saturating_add(u64::from(output_tokens));
        let extra_chunks = extra_tokens.saturating_add(CHUNK_TOKENS / 2) / CHUNK_TOKENS;
        let extra_chunks = u32::try_from(extra_chunks).unwrap_or(u32::MAX);
        self.tell(charge.position, Kind::Hold, extra_chunks, held.marks);
    }

    fn tell(&mut self, position: usize, kind: Kind, extra_chunks: u32, marks: Vec<Mark>) {
        let id = self
            .endpoints
            .get(position)
            .and_then(|endpoint| endpoint.id);
        if let (Some(engine), Some(replica)) = (id, self.replica.as_mut()) {
            let event = Event {
                kind,
                engine,
                extra_chunks,
                marks,
            };
            replica.record(&event, &self.store, self.column);
        }
    }
}
