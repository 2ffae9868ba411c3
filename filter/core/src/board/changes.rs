//! Which endpoints changed lately: a ring of positions that every reader follows at its own pace.
//!
//! Whoever derives something from a board notes how many changes it has seen, and later looks only at
//! those that came after. A reader that fell behind by more than the ring starts over, which costs it
//! no more than the ring is long.

/// The last changes.
#[derive(Debug)]
pub(super) struct Changes {
    /// Its length is a power of two.
    ring: Vec<usize>,
    count: u64,
}

impl Changes {
    /// Remembers at least as many changes as there are endpoints.
    pub(super) fn new(endpoints: usize) -> Self {
        Changes {
            ring: vec![0; endpoints.next_power_of_two()],
            count: 0,
        }
    }

    /// For another number of endpoints; every reader starts over.
    pub(super) fn resized(&self, endpoints: usize) -> Self {
        let mut changes = Changes {
            count: self.count,
            ..Changes::new(endpoints)
        };
        changes.note_all();
        changes
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn note(&mut self, position: usize) {
        let at = self.place(self.count);
        if let Some(place) = self.ring.get_mut(at) {
            *place = position;
        }
        self.count += 1;
    }

    /// Lets every reader start over.
    pub(super) fn note_all(&mut self) {
        self.count += self.ring.len() as u64 + 1;
    }

    /// The changes after the first `seen`; `None` when they are no longer known.
    pub(super) fn since(&self, seen: u64) -> Option<impl Iterator<Item = usize>> {
        let known = self.count.checked_sub(seen)? <= self.ring.len() as u64;
        let changes = (seen..self.count).map(|number| self.place(number));
        known.then(|| changes.filter_map(|at| self.ring.get(at).copied()))
    }

    fn place(&self, number: u64) -> usize {
        number as usize & (self.ring.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_catches_up_or_starts_over() {
        let since = |changes: &Changes, seen| changes.since(seen).map(Vec::from_iter);
        let mut changes = Changes::new(3);
        assert_eq!(since(&changes, 0), Some(vec![]));
        [7, 8, 7, 6].into_iter().for_each(|at| changes.note(at));
        assert_eq!(since(&changes, 0), Some(vec![7, 8, 7, 6]));
        changes.note(9);
        assert_eq!(since(&changes, 0), None);
        assert_eq!(since(&changes, 2), Some(vec![7, 6, 9]));
        let seen = changes.count();
        changes.note_all();
        assert_eq!(since(&changes, seen), None);
        assert_eq!(since(&changes, changes.count()), Some(vec![]));
    }
}
