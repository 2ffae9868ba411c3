//! The table behind the index: link -> engines that hold it, in fixed bytes.
//!
//! In a picture: a wall of *sets*, each with 8 *slots* in a row; a slot is a 32-bit tag, the chunks it
//! stands for, and up to 4 *holders*, each an engine id and the epoch of its last use. The low bits
//! of a link choose the set, bits 8 to 39 are the tag. A prompt that many engines hold takes several
//! slots of its set with the same tag.
//!
//! The wall grows to the right, set by set, by *linear hashing*: the sets of the last doubling are
//! split in turn, and the next bit of a link decides which of its slots move to the new set at the
//! end. That bit is in the tag, or in the number of the set. So nothing is ever looked up in two
//! places, and no step is longer than that of one set.
//!
//! Invariants: an engine is a holder of at most one slot of a tag; a slot without live holders is
//! free, whatever it says; nothing is allocated but by [`Table::grow`]. A lookup reads one set
//! (8 tags are one cache line's half); an insertion writes one. When a set is full the slot whose
//! freshest holder is oldest, in epochs of its engine, gives way. Two links meet in one slot with
//! probability 2^-32 for each slot compared in a table of 256 sets, 2^-26 in one of 3 MB, and 2^-20
//! in the largest; the harm is one wrong guess.

use super::Mark;
use super::snapshot::PIECE_SETS;

/// Slots of a set.
const WAYS: usize = 8;
/// Holders of a slot.
const HOLDERS: usize = 4;
/// Bytes of a slot: tag, chunks, holders.
pub const SLOT_BYTES: usize = 4 + 2 + 4 * HOLDERS;
/// Bytes of a set.
pub const SET_BYTES: usize = WAYS * SLOT_BYTES;

/// Bytes of the largest table; the smaller power of two of sets fits 2^20 of them.
pub const MOST_BYTES: usize = 256 * 1024 * 1024;
/// Low bits of a link that are no part of its tag. A table of fewer than 2^8 sets does not know all
/// of them, and cannot grow.
const UNTAGGED_BITS: u32 = 8;
/// Sets from which on a table knows where its entries belong in a larger one.
pub(super) const KNOWING_SETS: usize = 1 << UNTAGGED_BITS;

/// Nobody; ids of endpoints stay below.
const NOBODY: u16 = u16::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holder {
    engine: u16,
    epoch: u16,
}

const FREE: Holder = Holder {
    engine: NOBODY,
    epoch: 0,
};

#[derive(Clone, Copy, Debug)]
struct Slot {
    chunks: u16,
    holders: [Holder; HOLDERS],
}

const EMPTY: Slot = Slot {
    chunks: 0,
    holders: [FREE; HOLDERS],
};

/// The table.
#[derive(Debug)]
pub struct Table {
    tags: Vec<[u32; WAYS]>,
    slots: Vec<[Slot; WAYS]>,
    /// Number of sets at the last doubling, less one.
    mask: u64,
    /// The same for the next doubling while the table grows; else `mask`.
    wide: u64,
    /// Pieces of the snapshot that have changed since they were written.
    changed: Vec<bool>,
    /// Live holders that gave way since this was last asked.
    evicted: u64,
}

impl Table {
    /// A table of at most `bytes` bytes, and at least one set.
    pub fn new(bytes: usize) -> Self {
        let sets = sets_within(bytes);
        let mask = sets as u64 - 1;
        Table {
            tags: vec![[0; WAYS]; sets],
            slots: vec![[EMPTY; WAYS]; sets],
            mask,
            wide: mask,
            changed: vec![false; sets.div_ceil(PIECE_SETS)],
            evicted: 0,
        }
    }

    /// Grows towards `bytes` bytes by at most `most` sets; what it knows, it goes on knowing. A table
    /// that has so much stays as it is, and so does one for which there is no memory.
    pub(super) fn grow(&mut self, bytes: usize, most: usize) {
        let more = sets_within(bytes.min(MOST_BYTES)).saturating_sub(self.sets());
        if more == 0 || self.sets() < KNOWING_SETS {
            return;
        }
        // All at once: to move the table for each doubling would take longer than to split it.
        if self.tags.try_reserve_exact(more).is_err() || self.slots.try_reserve_exact(more).is_err()
        {
            return;
        }
        for _ in 0..more.min(most) {
            self.split();
        }
    }

    /// Adds a set, and moves there what belongs there.
    fn split(&mut self) {
        let (base, new) = (self.mask as usize + 1, self.sets());
        let old = new - base;
        let mut new_tags = [0; WAYS];
        let mut new_slots = [EMPTY; WAYS];
        let mut moved = false;
        if let (Some(tags), Some(slots)) = (self.tags.get_mut(old), self.slots.get_mut(old)) {
            let from = tags.iter_mut().zip(slots);
            let to = new_tags.iter_mut().zip(&mut new_slots);
            for ((tag, slot), (new_tag, new_slot)) in from.zip(to) {
                if link(*tag, old) & base as u64 != 0 {
                    moved = true;
                    *new_tag = std::mem::take(tag);
                    *new_slot = std::mem::replace(slot, EMPTY);
                }
            }
        }
        self.tags.push(new_tags);
        self.slots.push(new_slots);
        self.changed.resize(self.sets().div_ceil(PIECE_SETS), false);
        if moved {
            self.touch(old);
            self.touch(new);
        }
        self.wide = 2 * base as u64 - 1;
        if self.sets() == 2 * base {
            self.mask = self.wide;
        }
    }

    /// Most holders that it names.
    pub fn capacity(&self) -> usize {
        self.sets() * WAYS * HOLDERS
    }

    /// Bytes that the table takes.
    pub fn bytes(&self) -> usize {
        self.sets() * SET_BYTES
    }

    /// Whether a piece of the snapshot has changed since this was last asked.
    pub(super) fn take_changed(&mut self, piece: usize) -> bool {
        self.changed.get_mut(piece).is_some_and(std::mem::take)
    }

    /// How many live holders gave way to others since this was last asked.
    pub(super) fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    /// Reports what is known of the links, the holders and the chunks of a range of sets.
    pub(super) fn entries(
        &self,
        first_set: usize,
        sets: usize,
        mut entry: impl FnMut(u64, u16, u16, u16),
    ) {
        let rows = self
            .tags
            .iter()
            .zip(&self.slots)
            .enumerate()
            .skip(first_set)
            .take(sets);
        for (set, (tags, slots)) in rows {
            for (tag, slot) in tags.iter().zip(slots) {
                let link = link(*tag, set);
                for holder in slot.holders.iter().filter(|holder| holder.engine != NOBODY) {
                    entry(link, holder.engine, holder.epoch, slot.chunks);
                }
            }
        }
    }

    fn touch(&mut self, set: usize) {
        if let Some(changed) = self.changed.get_mut(set / PIECE_SETS) {
            *changed = true;
        }
    }

    /// Number of sets.
    pub fn sets(&self) -> usize {
        self.tags.len()
    }

    fn set_of(&self, link: u64) -> usize {
        let set = (link & self.wide) as usize;
        if set < self.tags.len() {
            set
        } else {
            (link & self.mask) as usize
        }
    }

    /// Reports the holders of a link.
    #[inline]
    pub(super) fn find(&self, link: u64, mut holder: impl FnMut(u16, u16)) {
        let set = self.set_of(link);
        let tag = tag(link);
        let (Some(tags), Some(slots)) = (self.tags.get(set), self.slots.get(set)) else {
            return;
        };
        if !tags.contains(&tag) {
            return;
        }
        for slot in slots
            .iter()
            .zip(tags)
            .filter(|(_, other)| **other == tag)
            .map(|(slot, _)| slot)
        {
            for found in slot.holders.iter().filter(|found| found.engine != NOBODY) {
                holder(found.engine, found.epoch);
            }
        }
    }

    /// Makes `engine` a holder of a link as of `epoch`. Returns epoch and chunks of its entry before,
    /// if it had a live one. `age` tells the age of a live holder in epochs.
    pub(super) fn hold(
        &mut self,
        mark: Mark,
        engine: u16,
        epoch: u16,
        age: impl Fn(u16, u16) -> Option<u16>,
    ) -> Option<(u16, u16)> {
        let set = self.set_of(mark.link);
        let tag = tag(mark.link);
        self.touch(set);
        let (Some(tags), Some(slots)) = (self.tags.get_mut(set), self.slots.get_mut(set)) else {
            return None;
        };
        let fresh = Holder { engine, epoch };
        let mut room = None;
        for (slot, _) in slots
            .iter_mut()
            .zip(tags.iter())
            .filter(|(_, other)| **other == tag)
        {
            for holder in &mut slot.holders {
                if holder.engine == engine {
                    let live = age(engine, holder.epoch).map(|_| (holder.epoch, slot.chunks));
                    *holder = fresh;
                    // A longer chain stores fewer links in the middle, and each stands for more.
                    slot.chunks = slot.chunks.max(mark.chunks);
                    return live;
                }
                if room.is_none()
                    && (holder.engine == NOBODY || age(holder.engine, holder.epoch).is_none())
                {
                    room = Some(holder);
                }
            }
        }
        if let Some(holder) = room {
            *holder = fresh;
            return None;
        }
        // The set's oldest slot gives way; a slot without live holders is older than all.
        let ages = |slot: &Slot| {
            let holders = slot.holders;
            let held = holders.into_iter().filter(|it| it.engine != NOBODY);
            held.filter_map(|holder| age(holder.engine, holder.epoch))
        };
        let freshest = |slot: &Slot| ages(slot).min().unwrap_or(u16::MAX);
        let oldest = tags
            .iter_mut()
            .zip(slots.iter_mut())
            .max_by_key(|(_, slot)| freshest(slot));
        if let Some((old_tag, slot)) = oldest {
            self.evicted += ages(slot).count() as u64;
            *old_tag = tag;
            *slot = EMPTY;
            slot.chunks = mark.chunks;
            if let Some(first) = slot.holders.first_mut() {
                *first = fresh;
            }
        }
        None
    }

    /// Removes holders that are no longer live from a range of sets. Returns how many are left there.
    pub(super) fn sweep(
        &mut self,
        first_set: usize,
        sets: usize,
        live: impl Fn(u16, u16) -> bool,
    ) -> u64 {
        let mut left = 0;
        let slots = self.slots.iter_mut().skip(first_set).take(sets).flatten();
        let holders = slots.flat_map(|slot| &mut slot.holders);
        for holder in holders.filter(|holder| holder.engine != NOBODY) {
            match live(holder.engine, holder.epoch) {
                true => left += 1,
                false => *holder = FREE,
            }
        }
        left
    }

    /// Removes `engine` from a link's holders. Returns epoch and chunks of its entry.
    pub(super) fn drop_holder(&mut self, link: u64, engine: u16) -> Option<(u16, u16)> {
        let set = self.set_of(link);
        let tag = tag(link);
        self.touch(set);
        let (tags, slots) = (self.tags.get(set)?, self.slots.get_mut(set)?);
        for (slot, _) in slots
            .iter_mut()
            .zip(tags)
            .filter(|(_, other)| **other == tag)
        {
            let chunks = slot.chunks;
            if let Some(holder) = slot
                .holders
                .iter_mut()
                .find(|holder| holder.engine == engine)
            {
                let epoch = holder.epoch;
                *holder = FREE;
                return Some((epoch, chunks));
            }
        }
        None
    }
}

/// Sets of a table of at most `bytes` bytes: a power of two, and at least one.
fn sets_within(bytes: usize) -> usize {
    1 << (bytes / SET_BYTES).max(1).ilog2()
}

fn tag(link: u64) -> u32 {
    (link >> UNTAGGED_BITS) as u32
}

/// What the table keeps of a link with this tag in this set: its low 40 bits, if there are at least
/// [`KNOWING_SETS`].
fn link(tag: u32, set: usize) -> u64 {
    let untagged = set as u64 & ((1 << UNTAGGED_BITS) - 1);
    u64::from(tag) << UNTAGGED_BITS | untagged
}
