//! How workers tell each other what they learned: one log for each, in shared data.
//!
//! In a picture: a ring of [`PAGES`] pages for each worker. Only the worker itself writes; it
//! rewrites the newest page with every event and turns to the next when it is full. Others remember
//! up to which event they have read and fetch only pages with newer ones. A reader that was
//! overtaken by the ring misses the events between: it knows less, never something wrong.
//!
//! Layout of a page: version byte, owner (u64), number of its first event (u64), then the events:
//! kind (u8), engine (u16), extra chunks (u32), count of marks (u16), and for each mark link (u64)
//! and chunks (u16), all little-endian. A page of another version or owner, or one that ends inside
//! an event, is read up to there and no further.

use super::{Event, Kind, Mark};
use crate::ids::EndpointId;
use crate::order;
use crate::store::Store;
use crate::workers::Column;

/// Pages of a ring.
pub const PAGES: u64 = 32;
/// A page takes no further event beyond this size.
pub const PAGE_BYTES: usize = 8192;
/// Most marks of one event; a chain of a million links has fewer.
pub const MAX_MARKS: usize = 256;

const VERSION: u8 = 1;
/// A worker that wrote nothing so far starts with the first page, so there is no need to search on.
const MAX_FRUITLESS: u32 = 3;

/// The writing end: our own log.
#[derive(Debug, Default)]
pub struct Writer {
    page: Vec<u8>,
    /// Number of the page, counted from the start of this worker.
    number: u64,
    /// Events written so far.
    events: u64,
    dirty: bool,
    /// Where the newest page was written last.
    slot: Option<u16>,
}

impl Writer {
    /// Appends an event; [`Writer::publish`] makes it known.
    pub fn append<S: Store>(&mut self, event: &Event, store: &S, column: Column) {
        if self.page.len() >= PAGE_BYTES {
            self.publish(store, column);
            self.number += 1;
            self.page.clear();
        }
        if self.page.is_empty() {
            self.page.push(VERSION);
            self.page.extend_from_slice(&column.owner.to_le_bytes());
            self.page.extend_from_slice(&self.events.to_le_bytes());
        }
        encode(event, &mut self.page);
        self.events += 1;
        self.dirty = true;
    }

    /// Writes the newest page, if it changed or has another place now.
    pub fn publish<S: Store>(&mut self, store: &S, column: Column) {
        let moved = self.slot.replace(column.slot) != Some(column.slot);
        if std::mem::take(&mut self.dirty) || (moved && !self.page.is_empty()) {
            store.set(&key(column.slot, self.number), &self.page);
        }
    }
}

/// The reading end of another worker's log.
#[derive(Debug)]
pub struct Reader {
    column: Column,
    /// Number of the next event to read.
    next: u64,
    /// Number of the page it is expected in.
    page: u64,
    /// Whether nothing of this worker stands there.
    lost: bool,
    /// Whether to look for its pages elsewhere in the ring, if so.
    may_search: bool,
    /// Searches in a row that found no page at all.
    fruitless: u32,
}

impl Reader {
    /// A reader of a worker's log.
    pub fn new(column: Column) -> Self {
        Reader {
            column,
            next: 0,
            page: 0,
            lost: true,
            may_search: true,
            fruitless: 0,
        }
    }

    /// Whose log it is.
    pub fn column(&self) -> Column {
        self.column
    }

    /// Says where the worker writes now. Allows one more search of the ring, which is dear: the
    /// worker may have another slot, and one that lost its slot may have written over a page.
    pub fn renew(&mut self, column: Column) {
        if self.column != column {
            self.column = column;
            self.lost = true;
            self.fruitless = 0;
        }
        self.may_search = self.fruitless < MAX_FRUITLESS;
    }

    /// Reads what is new, at most one turn of the ring.
    pub fn read<S: Store>(&mut self, store: &S, mut event: impl FnMut(&Event)) {
        if self.lost && std::mem::take(&mut self.may_search) {
            self.search(store, &mut event);
        }
        for _ in 0..PAGES {
            if !self.read_page(store, &mut event) {
                return;
            }
            self.page += 1;
        }
    }

    /// Reads what is new on the expected page; whether to go on with the next.
    fn read_page<S: Store>(&mut self, store: &S, event: &mut impl FnMut(&Event)) -> bool {
        let bytes = store.get(&key(self.column.slot, self.page)).bytes;
        let Some((first, mut rest)) = open(&bytes, self.column.owner) else {
            self.lost = true;
            return false;
        };
        self.lost = false;
        if first > self.next {
            // Overtaken: this page was reused. Go on with what it holds now.
            self.next = first;
        }
        let mut number = first;
        while let Some((found, after)) = decode(rest) {
            if number >= self.next {
                event(&found);
            }
            number += 1;
            rest = after;
        }
        if number < self.next {
            // An older turn of the ring: the next page has not been written yet.
            return false;
        }
        self.next = number;
        bytes.len() >= PAGE_BYTES
    }

    /// Reads all pages of the ring with something new, from the oldest on, and stays at the newest.
    fn search<S: Store>(&mut self, store: &S, event: &mut impl FnMut(&Event)) {
        let found = (0..PAGES).filter_map(|page| {
            let bytes = store.get(&key(self.column.slot, page)).bytes;
            open(&bytes, self.column.owner).map(|(first, _)| (first, page))
        });
        let mut found: Vec<(u64, u64)> = found.collect();
        order::sort(&mut found, |one, other| one.cmp(other));
        self.fruitless = if found.is_empty() {
            self.fruitless + 1
        } else {
            0
        };
        let known = found.partition_point(|(first, _)| *first <= self.next);
        for (_, page) in found.into_iter().skip(known.saturating_sub(1)) {
            self.page = page;
            self.read_page(store, event);
        }
    }
}

fn key(slot: u16, page: u64) -> String {
    format!("warmpath/log/{slot}/{}", page % PAGES)
}

/// The number of the first event of a page, and its events.
fn open(bytes: &[u8], owner: u64) -> Option<(u64, &[u8])> {
    let (&VERSION, bytes) = bytes.split_first()? else {
        return None;
    };
    let (name, bytes) = bytes.split_first_chunk::<8>()?;
    let (first, rest) = bytes.split_first_chunk::<8>()?;
    (u64::from_le_bytes(*name) == owner).then(|| (u64::from_le_bytes(*first), rest))
}

/// What an event takes of a page, in bytes.
pub fn size(event: &Event) -> usize {
    9 + 10 * event.marks.len().min(MAX_MARKS)
}

fn encode(event: &Event, out: &mut Vec<u8>) {
    let marks = event.marks.get(..MAX_MARKS).unwrap_or(&event.marks);
    out.reserve(size(event));
    out.push(event.kind.to_byte());
    out.extend_from_slice(&event.engine.0.to_le_bytes());
    out.extend_from_slice(&event.extra_chunks.to_le_bytes());
    out.extend_from_slice(&(marks.len() as u16).to_le_bytes());
    for mark in marks {
        out.extend_from_slice(&mark.link.to_le_bytes());
        out.extend_from_slice(&mark.chunks.to_le_bytes());
    }
}

fn decode(bytes: &[u8]) -> Option<(Event, &[u8])> {
    let (kind, bytes) = bytes.split_first()?;
    let kind = Kind::from_byte(*kind)?;
    let (engine, bytes) = bytes.split_first_chunk()?;
    let (extra_chunks, bytes) = bytes.split_first_chunk()?;
    let (count, bytes) = bytes.split_first_chunk()?;
    let length = 10 * usize::from(u16::from_le_bytes(*count));
    let (marks, rest) = bytes.split_at_checked(length)?;
    let (marks, _) = marks.as_chunks::<10>();
    let marks = marks.iter().map(|[a, b, c, d, e, f, g, h, i, j]| Mark {
        link: u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
        chunks: u16::from_le_bytes([*i, *j]),
    });
    let event = Event {
        kind,
        engine: EndpointId(u16::from_le_bytes(*engine)),
        extra_chunks: u32::from_le_bytes(*extra_chunks),
        marks: marks.collect(),
    };
    Some((event, rest))
}
