//! The layouts of shared values as `docs/architecture.md` states them, read strictly: a value that
//! is torn, too long, or has a byte too many fails the test.

use std::collections::HashSet;

/// Largest page of a log.
const PAGE_BYTES: usize = 11 * 1024;
/// Largest piece of the snapshot.
const PIECE_BYTES: usize = 57 * 1024;

/// A page of a log.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// Whose it is.
    pub owner: u64,
    /// Number of its first event.
    pub first: u64,
    /// Number of its events.
    pub events: u64,
}

fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (taken, rest) = bytes.split_first_chunk().expect("a value was cut off");
    *bytes = rest;
    *taken
}

fn version(bytes: &mut &[u8]) {
    assert_eq!(take(bytes), [1], "the layout's version");
}

/// The list of workers: owner and heartbeat of each slot. An empty value is an empty list.
pub fn workers(mut bytes: &[u8]) -> Vec<(u64, u64)> {
    let mut rows = Vec::new();
    if bytes.is_empty() {
        return rows;
    }
    version(&mut bytes);
    while !bytes.is_empty() {
        let owner = u64::from_le_bytes(take(&mut bytes));
        rows.push((owner, u64::from_le_bytes(take(&mut bytes))));
    }
    rows
}

/// The identities of the ids.
pub fn ids(mut bytes: &[u8]) -> Vec<u64> {
    let mut identities = Vec::new();
    version(&mut bytes);
    while !bytes.is_empty() {
        identities.push(u64::from_le_bytes(take(&mut bytes)));
        take::<10>(&mut bytes);
    }
    let distinct: HashSet<&u64> = identities.iter().collect();
    assert_eq!(distinct.len(), identities.len(), "an endpoint with two ids");
    identities
}

/// The holder of the lease.
pub fn lease(mut bytes: &[u8]) -> u64 {
    version(&mut bytes);
    let holder = u64::from_le_bytes(take(&mut bytes));
    assert_eq!(bytes.len(), 4 + 8 + 4, "a lease");
    holder
}

/// The owner of a column whose figures are `figure_bytes` long.
pub fn column(mut bytes: &[u8], figure_bytes: usize, known_ids: usize) -> u64 {
    let [column_version] = take(&mut bytes);
    assert_eq!(column_version, 2, "the version of a column");
    let owner = u64::from_le_bytes(take(&mut bytes));
    let _base = u32::from_le_bytes(take(&mut bytes));
    assert_eq!(bytes.len() % (2 + figure_bytes), 0, "a torn row");
    let mut seen = HashSet::new();
    for mut row in bytes.chunks(2 + figure_bytes) {
        let id = u16::from_le_bytes(take(&mut row));
        assert!(usize::from(id) < known_ids, "id {id} was never given");
        assert!(seen.insert(id), "id {id} twice in one column");
    }
    owner
}

/// A page of a log.
pub fn page(mut bytes: &[u8], known_ids: usize) -> Page {
    assert!(bytes.len() <= PAGE_BYTES, "a page of {} bytes", bytes.len());
    version(&mut bytes);
    let owner = u64::from_le_bytes(take(&mut bytes));
    let first = u64::from_le_bytes(take(&mut bytes));
    let mut events = 0;
    while !bytes.is_empty() {
        let [kind] = take(&mut bytes);
        assert!(kind <= 2, "an event of kind {kind}");
        let engine = u16::from_le_bytes(take(&mut bytes));
        assert!(
            usize::from(engine) < known_ids,
            "id {engine} was never given"
        );
        take::<4>(&mut bytes);
        let marks = u16::from_le_bytes(take(&mut bytes));
        (0..marks).for_each(|_| _ = take::<10>(&mut bytes));
        events += 1;
    }
    Page {
        owner,
        first,
        events,
    }
}

/// A piece of the snapshot.
pub fn piece(mut bytes: &[u8], known_ids: usize) {
    assert!(
        bytes.len() <= PIECE_BYTES,
        "a piece of {} bytes",
        bytes.len()
    );
    let [piece_version] = take(&mut bytes);
    assert_eq!(piece_version, 2, "the version of a piece");
    let sets = u32::from_le_bytes(take(&mut bytes));
    assert!(sets.is_power_of_two(), "{sets} sets");
    while !bytes.is_empty() {
        take::<8>(&mut bytes);
        let engine = u16::from_le_bytes(take(&mut bytes));
        assert!(
            usize::from(engine) < known_ids,
            "id {engine} was never given"
        );
        take::<4>(&mut bytes);
    }
}
