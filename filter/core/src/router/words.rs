//! The engines' words: what the [fleet](crate::fleet) knows of load that is not ours and of LoRA
//! adapters, laid out for decisions.
//!
//! Kept by position, so that a request calls no host for it: taken over when the fleet changes, and
//! given up when a word grows too old. A word that is given up is no word that there is no load: the
//! engine is again what our own requests there make of it. O(endpoints + adapters) each time, and
//! nothing for a request.

use super::{Endpoint, Router, Target};
use crate::address::EngineAddress;
use crate::fleet::Engine;
use crate::hash;
use crate::policy::{Adapter, Foreign, Group, Heard, share};
use crate::scout::Scout;
use crate::sorted::Sorted;
use crate::store::Store;

/// Weight of a new request in the mean of their work.
const WORK_WEIGHT: f64 = 1.0 / 64.0;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Words {
    foreign: Vec<Foreign>,
    /// What was heard of the engines that have a fresh word.
    heard: Sorted<EngineAddress, Heard>,
    /// Positions that have an adapter loaded, by the hash of its name.
    loaded: Sorted<u64, Vec<usize>>,
    /// Whether all places for adapters are taken, by position.
    full: Vec<bool>,
    /// When the first word grows too old, in milliseconds of the Unix clock.
    until_ms: Option<u64>,
    /// Work of a request in tokens, in the mean of those seen.
    mean_work_tokens: f64,
}

impl Words {
    /// What engines said of load that is not ours, by position.
    pub(super) fn foreign(&self) -> &[Foreign] {
        &self.foreign
    }

    /// Where a group has the adapter of this name loaded, if any of it has.
    pub(super) fn adapter(&self, name: u64, group: &Group) -> Option<Adapter<'_>> {
        let loaded = self.loaded.get(&name)?;
        let here = loaded
            .iter()
            .any(|position| group.place(*position).is_some());
        here.then_some(Adapter {
            loaded,
            full: &self.full,
        })
    }

    /// A request was sent that is this much work.
    pub(super) fn learn_work(&mut self, work_tokens: u64) {
        let work_tokens = work_tokens as f64;
        match self.mean_work_tokens > 0.0 {
            true => self.mean_work_tokens += WORK_WEIGHT * (work_tokens - self.mean_work_tokens),
            false => self.mean_work_tokens = work_tokens,
        }
    }
}

impl Target {
    /// The same for a request that asks for `model`, which is a name that the target has or any.
    pub(crate) fn for_model(&self, model: &[u8]) -> Target {
        let mut target = self.clone();
        target.adapter = target.adapter.or_else(|| Some(hash::hash(model)));
        target
    }
}

impl<S: Store> Router<S> {
    /// Takes over what the engines said, as far as it is fresh.
    pub(super) fn hear(&mut self, now_us: u64) {
        let now_ms = now_us / 1000;
        let stale_ms = Scout::stale_ms(&self.config);
        let words = &mut self.words;
        let size = self.endpoints.len();
        let mut foreign = vec![Foreign::default(); size];
        words.full = vec![false; size];
        words.loaded.clear();
        words.until_ms = None;
        let fleet = self.scout.fleet();
        let fresh = |engine: &&Engine| engine.is_fresh(now_ms, stale_ms);
        let told = |endpoint: &Endpoint| fleet.engine(&endpoint.at).filter(fresh);
        let share = share(self.endpoints.iter().filter_map(told));
        let mut before = std::mem::take(&mut words.heard);
        let mut now = Vec::new();
        for (position, endpoint) in self.endpoints.iter().enumerate() {
            let Some(engine) = told(endpoint) else {
                continue;
            };
            let until_ms = engine.told_ms.saturating_add(stale_ms);
            words.until_ms = Some(words.until_ms.map_or(until_ms, |first| first.min(until_ms)));
            let heard = before.get_mut(&endpoint.at).map(std::mem::take);
            let mut heard = heard.unwrap_or_default();
            heard.follow(engine, share);
            if let Some(word) = foreign.get_mut(position) {
                *word = heard.word(words.mean_work_tokens);
            }
            now.push((endpoint.at, heard));
            let loaded = engine.loras.iter().filter(|(_, loaded)| *loaded);
            let most = engine.max_loras.map_or(usize::MAX, usize::from);
            if let Some(full) = words.full.get_mut(position) {
                *full = loaded.clone().count() >= most;
            }
            for (name, _) in loaded {
                match words.loaded.get_mut(name) {
                    Some(positions) => positions.push(position),
                    None => words.loaded.insert(*name, vec![position]),
                }
            }
        }
        words.heard = now.into();
        for (position, word) in foreign.iter().enumerate() {
            if words.foreign.get(position).copied().unwrap_or_default() != *word {
                self.loads.note(position);
            }
        }
        words.foreign = foreign;
    }

    /// The adapter that a target's requests ask for, if it is known where it is loaded.
    pub(super) fn adapter(&self, target: &Target, group: &Group) -> Option<Adapter<'_>> {
        let name = target.adapter?;
        self.words.adapter(name, group)
    }

    /// Gives up words that have grown too old.
    pub(super) fn forget_words(&mut self, now_us: u64) {
        if self
            .words
            .until_ms
            .is_some_and(|until_ms| now_us / 1000 > until_ms)
        {
            self.hear(now_us);
        }
    }
}
