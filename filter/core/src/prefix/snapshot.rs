//! How a newborn worker starts warm: one worker writes its replica out, piece by piece.
//!
//! The table is cut into pieces of [`PIECE_SETS`] sets, each a shared value of its own. The worker
//! with the lowest column, of those that beat, writes a few pieces with each tick, in turn, and only
//! those that changed. Whoever starts reads them all, then follows the logs.
//!
//! Every piece stands for itself: an entry names its engine by its shared id and carries its age in
//! epochs at the time of writing, so it needs no clock to be understood, and a mix of old and new
//! pieces is only a mix of older and newer knowledge. Each entry is put anew where it belongs, so
//! that the tables of writer and reader may differ in size, and the writer's may grow.
//!
//! Layout of a piece: version byte, number of sets of the table (u32), then the live entries: what
//! the table keeps of the link (u64), engine (u16), age (u16), chunks (u16), all little-endian.

use super::Index;
use super::table::{KNOWING_SETS, MOST_BYTES, SET_BYTES};
use crate::ids::EndpointId;
use crate::store::Store;

/// Sets of one piece: at most 8 slots x 4 holders x 14 bytes each, 56 KiB.
pub const PIECE_SETS: usize = 128;
/// Pieces written with one tick.
pub const PIECES_PER_TICK: usize = 8;

const VERSION: u8 = 2;
const ROW: usize = 14;
/// Pieces of the largest table.
const MOST_PIECES: usize = MOST_BYTES.div_ceil(SET_BYTES * PIECE_SETS);

/// Where the writer stands.
#[derive(Debug, Default)]
pub struct Cursor {
    next: usize,
}

impl Cursor {
    /// Writes the next pieces that changed.
    pub fn write<S: Store>(&mut self, index: &mut Index, store: &S) {
        let pieces = index.table().sets().div_ceil(PIECE_SETS);
        let mut written = 0;
        let mut buffer = Vec::new();
        for _ in 0..pieces {
            let piece = self.next;
            self.next = (self.next + 1) % pieces.max(1);
            if !index.take_changed(piece) {
                continue;
            }
            buffer.clear();
            buffer.push(VERSION);
            buffer.extend_from_slice(&(index.table().sets() as u32).to_le_bytes());
            index.entries(
                piece * PIECE_SETS,
                PIECE_SETS,
                |link, engine, age, chunks| {
                    buffer.extend_from_slice(&link.to_le_bytes());
                    buffer.extend_from_slice(&engine.to_le_bytes());
                    buffer.extend_from_slice(&age.to_le_bytes());
                    buffer.extend_from_slice(&chunks.to_le_bytes());
                },
            );
            store.set(&key(piece), &buffer);
            written += 1;
            if written == PIECES_PER_TICK {
                return;
            }
        }
    }
}

/// Reads a whole snapshot into an empty index.
pub fn load<S: Store>(index: &mut Index, store: &S) {
    let sets = index.table().sets();
    let mut pieces = sets.div_ceil(PIECE_SETS);
    let mut rows: Vec<(u16, u64, u16, u16)> = Vec::new();
    let mut next = 0;
    while next < pieces {
        let bytes = store.get(&key(next)).bytes;
        next += 1;
        let Some((&VERSION, bytes)) = bytes.split_first() else {
            continue;
        };
        let Some((written, bytes)) = bytes.split_first_chunk() else {
            continue;
        };
        let written = u32::from_le_bytes(*written) as usize;
        // Of a table so small it is not known where its entries belong in a larger one.
        if written < sets.min(KNOWING_SETS) {
            continue;
        }
        pieces = pieces.max(written.div_ceil(PIECE_SETS).min(MOST_PIECES));
        let (found, _) = bytes.as_chunks::<ROW>();
        rows.extend(
            found
                .iter()
                .map(|[a, b, c, d, e, f, g, h, i, j, k, l, m, n]| {
                    (
                        u16::from_le_bytes([*k, *l]),
                        u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
                        u16::from_le_bytes([*i, *j]),
                        u16::from_le_bytes([*m, *n]),
                    )
                }),
        );
    }
    // Oldest first, so that the clocks age them as they aged before.
    rows.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    for (_, link, engine, chunks) in rows {
        index.restore(link, EndpointId(engine), chunks);
    }
}

fn key(piece: usize) -> String {
    format!("warmpath/prefix/{piece}")
}
