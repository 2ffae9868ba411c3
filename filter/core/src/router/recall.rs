//! The recent decisions of all workers, for the status page.
//!
//! Each worker keeps its own in a ring, and with a tick writes them to `warmpath/recent/SLOT` if any has
//! changed: version (1), owner (8), then for each decision, newest first, its time in us (8) and itself
//! as JSON (length (2) and text). Who shows the page reads the others' and puts all in order. Nothing is
//! written unless the status page is configured, and the ring bounds what is.

use super::{Charge, Router};
use crate::codec::{Bytes, put_text};
use crate::feedback::Report;
use crate::json::object;
use crate::recent::Entry;
use crate::store::Store;
use crate::workers::{self, Column};
use std::collections::VecDeque;

const VERSION: u8 = 1;

fn key(slot: u16) -> String {
    format!("warmpath/recent/{slot}")
}

impl<S: Store> Router<S> {
    /// What was decided lately, by all workers, newest first: as many as one worker remembers, each as
    /// a JSON object. Of the others' what they had decided at their last tick.
    pub fn recent(&self, now_us: u64) -> Vec<String> {
        let own = self.recent.newest_first();
        let own = own.map(|entry| (entry.decided_us, self.recollection(entry)));
        let mut rings: Vec<VecDeque<(u64, String)>> = vec![own.collect()];
        let limits = &self.config.limits;
        let living = workers::living(&self.store, limits.worker_expiry_ms, now_us / 1000);
        for peer in living.iter().filter(|peer| peer.owner != self.owner) {
            let value = self.store.get(&key(peer.slot)).bytes;
            rings.push(decode(&value, peer.owner));
        }
        let mut told = Vec::new();
        while told.len() < self.recent.size() {
            let newest = rings
                .iter_mut()
                .max_by_key(|ring| ring.front().map(|it| it.0));
            let Some((decided_us, document)) = newest.and_then(VecDeque::pop_front) else {
                break;
            };
            let age_ms = now_us.saturating_sub(decided_us) / 1000;
            let rest = document.strip_prefix('{').unwrap_or_default();
            told.push(format!("{{\"age_ms\":{age_ms},{rest}"));
        }
        told
    }

    /// What the engine counted takes the place of what was estimated: all three are in its tokens.
    pub(crate) fn recall_report(&mut self, charge: &Charge, report: &Report) {
        self.recent.change(charge.recent, |entry| {
            entry.reported_cached_tokens = report.cached_tokens;
            if let Some(predicted) = report.predicted_tokens {
                entry.prompt_tokens = report.prompt_tokens;
                entry.predicted_cached_tokens = predicted;
            }
        });
    }

    /// Lets the other workers know what was decided here.
    pub(super) fn publish_recent(&mut self) {
        let Some(Column { slot, owner }) = self.column else {
            return;
        };
        if !self.recent.take_changed() {
            return;
        }
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&owner.to_le_bytes());
        for entry in self.recent.newest_first() {
            bytes.extend_from_slice(&entry.decided_us.to_le_bytes());
            put_text(&mut bytes, &self.recollection(entry));
        }
        self.store.set(&key(slot), &bytes);
    }

    fn recollection(&self, entry: &Entry) -> String {
        let looks = entry.prompt_tokens > 0;
        let predicted = looks.then_some(entry.predicted_cached_tokens);
        object(&[
            ("pool", self.pool_name(entry.pool).into()),
            ("policy", entry.policy.into()),
            ("reason", entry.reason.name().into()),
            ("endpoint", self.name(entry.position).into()),
            ("prompt_tokens", looks.then_some(entry.prompt_tokens).into()),
            ("predicted_cached_tokens", predicted.into()),
            (
                "reported_cached_tokens",
                entry.reported_cached_tokens.into(),
            ),
            ("status", entry.status.into()),
            ("ttft_ms", entry.ttft_us.map(|us| us / 1000).into()),
        ])
    }
}

/// The decisions in a value; none if it is not of `owner`. What was cut off is left out.
fn decode(value: &[u8], owner: u64) -> VecDeque<(u64, String)> {
    let mut bytes = Bytes(value);
    if (bytes.u8(), bytes.u64()) != (Some(VERSION), Some(owner)) {
        return VecDeque::new();
    }
    std::iter::from_fn(|| Some((bytes.u64()?, bytes.text()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_decisions_of_the_right_worker_are_read() {
        let mut value = vec![VERSION];
        value.extend_from_slice(&7_u64.to_le_bytes());
        for at in [20_u64, 10] {
            value.extend_from_slice(&at.to_le_bytes());
            put_text(&mut value, "{}");
        }
        assert_eq!(
            decode(&value, 7),
            [(20, "{}".to_owned()), (10, "{}".to_owned())]
        );
        assert_eq!(decode(&value, 8), []);
        assert_eq!(decode(&[], 0), []);
        for end in 0..value.len() {
            assert!(decode(&value[..end], 7).len() < 2);
        }
        value[0] = VERSION + 1;
        assert_eq!(decode(&value, 7), []);
    }
}
