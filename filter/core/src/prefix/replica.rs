//! One worker's replica of the index, and its part in keeping all replicas alike.

use super::snapshot::{self, Cursor};
use super::{Event, Index, Lately, Pinned, log};
use crate::ids::EndpointId;
use crate::scan::Link;
use crate::store::Store;
use crate::workers::Column;

/// A peer's log is read after this many microseconds times the number of peers, at most.
///
/// Well below the time between two turns of a conversation, which is what others' prompts are for.
const READ_SPACING_US: u64 = 2_000;

/// Most workers remembered that are not seen now.
const MAX_AWAY: usize = 256;

/// The replica.
#[derive(Debug)]
pub struct Replica {
    index: Index,
    writer: log::Writer,
    readers: Vec<log::Reader>,
    /// Readers of workers that are not seen now: one that was only slow is not read again from the
    /// start, which would make old events look new.
    away: Vec<log::Reader>,
    cursor: Cursor,
    read_us: Option<u64>,
    /// What any worker routed a moment ago; `None` unless a pool asks.
    lately: Option<Lately>,
}

impl Replica {
    /// A replica of at most `bytes` bytes, until it [grows](Replica::grow), for engines with these KV capacities in tokens.
    pub fn new(bytes: usize, engines: &[(EndpointId, u64)]) -> Self {
        let mut index = Index::new(bytes);
        index.set_engines(engines);
        Replica {
            index,
            writer: log::Writer::default(),
            readers: Vec::new(),
            away: Vec::new(),
            cursor: Cursor::default(),
            read_us: None,
            lately: None,
        }
    }

    /// Remembers from now on what is routed, for this long.
    pub fn remember_lately(&mut self, span_us: u64) {
        self.lately = Some(Lately::new(span_us));
    }

    /// Reports the links of a chain that any worker sent to an engine a moment ago, as
    /// [`Index::lookup`] does.
    pub fn lookup_lately(&self, chain: &[Link], hit: impl FnMut(EndpointId, &Link)) {
        if let Some(lately) = &self.lately {
            lately.lookup(chain, hit);
        }
    }

    /// Reads the snapshot, before the first decision: the logs tell what came after it.
    pub fn warm_up<S: Store>(&mut self, store: &S) {
        snapshot::load(&mut self.index, store);
    }

    /// See [`Index::grow`].
    pub fn grow(&mut self, bytes: usize) {
        self.index.grow(bytes);
    }

    /// See [`Index::census`].
    pub fn census(&self) -> u64 {
        self.index.census()
    }

    /// See [`Index::take_evicted`].
    pub fn take_evicted(&mut self) -> u64 {
        self.index.take_evicted()
    }

    /// The index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// See [`Index::set_engines`].
    pub fn set_engines(&mut self, engines: &[(EndpointId, u64)]) {
        self.index.set_engines(engines);
    }

    /// See [`Index::forget`].
    pub fn forget(&mut self, engine: EndpointId) {
        self.index.forget(engine);
    }

    /// See [`Index::set_busy`].
    pub fn set_busy(&mut self, engine: EndpointId, tokens: u64) {
        self.index.set_busy(engine, tokens);
    }

    /// Takes over who else is alive. Whoever is no longer there is read for the last time.
    pub fn set_peers<S: Store>(&mut self, store: &S, columns: &[Column]) {
        let (index, lately) = (&mut self.index, &mut self.lately);
        for reader in &mut self.readers {
            if !columns.contains(&reader.column()) {
                reader.read(store, |event| note(index, lately, event));
            }
        }
        let mut before = std::mem::take(&mut self.readers);
        before.append(&mut self.away);
        self.readers = columns
            .iter()
            .map(|column| {
                let is_it = |reader: &log::Reader| reader.column().owner == column.owner;
                let known = before.iter().position(is_it);
                let reader = known.map(|at| before.remove(at));
                let mut reader = reader.unwrap_or_else(|| log::Reader::new(*column));
                reader.renew(*column);
                reader
            })
            .collect();
        before.truncate(MAX_AWAY);
        self.away = before;
    }

    /// Forgets what was routed too long ago to count as lately.
    pub fn turn_lately(&mut self, now_us: u64) {
        if let Some(lately) = &mut self.lately {
            lately.turn(now_us);
        }
    }

    /// Reads what the others learned, if it is due; whether it was. Then [`Replica::set_busy`] must
    /// follow for every engine.
    pub fn follow<S: Store>(&mut self, store: &S, now_us: u64) -> bool {
        let spacing_us = READ_SPACING_US.saturating_mul(self.readers.len() as u64);
        let fresh = |read_us: u64| {
            now_us
                .checked_sub(read_us)
                .is_some_and(|age| age < spacing_us)
        };
        if self.readers.is_empty() || self.read_us.is_some_and(fresh) {
            return false;
        }
        self.read_us = Some(now_us);
        let (index, lately) = (&mut self.index, &mut self.lately);
        for reader in &mut self.readers {
            reader.read(store, |event| note(index, lately, event));
        }
        true
    }

    /// Applies an event of our own and tells the others. Returns what a pin took.
    pub fn record<S: Store>(&mut self, event: &Event, store: &S, column: Option<Column>) -> Pinned {
        let pinned = self.index.apply(event);
        if let Some(lately) = &mut self.lately {
            lately.note(event);
        }
        // Alone, too: who joins later reads the whole ring, and starts with what we know now.
        if let Some(column) = column {
            self.writer.append(event, store, column);
        }
        pinned
    }

    /// Makes recorded events known.
    pub fn publish<S: Store>(&mut self, store: &S, column: Option<Column>) {
        if let Some(column) = column {
            self.writer.publish(store, column);
        }
    }

    /// Sweeps a part of the index, and writes a part of the snapshot, if this worker `leads`.
    pub fn tick<S: Store>(&mut self, store: &S, leads: bool) {
        self.index.sweep();
        if leads {
            self.cursor.write(&mut self.index, store);
        }
    }
}

/// Takes over another worker's event.
fn note(index: &mut Index, lately: &mut Option<Lately>, event: &Event) {
    index.note(event);
    if let Some(lately) = lately {
        lately.note(event);
    }
}
