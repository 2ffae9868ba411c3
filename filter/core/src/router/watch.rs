//! Watching engines: who has work and gives no sign of life is put aside, by all workers.
//!
//! What the requests of this worker show is noted in a [`Watch`] for each endpoint, at the price of a
//! few additions, and of one store for each part of an answer. With every tick that becomes this
//! worker's column of [pulses](crate::pulse). Whoever finds one of its own endpoints silent reads the
//! columns of the others, and judges only then; O(endpoints) a tick, and O(workers) more while there is
//! silence.

use super::Router;
use super::account::Charge;
use crate::fitness::{Cause, Fitness};
use crate::prefix::BYTES_PER_TOKEN;
use crate::pulse::{Prefill, Pulse, Sizes, Waits};
use crate::store::Store;

/// Ticks come at least twice a second. Of a time in which none came nothing is known: the machine slept,
/// or was too busy to see what engines sent.
const UNWATCHED_US: u64 = 1_000_000;
/// The part of a prompt that is believed to be cached counts for one in this many: it may be gone.
const CACHED_PART: u64 = 4;

/// One endpoint, as seen by the requests of this worker.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    /// Whether a part of an answer came since the last tick.
    heard: bool,
    heard_us: u64,
    streams: u32,
    streams_us: u64,
    wholes: u32,
    wholes_us: u64,
    first: Waits,
    whole: Waits,
    prefill: Prefill,
    sizes: Sizes,
    /// One more with each recovery: what was lost before says nothing of the time after.
    epoch: u32,
    recovered_us: u64,
}

/// A request's part in the watch of its endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watched {
    epoch: u32,
    sent_us: u64,
    tokens: u64,
    /// Size class of its prompt, while that is not prefilled.
    class: Option<u8>,
    /// Whether its wait says something: not after a retry, which began nobody knows when.
    learns: bool,
}

impl Watch {
    fn begin(&mut self, streamed: bool, tokens: u64, learns: bool, now_us: u64) -> Watched {
        let (count, since_us) = match streamed {
            true => (&mut self.streams, &mut self.streams_us),
            false => (&mut self.wholes, &mut self.wholes_us),
        };
        if *count == 0 {
            *since_us = now_us.max(1);
        }
        *count = count.saturating_add(1);
        Watched {
            epoch: self.epoch,
            sent_us: now_us,
            tokens,
            class: Some(self.sizes.add(tokens)),
            learns,
        }
    }

    fn first(&mut self, streamed: bool, watched: &mut Watched, now_us: u64) {
        // An answer that is not streamed comes as a whole.
        if streamed
            && watched.epoch == self.epoch
            && let Some(class) = watched.class.take()
        {
            self.sizes.remove(class);
        }
        if !std::mem::take(&mut watched.learns) {
            return;
        }
        let wait_us = now_us.saturating_sub(watched.sent_us);
        let beyond_us = wait_us.saturating_sub(self.prefill.time_us(watched.tokens));
        if streamed {
            self.prefill.add(watched.tokens, wait_us);
            self.first.add(beyond_us);
        } else {
            self.whole.add(beyond_us);
        }
    }

    fn end(&mut self, streamed: bool, watched: Watched) {
        if watched.epoch != self.epoch {
            return;
        }
        if let Some(class) = watched.class {
            self.sizes.remove(class);
        }
        let (count, since_us) = match streamed {
            true => (&mut self.streams, &mut self.streams_us),
            false => (&mut self.wholes, &mut self.wholes_us),
        };
        *count = count.saturating_sub(1);
        if *count == 0 {
            *since_us = 0;
        }
    }

    /// What is in flight is forgotten; what was learned is not.
    fn write_off(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        (self.streams, self.streams_us) = (0, 0);
        (self.wholes, self.wholes_us) = (0, 0);
        self.sizes = Sizes::default();
    }

    /// Takes over what came since the last tick; whether anything did.
    fn tick(&mut self, unwatched: bool, now_us: u64) -> bool {
        let heard = std::mem::take(&mut self.heard);
        if heard || unwatched {
            self.heard_us = now_us;
        }
        // A clock that was set back must not hide a silence.
        for time_us in [
            &mut self.heard_us,
            &mut self.streams_us,
            &mut self.wholes_us,
        ] {
            *time_us = (*time_us).min(now_us);
        }
        heard
    }

    fn pulse(&self) -> Pulse {
        Pulse {
            heard_us: self.heard_us,
            streams_us: self.streams_us,
            wholes_us: self.wholes_us,
            first_us: self.first.longest_us(),
            whole_us: self.whole.longest_us(),
            token_ns: self.prefill.token_ns(),
            prompt_tokens: self.sizes.largest(),
        }
    }
}

impl<S: Store> Router<S> {
    /// The whole request was sent, with a body of this many bytes if that is known: from now on the
    /// engine has work.
    pub fn sent(&mut self, charge: &mut Charge, body_bytes: Option<usize>, now_us: u64) {
        if charge.watched.is_some() {
            return;
        }
        let tokens = match charge.holds_prompt() {
            true => charge.work_tokens.max(charge.prompt_tokens / CACHED_PART),
            false => (body_bytes.unwrap_or_default() / BYTES_PER_TOKEN) as u64,
        };
        self.watch_charge(charge, tokens, true, now_us);
    }

    /// A part of the answer passes. Of an error's body nothing is made: that needs no engine.
    pub fn heard(&mut self, charge: &Charge) {
        if !charge.refused
            && let Some(watch) = self.watches.get_mut(charge.position)
        {
            watch.heard = true;
        }
    }

    fn watch_charge(&mut self, charge: &mut Charge, tokens: u64, learns: bool, now_us: u64) {
        if self.config.health.stall_us == 0 {
            return;
        }
        if let Some(watch) = self.watches.get_mut(charge.position) {
            charge.watched = Some(watch.begin(charge.streamed, tokens, learns, now_us));
        }
    }

    pub(super) fn watch_first(&mut self, charge: &mut Charge, now_us: u64) {
        let watch = self.watches.get_mut(charge.position);
        if let (Some(watch), Some(watched), false) =
            (watch, charge.watched.as_mut(), charge.refused)
        {
            watch.first(charge.streamed, watched, now_us);
        }
    }

    pub(super) fn unwatch(&mut self, charge: &mut Charge) -> Option<u64> {
        let watched = charge.watched.take()?;
        if let Some(watch) = self.watches.get_mut(charge.position) {
            watch.end(charge.streamed, watched);
        }
        Some(watched.tokens)
    }

    /// The request is at another endpoint now; with what [`Router::unwatch`] returned.
    pub(super) fn watch_again(&mut self, charge: &mut Charge, tokens: Option<u64>, now_us: u64) {
        if let Some(tokens) = tokens {
            self.watch_charge(charge, tokens, false, now_us);
        }
    }

    /// Another endpoint has this position now.
    pub(super) fn watch_anew(&mut self, position: usize) {
        if let Some(watch) = self.watches.get_mut(position) {
            *watch = Watch::default();
        }
    }

    /// Takes note of who gave a sign of life, and puts aside who should have.
    pub(super) fn watch_tick(&mut self, now_us: u64) {
        let floor_us = self.config.health.stall_us;
        if floor_us == 0 {
            return;
        }
        let since_us = now_us.saturating_sub(self.watched_us);
        let unwatched = self.watched_us > 0 && since_us > UNWATCHED_US;
        self.watched_us = now_us;
        self.fitness.refresh(&self.store, now_us);
        let (mut alive, mut silent) = (Vec::new(), Vec::new());
        for (position, watch) in self.watches.iter_mut().enumerate() {
            let fitness = self.fitness.total(position).copied().unwrap_or_default();
            if fitness.recovered_us() != watch.recovered_us {
                watch.recovered_us = fitness.recovered_us();
                watch.write_off();
            }
            let heard = watch.tick(unwatched, now_us);
            let pulse = watch.pulse();
            if self.pulses.own(position) != Some(&pulse) {
                self.pulses.change(position, |own| *own = pulse);
            }
            if fitness.is_stalled() {
                if heard {
                    alive.push(position);
                }
            } else if pulse.is_silent(floor_us, now_us) {
                silent.push(position);
            }
        }
        for position in alive {
            self.mark(position, now_us, |fitness, _| fitness.succeeded(now_us));
        }
        if !silent.is_empty() {
            self.pulses.refresh(&self.store, now_us);
        }
        for position in silent {
            self.judge_silence(position, now_us);
        }
        if let Some(column) = self.column.filter(|_| !self.pulses.is_alone()) {
            self.pulses.publish(&self.store, column, now_us);
        }
    }

    fn judge_silence(&mut self, position: usize, now_us: u64) {
        let options = self.config.health;
        let Some(mut pulse) = self.pulses.total(position).copied() else {
            return;
        };
        // What the engine itself says that it did.
        let endpoint = self.endpoints.get(position);
        let engine = endpoint.and_then(|it| self.scout.fleet().engine(&it.at));
        let moved_us = engine.map_or(0, |engine| engine.moved_ms.saturating_mul(1000));
        pulse.heard_us = pulse.heard_us.max(moved_us.min(now_us));
        if pulse.is_stalled(options.stall_us, now_us) {
            self.mark(position, now_us, |fitness, _| {
                fitness.cool_down(Cause::Stalled, &options, now_us);
            });
        }
    }

    /// Of the members of a group the one that is put to the test next: what it did not answer still
    /// counts as its load, so no policy might ever choose it.
    pub(super) fn probe_due(&self, members: &[usize], now_us: u64) -> Option<usize> {
        let due = |position: &&usize| {
            let fitness = self.fitness.total(**position);
            fitness.is_some_and(|it: &Fitness| it.is_stalled() && it.awaits_probe(now_us))
        };
        members.iter().find(due).copied()
    }
}
