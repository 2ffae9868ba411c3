//! What becomes of the answer to a call: batches of the others are taken over, those of the time before this
//! Envoy came are put in their order. News wait here until they can be passed on. O(batches).

use super::batch::{Batch, News, Unreadable};
use super::inbox::Taken;
use super::schedule::MAX_PAUSE_MS;
use super::webdis::{self, Told};
use super::{Step, Sync};
use crate::call::Reply;

/// Own batches that must be missing before the streams count as begun anew.
const MISSED_ECHOES: u32 = 20;

impl Sync {
    /// The call was answered, or failed.
    pub fn ended(&mut self, reply: Reply, now_us: u64) {
        let Some(step) = self.under_way.take() else {
            return;
        };
        let read = match reply {
            Reply::Answer { status: 200, body } => webdis::answer(body, self.word),
            Reply::Answer { status, .. } => Err(format!("status {status}")),
            Reply::TooLong => Err("too long an answer".to_owned()),
            Reply::TimedOut => Err("no answer in time".to_owned()),
            Reply::NoCluster => Err("Envoy has no such cluster".to_owned()),
            Reply::Failed | Reply::NoRoom => Err("no connection".to_owned()),
        };
        let mut may_be_there = false;
        let failed = match read {
            Ok(told) => {
                self.answered_us = Some(now_us);
                match step {
                    Step::LookBack => self.looked_back(told, now_us),
                    Step::Exchange => self.exchanged(told, now_us),
                }
            }
            Err(error) => {
                may_be_there = webdis::may_be_there(&reply);
                Some(error)
            }
        };
        self.read_bytes = match reply {
            Reply::TimedOut | Reply::TooLong => (self.read_bytes / 2).max(1),
            _ => self.read_bytes.saturating_mul(2).min(webdis::READ_BYTES),
        };
        let Some(error) = failed else {
            self.failures = 0;
            self.unsettled.clear();
            self.tally.calls += 1;
            return;
        };
        let unsettled = std::mem::take(&mut self.unsettled);
        self.outbox.put_back(unsettled, may_be_there);
        self.failures = self.failures.saturating_add(1);
        self.tally.failed += 1;
        self.tally.error = error;
        let pause_ms = self.options.interval_ms << self.failures.min(8);
        self.next_ms = (now_us / 1000).saturating_add(pause_ms.min(MAX_PAUSE_MS));
    }

    /// A batch that was read: whether it was one of another Envoy's, and new.
    pub fn take(&mut self, bytes: &[u8], now_us: u64) -> Vec<News> {
        let batch = match Batch::decode(bytes, &self.options.secret) {
            Ok(batch) => batch,
            Err(Unreadable::Version) => {
                self.tally.other_version += 1;
                return Vec::new();
            }
            Err(Unreadable::Checksum | Unreadable::Content) => {
                self.tally.refused += 1;
                return Vec::new();
            }
        };
        if batch.sender == self.sender {
            self.echoes_missed = 0;
            if batch.number == self.sent.0 {
                self.tally.lag_us = now_us.saturating_sub(self.sent.1);
            }
            return Vec::new();
        }
        let (unseen, directory) = (&mut self.unseen, &self.directory);
        let (taken, news) = self.inbox.take(batch, now_us, |engine, tokens| {
            if let Some(position) = directory.position(engine) {
                unseen.add(position, tokens);
            }
        });
        match taken {
            Taken::New => {
                self.tally.received += 1;
                self.tally.received_bytes += bytes.len() as u64;
            }
            Taken::Old | Taken::NoRoom => self.tally.repeated += 1,
        }
        news
    }

    /// Reads batches that came without a call: for simulation.
    pub fn deliver<Batch: AsRef<[u8]>>(&mut self, batches: &[Batch], now_us: u64) {
        self.before = None;
        self.answered_us = Some(now_us);
        for bytes in batches {
            let news = self.take(bytes.as_ref(), now_us);
            self.fresh.extend(news);
        }
    }

    /// What the answers told, until there is a store at hand to pass it on through.
    fn exchanged(&mut self, told: Told, now_us: u64) -> Option<String> {
        self.cursors = told.cursors;
        for bytes in told.batches {
            let news = self.take(bytes, now_us);
            self.fresh.extend(news);
        }
        // Entries that come after ours are before us: the store was emptied, and its clock set back.
        if self.echoes_missed > MISSED_ECHOES {
            self.echoes_missed = 0;
            self.before = Some("+".to_owned());
            self.read_back = self.options.warm_bytes;
        }
        Some(told.rest).filter(|error| !error.is_empty())
    }

    /// Keeps what was read back, newest first, for later. Returns no error.
    fn looked_back(&mut self, told: Told, now_us: u64) -> Option<String> {
        if self.before.as_deref() == Some("+") {
            self.cursors = told.cursors;
        }
        let room = self.options.warm_bytes.saturating_sub(self.read_back);
        let read: usize = told.batches.iter().map(|bytes| bytes.len()).sum();
        self.read_back = self.read_back.saturating_add(read);
        if room > 0 {
            for bytes in &told.batches {
                // Who sent it may be gone, and what it had in flight is over.
                if let Ok(batch) = Batch::decode(bytes, &self.options.secret) {
                    self.past.add(batch.news);
                }
            }
        }
        let more = read > 0 && self.read_back < self.options.warm_bytes;
        self.before = webdis::before(&told.rest).filter(|_| more);
        if self.before.is_none() {
            self.past.end(now_us);
            self.place_past();
        }
        None
    }

    /// Lets what was read back go to the workers, as far as its engines are known.
    pub(super) fn place_past(&mut self) {
        let (directory, relay) = (&self.directory, &mut self.relay);
        self.past.take_known(
            |engine| directory.engine(engine),
            |news, engine| relay.pass_later(news, engine),
        );
    }
}
