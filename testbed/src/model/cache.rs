//! The prefix cache of one engine: a fixed number of KV blocks under LRU.
//!
//! A block is free, reserved (it holds private data of a live request), held (named by its hash,
//! referenced by live requests) or idle (named, referenced by nobody, evictable). The one idea:
//! `capacity = free + reserved + held + idle` at all times, so a leak is an arithmetic fact.
//! Idle blocks are in order of their release, least recent first; a request releases its blocks
//! deepest first, so that a prefix outlives its continuations. Every operation is O(1) a block. What
//! changes is noted if somebody asked for it, until it is fetched.

use std::collections::HashMap;

use hashlink::{DefaultHashBuilder, LinkedHashSet};

/// The blocks one request keeps until it finishes or is aborted.
#[derive(Debug, Default)]
pub(super) struct Holding {
    /// Hashes of the named blocks, in prompt order.
    named: Vec<u64>,
    /// Blocks without a name: output, the partial tail of the prompt, prompt not yet scheduled.
    reserved: u32,
}

/// A change of what can be hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheChange {
    /// A block of a request's prompt can be hit from now on.
    Stored {
        /// The request.
        request: u64,
        /// Which of its blocks.
        block: usize,
    },
    /// A block can no longer be hit.
    Removed {
        /// Its hash.
        hash: u64,
    },
    /// No block can be hit.
    Cleared,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct BlockCache {
    capacity: u32,
    free: u32,
    reserved: u32,
    held: HashMap<u64, u32, DefaultHashBuilder>,
    idle: LinkedHashSet<u64>,
    /// `None` unless they are asked for.
    changes: Option<Vec<CacheChange>>,
}

impl BlockCache {
    /// An empty cache of `capacity` blocks.
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            capacity,
            free: capacity,
            reserved: 0,
            held: HashMap::default(),
            idle: LinkedHashSet::new(),
            changes: None,
        }
    }

    /// Notes changes from now on.
    pub(super) fn note_changes(&mut self) {
        self.changes.get_or_insert_default();
    }

    /// The changes since this was last asked, oldest first.
    pub(super) fn take_changes(&mut self) -> Vec<CacheChange> {
        let changes = self.changes.as_mut();
        changes.map(std::mem::take).unwrap_or_default()
    }

    /// Notes a change, if anybody wants to know.
    pub(super) fn note(&mut self, change: CacheChange) {
        if let Some(changes) = &mut self.changes {
            changes.push(change);
        }
    }

    /// Blocks in the cache, whatever their state.
    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Blocks that live requests keep.
    pub(super) fn used(&self) -> u32 {
        self.reserved + count(self.held.len())
    }

    /// How many leading `blocks` can be served from the cache now.
    pub(super) fn matched(&self, blocks: &[u64]) -> u32 {
        count(
            blocks
                .iter()
                .take_while(|hash| self.held.contains_key(hash) || self.idle.contains(*hash))
                .count(),
        )
    }

    /// Takes references on the matched prefix `hits` and reserves `fresh` further blocks, evicting
    /// idle ones as needed. `None`, and no change, when they do not fit.
    pub(super) fn admit(&mut self, hits: &[u64], fresh: u32) -> Option<Holding> {
        let idle_hits = hits.iter().filter(|hash| self.idle.contains(*hash)).count();
        if fresh > self.free + count(self.idle.len() - idle_hits) {
            return None;
        }
        for &hash in hits {
            self.idle.remove(&hash);
            *self.held.entry(hash).or_insert(0) += 1;
        }
        while self.free < fresh
            && let Some(hash) = self.idle.pop_front()
        {
            self.note(CacheChange::Removed { hash });
            self.free += 1;
        }
        self.free -= fresh;
        self.reserved += fresh;
        Some(Holding {
            named: hits.to_vec(),
            reserved: fresh,
        })
    }

    /// Names a reserved block of `holding`, which makes it hit-able; whether it did. A block that
    /// exists already under this name (two requests computed it at once) stays private.
    pub(super) fn name(&mut self, holding: &mut Holding, hash: u64) -> bool {
        if holding.reserved == 0 || self.held.contains_key(&hash) || self.idle.contains(&hash) {
            return false;
        }
        holding.reserved -= 1;
        self.reserved -= 1;
        self.held.insert(hash, 1);
        holding.named.push(hash);
        true
    }

    /// Gives everything in `holding` back; named blocks stay as idle ones.
    pub(super) fn release(&mut self, holding: Holding) {
        self.free += holding.reserved;
        self.reserved -= holding.reserved;
        for hash in holding.named.into_iter().rev() {
            if let Some(references) = self.held.get_mut(&hash) {
                *references -= 1;
                if *references == 0 {
                    self.held.remove(&hash);
                    self.idle.insert(hash);
                }
            }
        }
    }

    /// Forgets every idle block.
    pub(super) fn flush(&mut self) {
        self.free += count(self.idle.len());
        let forgotten = std::mem::take(&mut self.idle);
        if self.held.is_empty() {
            return self.note(CacheChange::Cleared);
        }
        for hash in forgotten {
            self.note(CacheChange::Removed { hash });
        }
    }

    /// The idle blocks, the next one to be evicted first.
    #[cfg(test)]
    pub(super) fn eviction_order(&self) -> Vec<u64> {
        self.idle.iter().copied().collect()
    }

    /// Whether the four states add up to the capacity.
    #[cfg(test)]
    pub(super) fn adds_up(&self) -> bool {
        self.free + self.reserved + count(self.held.len()) + count(self.idle.len()) == self.capacity
    }
}

/// Block counts fit `u32` because the capacity does.
fn count(blocks: usize) -> u32 {
    u32::try_from(blocks).unwrap_or(u32::MAX)
}
