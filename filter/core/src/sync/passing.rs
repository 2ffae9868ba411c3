//! What the workers of this Envoy are told of the others with each tick: news of prompts, what the peers have
//! in flight and leave out, and whether they are seen at all. O(news + peers + engines).

use super::Sync;
use super::batch::News;
use super::relay::Notice;
use super::tally::View;
use crate::store::Store;

/// Intervals of silence after which a peer counts as out of sight.
const SILENT_INTERVALS: u64 = 5;

impl Sync {
    /// Tells the workers of this Envoy what the others told.
    pub fn pass_on<S: Store>(&mut self, store: &S, now_us: u64) {
        for news in std::mem::take(&mut self.fresh) {
            self.pass(store, news, now_us);
        }
        self.tally.unknown += self.past.expire(now_us);
        self.inbox.expire(now_us);
        // The clock may have been set back.
        self.answered_us = self.answered_us.map(|at_us| at_us.min(now_us));
        let directory = &self.directory;
        let known = self
            .inbox
            .take_known(|engine| directory.engine(engine).is_some());
        for news in known {
            self.pass(store, news, now_us);
        }
        self.tally.unknown += self.inbox.take_dropped();
        let within_us = SILENT_INTERVALS * 1000 * self.options.interval_ms;
        let (heard, all) = self.inbox.peers(within_us, now_us);
        let fresh = |at_us: u64| now_us.saturating_sub(at_us) <= within_us.max(2_000_000);
        let answered = self.answered_us.is_some_and(fresh);
        self.tally.peers = heard;
        self.tally.view = match () {
            () if self.answered_us.is_none() && self.failures == 0 => View::Warming,
            () if !answered => View::Blind,
            () if self.before.is_some() => View::Warming,
            () if heard == 0 && all > 0 => View::Unseen,
            () => View::Whole,
        };
        let at = |engine: u64| self.directory.position(engine);
        let loads = self.inbox.loads(within_us, now_us);
        let left_out = self.inbox.left_out(within_us, now_us);
        self.relay.tell(
            store,
            loads.filter_map(|(engine, load)| Some((at(engine)?, load))),
            left_out.filter_map(|(engine, it, heard_us)| Some((at(engine)?, it, heard_us))),
            self.directory.len(),
            now_us,
        );
        self.unseen.fade(now_us);
        let ids = self.directory.ids();
        let is_warm = self.before.is_none() && self.past.is_empty() && self.relay.is_done();
        // What is sent now is told an interval later, or when the store gets to it.
        let way_us = self
            .tally
            .lag_us
            .clamp(within_us / SILENT_INTERVALS, within_us);
        let unseen = self.unseen.within(way_us);
        let cursors = match is_warm {
            true => self.cursors.clone(),
            false => Default::default(),
        };
        let notice = Notice {
            unseen: unseen
                .filter_map(|(at, tokens)| Some((ids.get(at).copied()??, tokens)))
                .collect(),
            scope: self.scope,
            sender: self.sender,
            number: self.number,
            out_of_sight: self.tally.view != View::Whole,
            peers: u16::try_from(heard).unwrap_or(u16::MAX),
            cursors,
            ..Notice::default()
        };
        self.relay.publish(store, notice, now_us);
    }

    fn pass<S: Store>(&mut self, store: &S, news: News, now_us: u64) {
        match self.directory.engine(news.engine) {
            Some(engine) => self.relay.pass(store, news, engine),
            None => self.inbox.put_aside(news, now_us),
        }
    }
}
