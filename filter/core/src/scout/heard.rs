//! What engines tell of their load with their answers, between two scrapes.
//!
//! Every VM hears what passes through it, and tells nobody: an answer must not cost a write to shared
//! state, and a VM that serves many requests hears often. A later scrape replaces it. One entry for
//! each engine at most; O(1) for each answer.

use super::Scout;
use crate::fleet::Engine;
use crate::wire::orca::OrcaLoad;
use std::net::SocketAddr;

/// What an engine told, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    load: OrcaLoad,
    in_flight: u32,
    at_ms: u64,
}

impl Heard {
    /// Enters it in place of what an older scrape said; whether it was older. The age stays that of
    /// the scrape, because an answer tells only a part: an engine that was never scraped stays unknown.
    fn enter(&self, engine: &mut Engine) -> bool {
        if engine.told_ms == 0 || engine.told_ms >= self.at_ms {
            return false;
        }
        let OrcaLoad {
            running,
            waiting,
            kv_usage,
        } = self.load;
        let told = running.unwrap_or_default();
        let told = told.saturating_add(waiting.unwrap_or_default());
        let foreign = told.saturating_sub(self.in_flight);
        engine.foreign = match (running, waiting) {
            (Some(_), Some(_)) => foreign,
            // vLLM tells its queue alone. To add what ran at the scrape would mix two moments.
            _ => engine.foreign.max(foreign),
        };
        engine.running = running.or(engine.running);
        engine.waiting = waiting.or(engine.waiting);
        engine.kv_usage = kv_usage.map(|part| part as f32).or(engine.kv_usage);
        true
    }
}

impl Scout {
    /// Takes what an engine told with an answer for its state, as this VM knows it, until it is
    /// scraped again. `in_flight` is what this process has at the engine.
    pub fn hear(&mut self, address: SocketAddr, load: &OrcaLoad, in_flight: u32, now_ms: u64) {
        let Some(engine) = self.fleet.engines.get_mut(&address) else {
            return;
        };
        let heard = Heard {
            load: *load,
            in_flight,
            at_ms: now_ms,
        };
        if heard.enter(engine) {
            self.dirty = true;
            // Who holds the lease keeps the fleet itself.
            if !self.holds {
                self.heard.insert(address, heard);
            }
        }
    }

    /// Enters what was heard since the scrapes of a fleet that was just loaded, and forgets the rest.
    pub(super) fn recall(&mut self) {
        let engines = &mut self.fleet.engines;
        self.heard
            .retain(|address, heard| engines.get_mut(address).is_some_and(|it| heard.enter(it)));
    }
}
