//! A map for what is looked up more often than entered: a list, sorted by key.
//!
//! Trees and hash tables of the standard library are compiled anew for each pair of types, thousands of bytes
//! each time; this is a search by halves and a list. A look-up is O(log n), a whole map made at once
//! O(n log n), and a new entry O(n) unless its key is the greatest.

use crate::order;
use std::borrow::Borrow;

/// See the module documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct Sorted<K, V>(Vec<(K, V)>);

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Sorted(Vec::new())
    }
}

/// All entries at once, in any order; of several with the same key the last one stays.
impl<K: Ord, V> From<Vec<(K, V)>> for Sorted<K, V> {
    fn from(mut entries: Vec<(K, V)>) -> Self {
        if !entries.is_sorted_by(|(one, _), (next, _)| one < next) {
            order::sort(&mut entries, |(one, _), (other, _)| one.cmp(other));
            entries.dedup_by(|later, kept| {
                let is_same = later.0 == kept.0;
                if is_same {
                    std::mem::swap(later, kept);
                }
                is_same
            });
        }
        Sorted(entries)
    }
}

impl<K: Ord, V> Sorted<K, V> {
    fn position<Q: Ord + ?Sized>(&self, key: &Q) -> Result<usize, usize>
    where
        K: Borrow<Q>,
    {
        // Entries often come in order.
        match self.0.last() {
            Some((last, _)) if last.borrow() < key => Err(self.0.len()),
            _ => self
                .0
                .binary_search_by(|(known, _)| known.borrow().cmp(key)),
        }
    }

    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let at = self.position(key).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// The same, to be changed.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let at = self.position(key).ok()?;
        self.0.get_mut(at).map(|(_, value)| value)
    }

    /// Whether a key is there.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.position(key).is_ok()
    }

    /// Enters a value, in place of the one that the key had.
    pub fn insert(&mut self, key: K, value: V) {
        match self.position(&key) {
            Ok(at) => {
                if let Some((_, old)) = self.0.get_mut(at) {
                    *old = value;
                }
            }
            Err(at) => self.0.insert(at, (key, value)),
        }
    }

    /// Takes a key and its value out.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let at = self.position(key).ok()?;
        Some(self.0.remove(at).1)
    }
}

impl<K, V> Sorted<K, V> {
    /// The entries, by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&K, &V)> + Clone {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.0.iter_mut().map(|(key, value)| (&*key, value))
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &K> + Clone {
        self.0.iter().map(|(key, _)| key)
    }

    /// The values, by key.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &V> + Clone {
        self.0.iter().map(|(_, value)| value)
    }

    /// The values, by key, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.iter_mut().map(|(_, value)| value)
    }

    /// Keeps the entries that `keep` wants.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        self.0.retain(|(key, value)| keep(key, value));
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn it_holds_what_a_tree_holds() {
        let mut map = Sorted::default();
        let mut tree = BTreeMap::new();
        for step in 0_u32..500 {
            let key = step.wrapping_mul(2_654_435_761) >> 26;
            if step % 3 == 0 {
                assert_eq!(map.remove(&key), tree.remove(&key));
            } else {
                map.insert(key, step);
                tree.insert(key, step);
            }
            assert_eq!(map.get(&key), tree.get(&key));
            assert_eq!(map.contains_key(&(key + 1)), tree.contains_key(&(key + 1)));
            assert!(map.iter().eq(tree.iter()));
        }
    }

    #[test]
    fn of_the_same_key_the_last_entry_stays() {
        let map = Sorted::from(vec![("b", 1), ("a", 2), ("b", 3), ("a", 4), ("c", 5)]);
        assert!(map.iter().eq([(&"a", &4), (&"b", &3), (&"c", &5)]));
    }
}
