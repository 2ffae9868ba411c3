//! What this worker decided last, for the status page: who got each request, why, and what came of it.
//!
//! A ring of fixed size. An entry is known by the number it got when it was entered; once it has been
//! overwritten, what is told of it is ignored. Nothing of a prompt is in it but its length. Entering and
//! changing cost O(1).

use crate::decision::Reason;

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it was made.
    pub decided_us: u64,
    /// Position of the pool.
    pub pool: usize,
    /// Name of the policy that decided.
    pub policy: &'static str,
    /// Why the first endpoint was first.
    pub reason: Reason,
    /// Position of the endpoint put first; once there was an answer, of the one that gave it.
    pub position: usize,
    /// Tokens of the prompt; 0 if the policy does not look at it.
    pub prompt_tokens: u64,
    /// Those believed to be cached at the endpoint put first.
    pub predicted_cached_tokens: u64,
    /// Those that the engine reported as cached.
    pub reported_cached_tokens: Option<u64>,
    /// Status of the answer.
    pub status: Option<u16>,
    /// Time from the decision to the first byte of a stream.
    pub ttft_us: Option<u64>,
}

/// The ring.
#[derive(Debug, Default)]
pub struct Recent {
    entries: Vec<Entry>,
    size: usize,
    entered: u64,
    /// Whether anything is new since this was last asked.
    changed: bool,
}

impl Recent {
    /// A ring of `size` entries; 0 remembers nothing.
    pub fn new(size: usize) -> Self {
        Recent {
            entries: Vec::new(),
            size,
            entered: 0,
            changed: false,
        }
    }

    /// Enters a decision; returns its number.
    pub fn enter(&mut self, entry: Entry) -> u64 {
        let number = self.entered;
        self.entered += 1;
        self.changed = self.size > 0;
        let place = self.place(number);
        match place.and_then(|place| self.entries.get_mut(place)) {
            Some(oldest) => *oldest = entry,
            None if place.is_some() => self.entries.push(entry),
            None => {}
        }
        number
    }

    /// Tells more of a decision, if it is still remembered.
    pub fn change(&mut self, number: u64, change: impl FnOnce(&mut Entry)) {
        if self.entered.saturating_sub(number) > self.size as u64 {
            return;
        }
        let place = self.place(number);
        if let Some(entry) = place.and_then(|place| self.entries.get_mut(place)) {
            change(entry);
            self.changed = true;
        }
    }

    /// How many it has room for.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether anything is new since this was last asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The decisions remembered, newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &Entry> {
        let oldest = self.entered.saturating_sub(self.entries.len() as u64);
        let numbers = (oldest..self.entered).rev();
        numbers.filter_map(|number| self.entries.get(self.place(number)?))
    }

    fn place(&self, number: u64) -> Option<usize> {
        Some(number.checked_rem(self.size as u64)? as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(decided_us: u64) -> Entry {
        Entry {
            decided_us,
            pool: 0,
            policy: "prefix",
            reason: Reason::ColdPrefix,
            position: 0,
            prompt_tokens: 0,
            predicted_cached_tokens: 0,
            reported_cached_tokens: None,
            status: None,
            ttft_us: None,
        }
    }

    #[test]
    fn the_last_ones_are_remembered_and_only_they_change() {
        let mut recent = Recent::new(3);
        let numbers: Vec<u64> = (0..5).map(|at| recent.enter(entry(at))).collect();
        let times = |recent: &Recent| -> Vec<u64> {
            recent.newest_first().map(|one| one.decided_us).collect()
        };
        assert_eq!(times(&recent), [4, 3, 2]);
        assert!(recent.take_changed() && !recent.take_changed());
        recent.change(1, |one| one.status = Some(1));
        assert!(!recent.take_changed(), "it is forgotten");
        for number in numbers {
            recent.change(number, |one| one.status = Some(one.decided_us as u16));
        }
        let statuses: Vec<_> = recent.newest_first().map(|one| one.status).collect();
        assert_eq!(statuses, [Some(4), Some(3), Some(2)]);
    }

    #[test]
    fn a_ring_without_room_remembers_nothing() {
        let mut recent = Recent::new(0);
        let number = recent.enter(entry(1));
        recent.change(number, |one| one.status = Some(200));
        assert_eq!(recent.newest_first().count(), 0);
        assert!(!recent.take_changed());
    }
}
