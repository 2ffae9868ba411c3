//! How long an engine keeps what it has: a clock for each that ticks in tokens.
//!
//! An engine evicts the least recently used blocks when new ones need room, so an entry is gone once
//! the tokens touched after it exceed the KV capacity. Wall time says nothing: an idle engine keeps
//! its cache for hours, a busy one for seconds. Exact LRU order is not needed either: tokens are
//! counted by *epoch*, about 1 % of the capacity each, and an entry carries the epoch of its last
//! use. While all live epochs together hold more than the capacity, the oldest is dropped, and every
//! entry that carries it is gone at once, without being visited.
//!
//! What a request in flight uses cannot be evicted. Such an entry is *pinned*: stamped with an epoch
//! ahead of the current one and counted in none. What running requests keep is taken off the
//! capacity instead, each chunk once however many use it ([`Pinned`](super::Pinned)). A pin is a
//! lease, not a lock: if the request's worker dies, the clock passes the stamp in time and the entry
//! ages like any other.
//!
//! An engine frees the blocks of a prompt from its end, so that a beginning outlives what follows it.
//! So the end is stamped first, and gets the older epoch.

use crate::ids::EndpointId;
use crate::sorted::Sorted;

use std::collections::VecDeque;

use super::CHUNK_TOKENS;

/// Epochs per capacity; an engine of fewer chunks has one for each. While running requests take most of the cache the idle part is small, and an
/// epoch is the least that can be dropped from it.
pub(super) const EPOCHS: u64 = 128;
/// How much more than the capacity entries may count for: prompts that overlap are counted twice in
/// places. Chosen in simulation; twice as much or nothing is nearly as good, but 8 costs the agentic
/// trace with 400k tokens a tenth of its mean time to first token at full load, and 15 half of it.
pub(super) const SLACK_PERCENT: u64 = 2;
/// How far ahead a pin is stamped, in epochs: four capacities. Under saturation many requests
/// complete while one waits, and each moves the clock.
const PIN_EPOCHS: u16 = 512;
/// Epochs in which anything was last used are bounded, even if each holds little.
const MAX_EPOCHS: usize = 1024;
/// So is how far they are apart, because epochs are compared modulo 2^16: in 64 capacities used again and
/// again even what has room beside that is forgotten.
const MAX_SPAN: u16 = 8192;

#[derive(Debug, Default)]
pub(super) struct Clocks {
    /// By id; ids are small and given out in turn.
    engines: Vec<Option<Clock>>,
    /// Where the clocks of engines that left go on if they come back, by id; no more than there are
    /// ids. Their entries still stand in the table and must never look live again.
    resume: Sorted<u16, u16>,
}

#[derive(Debug)]
struct Clock {
    capacity_chunks: u64,
    busy_chunks: u64,
    /// Number of the newest epoch.
    current: u16,
    /// The oldest epoch that is live, even if nothing of it is left.
    oldest: u16,
    /// Epochs in which chunks were last used, and how many, oldest first. What is used again leaves its
    /// epoch: a prompt that all share moves the clock all the time, but leaves no epochs behind.
    epochs: VecDeque<(u16, u64)>,
    total_chunks: u64,
}

impl Clocks {
    pub(super) fn set(&mut self, engines: &[(EndpointId, u64)]) {
        let mut before = std::mem::take(&mut self.engines);
        for (id, kv_tokens) in engines {
            let at = usize::from(id.0);
            let known = before.get_mut(at).and_then(Option::take);
            let mut clock = known
                .unwrap_or_else(|| Clock::starting(self.resume.remove(&id.0).unwrap_or_default()));
            clock.capacity_chunks = (kv_tokens / CHUNK_TOKENS).max(1);
            clock.trim();
            if self.engines.len() <= at {
                self.engines.resize_with(at + 1, || None);
            }
            if let Some(place) = self.engines.get_mut(at) {
                *place = Some(clock);
            }
        }
        for (id, clock) in before.iter().enumerate() {
            if let (Ok(id), Some(clock)) = (u16::try_from(id), clock) {
                self.resume.insert(id, clock.beyond());
            }
        }
    }

    /// The engine has lost all it held.
    pub(super) fn restart(&mut self, engine: u16) {
        if let Some(clock) = self.get_mut(engine) {
            *clock = Clock {
                capacity_chunks: clock.capacity_chunks,
                ..Clock::starting(clock.beyond())
            };
        }
    }

    fn get(&self, engine: u16) -> Option<&Clock> {
        self.engines.get(usize::from(engine))?.as_ref()
    }

    fn get_mut(&mut self, engine: u16) -> Option<&mut Clock> {
        self.engines.get_mut(usize::from(engine))?.as_mut()
    }

    /// The epoch of what is used now: what is added next counts in it.
    pub(super) fn current(&mut self, engine: u16) -> Option<u16> {
        let clock = self.get_mut(engine)?;
        clock.begin();
        Some(clock.current)
    }

    /// The stamp of a pinned entry.
    pub(super) fn pinned(&self, engine: u16) -> Option<u16> {
        self.get(engine)
            .map(|clock| clock.current.wrapping_add(PIN_EPOCHS))
    }

    /// Forgets what the engine must have evicted by now.
    pub(super) fn trim(&mut self, engine: u16) {
        if let Some(clock) = self.get_mut(engine) {
            clock.trim();
        }
    }

    pub(super) fn set_busy(&mut self, engine: u16, tokens: u64) {
        if let Some(clock) = self.get_mut(engine) {
            clock.busy_chunks = tokens / CHUNK_TOKENS;
            clock.trim();
        }
    }

    /// Whether an entry of this epoch is pinned.
    pub(super) fn is_pinned(&self, engine: u16, epoch: u16) -> bool {
        self.get(engine)
            .is_some_and(|clock| (1..=PIN_EPOCHS).contains(&epoch.wrapping_sub(clock.current)))
    }

    /// Whether an entry of this epoch is still held.
    pub(super) fn is_live(&self, engine: u16, epoch: u16) -> bool {
        self.age(engine, epoch).is_some()
    }

    /// Epochs since an entry was used; `None` once it is gone, or the engine is unknown.
    pub(super) fn age(&self, engine: u16, epoch: u16) -> Option<u16> {
        let clock = self.get(engine)?;
        if epoch.wrapping_sub(clock.current) <= PIN_EPOCHS {
            return Some(0);
        }
        let age = clock.age(epoch);
        (age <= clock.age(clock.oldest)).then_some(age)
    }

    /// An entry was used: from its epoch `before`, if it had one, to the current one.
    pub(super) fn moved(&mut self, engine: u16, before: Option<(u16, u16)>, chunks: u16) {
        if let Some((epoch, chunks)) = before {
            self.removed(engine, epoch, chunks);
        }
        let before = before.map_or(0, |(_, chunks)| chunks);
        self.grew(engine, u32::from(chunks.max(before)));
    }

    pub(super) fn removed(&mut self, engine: u16, epoch: u16, chunks: u16) {
        if let Some(clock) = self.get_mut(engine) {
            clock.take(epoch, u64::from(chunks));
        }
    }

    pub(super) fn grew(&mut self, engine: u16, chunks: u32) {
        if let Some(clock) = self.get_mut(engine) {
            clock.add(u64::from(chunks));
        }
    }
}

impl Clock {
    fn starting(current: u16) -> Self {
        Clock {
            capacity_chunks: EPOCHS,
            busy_chunks: 0,
            current,
            oldest: current,
            epochs: VecDeque::from([(current, 0)]),
            total_chunks: 0,
        }
    }

    fn age(&self, epoch: u16) -> u16 {
        self.current.wrapping_sub(epoch)
    }

    /// An epoch at which no entry made so far is live.
    fn beyond(&self) -> u16 {
        self.current.wrapping_add(PIN_EPOCHS + MAX_SPAN + 1)
    }

    fn take(&mut self, epoch: u16, chunks: u64) {
        let age = self.age(epoch);
        let current = self.current;
        let found = self
            .epochs
            .binary_search_by(|(other, _)| age.cmp(&current.wrapping_sub(*other)));
        let Ok(at) = found else { return };
        let Some((_, count)) = self.epochs.get_mut(at) else {
            return;
        };
        let taken = chunks.min(*count);
        *count -= taken;
        self.total_chunks = self.total_chunks.saturating_sub(taken);
        if *count == 0 && epoch != current {
            self.epochs.remove(at);
            if at == 0 {
                self.follow_oldest();
            }
        }
    }

    /// Begins an epoch, if the newest has all that it may have.
    fn begin(&mut self) {
        let epoch_chunks = (self.capacity_chunks / EPOCHS).max(1);
        if self
            .epochs
            .back()
            .is_some_and(|(_, newest)| *newest < epoch_chunks)
        {
            return;
        }
        self.current = self.current.wrapping_add(1);
        self.epochs.push_back((self.current, 0));
        if self.epochs.len() > MAX_EPOCHS || self.age(self.oldest) >= MAX_SPAN {
            self.forget_oldest();
        }
    }

    fn add(&mut self, chunks: u64) {
        self.begin();
        self.total_chunks = self.total_chunks.saturating_add(chunks);
        if let Some((_, newest)) = self.epochs.back_mut() {
            *newest = newest.saturating_add(chunks);
        }
    }

    /// Forgets the oldest epoch of which anything is left.
    fn forget_oldest(&mut self) {
        let (_, count) = self.epochs.pop_front().unwrap_or_default();
        self.total_chunks = self.total_chunks.saturating_sub(count);
        self.follow_oldest();
    }

    fn follow_oldest(&mut self) {
        let oldest = self.epochs.front().map(|(epoch, _)| *epoch);
        self.oldest = oldest.unwrap_or(self.current);
    }

    fn trim(&mut self) {
        let capacity = self.capacity_chunks + self.capacity_chunks * SLACK_PERCENT / 100;
        let room = capacity.saturating_sub(self.busy_chunks);
        while self.epochs.len() > 1 && self.total_chunks > room {
            self.forget_oldest();
        }
    }
}
