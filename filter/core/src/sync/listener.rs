//! What the workers of this Envoy do, as far as the others are told: read from the columns and logs by
//! which the workers tell each other.

use super::batch::{EngineLoad, LeftOut};
use crate::board::Board;
use crate::fitness::{Cause, Fitness};
use crate::ids::EndpointId;
use crate::load::Load;
use crate::prefix::{Event, log};
use crate::store::Store;
use crate::workers::{self, Column};

/// Logs of workers that are gone, kept so that a slow one is not read from the start again.
const MAX_AWAY: usize = 256;

/// The reading end of all workers' columns and logs.
#[derive(Debug)]
pub(super) struct Listener {
    loads: Board<Load>,
    fitness: Board<Fitness>,
    readers: Vec<log::Reader>,
    away: Vec<log::Reader>,
}

impl Default for Listener {
    fn default() -> Self {
        Listener {
            loads: Board::new(Vec::new()),
            fitness: Board::new(Vec::new()),
            readers: Vec::new(),
            away: Vec::new(),
        }
    }
}

impl Listener {
    /// Takes over the ids of the endpoints, by position.
    pub(super) fn set_ids(&mut self, ids: &[Option<EndpointId>]) {
        self.loads.set_ids(ids);
        self.fitness.set_ids(ids);
    }

    /// Reads what is new.
    pub(super) fn listen<S: Store>(
        &mut self,
        store: &S,
        expiry_ms: u64,
        now_us: u64,
        mut event: impl FnMut(&Event),
    ) {
        let columns = workers::living(store, expiry_ms, now_us / 1000);
        self.loads.set_peers(&columns);
        self.fitness.set_peers(&columns);
        self.loads.make_due();
        self.loads.refresh(store, now_us);
        self.fitness.refresh(store, now_us);
        for reader in &mut self.readers {
            // Also whoever is gone, for the last time.
            reader.read(store, &mut event);
        }
        if self.set_readers(&columns) {
            for reader in &mut self.readers {
                reader.read(store, &mut event);
            }
        }
    }

    /// Takes over whose logs there are; whether there are others than before.
    fn set_readers(&mut self, columns: &[Column]) -> bool {
        let same = self.readers.len() == columns.len()
            && self
                .readers
                .iter()
                .zip(columns)
                .all(|(reader, column)| reader.column() == *column);
        if same {
            self.readers
                .iter_mut()
                .zip(columns)
                .for_each(|(reader, column)| reader.renew(*column));
            return false;
        }
        let mut before = std::mem::take(&mut self.readers);
        before.append(&mut self.away);
        for column in columns {
            let known = before
                .iter()
                .position(|reader| reader.column().owner == column.owner);
            let known = known.map(|at| before.swap_remove(at));
            let mut reader = known.unwrap_or_else(|| log::Reader::new(*column));
            reader.renew(*column);
            self.readers.push(reader);
        }
        before.truncate(MAX_AWAY);
        self.away = before;
        true
    }

    /// What all workers have in flight at a position, if they have anything.
    pub(super) fn load(&self, position: usize) -> Option<EngineLoad> {
        let load = self.loads.total(position)?;
        (load.in_flight > 0).then_some(EngineLoad {
            in_flight: load.in_flight,
            waiting: load.waiting,
            prefill_tokens: load.prefill_tokens,
            context_tokens: load.context_tokens,
            kept_tokens: load.kept_tokens,
        })
    }

    /// Why they leave the engine at a position out, if they do.
    pub(super) fn left_out(&self, position: usize, now_us: u64) -> Option<LeftOut> {
        let fitness = self.fitness.total(position)?;
        let cause = fitness.cause(now_us);
        (cause != Cause::None).then_some(LeftOut {
            cause,
            rest_ms: fitness.until_us().saturating_sub(now_us) / 1000,
            age_ms: now_us.saturating_sub(fitness.event_us()) / 1000,
        })
    }
}
