//! The prefix index: which engine probably still holds which prompt prefix.
//!
//! Every worker keeps a *replica* in its own memory, so a lookup costs no host call at all. What a
//! worker learns it applies to its replica and appends to its log in shared data; the others read
//! the logs and apply the same events ([`log`]). One worker writes the replica out in pieces, so
//! that a newborn or restarted worker starts warm ([`snapshot`]). Every shared key has one writer,
//! so nothing can be torn and there is nothing to retry; a reader that falls too far behind loses
//! events, never consistency.
//!
//! The index answers one question: up to which link of a prompt's hash chain does each engine hold
//! it? A link attests everything before it, so the **deepest hit wins** and shallower links may be
//! missing. That allows **ruler insertion** ([`ruler`]): of a long prompt only every 2^k-th link is
//! stored, about 8 per doubling of the length, and the last four. Whether an engine still holds an
//! entry is told by its [`clock`], which counts tokens, not time.

mod clock;
mod lately;
pub(crate) mod log;
mod replica;
mod seed;
mod snapshot;
pub mod table;
#[cfg(test)]
mod tests;

pub use lately::Lately;
pub use log::{MAX_MARKS, PAGE_BYTES};
pub use replica::Replica;
pub use seed::seed;

use crate::ids::EndpointId;
use crate::scan::Link;
use clock::Clocks;
use table::Table;

/// Tokens of one chunk, as cost and clocks count them.
pub const CHUNK_TOKENS: u64 = (crate::scan::CHUNK_BYTES / BYTES_PER_TOKEN) as u64;
/// Mean bytes of a token in common prompts; routing does not depend on its accuracy.
pub const BYTES_PER_TOKEN: usize = 4;

/// A stored link, and how many chunks it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The link of the chain.
    pub link: u64,
    /// Chunks between the stored link before it and this one.
    pub chunks: u16,
}

/// What happened to a prompt at an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: Kind,
    /// Where.
    pub engine: EndpointId,
    /// Chunks beyond the marks: what the prompt's tail and the output take in the engine's cache.
    pub extra_chunks: u32,
    /// The stored links concerned.
    pub marks: Vec<Mark>,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request with this prompt is on its way to the engine, which keeps it until it is complete.
    Pin,
    /// The request is complete: the engine holds the prompt until newer ones need the room.
    Hold,
    /// The engine did not take the prompt after all.
    Drop,
}

impl Kind {
    /// The byte for it, in logs and batches.
    pub fn to_byte(self) -> u8 {
        match self {
            Kind::Pin => 0,
            Kind::Hold => 1,
            Kind::Drop => 2,
        }
    }

    /// The kind of a byte.
    pub fn from_byte(byte: u8) -> Option<Kind> {
        [Kind::Pin, Kind::Hold, Kind::Drop]
            .into_iter()
            .find(|kind| kind.to_byte() == byte)
    }
}

/// What a pin took of an engine's cache, in chunks. What another request in flight had pinned before
/// is in neither: it is there once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    /// What was idle there.
    pub idle_chunks: u32,
    /// What was not there.
    pub fresh_chunks: u32,
}

/// The positions of a chain of `links` links that are stored, in order, with their distance to the
/// one before: position p (from 1) is stored if a sixteenth of the next power of two divides it, and
/// so are the last four.
pub fn ruler(links: usize) -> impl Iterator<Item = (usize, u16)> {
    let mut before = 0;
    (1..=links).filter_map(move |position| {
        let step = (position.next_power_of_two() / 16).max(1);
        if !position.is_multiple_of(step) && position + 4 <= links {
            return None;
        }
        let chunks = u16::try_from(position - before).unwrap_or(u16::MAX);
        before = position;
        Some((position - 1, chunks))
    })
}

/// The marks of a chain.
pub fn marks(chain: &[Link]) -> Vec<Mark> {
    let stored = ruler(chain.len());
    let mark = |(index, chunks)| {
        chain.get(index).map(|link: &Link| Mark {
            link: link.hash,
            chunks,
        })
    };
    stored.filter_map(mark).collect()
}

/// Sets that a table grows by with one call: less than half a millisecond of work.
const GROW_SETS: usize = 1024;
/// Sets that one call sweeps: a few microseconds of work.
const SWEPT_SETS: usize = 1024;

/// A sweep that goes through the table part by part, and counts what it leaves.
#[derive(Debug, Default)]
struct Sweep {
    next_set: usize,
    counted: u64,
    found: u64,
}

/// One worker's replica.
#[derive(Debug)]
pub struct Index {
    table: Table,
    clocks: Clocks,
    sweep: Sweep,
}

impl Index {
    /// An empty index of at most `bytes` bytes.
    pub fn new(bytes: usize) -> Self {
        Index {
            table: Table::new(bytes),
            clocks: Clocks::default(),
            sweep: Sweep::default(),
        }
    }

    /// Grows by a part of what there is to `bytes` bytes, if it has less, and forgets nothing.
    pub fn grow(&mut self, bytes: usize) {
        self.table.grow(bytes, GROW_SETS);
    }

    /// Sets an engine's KV capacity; the engines that are not named are forgotten.
    pub fn set_engines(&mut self, engines: &[(EndpointId, u64)]) {
        self.clocks.set(engines);
    }

    /// The engine has lost all it held: it was restarted.
    pub fn forget(&mut self, engine: EndpointId) {
        self.clocks.restart(engine.0);
    }

    /// Reports every hit of a chain, shallowest first: the engine, and a link that it holds.
    pub fn lookup(&self, chain: &[Link], mut hit: impl FnMut(EndpointId, &Link)) {
        for link in chain {
            self.table.find(link.hash, |engine, epoch| {
                if self.clocks.is_live(engine, epoch) {
                    hit(EndpointId(engine), link);
                }
            });
        }
    }

    /// How many of the marks an engine holds, up to the deepest.
    pub fn known(&self, marks: &[Mark], engine: EndpointId) -> usize {
        let holds = |mark: &Mark| {
            let mut found = false;
            self.table.find(mark.link, |holder, epoch| {
                found |= holder == engine.0 && self.clocks.is_live(holder, epoch);
            });
            found
        };
        marks
            .iter()
            .rposition(holds)
            .map_or(0, |deepest| deepest + 1)
    }

    /// Tells how much of an engine's cache running requests take, which cannot hold anything else.
    pub fn set_busy(&mut self, engine: EndpointId, tokens: u64) {
        self.clocks.set_busy(engine.0, tokens);
    }

    /// Applies an event of our own. Returns what a pin took.
    pub fn apply(&mut self, event: &Event) -> Pinned {
        let pinned = self.note(event);
        self.clocks.trim(event.engine.0);
        pinned
    }

    /// Applies another worker's event. Nothing is forgotten for it before [`Index::set_busy`] tells
    /// what running requests take: a prompt that is back in the idle part, and still counted as
    /// running, would push out others.
    pub(crate) fn note(&mut self, event: &Event) -> Pinned {
        let engine = event.engine;
        let mut pinned = Pinned::default();
        match event.kind {
            Kind::Pin => {
                for mark in &event.marks {
                    self.pin(*mark, engine, &mut pinned);
                }
            }
            // From the end: an engine frees a prompt's last blocks first.
            Kind::Hold => {
                self.clocks.grew(engine.0, event.extra_chunks);
                for mark in event.marks.iter().rev() {
                    self.hold(*mark, engine);
                }
            }
            Kind::Drop => {
                for mark in &event.marks {
                    if let Some((epoch, chunks)) = self.table.drop_holder(mark.link, engine.0) {
                        self.clocks.removed(engine.0, epoch, chunks);
                    }
                }
            }
        }
        pinned
    }

    fn pin(&mut self, mark: Mark, engine: EndpointId, pinned: &mut Pinned) {
        let Some(epoch) = self.clocks.pinned(engine.0) else {
            return;
        };
        match self.enter(mark, engine.0, epoch) {
            Some((before, _)) if self.clocks.is_pinned(engine.0, before) => {}
            Some((before, chunks)) => {
                self.clocks.removed(engine.0, before, chunks);
                pinned.idle_chunks += u32::from(chunks);
            }
            None => pinned.fresh_chunks += u32::from(mark.chunks),
        }
    }

    fn hold(&mut self, mark: Mark, engine: EndpointId) {
        let Some(epoch) = self.clocks.current(engine.0) else {
            return;
        };
        let before = self.enter(mark, engine.0, epoch);
        self.clocks.moved(engine.0, before, mark.chunks);
    }

    /// Enters a mark; returns epoch and chunks of its live entry before.
    fn enter(&mut self, mark: Mark, engine: u16, epoch: u16) -> Option<(u16, u16)> {
        let age = |engine, epoch| self.clocks.age(engine, epoch);
        self.table.hold(mark, engine, epoch, age)
    }

    /// Whether a piece of the snapshot has changed since this was last asked.
    fn take_changed(&mut self, piece: usize) -> bool {
        self.table.take_changed(piece)
    }

    /// Reports the live entries of a range of sets: link, engine, age in epochs, chunks.
    fn entries(&self, first_set: usize, sets: usize, mut entry: impl FnMut(u64, u16, u16, u16)) {
        self.table
            .entries(first_set, sets, |link, engine, epoch, chunks| {
                if let Some(age) = self.clocks.age(engine, epoch) {
                    entry(link, engine, age, chunks);
                }
            });
    }

    fn restore(&mut self, link: u64, engine: EndpointId, chunks: u16) {
        let marks = vec![Mark { link, chunks }];
        self.apply(&Event {
            kind: Kind::Hold,
            engine,
            extra_chunks: 0,
            marks,
        });
    }

    /// Removes what is forgotten from a part of the table. Epochs come round: what is still there when
    /// its epoch is in use again would look live.
    pub fn sweep(&mut self) {
        let live = |engine, epoch| self.clocks.is_live(engine, epoch);
        let first = self.sweep.next_set;
        self.sweep.counted += self.table.sweep(first, SWEPT_SETS, live);
        self.sweep.next_set += SWEPT_SETS;
        if self.sweep.next_set >= self.table.sets() {
            self.sweep = Sweep {
                found: self.sweep.counted,
                ..Sweep::default()
            };
        }
    }

    /// How many live entries there were in the table when it was last swept as a whole.
    pub fn census(&self) -> u64 {
        self.sweep.found
    }

    /// How many entries gave way before their time since this was last asked.
    pub fn take_evicted(&mut self) -> u64 {
        self.table.take_evicted()
    }

    /// The table, for snapshots and metrics.
    pub fn table(&self) -> &Table {
        &self.table
    }
}
