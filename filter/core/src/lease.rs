//! The lease: which one of all VMs scrapes the engines and asks Envoy for its endpoints.
//!
//! Ticks fire on the main thread and on every worker, and the root of an old config keeps ticking
//! until its listener is drained. One of them at a time holds the lease; it renews it with every tick
//! and works only in a tick whose renewal succeeded. A holder that traps, stalls or is gone does not
//! renew, and the next to tick after the expiry takes over.
//!
//! Configs are told apart by a *generation*: each new config of the process is one higher than all
//! before it. A newer generation takes the lease at once, an older one only when nobody has renewed
//! for [`ABANDONED_TERMS`] terms: no younger root is left.
//!
//! Layout: version byte, holder (u64, 0 = free), generation (u32), expiry in ms (u64), changes of the
//! holder (u32); and of the generations: version byte, newest generation (u32), hash of its config
//! (u64). Little-endian. One compare-and-set per tick of the holder, one get per tick of the others.

use crate::store::{Store, update};

const KEY: &str = "warmpath/lease";
const GENERATION_KEY: &str = "warmpath/generation";
const VERSION: u8 = 1;
/// After this many terms without a renewal even an older config may take the lease.
const ABANDONED_TERMS: u64 = 5;

/// Who asks for the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Random non-zero name of the VM.
    pub owner: u64,
    /// Generation of its config.
    pub generation: u32,
}

/// What a try for the lease came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Whether the candidate holds it now.
    pub held: bool,
    /// How often the holder has changed in this process.
    pub changes: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    owner: u64,
    generation: u32,
    expiry_ms: u64,
    changes: u32,
}

fn decode(bytes: &[u8]) -> Option<Row> {
    let (&VERSION, bytes) = bytes.split_first()? else {
        return None;
    };
    let (owner, bytes) = bytes.split_first_chunk()?;
    let (generation, bytes) = bytes.split_first_chunk()?;
    let (expiry_ms, bytes) = bytes.split_first_chunk()?;
    let (changes, _) = bytes.split_first_chunk()?;
    Some(Row {
        owner: u64::from_le_bytes(*owner),
        generation: u32::from_le_bytes(*generation),
        expiry_ms: u64::from_le_bytes(*expiry_ms),
        changes: u32::from_le_bytes(*changes),
    })
}

fn encode(row: &Row, bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.push(VERSION);
    bytes.extend_from_slice(&row.owner.to_le_bytes());
    bytes.extend_from_slice(&row.generation.to_le_bytes());
    bytes.extend_from_slice(&row.expiry_ms.to_le_bytes());
    bytes.extend_from_slice(&row.changes.to_le_bytes());
}

/// Takes or renews the lease for `term_ms`, if the candidate may have it.
pub fn acquire<S: Store>(store: &S, candidate: Candidate, term_ms: u64, now_ms: u64) -> Lease {
    let tried = update(store, KEY, |bytes| {
        let row = decode(bytes).unwrap_or_default();
        if !may_have(&row, candidate, term_ms, now_ms) {
            let changes = row.changes;
            return (
                false,
                Lease {
                    held: false,
                    changes,
                },
            );
        }
        let changed = row.owner != candidate.owner;
        let changes = row.changes.wrapping_add(u32::from(changed));
        let next = Row {
            owner: candidate.owner,
            generation: candidate.generation,
            expiry_ms: now_ms.saturating_add(term_ms),
            changes,
        };
        encode(&next, bytes);
        (
            true,
            Lease {
                held: true,
                changes,
            },
        )
    });
    tried.unwrap_or_default()
}

fn may_have(row: &Row, candidate: Candidate, term_ms: u64, now_ms: u64) -> bool {
    if row.owner == 0 || row.owner == candidate.owner {
        return true;
    }
    // An expiry further ahead than one term is of a clock that was set back since.
    let latest = now_ms.saturating_add(term_ms.saturating_mul(ABANDONED_TERMS));
    let free_ms = if row.expiry_ms > latest {
        0
    } else {
        row.expiry_ms
    };
    match candidate.generation.cmp(&row.generation) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Equal => now_ms >= free_ms,
        std::cmp::Ordering::Less => {
            let patience_ms = term_ms.saturating_mul(ABANDONED_TERMS);
            now_ms >= free_ms.saturating_add(patience_ms)
        }
    }
}

/// Gives the lease up, so that the next to tick has it.
pub fn release<S: Store>(store: &S, candidate: Candidate) {
    update(store, KEY, |bytes| {
        let Some(mut row) = decode(bytes).filter(|row| row.owner == candidate.owner) else {
            return (false, ());
        };
        row.owner = 0;
        encode(&row, bytes);
        (true, ())
    });
}

/// The generation of the config with this hash: the newest one if it is the newest config, else the
/// next. All VMs of one config get the same number. 0 when every try lost its race.
pub fn generation<S: Store>(store: &S, config_hash: u64) -> u32 {
    let tried = update(store, GENERATION_KEY, |bytes| {
        let newest = newest(bytes);
        if let Some((generation, hash)) = newest
            && hash == config_hash
        {
            return (false, generation);
        }
        let next = newest.map_or(1, |(generation, _)| generation.saturating_add(1));
        bytes.clear();
        bytes.push(VERSION);
        bytes.extend_from_slice(&next.to_le_bytes());
        bytes.extend_from_slice(&config_hash.to_le_bytes());
        (true, next)
    });
    tried.unwrap_or_default()
}

fn newest(bytes: &[u8]) -> Option<(u32, u64)> {
    let (&VERSION, bytes) = bytes.split_first()? else {
        return None;
    };
    let (generation, bytes) = bytes.split_first_chunk()?;
    let (hash, _) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*generation), u64::from_le_bytes(*hash)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    const TERM_MS: u64 = 1000;

    fn of(owner: u64, generation: u32) -> Candidate {
        Candidate { owner, generation }
    }

    #[test]
    fn one_at_a_time_and_the_next_after_the_term() {
        let store = MemoryStore::new();
        assert!(acquire(&store, of(1, 1), TERM_MS, 0).held);
        assert!(!acquire(&store, of(2, 1), TERM_MS, 500).held);
        assert!(acquire(&store, of(1, 1), TERM_MS, 600).held);
        assert!(!acquire(&store, of(2, 1), TERM_MS, 1599).held);
        let taken = acquire(&store, of(2, 1), TERM_MS, 1600);
        assert!(taken.held && taken.changes == 2);
        assert!(!acquire(&store, of(1, 1), TERM_MS, 1700).held);
        release(&store, of(1, 1));
        assert!(!acquire(&store, of(1, 1), TERM_MS, 1800).held);
        release(&store, of(2, 1));
        assert!(acquire(&store, of(1, 1), TERM_MS, 1801).held);
    }

    #[test]
    fn a_new_config_takes_over_at_once_and_an_old_one_only_when_alone() {
        let store = MemoryStore::new();
        let (old, new) = (generation(&store, 77), generation(&store, 88));
        assert_eq!((old, new, generation(&store, 88)), (1, 2, 2));
        assert!(acquire(&store, of(1, old), TERM_MS, 0).held);
        assert!(acquire(&store, of(2, new), TERM_MS, 1).held);
        assert!(!acquire(&store, of(1, old), TERM_MS, 2000).held);
        assert!(!acquire(&store, of(1, old), TERM_MS, 6000).held);
        assert!(acquire(&store, of(1, old), TERM_MS, 6001).held);
        assert_eq!(generation(&store, 77), 3, "back to the first config");
    }

    #[test]
    fn a_clock_set_back_does_not_block_and_garbage_is_nothing() {
        let store = MemoryStore::new();
        assert!(acquire(&store, of(1, 1), TERM_MS, 1_000_000).held);
        assert!(acquire(&store, of(2, 1), TERM_MS, 10).held);
        store.set(KEY, b"\x01\x02");
        store.set(GENERATION_KEY, b"\x09garbage");
        assert!(acquire(&store, of(3, 1), TERM_MS, 11).held);
        assert_eq!(generation(&store, 5), 1);
    }
}
