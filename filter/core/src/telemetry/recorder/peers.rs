//! The figures of what goes on between the Envoys of a fleet.

use super::super::{Sink, table};
use super::Recorder;
use crate::sync::Tally;

impl<K: Sink> Recorder<K> {
    /// What has happened between the Envoys so far, as the VM knows that speaks with the others; `None`
    /// from any other.
    pub fn peers(&mut self, tally: Option<&Tally>) {
        let Some(tally) = tally else {
            self.peers = Tally::default();
            return;
        };
        let before = std::mem::replace(&mut self.peers, tally.clone());
        let batches = |it: &Tally| {
            [
                ("sent", it.sent),
                ("received", it.received),
                ("other_version", it.other_version),
                ("refused", it.refused),
                ("repeated", it.repeated),
            ]
        };
        let calls = |it: &Tally| [("answered", it.calls), ("failed", it.failed)];
        let dropped = |it: &Tally| [("no_room", it.unsent), ("unknown_engine", it.unknown)];
        let labelled = [
            (
                &table::PEER_BATCHES,
                batches(tally).to_vec(),
                batches(&before).to_vec(),
            ),
            (
                &table::PEER_CALLS,
                calls(tally).to_vec(),
                calls(&before).to_vec(),
            ),
            (
                &table::PEER_DROPPED,
                dropped(tally).to_vec(),
                dropped(&before).to_vec(),
            ),
        ];
        for (metric, now, before) in labelled {
            for ((cause, now), (_, before)) in now.into_iter().zip(before) {
                self.count(metric, &[cause], now.saturating_sub(before));
            }
        }
        let grown = |now: u64, before: u64| now.saturating_sub(before);
        self.count(
            &table::PEER_SENT,
            &[],
            grown(tally.sent_bytes, before.sent_bytes),
        );
        let received = grown(tally.received_bytes, before.received_bytes);
        self.count(&table::PEER_RECEIVED, &[], received);
        self.set(&table::PEERS, tally.peers as u64);
        self.set(&table::PEER_VIEW, tally.view.code());
        self.set(&table::PEER_LAG, tally.lag_us / 1000);
    }
}
