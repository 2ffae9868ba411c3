//! Which workers are alive, and the column that each of them owns.
//!
//! Every worker runs its own VM and writes what it has in flight into a *column* that only it
//! writes; the load of an endpoint is the sum over the columns of living workers. A VM that traps
//! leaves its column behind without a word, so a column counts only while its owner's heartbeat in
//! the shared list is fresh. Its slot is then free for the next worker.
//!
//! Layout of the list: version byte, then 16 bytes a slot: owner (u64, 0 = free), heartbeat in ms
//! (u64), little-endian. The heartbeat of a free slot is the last of whoever left it. One
//! compare-and-set per worker and tick.

use crate::store::{Store, update};

const KEY: &str = "warmpath/workers";
const VERSION: u8 = 1;
const ROW: usize = 16;
/// Most slots that a configuration may allow; what stands behind them is not believed.
pub const MAX_WORKERS: usize = 1024;
/// A slot that was given back is not used again for so long, if there is another: some beats.
const REUSE_MS: u64 = 2000;
/// Who has not beaten for so long speaks for nobody, though what it has in flight still counts.
const LEAD_MS: u64 = 2000;

/// A column that belongs to one living worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Number of the column, below the configured limit.
    pub slot: u16,
    /// Random non-zero name of the worker; written into its columns.
    pub owner: u64,
}

/// What one heartbeat learned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roll {
    /// Our own column; `None` when all slots are taken.
    pub own: Option<Column>,
    /// The columns of the other living workers.
    pub peers: Vec<Column>,
    /// Whether no worker in a lower slot has beaten of late, so that we do what one does for all. Two
    /// may believe it for some beats.
    pub leads: bool,
}

fn decode(bytes: &[u8]) -> Vec<(u64, u64)> {
    let Some((&VERSION, rows)) = bytes.split_first() else {
        return Vec::new();
    };
    let (rows, _) = rows.as_chunks::<ROW>();
    rows.iter()
        .take(MAX_WORKERS)
        .map(|[a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]| {
            (
                u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
                u64::from_le_bytes([*i, *j, *k, *l, *m, *n, *o, *p]),
            )
        })
        .collect()
}

fn encode(rows: &[(u64, u64)], bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.push(VERSION);
    for (owner, heartbeat_ms) in rows {
        bytes.extend_from_slice(&owner.to_le_bytes());
        bytes.extend_from_slice(&heartbeat_ms.to_le_bytes());
    }
}

fn column(slot: usize, owner: u64) -> Option<Column> {
    u16::try_from(slot).ok().map(|slot| Column { slot, owner })
}

/// Renews the heartbeat of `owner`, claiming a slot if it has none, and lists the living.
///
/// `None` when every try lost its race: keep the last roll, the next tick repairs it.
pub fn beat<S: Store>(
    store: &S,
    owner: u64,
    max_workers: usize,
    expiry_ms: u64,
    now_ms: u64,
) -> Option<Roll> {
    update(store, KEY, |bytes| {
        let mut rows = decode(bytes);
        // A heartbeat from the future is a clock that was set back, not a dead worker.
        let alive = |beat_ms: u64| now_ms.saturating_sub(beat_ms) < expiry_ms;
        // A config before this one may have had more slots; the living keep theirs.
        while rows.len() > max_workers && rows.last().is_some_and(|row| row.0 == 0 || !alive(row.1))
        {
            rows.pop();
        }
        let own = rows.iter().position(|row| row.0 == owner);
        let slot = own.or_else(|| vacancy(&mut rows, max_workers, now_ms, expiry_ms));
        if let Some(row) = slot.and_then(|slot| rows.get_mut(slot)) {
            *row = (owner, now_ms);
        }
        let peers = rows
            .iter()
            .enumerate()
            .filter(|(_, row)| row.0 != 0 && row.0 != owner && alive(row.1))
            .filter_map(|(slot, row)| column(slot, row.0))
            .collect();
        let beats = |row: &&(u64, u64)| row.0 != 0 && now_ms.saturating_sub(row.1) < LEAD_MS;
        let first = rows.iter().find(beats).map(|row| row.0);
        encode(&rows, bytes);
        (
            slot.is_some(),
            Roll {
                own: slot.and_then(|slot| column(slot, owner)),
                peers,
                leads: first == Some(owner),
            },
        )
    })
}

/// A slot for a worker without one. One that was just given back comes last, so that the others can
/// read what was left there.
fn vacancy(
    rows: &mut Vec<(u64, u64)>,
    max_workers: usize,
    now_ms: u64,
    expiry_ms: u64,
) -> Option<usize> {
    let quiet = |row: &(u64, u64), least_ms: u64| now_ms.saturating_sub(row.1) >= least_ms;
    let mut allowed = rows.iter().take(max_workers);
    let reusable = |row: &(u64, u64)| quiet(row, if row.0 == 0 { REUSE_MS } else { expiry_ms });
    if let Some(slot) = allowed.position(reusable) {
        return Some(slot);
    }
    if rows.len() < max_workers {
        rows.push((0, 0));
        return Some(rows.len() - 1);
    }
    rows.iter().take(max_workers).position(|row| row.0 == 0)
}

/// The columns of all living workers, for one who has none.
pub fn living<S: Store>(store: &S, expiry_ms: u64, now_ms: u64) -> Vec<Column> {
    let rows = decode(&store.get(KEY).bytes);
    let alive = |beat_ms: u64| now_ms.saturating_sub(beat_ms) < expiry_ms;
    rows.iter()
        .enumerate()
        .filter(|(_, row)| row.0 != 0 && alive(row.1))
        .filter_map(|(slot, row)| column(slot, row.0))
        .collect()
}

/// Gives the slot of `owner` back, so that its column stops counting at once.
pub fn leave<S: Store>(store: &S, owner: u64) {
    update(store, KEY, |bytes| {
        let mut rows = decode(bytes);
        let mut found = false;
        for row in rows.iter_mut().filter(|row| row.0 == owner) {
            // The heartbeat stays: it says how long ago the worker left, to half a second.
            row.0 = 0;
            found = true;
        }
        encode(&rows, bytes);
        (found, ())
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[test]
    fn workers_see_each_other_and_the_dead_expire() {
        let store = MemoryStore::new();
        let first = beat(&store, 11, 8, 1000, 0).unwrap();
        assert_eq!(first.own, Some(Column { slot: 0, owner: 11 }));
        let second = beat(&store, 22, 8, 1000, 500).unwrap();
        assert_eq!(second.peers, vec![Column { slot: 0, owner: 11 }]);
        let late = beat(&store, 22, 8, 1000, 1001).unwrap();
        assert!(
            late.peers.is_empty(),
            "no heartbeat for longer than the expiry"
        );
        let third = beat(&store, 33, 8, 1000, 1002).unwrap();
        assert_eq!(
            third.own,
            Some(Column { slot: 0, owner: 33 }),
            "takes the dead one's slot"
        );
        let back = beat(&store, 11, 8, 1000, 1003).unwrap();
        assert_eq!(
            back.own,
            Some(Column { slot: 2, owner: 11 }),
            "was only slow: a new slot"
        );
    }

    #[test]
    fn a_slot_that_was_just_given_back_is_the_last_choice() {
        let store = MemoryStore::new();
        beat(&store, 1, 3, 9000, 0).unwrap();
        beat(&store, 2, 3, 9000, 0).unwrap();
        leave(&store, 1);
        assert_eq!(beat(&store, 3, 3, 9000, 500).unwrap().own, column(2, 3));
        assert_eq!(beat(&store, 4, 3, 9000, 500).unwrap().own, column(0, 4));
        leave(&store, 3);
        let later = beat(&store, 5, 8, 9000, 500 + REUSE_MS).unwrap();
        assert_eq!(later.own, column(2, 5));
    }

    #[test]
    fn a_smaller_list_leaves_the_living_their_slots() {
        let store = MemoryStore::new();
        for owner in 1..=4 {
            beat(&store, owner, 8, 1000, 0).unwrap();
        }
        leave(&store, 2);
        let small = beat(&store, 50, 2, 1000, 10).unwrap();
        assert_eq!(small.own, column(1, 50));
        assert_eq!(beat(&store, 51, 2, 1000, 10).unwrap().own, None);
        let kept = beat(&store, 4, 8, 1000, 20).unwrap();
        assert_eq!(kept.own, column(3, 4), "it is alive");
        beat(&store, 50, 2, 1000, 1500).unwrap();
        assert_eq!(store.value_bytes(), 1 + 2 * ROW, "the dead beyond it go");
    }

    #[test]
    fn the_next_leads_long_before_the_first_expires() {
        let store = MemoryStore::new();
        assert!(beat(&store, 11, 8, 9000, 0).unwrap().leads);
        assert!(!beat(&store, 22, 8, 9000, 0).unwrap().leads);
        let later = beat(&store, 22, 8, 9000, LEAD_MS).unwrap();
        assert!(later.leads, "the first is silent");
        assert_eq!(later.peers.len(), 1, "and still counted");
        assert!(beat(&store, 11, 8, 9000, LEAD_MS + 1).unwrap().leads);
        assert!(!beat(&store, 22, 8, 9000, LEAD_MS + 2).unwrap().leads);
    }

    #[test]
    fn no_more_are_believed_than_there_may_be() {
        let store = MemoryStore::new();
        let garbage = [&[VERSION][..], &[0xff; 50_000 * ROW]].concat();
        store.set(KEY, &garbage);
        assert_eq!(living(&store, 1000, 10).len(), MAX_WORKERS);
        let roll = beat(&store, 1, 8, 1000, 10).unwrap();
        assert_eq!(roll.peers.len(), MAX_WORKERS);
        leave(&store, 1);
        assert_eq!(store.value_bytes(), garbage.len(), "it had no slot");
    }

    #[test]
    fn the_list_is_bounded() {
        let store = MemoryStore::new();
        for owner in 1..=20 {
            beat(&store, owner, 4, 1000, 10).unwrap();
        }
        assert_eq!(store.value_bytes(), 1 + 4 * ROW);
        assert_eq!(beat(&store, 99, 4, 1000, 10).unwrap().own, None);
        leave(&store, 2);
        assert_eq!(beat(&store, 99, 4, 1000, 10).unwrap().own, column(1, 99));
    }
}
