//! How the workers of this Envoy learn what the others told: the peers look to them like one more worker.
//!
//! Who holds the lease writes what all peers have in flight into a load column, what they leave out into
//! one of fitness, and their prompts into a log, under a slot that no worker can have. So workers read it
//! with the code that reads each other's, and nothing else on a request's way knows of peers. One more
//! value, read with every heartbeat, tells whether the column still counts:
//!
//! version (u8), owner of the column (u64), time of the last sign of life in ms (u64), scope (u64, a hash
//! of the store and the key), name of this Envoy (u64) and number of its last batch (u64), whether the peers
//! are out of sight (u8), peers heard (u16), and up to where the store was read: two texts; then, for each engine of which it is known, its id (u16) and the work that
//! peers may have sent there unseen (u32, tokens). Little-endian, one writer.

use super::batch::{EngineLoad, LeftOut, News};
use crate::board::Board;
use crate::codec::{Bytes, put_text};
use crate::fitness::Fitness;
use crate::ids::EndpointId;
use crate::load::Load;
use crate::prefix::log;
use crate::prefix::{Event, PAGE_BYTES};
use crate::store::Store;
use crate::workers::Column;
use std::collections::VecDeque;

/// A slot beyond those of workers.
const SLOT: u16 = u16::MAX;
const KEY: &str = "warmpath/sync";
const VERSION: u8 = 2;
/// A sign of life this old is none.
const EXPIRY_MS: u64 = 3000;
/// What was read back at the start is passed on at this rate: workers read with each tick, some a few ticks
/// late, and a log keeps 32 pages.
const PAGES_PER_TICK: u64 = 8;

/// What workers are told about the peers as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// Owner of the column.
    pub owner: u64,
    /// The last sign of life.
    pub told_ms: u64,
    /// Of which store and key it speaks.
    pub scope: u64,
    /// The name by which the other Envoys know this one.
    pub sender: u64,
    /// Number of the last batch.
    pub number: u64,
    /// Whether peers that should be heard are not.
    pub out_of_sight: bool,
    /// Peers that are heard.
    pub peers: u16,
    /// Up to where the store was read; empty as long as its end is not passed on.
    pub cursors: [String; 2],
    /// Work in tokens that peers may have sent to engines since they were last heard.
    pub unseen: Vec<(EndpointId, u32)>,
}

impl Notice {
    /// The newest; `None` if there is none.
    pub fn read<S: Store>(store: &S) -> Option<Notice> {
        let value = store.get(KEY).bytes;
        let mut bytes = Bytes(&value);
        if bytes.u8()? != VERSION {
            return None;
        }
        let mut notice = Notice {
            owner: bytes.u64()?,
            told_ms: bytes.u64()?,
            scope: bytes.u64()?,
            sender: bytes.u64()?,
            number: bytes.u64()?,
            out_of_sight: bytes.u8()? != 0,
            peers: bytes.u16()?,
            cursors: [bytes.text()?.to_owned(), bytes.text()?.to_owned()],
            unseen: Vec::new(),
        };
        while let (Some(engine), Some(tokens)) = (bytes.u16(), bytes.u32()) {
            notice.unseen.push((EndpointId(engine), tokens));
        }
        Some(notice)
    }

    /// The peers' column, while somebody writes it.
    pub fn column(&self, now_ms: u64) -> Option<Column> {
        let alive = now_ms.saturating_sub(self.told_ms) < EXPIRY_MS;
        alive.then_some(Column {
            slot: SLOT,
            owner: self.owner,
        })
    }

    fn write<S: Store>(&self, store: &S) {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.owner.to_le_bytes());
        bytes.extend_from_slice(&self.told_ms.to_le_bytes());
        bytes.extend_from_slice(&self.scope.to_le_bytes());
        bytes.extend_from_slice(&self.sender.to_le_bytes());
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.push(self.out_of_sight.into());
        bytes.extend_from_slice(&self.peers.to_le_bytes());
        self.cursors
            .iter()
            .for_each(|text| put_text(&mut bytes, text));
        for (engine, tokens) in &self.unseen {
            bytes.extend_from_slice(&engine.0.to_le_bytes());
            bytes.extend_from_slice(&tokens.to_le_bytes());
        }
        store.set(KEY, &bytes);
    }
}

/// Whether a column is a worker's, and not that of the peers.
pub fn is_worker(column: &Column) -> bool {
    column.slot != SLOT
}

/// The writing end.
#[derive(Debug)]
pub struct Relay {
    column: Column,
    loads: Board<Load>,
    fitness: Board<Fitness>,
    log: log::Writer,
    /// What was read back, until the workers can take it.
    old: VecDeque<Event>,
    /// From one reading of the workers to the next.
    tick_ms: u64,
    paced_us: Option<u64>,
}

impl Relay {
    /// A relay whose column is `owner`'s, a random number.
    pub fn new(owner: u64, tick_ms: u64) -> Self {
        Relay {
            column: Column { slot: SLOT, owner },
            loads: Board::new(Vec::new()),
            fitness: Board::new(Vec::new()),
            log: log::Writer::default(),
            old: VecDeque::new(),
            tick_ms: tick_ms.max(1),
            paced_us: None,
        }
    }

    /// Takes over the ids of the endpoints, by position.
    pub fn set_ids(&mut self, ids: &[Option<EndpointId>]) {
        self.loads.set_ids(ids);
        self.fitness.set_ids(ids);
    }

    /// Passes on what the peers have in flight and what they leave out, by position.
    pub fn tell<S: Store>(
        &mut self,
        store: &S,
        loads: impl Iterator<Item = (usize, EngineLoad)>,
        left_out: impl Iterator<Item = (usize, LeftOut, u64)>,
        positions: usize,
        now_us: u64,
    ) {
        let mut rows = vec![Load::default(); positions];
        for (position, load) in loads {
            if let Some(row) = rows.get_mut(position) {
                row.in_flight = row.in_flight.saturating_add(load.in_flight);
                row.waiting = row.waiting.saturating_add(load.waiting);
                row.prefill_tokens = row.prefill_tokens.saturating_add(load.prefill_tokens);
                row.context_tokens = row.context_tokens.saturating_add(load.context_tokens);
                row.kept_tokens = row.kept_tokens.saturating_add(load.kept_tokens);
            }
        }
        let mut verdicts = vec![Fitness::default(); positions];
        for (position, left_out, heard_us) in left_out {
            let event_us = heard_us.saturating_sub(left_out.age_ms.saturating_mul(1000));
            let until_us = heard_us.saturating_add(left_out.rest_ms.saturating_mul(1000));
            if let Some(row) = verdicts.get_mut(position)
                && row.event_us() < event_us
            {
                *row = Fitness::told(left_out.cause, event_us, until_us);
            }
        }
        replace(&mut self.loads, rows);
        replace(&mut self.fitness, verdicts);
        self.loads.publish(store, self.column, now_us);
        self.fitness.publish(store, self.column, now_us);
    }

    /// Passes news on at once.
    pub fn pass<S: Store>(&mut self, store: &S, news: News, engine: EndpointId) {
        self.log.append(&event(news, engine), store, self.column);
    }

    /// Passes old news on when there is time. Newer ones may overtake them.
    pub fn pass_later(&mut self, news: News, engine: EndpointId) {
        self.old.push_back(event(news.late(), engine));
    }

    /// Whether nothing waits to be passed on.
    pub fn is_done(&self) -> bool {
        self.old.is_empty()
    }

    /// Makes what was passed on known, and gives a sign of life.
    pub fn publish<S: Store>(&mut self, store: &S, notice: Notice, now_us: u64) {
        let age_us = self
            .paced_us
            .map_or(0, |paced| now_us.saturating_sub(paced));
        self.paced_us = Some(now_us);
        let tick_us = 1000 * self.tick_ms;
        let pages = PAGES_PER_TICK.saturating_mul(age_us.min(tick_us));
        let mut left = pages.saturating_mul(PAGE_BYTES as u64) / tick_us;
        while left > 0 {
            let Some(event) = self.old.pop_front() else {
                break;
            };
            left = left.saturating_sub(log::size(&event) as u64);
            self.log.append(&event, store, self.column);
        }
        self.log.publish(store, self.column);
        let notice = Notice {
            owner: self.column.owner,
            told_ms: now_us / 1000,
            ..notice
        };
        notice.write(store);
    }
}

fn replace<R: crate::board::Row>(board: &mut Board<R>, rows: Vec<R>) {
    for (position, row) in rows.into_iter().enumerate() {
        if board.own(position) != Some(&row) {
            board.change(position, |own| own.clone_from(&row));
        }
    }
}

fn event(news: News, engine: EndpointId) -> Event {
    Event {
        kind: news.kind,
        engine,
        extra_chunks: news.extra_chunks,
        marks: news.marks,
    }
}
