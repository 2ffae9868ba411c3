//! A map that forgets: what is in it is there for one span of time at least and for two at most.
//!
//! There are two generations. What is entered goes into the young one; once a span has passed, or it
//! is full, it becomes the old one and what was old is gone. So nothing is swept, and the size has a
//! bound. All operations are O(1) but for the turn, which is O(entries) once a span.

use crate::hash::Table;
use std::hash::Hash;

/// See the module documentation.
#[derive(Debug)]
pub struct Fading<K, V> {
    young: Table<K, V>,
    old: Table<K, V>,
    span_us: u64,
    /// Entries of a generation.
    most: usize,
    turned_us: u64,
}

impl<K: Hash + Eq, V> Fading<K, V> {
    /// An empty map of at most twice `most` entries; with a span of 0 it stays empty.
    pub fn new(span_us: u64, most: usize) -> Self {
        Fading {
            young: Table::default(),
            old: Table::default(),
            span_us,
            most,
            turned_us: 0,
        }
    }

    /// Forgets what is due. A clock that was set back makes everything due.
    pub fn turn(&mut self, now_us: u64) {
        let age_us = now_us.checked_sub(self.turned_us);
        if age_us.is_some_and(|age_us| age_us < self.span_us) {
            return;
        }
        self.age();
        if age_us.is_none_or(|age_us| age_us >= self.span_us.saturating_mul(2)) {
            self.old.clear();
        }
        self.turned_us = now_us;
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// The same, to be changed; it stays as old as it is.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        match self.young.get_mut(key) {
            Some(value) => Some(value),
            None => self.old.get_mut(key),
        }
    }

    /// Enters a value.
    pub fn insert(&mut self, key: K, value: V) {
        if self.span_us == 0 {
            return;
        }
        if self.young.len() >= self.most && !self.young.contains_key(&key) {
            self.age();
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    /// Forgets a key.
    pub fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    /// Entries there are.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn age(&mut self) {
        std::mem::swap(&mut self.young, &mut self.old);
        self.young.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_entered_lasts_one_span_to_two() {
        let mut map = Fading::new(100, 10);
        map.turn(1000);
        map.insert("a", 1);
        map.turn(1099);
        assert_eq!(map.get(&"a"), Some(&1));
        map.turn(1100);
        map.insert("b", 2);
        assert_eq!((map.get(&"a"), map.get(&"b")), (Some(&1), Some(&2)));
        map.turn(1200);
        assert_eq!((map.get(&"a"), map.get(&"b")), (None, Some(&2)));
        map.turn(9000);
        assert!(map.is_empty());
    }

    #[test]
    fn a_value_is_replaced_wherever_it_is_and_its_age_stays_when_it_is_changed() {
        let mut map = Fading::new(100, 10);
        map.turn(1000);
        map.insert(1, "a");
        map.turn(1100);
        *map.get_mut(&1).unwrap() = "b";
        assert_eq!((map.get(&1), map.len()), (Some(&"b"), 1));
        map.insert(1, "c");
        assert_eq!((map.get(&1), map.len()), (Some(&"c"), 1));
        map.remove(&1);
        assert_eq!(map.get(&1), None);
    }

    #[test]
    fn it_has_a_bound_and_may_be_off() {
        let mut map = Fading::new(100, 10);
        map.turn(1000);
        for key in 0..1000 {
            map.insert(key, ());
            assert!(map.len() <= 20);
        }
        assert!(map.get(&999).is_some() && map.get(&990).is_some());
        let mut off = Fading::new(0, 10);
        off.insert(1, ());
        assert!(off.is_empty());
    }

    #[test]
    fn a_clock_that_goes_back_forgets() {
        let mut map = Fading::new(100, 10);
        map.turn(1000);
        map.insert(1, ());
        map.turn(10);
        assert!(map.is_empty());
        map.insert(2, ());
        map.turn(20);
        assert!(map.get(&2).is_some());
    }
}
