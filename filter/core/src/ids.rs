//! Endpoint ids: small numbers that all workers, and all configs of one process, agree on.
//!
//! Shared values name an endpoint by a 16-bit id instead of its address. The table that maps one to
//! the other is itself a shared value, changed by compare-and-set, so two workers that meet a new
//! endpoint at the same time settle on one id. An id is not given to another endpoint while anybody
//! may still hold state under it: ids are handed out in turn, and one is reused only when all
//! [`CAPACITY`] are taken and it was not seen for [`QUARANTINE_MS`].
//!
//! Layout: version byte, then 18 bytes an id in order of ids: identity (u64), last seen in ms (u64),
//! generation (u16), all little-endian. At most 72 KiB; read once per [`TOUCH_MS`] and worker, and
//! written only when there is something new or the last confirmation is half that old.

use crate::hash::Table;
use crate::store::{Store, update};

/// Most endpoints that are known at one time.
pub const CAPACITY: usize = 4096;
/// How long an endpoint must be unseen before its id may serve another.
pub const QUARANTINE_MS: u64 = 60 * 60 * 1000;
/// How often a worker confirms the ids that its config uses.
pub const TOUCH_MS: u64 = 60 * 1000;

const KEY: &str = "warmpath/ids";
const VERSION: u8 = 1;
const ROW: usize = 18;

/// The id of an endpoint in shared values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(pub u16);

struct Row {
    identity: u64,
    seen_ms: u64,
    generation: u16,
}

fn decode(bytes: &[u8]) -> Vec<Row> {
    let Some((&VERSION, rows)) = bytes.split_first() else {
        return Vec::new();
    };
    let (rows, rest) = rows.as_chunks::<ROW>();
    if !rest.is_empty() || rows.len() > CAPACITY {
        return Vec::new();
    }
    rows.iter()
        .map(
            |[a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r]| Row {
                identity: u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
                seen_ms: u64::from_le_bytes([*i, *j, *k, *l, *m, *n, *o, *p]),
                generation: u16::from_le_bytes([*q, *r]),
            },
        )
        .collect()
}

fn encode(rows: &[Row], bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.push(VERSION);
    for row in rows {
        bytes.extend_from_slice(&row.identity.to_le_bytes());
        bytes.extend_from_slice(&row.seen_ms.to_le_bytes());
        bytes.extend_from_slice(&row.generation.to_le_bytes());
    }
}

/// Resolves identities (hashes of addresses) to ids, entering those that are new.
///
/// The answer has one id per identity, in order; `None` where the table is full of endpoints that
/// were seen within the quarantine, or every try lost its race.
pub fn resolve<S: Store>(store: &S, identities: &[u64], now_ms: u64) -> Vec<Option<EndpointId>> {
    let found = update(store, KEY, |bytes| {
        let mut rows = decode(bytes);
        let mut index: Table<u64, usize> = rows
            .iter()
            .enumerate()
            .map(|(position, row)| (row.identity, position))
            .collect();
        let ids = identities
            .iter()
            .map(|identity| place(&mut rows, &mut index, *identity, now_ms))
            .collect::<Vec<_>>();
        let mut now = Vec::with_capacity(bytes.len());
        encode(&rows, &mut now);
        // Of many workers that start together one writes; the others find what they need.
        let changed = now != *bytes;
        *bytes = now;
        (changed, ids)
    });
    found.unwrap_or_else(|| vec![None; identities.len()])
}

fn place(
    rows: &mut Vec<Row>,
    index: &mut Table<u64, usize>,
    identity: u64,
    now_ms: u64,
) -> Option<EndpointId> {
    let position = match index.get(&identity) {
        Some(position) => *position,
        None if rows.len() < CAPACITY => {
            rows.push(Row {
                identity,
                seen_ms: now_ms,
                generation: 0,
            });
            rows.len() - 1
        }
        None => {
            let (position, oldest) = rows.iter().enumerate().min_by_key(|(_, row)| row.seen_ms)?;
            if now_ms.saturating_sub(oldest.seen_ms) < QUARANTINE_MS {
                return None;
            }
            index.remove(&oldest.identity);
            let row = rows.get_mut(position)?;
            row.identity = identity;
            row.generation = row.generation.wrapping_add(1);
            position
        }
    };
    index.insert(identity, position);
    let row = rows.get_mut(position)?;
    if now_ms.saturating_sub(row.seen_ms) >= TOUCH_MS / 2 {
        row.seen_ms = now_ms;
    }
    u16::try_from(position).ok().map(EndpointId)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[test]
    fn the_same_endpoint_keeps_its_id() {
        let store = MemoryStore::new();
        let first = resolve(&store, &[10, 20, 30], 1);
        let second = resolve(&store, &[30, 40, 10], 2);
        assert_eq!(second, vec![first[2], Some(EndpointId(3)), first[0]]);
    }

    #[test]
    fn an_id_is_reused_only_when_full_and_after_the_quarantine() {
        let store = MemoryStore::new();
        let all: Vec<u64> = (0..CAPACITY as u64).collect();
        resolve(&store, &all, 1000);
        let kept: Vec<u64> = (1..CAPACITY as u64).collect();
        resolve(&store, &kept, 1000 + TOUCH_MS);
        let early = resolve(&store, &[9_999_999], 2000 + TOUCH_MS);
        assert_eq!(early, vec![None]);
        let later = 1000 + QUARANTINE_MS;
        assert_eq!(
            resolve(&store, &[9_999_999], later),
            vec![Some(EndpointId(0))]
        );
        assert_eq!(
            resolve(&store, &[0], later),
            vec![None],
            "its old id is gone"
        );
        assert!(store.value_bytes() <= 1 + CAPACITY * ROW);
    }

    #[test]
    fn ids_that_were_just_confirmed_are_only_read() {
        let store = MemoryStore::new();
        resolve(&store, &[10, 20], 1000);
        let version = store.get(KEY).version;
        resolve(&store, &[20], 1000 + TOUCH_MS / 2 - 1);
        assert_eq!(store.get(KEY).version, version);
        resolve(&store, &[20], 1000 + TOUCH_MS / 2);
        assert_ne!(store.get(KEY).version, version);
    }

    #[test]
    fn an_unknown_layout_is_discarded() {
        let store = MemoryStore::new();
        store.set(KEY, &[250, 1, 2, 3]);
        assert_eq!(resolve(&store, &[7], 5), vec![Some(EndpointId(0))]);
        assert_eq!(store.get(KEY).bytes.len(), 1 + ROW);
    }
}
