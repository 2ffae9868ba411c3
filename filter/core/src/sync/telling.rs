//! What this Envoy tells: what its workers logged, gathered with each tick, and the batch made of it with a call.
//! O(engines + news).

use super::Sync;
use super::batch::{Batch, MAX_ENGINES};
use crate::prefix::Kind;
use crate::store::Store;

impl Sync {
    /// Learns what the workers of this Envoy did.
    pub fn listen<S: Store>(&mut self, store: &S, expiry_ms: u64, now_us: u64) {
        let (outbox, directory) = (&mut self.outbox, &self.directory);
        let placed = &mut self.placed;
        self.listener.listen(store, expiry_ms, now_us, |event| {
            *placed |= event.kind == Kind::Pin;
            if let Some(engine) = directory.named(event.engine) {
                outbox.note(event, engine, now_us);
            }
        });
        self.tally.unsent += self.outbox.take_dropped();
    }

    /// The batch to send now, and whether it has news of prompts.
    pub fn batch(&mut self, now_us: u64) -> (Vec<u8>, bool) {
        self.spoken_ms = now_us / 1000;
        if std::mem::take(&mut self.placed) {
            self.told_ms = now_us / 1000;
        }
        // A name is used for one number once, also by a holder whose clock was set back.
        self.number = self.number.saturating_add(1).max(now_us / 1000);
        let named = |position| self.directory.identity(position);
        let all = 0..self.directory.len();
        let loads = all
            .clone()
            .filter_map(|at| Some((named(at)?, self.listener.load(at)?)));
        let left_out = all.filter_map(|at| Some((named(at)?, self.listener.left_out(at, now_us)?)));
        let batch = Batch {
            sender: self.sender,
            number: self.number,
            loads: loads.take(MAX_ENGINES / 2).collect(),
            left_out: left_out.take(MAX_ENGINES / 2).collect(),
            news: Vec::new(),
        };
        let news = self.outbox.take(self.options.batch_bytes);
        let has_news = !news.is_empty();
        let batch = Batch { news, ..batch };
        let bytes = batch.encode(&self.options.secret);
        self.unsettled = batch.news;
        self.sent = (self.number, now_us);
        self.echoes_missed = self.echoes_missed.saturating_add(1);
        self.tally.sent += 1;
        self.tally.sent_bytes += bytes.len() as u64;
        (bytes, has_news)
    }
}
