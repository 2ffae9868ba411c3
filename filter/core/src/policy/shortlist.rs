//! Finding the few best of many without looking at all of them.
//!
//! Keys stand in blocks of [`BLOCK`], and the least of each block is known. A search skips every block
//! whose least key could not enter the list any more: of n keys it looks at about n / [`BLOCK`] and a
//! few blocks. A changed key costs at most one pass over its block. Only equal keys, such as those of
//! an idle fleet, are all looked at if something else than the key must tell them apart.

/// The root of the largest number of endpoints.
pub(super) const BLOCK: usize = 32;

/// The items of least cost among those offered so far.
#[derive(Debug)]
pub struct Shortlist<T> {
    best: Vec<T>,
    count: usize,
}

impl<T: Ord + Copy> Shortlist<T> {
    /// An empty list of at most `count` items.
    pub fn new(count: usize) -> Self {
        Shortlist {
            best: Vec::with_capacity(count.min(64).saturating_add(1)),
            count,
        }
    }

    /// The last item, once the list is full: what is not below it need not be offered.
    pub fn worst(&self) -> Option<&T> {
        let full = self.best.len() >= self.count;
        self.best.last().filter(|_| full)
    }

    /// Enters an item, if it is among the `count` least.
    pub fn offer(&mut self, item: T) {
        if self.count == 0 || self.worst().is_some_and(|worst| item >= *worst) {
            return;
        }
        let at = self.best.partition_point(|other| *other <= item);
        self.best.insert(at, item);
        self.best.truncate(self.count);
    }

    /// The items, cheapest first.
    pub fn into_items(self) -> Vec<T> {
        self.best
    }
}

/// The `count` items of least cost, cheapest first; O(items) as long as `count` is small.
pub fn least<T: Ord + Copy>(items: impl Iterator<Item = T>, count: usize) -> Vec<T> {
    let mut list = Shortlist::new(count);
    items.for_each(|item| list.offer(item));
    list.into_items()
}

/// A key for each member of a group, by place.
#[derive(Debug)]
pub struct Keys<K> {
    keys: Vec<K>,
    /// The least of each block, unless there is only one.
    least: Vec<K>,
}

impl<K: Copy + PartialOrd> Keys<K> {
    /// The keys of all places.
    pub fn new(keys: Vec<K>) -> Self {
        let least = keys.chunks(BLOCK).filter_map(least_of).collect();
        Keys { keys, least }
    }

    /// The key of a place.
    pub fn get(&self, place: usize) -> Option<K> {
        self.keys.get(place).copied()
    }

    /// Changes a key.
    pub fn set(&mut self, place: usize, key: K) {
        let Some(entry) = self.keys.get_mut(place) else {
            return;
        };
        let before = std::mem::replace(entry, key);
        let first = place - place % BLOCK;
        // Nothing is saved by knowing the least of the only block; it is then a lower bound.
        let alone = self.least.len() == 1;
        let Some(least) = self.least.get_mut(place / BLOCK) else {
            return;
        };
        if key <= *least {
            *least = key;
        } else if before <= *least && !alone {
            let block = self.keys.iter().skip(first).take(BLOCK).copied();
            *least = block.fold(key, |least, key| if key < least { key } else { least });
        }
    }

    /// A lower bound of the keys of each block, with all of them.
    pub fn blocks(&self) -> impl Iterator<Item = (K, &[K])> {
        self.least.iter().copied().zip(self.keys.chunks(BLOCK))
    }

    /// Offers the items of all places whose keys `may_enter` the list as it is by then; what may
    /// enter must not come after, by key, what may not.
    pub fn offer<T: Ord + Copy>(
        &self,
        list: &mut Shortlist<T>,
        may_enter: impl Fn(K, &T) -> bool,
        item: impl Fn(usize, K) -> Option<T>,
    ) {
        let mut worst = list.worst().copied();
        for (number, (least, keys)) in self.blocks().enumerate() {
            if worst.is_some_and(|worst| !may_enter(least, &worst)) {
                continue;
            }
            for (place, key) in keys.iter().enumerate() {
                if worst.is_none_or(|worst| may_enter(*key, &worst))
                    && let Some(item) = item(number * BLOCK + place, *key)
                {
                    list.offer(item);
                    worst = list.worst().copied();
                }
            }
        }
    }
}

fn least_of<K: Copy + PartialOrd>(keys: &[K]) -> Option<K> {
    let first = keys.first().copied()?;
    let least = |least, key: &K| if *key < least { *key } else { least };
    Some(keys.iter().fold(first, least))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_keeps_the_cheapest_in_order() {
        assert_eq!(least([5, 1, 4, 1, 3].into_iter(), 3), vec![1, 1, 3]);
        assert_eq!(least([2, 1].into_iter(), 5), vec![1, 2]);
        assert_eq!(least([2, 1].into_iter(), 0), Vec::<i32>::new());
    }

    #[test]
    fn a_search_finds_the_least_whatever_was_set() {
        let mut random = 1;
        let mut draw = |bound| crate::policy::below(crate::policy::next_random(&mut random), bound);
        let mut naive = vec![0; 100];
        let mut keys = Keys::new(naive.clone());
        for _ in 0..3000 {
            let (place, key) = (draw(100), draw(50));
            naive[place] = key;
            keys.set(place, key);
            let mut list = Shortlist::new(3);
            let may_enter = |key, worst: &(usize, usize)| key <= worst.0;
            keys.offer(&mut list, may_enter, |place, key| Some((key, place)));
            let items = naive.iter().enumerate().map(|(place, key)| (*key, place));
            assert_eq!(list.into_items(), least(items, 3));
        }
    }
}
