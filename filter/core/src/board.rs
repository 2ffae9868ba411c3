//! A board: one figure per endpoint, summed over the columns of all living workers.
//!
//! Our own column is exact and local; it is written out after every change (a blind write, nobody
//! else writes it). The others' columns are read when a decision needs the sum, at most once per
//! [`READ_SPACING_US`] and peer, so reading costs a bounded share of a core however many workers
//! there are, and at everyday rates every decision sees every other.
//!
//! Layout of a column: version byte, owner (u64), then rows of an endpoint id (u16) and a
//! [`Row::BYTES`]-long figure, little-endian. Idle endpoints are left out. A column whose owner is
//! not the one in the roll, or of another version, is empty to us.

use crate::ids::EndpointId;
use crate::store::Store;
use crate::workers::Column;
use ahash::AHashMap;

/// One peer's column is read again after this many microseconds times the number of peers.
///
/// With 3 peers a sum is at most 0.75 ms old, with 63 at most 16 ms; reading takes 4,000 gets a
/// second at most, about half a percent of a core.
pub const READ_SPACING_US: u64 = 250;

const VERSION: u8 = 1;

/// A figure that is summed over workers.
pub trait Row: Clone + Default {
    /// Length of the encoded figure.
    const BYTES: usize;
    /// Prefix of the keys.
    const KEY: &'static str;
    /// Appends exactly [`Row::BYTES`] bytes.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads what `encode` wrote.
    fn decode(bytes: &[u8]) -> Option<Self>;
    /// Adds another worker's figure.
    fn merge(&mut self, other: &Self);
    /// Whether the figure may be left out of a column.
    fn is_idle(&self, now_us: u64) -> bool;
}

/// Figures of the endpoints of one router, indexed by their position in it.
#[derive(Debug)]
pub struct Board<R> {
    own: Vec<R>,
    total: Vec<R>,
    peers: Vec<Peer<R>>,
    ids: Vec<Option<EndpointId>>,
    positions: AHashMap<u16, usize>,
    buffer: Vec<u8>,
    /// Slot and key of our column.
    key: Option<(u16, String)>,
}

#[derive(Debug)]
struct Peer<R> {
    column: Column,
    key: String,
    read_us: Option<u64>,
    rows: Vec<(usize, R)>,
}

impl<R: Row> Board<R> {
    /// A board for endpoints with these ids. An endpoint without id is counted locally only.
    pub fn new(ids: Vec<Option<EndpointId>>) -> Self {
        let positions = ids
            .iter()
            .enumerate()
            .filter_map(|(position, id)| id.map(|id| (id.0, position)))
            .collect();
        Board {
            own: vec![R::default(); ids.len()],
            total: vec![R::default(); ids.len()],
            peers: Vec::new(),
            ids,
            positions,
            buffer: Vec::new(),
            key: None,
        }
    }

    /// The sum over all living workers, as of the last [`Board::refresh`].
    pub fn total(&self, position: usize) -> Option<&R> {
        self.total.get(position)
    }

    /// What this worker has itself.
    pub fn own(&self, position: usize) -> Option<&R> {
        self.own.get(position)
    }

    /// Changes this worker's figure; [`Board::publish`] makes it known.
    pub fn change(&mut self, position: usize, mut change: impl FnMut(&mut R)) {
        if let Some(row) = self.own.get_mut(position) {
            change(row);
        }
        if let Some(row) = self.total.get_mut(position) {
            change(row);
        }
    }

    /// Whether no other worker is alive.
    pub fn is_alone(&self) -> bool {
        self.peers.is_empty()
    }

    /// Takes over who is alive.
    pub fn set_peers(&mut self, columns: &[Column]) {
        let unchanged = self.peers.len() == columns.len()
            && self
                .peers
                .iter()
                .zip(columns)
                .all(|(peer, column)| peer.column == *column);
        if unchanged {
            return;
        }
        let mut before = std::mem::take(&mut self.peers);
        self.peers = columns
            .iter()
            .map(|column| {
                let known = before.iter().position(|peer| peer.column == *column);
                known
                    .map(|at| before.swap_remove(at))
                    .unwrap_or_else(|| Peer {
                        column: *column,
                        key: key::<R>(column.slot),
                        read_us: None,
                        rows: Vec::new(),
                    })
            })
            .collect();
        self.sum();
    }

    /// Reads the columns of the others that are due; whether any was.
    pub fn refresh<S: Store>(&mut self, store: &S, now_us: u64) -> bool {
        let spacing_us = READ_SPACING_US.saturating_mul(self.peers.len() as u64);
        let mut changed = false;
        for peer in &mut self.peers {
            // A clock that was set back makes the read due, too.
            let fresh = |read_us: u64| {
                now_us
                    .checked_sub(read_us)
                    .is_some_and(|age| age < spacing_us)
            };
            if peer.read_us.is_some_and(fresh) {
                continue;
            }
            peer.read_us = Some(now_us);
            let rows = decode(
                &store.get(&peer.key).bytes,
                peer.column.owner,
                &self.positions,
            );
            changed |= !(rows.is_empty() && peer.rows.is_empty());
            peer.rows = rows;
        }
        if changed {
            self.sum();
        }
        changed
    }

    /// Writes our column.
    pub fn publish<S: Store>(&mut self, store: &S, column: Column, now_us: u64) {
        self.buffer.clear();
        self.buffer.push(VERSION);
        self.buffer.extend_from_slice(&column.owner.to_le_bytes());
        for (row, id) in self.own.iter().zip(&self.ids) {
            if let Some(id) = id
                && !row.is_idle(now_us)
            {
                self.buffer.extend_from_slice(&id.0.to_le_bytes());
                row.encode(&mut self.buffer);
            }
        }
        if self
            .key
            .as_ref()
            .is_none_or(|(slot, _)| *slot != column.slot)
        {
            self.key = Some((column.slot, key::<R>(column.slot)));
        }
        if let Some((_, key)) = &self.key {
            store.set(key, &self.buffer);
        }
    }

    fn sum(&mut self) {
        self.total.clone_from(&self.own);
        for peer in &self.peers {
            for (position, row) in &peer.rows {
                if let Some(total) = self.total.get_mut(*position) {
                    total.merge(row);
                }
            }
        }
    }
}

fn key<R: Row>(slot: u16) -> String {
    format!("{}/{slot}", R::KEY)
}

fn decode<R: Row>(bytes: &[u8], owner: u64, positions: &AHashMap<u16, usize>) -> Vec<(usize, R)> {
    let Some((&VERSION, bytes)) = bytes.split_first() else {
        return Vec::new();
    };
    let Some((name, rows)) = bytes.split_first_chunk::<8>() else {
        return Vec::new();
    };
    if u64::from_le_bytes(*name) != owner {
        return Vec::new();
    }
    rows.chunks_exact(2 + R::BYTES)
        .filter_map(|row| {
            let (id, figure) = row.split_first_chunk::<2>()?;
            let position = positions.get(&u16::from_le_bytes(*id))?;
            Some((*position, R::decode(figure)?))
        })
        .collect()
}
