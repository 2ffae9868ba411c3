//! A hash map of which hardly anything depends on what it holds.
//!
//! The entries stand in a list, one after the other. Where an entry stands is found by way of slots that know
//! positions and hashes only, so that part is compiled once; the hash maps of the standard library are
//! compiled anew for each pair of types. Slots are probed one after the other, and three of four are taken at
//! most. All operations are O(1), as long as keys are not chosen by who knows the seed.

use super::Seed;
use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash};

/// See the module documentation. The order of the entries is that of their entering, but that the last one
/// takes the place of one that is removed.
#[derive(Clone, Debug)]
pub struct Table<K, V> {
    seed: Seed,
    slots: Slots,
    entries: Vec<(K, V)>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Table::with_seed(Seed::default())
    }
}

impl<K, V> Table<K, V> {
    /// An empty table.
    pub fn with_seed(seed: Seed) -> Self {
        Table {
            seed,
            slots: Slots::default(),
            entries: Vec::new(),
        }
    }

    /// The entries, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    /// The values.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.iter().map(|(_, value)| value)
    }

    /// The same, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.iter_mut().map(|(_, value)| value)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets all; the room stays.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.entries.clear();
    }
}

impl<K: Hash + Eq, V> Table<K, V> {
    fn position<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> (u64, Option<usize>)
    where
        K: Borrow<Q>,
    {
        let hash = self.seed.hash_one(key);
        let found = self.slots.find(hash, &mut |at| {
            let entry = self.entries.get(at);
            entry.is_some_and(|(known, _)| known.borrow() == key)
        });
        (hash, found)
    }

    /// The value of a key.
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let at = self.position(key).1?;
        self.entries.get(at).map(|(_, value)| value)
    }

    /// The same, to be changed.
    pub fn get_mut<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let at = self.position(key).1?;
        self.entries.get_mut(at).map(|(_, value)| value)
    }

    /// Whether a key is there.
    pub fn contains_key<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.position(key).1.is_some()
    }

    /// Enters a value, in place of the one that the key had.
    pub fn insert(&mut self, key: K, value: V) {
        let (hash, found) = self.position(&key);
        match found.and_then(|at| self.entries.get_mut(at)) {
            Some((_, old)) => *old = value,
            None => {
                self.slots.push(hash);
                self.entries.push((key, value));
            }
        }
    }

    /// Takes a key and its value out.
    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let at = self.position(key).1?;
        self.slots.swap_remove(at);
        Some(self.entries.swap_remove(at).1)
    }

    /// Keeps the entries that `keep` wants.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let mut at = 0;
        while let Some((key, value)) = self.entries.get(at) {
            if keep(key, value) {
                at += 1;
            } else {
                self.slots.swap_remove(at);
                self.entries.swap_remove(at);
            }
        }
    }
}

impl<K: Hash + Eq, V> FromIterator<(K, V)> for Table<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut table = Table::default();
        for (key, value) in entries {
            table.insert(key, value);
        }
        table
    }
}

/// Where the entries with a hash stand.
#[derive(Clone, Debug, Default)]
struct Slots {
    /// Positions plus one; 0: free. Their number is a power of two or 0.
    slots: Vec<u32>,
    /// The hashes of the entries, in their order.
    hashes: Vec<u64>,
}

impl Slots {
    /// The position at which an entry with this hash stands that is the one.
    fn find(&self, hash: u64, is_it: &mut dyn FnMut(usize) -> bool) -> Option<usize> {
        let mut slot = self.home(hash);
        loop {
            let at = self.slots.get(slot)?.checked_sub(1)? as usize;
            if self.hashes.get(at) == Some(&hash) && is_it(at) {
                return Some(at);
            }
            slot = self.next(slot);
        }
    }

    fn push(&mut self, hash: u64) {
        if (self.hashes.len() + 1) * 4 > self.slots.len() * 3 {
            self.slots = vec![0; (self.slots.len() * 2).max(4)];
            for at in 0..self.hashes.len() {
                self.enter(at);
            }
        }
        self.hashes.push(hash);
        self.enter(self.hashes.len() - 1);
    }

    fn enter(&mut self, at: usize) {
        let mut slot = self.home(self.hashes.get(at).copied().unwrap_or_default());
        while self.slots.get(slot).is_some_and(|taken| *taken > 0) {
            slot = self.next(slot);
        }
        self.set(slot, at as u32 + 1);
    }

    /// The entry is gone, and the last one stands in its place.
    fn swap_remove(&mut self, at: usize) {
        let last = self.hashes.len().saturating_sub(1);
        let (Some(mut free), Some(moved)) = (self.slot_of(at), self.slot_of(last)) else {
            return;
        };
        self.set(moved, at as u32 + 1);
        self.hashes.swap_remove(at);
        // What stands after it may have been meant for its slot.
        let mut slot = self.next(free);
        while let Some(at) = self.slots.get(slot).and_then(|at| at.checked_sub(1)) {
            let hash = self.hashes.get(at as usize).copied().unwrap_or_default();
            let mask = self.slots.len().wrapping_sub(1);
            let way = |from: usize| slot.wrapping_sub(from) & mask;
            if way(self.home(hash)) >= way(free) {
                self.set(free, at + 1);
                free = slot;
            }
            slot = self.next(slot);
        }
        self.set(free, 0);
    }

    fn slot_of(&self, at: usize) -> Option<usize> {
        let mut slot = self.home(*self.hashes.get(at)?);
        while *self.slots.get(slot)? != at as u32 + 1 {
            slot = self.next(slot);
        }
        Some(slot)
    }

    fn clear(&mut self) {
        self.slots.fill(0);
        self.hashes.clear();
    }

    fn home(&self, hash: u64) -> usize {
        hash as usize & self.slots.len().wrapping_sub(1)
    }

    fn next(&self, slot: usize) -> usize {
        (slot + 1) & self.slots.len().wrapping_sub(1)
    }

    fn set(&mut self, slot: usize, value: u32) {
        if let Some(place) = self.slots.get_mut(slot) {
            *place = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Few keys, so that they come, go and collide often.
    #[test]
    fn it_holds_what_a_tree_holds() {
        for keys in [1, 3, 12, 100, 5000] {
            let mut table = Table::with_seed(Seed(keys));
            let mut tree = BTreeMap::new();
            for step in 0..20_000 {
                let chance = super::super::mix(keys, step);
                let key = chance % keys;
                match chance >> 60 {
                    0..7 => assert_eq!(table.remove(&key), tree.remove(&key)),
                    7 if step % 50 == 0 => {
                        table.retain(|key, _| key % 3 > 0);
                        tree.retain(|key, _| key % 3 > 0);
                    }
                    8 if step % 500 == 0 => {
                        table.clear();
                        tree.clear();
                    }
                    _ => {
                        table.insert(key, step);
                        tree.insert(key, step);
                    }
                }
                assert_eq!(table.get(&key), tree.get(&key));
                assert_eq!(table.len(), tree.len());
            }
            let mut entries: Vec<_> = table.iter().map(|(key, value)| (*key, *value)).collect();
            entries.sort_unstable();
            assert!(entries.into_iter().eq(tree));
        }
    }

    #[test]
    fn keys_of_one_hash_are_told_apart() {
        #[derive(Debug, PartialEq, Eq)]
        struct Same(u32);
        impl Hash for Same {
            fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
        }
        let mut table: Table<Same, u32> = (0..50).map(|key| (Same(key), key)).collect();
        for key in (0..50).step_by(2) {
            assert_eq!(table.remove(&Same(key)), Some(key));
        }
        for key in 0..50 {
            assert_eq!(table.get(&Same(key)), (key % 2 == 1).then_some(&key));
        }
    }
}
