//! The shared store, with somebody watching: every value that is written is held against the layouts
//! and against what was there before.
//!
//! What must hold after *every* write: an id names one endpoint for good; a slot changes hands only
//! when its owner left or its heartbeat expired; a column or log is written by the slot's owner, or by
//! one that was silent for so long that it lost its slot and has not found out yet; a log only grows.

use crate::layouts;
use crate::turnstile::{Clock, Turnstile};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use warmpath_core::fleet::Fleet;
use warmpath_core::store::{MemoryStore, Store, Versioned};

/// Bytes of a load figure, and of a rate figure.
const LOAD_BYTES: usize = 40;
const RATE_BYTES: usize = 28;
const FITNESS_BYTES: usize = 28;
const PULSE_BYTES: usize = 40;

/// What is thrown to end a worker as a trap does: nothing of it runs any more.
#[derive(Debug)]
pub struct Vanished;

/// The store of a test.
#[derive(Debug)]
pub struct Inspector {
    store: MemoryStore,
    ledger: Mutex<Ledger>,
    /// The time of the test.
    pub clock: Clock,
    expiry_ms: u64,
    max_workers: usize,
}

#[derive(Debug, Default)]
struct Ledger {
    ids: Vec<u64>,
    /// Owner and heartbeat of each slot.
    slots: Vec<(u64, u64)>,
    /// The last heartbeat of each owner.
    beats: HashMap<u64, u64>,
}

impl Inspector {
    /// An empty store whose workers expire after `expiry_ms` at the earliest, and of which there are
    /// at most `max_workers`.
    pub fn new(expiry_ms: u64, max_workers: usize) -> Self {
        Inspector {
            store: MemoryStore::new(),
            ledger: Mutex::default(),
            clock: Clock::new(1_000_000_000),
            expiry_ms,
            max_workers,
        }
    }

    /// Number of slots in the list of workers.
    pub fn slots(&self) -> usize {
        layouts::workers(&self.store.get("warmpath/workers").bytes).len()
    }

    /// Number of slots that are taken.
    pub fn owners(&self) -> usize {
        let rows = layouts::workers(&self.store.get("warmpath/workers").bytes);
        rows.iter().filter(|row| row.0 != 0).count()
    }

    /// Writes, if `version` is none or still right, and inspects what was written.
    fn write(&self, key: &str, bytes: &[u8], version: Option<u32>, leaving: bool) -> bool {
        // Held over the write, so that writes are inspected in their order.
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.store.get(key).bytes;
        match version {
            Some(version) if !self.store.compare_and_set(key, bytes, version) => return false,
            Some(_) => {}
            None => self.store.set(key, bytes),
        }
        let parts: Vec<&str> = key.split('/').collect();
        let slot = |text: &str| text.parse().expect("a slot");
        match *parts.as_slice() {
            ["warmpath", "workers"] => self.inspect_workers(&mut ledger, bytes, leaving),
            ["warmpath", "ids"] => {
                let now = layouts::ids(bytes);
                assert!(now.starts_with(&ledger.ids), "an id changed its endpoint");
                ledger.ids = now;
            }
            ["warmpath", "generation"] => assert_eq!(bytes.len(), 1 + 4 + 8),
            ["warmpath", "lease"] => {
                layouts::lease(bytes);
            }
            ["warmpath", "fitness", at] => {
                let owner = layouts::column(bytes, FITNESS_BYTES, ledger.ids.len());
                self.inspect_writer(&ledger, slot(at), owner);
            }
            ["warmpath", "pulse", at] => {
                let owner = layouts::column(bytes, PULSE_BYTES, ledger.ids.len());
                self.inspect_writer(&ledger, slot(at), owner);
            }
            ["warmpath", "fleet"] => {
                assert_ne!(Fleet::load(&self.store).0, Fleet::default(), "a torn fleet");
            }
            ["warmpath", "load", at] => {
                let owner = layouts::column(bytes, LOAD_BYTES, ledger.ids.len());
                self.inspect_writer(&ledger, slot(at), owner);
            }
            ["warmpath", "rate", at] => {
                let owner = layouts::column(bytes, RATE_BYTES, ledger.ids.len());
                self.inspect_writer(&ledger, slot(at), owner);
            }
            ["warmpath", "log", at, _] => {
                let page = layouts::page(bytes, ledger.ids.len());
                self.inspect_writer(&ledger, slot(at), page.owner);
                if !before.is_empty() {
                    let old = layouts::page(&before, ledger.ids.len());
                    assert!(
                        old.owner != page.owner
                            || (old.first == page.first && bytes.starts_with(&before))
                            || page.first >= old.first + old.events,
                        "a log changed its past: {old:?}, {page:?}"
                    );
                }
            }
            ["warmpath", "prefix", _] => layouts::piece(bytes, ledger.ids.len()),
            ["warmpath", "births"] | ["warmpath", "turn", _, _] => assert_eq!(bytes.len(), 8),
            ["warmpath", "seed"] => assert_eq!((bytes.len(), bytes.first()), (9, Some(&1))),
            _ => unreachable!("an unknown key: {key}"),
        }
        true
    }

    fn inspect_workers(&self, ledger: &mut Ledger, bytes: &[u8], leaving: bool) {
        let rows = layouts::workers(bytes);
        assert!(rows.len() <= self.max_workers, "{} slots", rows.len());
        for (slot, (owner, beat_ms)) in ledger.slots.iter().enumerate() {
            let heir = rows.get(slot).map_or(0, |row| row.0);
            let silent_ms = (self.clock.now_us() / 1000).saturating_sub(*beat_ms);
            assert!(
                *owner == 0
                    || heir == *owner
                    || silent_ms >= self.expiry_ms
                    || (leaving && heir == 0),
                "slot {slot} of {owner:x} went to {heir:x} after {silent_ms} ms of silence"
            );
        }
        let mut owners: Vec<u64> = rows.iter().map(|row| row.0).filter(|it| *it != 0).collect();
        owners.sort_unstable();
        assert!(owners.windows(2).all(|two| two[0] != two[1]), "two slots");
        for (owner, beat_ms) in &rows {
            ledger.beats.insert(*owner, *beat_ms);
        }
        ledger.slots = rows;
    }

    fn inspect_writer(&self, ledger: &Ledger, slot: usize, owner: u64) {
        let rightful = ledger.slots.get(slot).map_or(0, |row| row.0);
        let beat_ms = ledger.beats.get(&owner).expect("it never took a slot");
        let silent_ms = (self.clock.now_us() / 1000).saturating_sub(*beat_ms);
        assert!(
            rightful == owner || silent_ms >= self.expiry_ms,
            "{owner:x} writes to slot {slot} of {rightful:x}, and beat {silent_ms} ms ago"
        );
    }
}

/// One worker's access to the store.
#[derive(Debug)]
pub struct Door<'a> {
    /// The store behind it.
    pub inspector: &'a Inspector,
    turnstile: &'a Turnstile,
    me: usize,
    operations: AtomicU64,
    vanish_at: AtomicU64,
    leaving: AtomicBool,
}

impl<'a> Door<'a> {
    /// The door of worker `me`.
    pub fn new(inspector: &'a Inspector, turnstile: &'a Turnstile, me: usize) -> Self {
        Door {
            inspector,
            turnstile,
            me,
            operations: AtomicU64::new(0),
            vanish_at: AtomicU64::new(u64::MAX),
            leaving: AtomicBool::new(false),
        }
    }

    /// The time.
    pub fn now_us(&self) -> u64 {
        self.inspector.clock.now_us()
    }

    /// Ends the worker instead of its `operations`-th operation from now.
    pub fn vanish_after(&self, operations: u64) {
        let now = self.operations.load(Ordering::SeqCst);
        self.vanish_at.store(now + operations, Ordering::SeqCst);
    }

    /// Nothing ends the worker any more.
    pub fn survive(&self) {
        self.vanish_at.store(u64::MAX, Ordering::SeqCst);
    }

    /// Says that the worker is about to give its slot back, or did.
    pub fn set_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Ordering::SeqCst);
    }

    /// Calls the core, which must be done within `most` operations and `more` for each slot.
    pub fn within<T>(&self, most: u64, more: u64, call: impl FnOnce() -> T) -> T {
        let before = self.operations.load(Ordering::SeqCst);
        let result = call();
        let most = most + more * self.inspector.slots() as u64;
        let taken = self.operations.load(Ordering::SeqCst) - before;
        assert!(taken <= most, "{taken} operations, {most} at most");
        result
    }

    fn pass(&self) {
        self.turnstile.pass(self.me);
        self.inspector.clock.pass(3);
        let operation = self.operations.fetch_add(1, Ordering::SeqCst);
        if operation == self.vanish_at.load(Ordering::SeqCst) {
            std::panic::resume_unwind(Box::new(Vanished));
        }
    }
}

impl Store for Door<'_> {
    fn get(&self, key: &str) -> Versioned {
        self.pass();
        self.inspector.store.get(key)
    }

    fn set(&self, key: &str, bytes: &[u8]) {
        self.pass();
        self.inspector.write(key, bytes, None, false);
    }

    fn compare_and_set(&self, key: &str, bytes: &[u8], version: u32) -> bool {
        self.pass();
        let leaving = self.leaving.load(Ordering::SeqCst);
        self.inspector.write(key, bytes, Some(version), leaving)
    }
}
