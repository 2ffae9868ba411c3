//! What the other Envoys told: who they are, what they have in flight, and prompts that wait for an
//! engine which is not known here yet.
//!
//! A peer is known by the random name that it has since its start. Its batches are numbered, so one that
//! comes twice changes nothing, nor does the load of one that comes late. The streams are read one after the
//! other, so news may come after newer load: they are judged by the news before. Load and verdicts of a peer
//! count while it speaks; what it said of prompts stays true without it.

use super::batch::{Batch, EngineLoad, LeftOut, News};
use super::unseen;
use crate::sorted::Sorted;
use std::collections::{BTreeMap, VecDeque};

/// Most peers that are listened to.
pub const MAX_PEERS: usize = 256;
/// A peer that was silent for so long is forgotten, and nobody waits for it.
const FORGET_US: u64 = 60_000_000;
/// How long news wait for an engine.
pub(super) const WAIT_US: u64 = 10_000_000;
/// Most news that wait.
const MOST_WAITING: usize = 1024;

/// What came of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was new.
    New,
    /// It was known, or older than what is.
    Old,
    /// There are too many peers.
    NoRoom,
}

#[derive(Debug)]
struct Peer {
    number: u64,
    /// The last batch of which news were taken.
    told: u64,
    heard_us: u64,
    loads: Sorted<u64, EngineLoad>,
    left_out: Vec<(u64, LeftOut)>,
}

/// The inbox.
#[derive(Debug, Default)]
pub struct Inbox {
    peers: BTreeMap<u64, Peer>,
    waiting: VecDeque<(u64, News)>,
    dropped: u64,
}

impl Inbox {
    /// Takes over the state that a batch tells, unless it is known or older than what is, and returns its
    /// news, unless they are. `grown` is given the engines at which more work waits than
    /// in the batch before.
    pub fn take(
        &mut self,
        batch: Batch,
        now_us: u64,
        mut grown: impl FnMut(u64, u64),
    ) -> (Taken, Vec<News>) {
        let Some(peer) = self.peers.get_mut(&batch.sender) else {
            if self.peers.len() >= MAX_PEERS {
                return (Taken::NoRoom, Vec::new());
            }
            let peer = Peer {
                number: batch.number,
                told: if batch.news.is_empty() {
                    0
                } else {
                    batch.number
                },
                heard_us: now_us,
                loads: batch.loads.into(),
                left_out: batch.left_out,
            };
            self.peers.insert(batch.sender, peer);
            return (Taken::New, batch.news);
        };
        let tells = !batch.news.is_empty() && batch.number > peer.told;
        if !tells && batch.number <= peer.number {
            return (Taken::Old, Vec::new());
        }
        if batch.number > peer.number {
            unseen::growth(&peer.loads, &batch.loads).for_each(|(at, tokens)| grown(at, tokens));
            peer.number = batch.number;
            peer.heard_us = now_us;
            peer.loads = batch.loads.into();
            peer.left_out = batch.left_out;
        }
        if !tells {
            return (Taken::New, Vec::new());
        }
        peer.told = batch.number;
        (Taken::New, batch.news)
    }

    /// Forgets who was silent for long, and what waited for long.
    pub fn expire(&mut self, now_us: u64) {
        // The clock was set back: what is of the future is of now.
        let heard = self.peers.values_mut().map(|peer| &mut peer.heard_us);
        let put = self.waiting.iter_mut().map(|(since_us, _)| since_us);
        heard.chain(put).for_each(|it| *it = now_us.min(*it));
        self.peers
            .retain(|_, peer| now_us.saturating_sub(peer.heard_us) < FORGET_US);
        let late = |since_us: u64| now_us.saturating_sub(since_us) >= WAIT_US;
        while self.waiting.front().is_some_and(|(since, _)| late(*since)) {
            self.waiting.pop_front();
            self.dropped += 1;
        }
    }

    /// Peers that were heard within this time, and all that are remembered.
    pub fn peers(&self, within_us: u64, now_us: u64) -> (usize, usize) {
        (self.heard(within_us, now_us).count(), self.peers.len())
    }

    /// What the peers that were heard within this time have in flight: an engine may come several times.
    pub fn loads(&self, within_us: u64, now_us: u64) -> impl Iterator<Item = (u64, EngineLoad)> {
        let heard = self.heard(within_us, now_us);
        heard.flat_map(|peer| peer.loads.iter().map(|(engine, load)| (*engine, *load)))
    }

    /// The engines that they leave out, and when each was told.
    pub fn left_out(
        &self,
        within_us: u64,
        now_us: u64,
    ) -> impl Iterator<Item = (u64, LeftOut, u64)> {
        let heard = self.heard(within_us, now_us);
        heard.flat_map(|peer| {
            let told = peer.left_out.iter();
            told.map(|(engine, left_out)| (*engine, *left_out, peer.heard_us))
        })
    }

    /// Keeps news until their engine is known.
    pub fn put_aside(&mut self, news: News, now_us: u64) {
        if self.waiting.len() >= MOST_WAITING {
            self.waiting.pop_front();
            self.dropped += 1;
        }
        self.waiting.push_back((now_us, news.late()));
    }

    /// Takes the news whose engine is known now.
    pub fn take_known(&mut self, known: impl Fn(u64) -> bool) -> Vec<News> {
        if !self.waiting.iter().any(|(_, news)| known(news.engine)) {
            return Vec::new();
        }
        let waiting = std::mem::take(&mut self.waiting);
        let (found, rest) = waiting
            .into_iter()
            .partition(|(_, news)| known(news.engine));
        self.waiting = rest;
        let found: VecDeque<(u64, News)> = found;
        found.into_iter().map(|(_, news)| news).collect()
    }

    /// How many news were dropped, for want of their engine, since this was last asked.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    fn heard(&self, within_us: u64, now_us: u64) -> impl Iterator<Item = &Peer> {
        let fresh = move |peer: &&Peer| now_us.saturating_sub(peer.heard_us) <= within_us;
        self.peers.values().filter(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix::Kind;

    const SECOND: u64 = 1_000_000;

    fn batch(sender: u64, number: u64, in_flight: u32) -> Batch {
        let load = EngineLoad {
            in_flight,
            ..EngineLoad::default()
        };
        Batch {
            sender,
            number,
            loads: vec![(5, load)],
            news: vec![news(5)],
            ..Batch::default()
        }
    }

    fn news(engine: u64) -> News {
        News {
            kind: Kind::Hold,
            engine,
            extra_chunks: 1,
            marks: Vec::new(),
        }
    }

    fn in_flight(inbox: &Inbox, now_us: u64) -> Vec<u32> {
        let loads = inbox.loads(SECOND, now_us);
        loads.map(|(_, load)| load.in_flight).collect()
    }

    #[test]
    fn a_batch_counts_once_and_in_order() {
        let mut inbox = Inbox::default();
        assert_eq!(
            inbox.take(batch(1, 7, 3), 0, |_, _| ()),
            (Taken::New, vec![news(5)])
        );
        assert_eq!(
            inbox.take(batch(1, 7, 4), 1, |_, _| ()),
            (Taken::Old, vec![])
        );
        assert_eq!(
            inbox.take(batch(1, 6, 5), 2, |_, _| ()),
            (Taken::Old, vec![])
        );
        assert_eq!(in_flight(&inbox, 3), [3]);
        let load = Batch {
            news: vec![],
            ..batch(1, 8, 3)
        };
        assert_eq!(inbox.take(load, 3, |_, _| ()), (Taken::New, vec![]));
        inbox.take(batch(1, 9, 6), 4, |_, _| ());
        inbox.take(batch(2, 1, 8), 5, |_, _| ());
        assert_eq!(in_flight(&inbox, 6), [6, 8]);
    }

    #[test]
    fn news_count_after_newer_load_and_the_load_with_them_does_not() {
        let mut inbox = Inbox::default();
        let load = Batch {
            news: vec![],
            ..batch(1, 8, 3)
        };
        inbox.take(load, 0, |_, _| ());
        let late = (Taken::New, vec![news(5)]);
        assert_eq!(inbox.take(batch(1, 7, 4), 1, |_, _| ()), late);
        assert_eq!(
            inbox.take(batch(1, 7, 4), 2, |_, _| ()),
            (Taken::Old, vec![])
        );
        assert_eq!(in_flight(&inbox, 3), [3]);
    }

    #[test]
    fn a_clock_set_back_keeps_nobody_alive() {
        let mut inbox = Inbox::default();
        inbox.take(batch(1, 1, 3), 90 * SECOND, |_, _| ());
        inbox.put_aside(news(7), 90 * SECOND);
        inbox.expire(SECOND);
        assert_eq!(inbox.peers(SECOND, 3 * SECOND), (0, 1));
        inbox.expire(SECOND + WAIT_US);
        assert_eq!(inbox.take_dropped(), 1);
    }

    #[test]
    fn who_is_silent_counts_no_more_and_is_forgotten_later() {
        let mut inbox = Inbox::default();
        inbox.take(batch(1, 1, 3), 0, |_, _| ());
        inbox.take(batch(2, 1, 4), SECOND, |_, _| ());
        assert_eq!(inbox.peers(SECOND, 2 * SECOND), (1, 2));
        assert_eq!(in_flight(&inbox, 2 * SECOND), [4]);
        inbox.expire(FORGET_US);
        assert_eq!(inbox.peers(SECOND, FORGET_US), (0, 1));
    }

    #[test]
    fn news_wait_for_their_engine_but_not_for_ever() {
        let mut inbox = Inbox::default();
        inbox.put_aside(news(5), 0);
        inbox.put_aside(news(6), 1);
        inbox.put_aside(news(7), SECOND);
        assert_eq!(inbox.take_known(|engine| engine == 6), [news(6)]);
        assert_eq!(inbox.take_known(|engine| engine == 6), []);
        inbox.expire(WAIT_US);
        assert_eq!(inbox.take_dropped(), 1);
        assert_eq!(inbox.take_known(|_| true), [news(7)]);
    }

    #[test]
    fn nobody_can_fill_it() {
        let mut inbox = Inbox::default();
        for sender in 0..=MAX_PEERS as u64 {
            inbox.take(batch(sender, 1, 1), 0, |_, _| ());
        }
        assert_eq!(inbox.peers(SECOND, 0).1, MAX_PEERS);
        assert_eq!(inbox.take(batch(9999, 1, 1), 0, |_, _| ()).0, Taken::NoRoom);
        assert_eq!(inbox.take(batch(3, 2, 1), 0, |_, _| ()).0, Taken::New);
        for engine in 0..2 * MOST_WAITING as u64 {
            inbox.put_aside(news(engine), 0);
        }
        assert_eq!(inbox.waiting.len(), MOST_WAITING);
        assert_eq!(inbox.take_dropped(), MOST_WAITING as u64);
    }
}
