//! What is to be told to the other Envoys: prompts that workers of this one routed, oldest first.
//!
//! Workers log a prompt twice, when it is sent and when its answer is complete: then the engine lets go of it,
//! and counts it as just used. The others are told both. But a link that was told to be sent to an engine a
//! moment ago is not told to be sent there again, and one that was told to be let go a moment ago is not told so
//! again unless it was told to be sent since: the system prompts that everybody shares would else be most of
//! what is told.
//!
//! Everything has a bound. What does not fit is dropped, oldest first, and counted: the others then
//! know less.

use super::batch::News;
use crate::hash;
use crate::hash::Table;
use crate::prefix::{Event, Kind, Mark};
use std::collections::VecDeque;

/// How long a link of an engine is not told again.
const TOLD_US: u64 = 1_000_000;
/// Most links that are remembered as told; twice, in an older and a newer part.
const MOST_TOLD: usize = 32_768;

/// The outbox.
#[derive(Debug)]
pub struct Outbox {
    queue: VecDeque<News>,
    bytes: usize,
    most_bytes: usize,
    dropped: u64,
    told: Lately,
}

impl Outbox {
    /// An outbox with room for `most_bytes`, about.
    pub fn new(most_bytes: usize) -> Self {
        Outbox {
            queue: VecDeque::new(),
            bytes: 0,
            most_bytes,
            dropped: 0,
            told: Lately::new(TOLD_US),
        }
    }

    /// A worker's event about the engine of this identity.
    pub fn note(&mut self, event: &Event, engine: u64, now_us: u64) {
        let news = News {
            kind: event.kind,
            engine,
            extra_chunks: event.extra_chunks,
            marks: self.untold(event, engine, now_us),
        };
        if news.marks.is_empty() && news.extra_chunks == 0 {
            return;
        }
        self.bytes += news.size();
        self.queue.push_back(news);
        self.trim();
    }

    /// Puts back what was taken and did not arrive, as far as there is room. If it `may` have arrived all the
    /// same, then without what would count twice.
    pub fn put_back(&mut self, news: Vec<News>, may: bool) {
        for mut news in news.into_iter().rev() {
            if may {
                news.extra_chunks = 0;
                if news.marks.is_empty() {
                    continue;
                }
            }
            self.bytes += news.size();
            self.queue.push_front(news);
        }
        self.trim();
    }

    fn trim(&mut self) {
        while self.bytes > self.most_bytes {
            let Some(oldest) = self.queue.pop_front() else {
                break;
            };
            self.bytes -= oldest.size();
            self.dropped += 1;
        }
    }

    /// Takes the oldest news, at most `most_bytes` of them.
    pub fn take(&mut self, most_bytes: usize) -> Vec<News> {
        let mut taken = Vec::new();
        let mut left = most_bytes;
        while let Some(news) = self.queue.pop_front() {
            if news.size() > left && !taken.is_empty() {
                self.queue.push_front(news);
                break;
            }
            left = left.saturating_sub(news.size());
            self.bytes -= news.size();
            taken.push(news);
        }
        taken
    }

    /// How many news were dropped since this was last asked.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    fn untold(&mut self, event: &Event, engine: u64, now_us: u64) -> Vec<Mark> {
        let told = &mut self.told;
        let is_new = |mark: &&Mark| {
            let sent = hash::mix(engine, mark.link);
            let let_go = !sent;
            let (told_as, opposite) = match event.kind {
                Kind::Drop => {
                    // If it is sent there again, that is news.
                    told.forget(sent);
                    told.forget(let_go);
                    return true;
                }
                Kind::Pin => (sent, Some(let_go)),
                Kind::Hold => (let_go, None),
            };
            let is_new = !told.has(told_as, now_us);
            if is_new {
                told.enter(told_as, now_us);
                opposite.into_iter().for_each(|it| told.forget(it));
            }
            is_new
        };
        event.marks.iter().filter(is_new).copied().collect()
    }
}

/// A set of numbers that forgets what is between one and two spans old.
#[derive(Debug)]
struct Lately {
    span_us: u64,
    turned_us: u64,
    newer: Table<u64, ()>,
    older: Table<u64, ()>,
}

impl Lately {
    fn new(span_us: u64) -> Self {
        Lately {
            span_us,
            turned_us: 0,
            newer: Table::default(),
            older: Table::default(),
        }
    }

    fn has(&mut self, number: u64, now_us: u64) -> bool {
        let age_us = now_us.checked_sub(self.turned_us);
        if age_us.is_none_or(|age_us| age_us >= self.span_us) || self.newer.len() >= MOST_TOLD {
            self.turned_us = now_us;
            if age_us.is_some_and(|age_us| age_us >= self.span_us.saturating_mul(2)) {
                self.newer.clear();
            }
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.contains_key(&number) || self.older.contains_key(&number)
    }

    fn enter(&mut self, number: u64, now_us: u64) {
        if !self.has(number, now_us) {
            self.newer.insert(number, ());
        }
    }

    fn forget(&mut self, number: u64) {
        self.newer.remove(&number);
        self.older.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::EndpointId;

    const ENGINE: u64 = 77;

    fn event(kind: Kind, links: std::ops::Range<u64>, extra_chunks: u32) -> Event {
        let mark = |link| Mark { link, chunks: 1 };
        Event {
            kind,
            engine: EndpointId(3),
            extra_chunks,
            marks: links.map(mark).collect(),
        }
    }

    fn links(news: &[News]) -> Vec<Vec<u64>> {
        let links = |news: &News| news.marks.iter().map(|mark| mark.link).collect();
        news.iter().map(links).collect()
    }

    #[test]
    fn a_prompt_is_told_when_it_is_sent_and_when_it_is_complete() {
        let mut outbox = Outbox::new(10_000);
        outbox.note(&event(Kind::Pin, 0..5, 0), ENGINE, 1);
        outbox.note(&event(Kind::Hold, 0..5, 9), ENGINE, 5_000_000);
        let news = outbox.take(10_000);
        assert_eq!(links(&news), [vec![0, 1, 2, 3, 4], vec![0, 1, 2, 3, 4]]);
        let kinds: Vec<_> = news.iter().map(|it| (it.kind, it.engine)).collect();
        assert_eq!(kinds, [(Kind::Pin, ENGINE), (Kind::Hold, ENGINE)]);
        assert_eq!((news[0].extra_chunks, news[1].extra_chunks), (0, 9));
        assert!(outbox.take(10_000).is_empty());
    }

    #[test]
    fn what_is_told_to_be_sent_is_told_to_be_let_go_however_soon() {
        let mut outbox = Outbox::new(10_000);
        let mut told = |kind, links_of, now_us| {
            outbox.note(&event(kind, links_of, 0), ENGINE, now_us);
            links(&outbox.take(10_000))
        };
        let none = [] as [Vec<u64>; 0];
        assert_eq!(told(Kind::Pin, 0..3, 1), [vec![0, 1, 2]]);
        assert_eq!(told(Kind::Hold, 0..3, 2), [vec![0, 1, 2]]);
        // The prompt begins as the one before, which was just told.
        assert_eq!(told(Kind::Pin, 0..4, 3), [vec![3]]);
        assert_eq!(told(Kind::Hold, 0..4, 4), [vec![3]]);
        assert_eq!(told(Kind::Hold, 0..4, 5), none);
        // A long answer.
        assert_eq!(told(Kind::Pin, 0..2, 3 * TOLD_US), [vec![0, 1]]);
        assert_eq!(told(Kind::Hold, 0..2, 9 * TOLD_US), [vec![0, 1]]);
    }

    #[test]
    fn what_is_lost_is_told_always() {
        let mut outbox = Outbox::new(10_000);
        for now_us in 1..3 {
            outbox.note(&event(Kind::Drop, 0..2, 9), ENGINE, now_us);
        }
        let news = outbox.take(10_000);
        assert_eq!(links(&news), [vec![0, 1], vec![0, 1]]);
    }

    #[test]
    fn what_was_just_told_is_not_told_again() {
        let mut outbox = Outbox::new(10_000);
        let mut told = |links_of, engine, now_us| {
            outbox.note(&event(Kind::Pin, links_of, 0), engine, now_us);
            links(&outbox.take(10_000))
        };
        assert_eq!(told(0..4, ENGINE, 10), [vec![0, 1, 2, 3]]);
        assert_eq!(told(0..6, ENGINE, 20), [vec![4, 5]]);
        assert!(told(0..6, ENGINE, 30).is_empty());
        assert_eq!(told(0..4, 78, 40), [vec![0, 1, 2, 3]], "another engine");
        assert_eq!(told(0..2, ENGINE, 2 * TOLD_US + 50), [vec![0, 1]]);
        assert_eq!(
            told(0..2, ENGINE, 4),
            [] as [Vec<u64>; 0],
            "a clock set back"
        );
    }

    #[test]
    fn at_its_bound_the_oldest_goes_and_is_counted() {
        let mut outbox = Outbox::new(100);
        for number in 0..10 {
            outbox.note(&event(Kind::Drop, number..number + 5, 0), ENGINE, number);
        }
        assert_eq!(outbox.take_dropped(), 9);
        assert_eq!(outbox.take_dropped(), 0);
        assert_eq!(
            links(&outbox.take(1)),
            [vec![9, 10, 11, 12, 13]],
            "one at least"
        );
        assert_eq!(outbox.bytes, 0);
    }

    #[test]
    fn what_did_not_arrive_is_taken_again() {
        let mut outbox = Outbox::new(100);
        for number in 0..3 {
            outbox.note(&event(Kind::Drop, number..number + 2, 0), ENGINE, number);
        }
        let taken = outbox.take(30);
        assert_eq!(links(&taken), [vec![0, 1]]);
        outbox.put_back(taken, false);
        assert_eq!(
            links(&outbox.take(1000)),
            [vec![0, 1], vec![1, 2], vec![2, 3]]
        );
        assert_eq!((outbox.bytes, outbox.take_dropped()), (0, 0));
    }

    #[test]
    fn what_may_have_arrived_is_told_again_without_what_would_count_twice() {
        let mut outbox = Outbox::new(1000);
        outbox.note(&event(Kind::Hold, 0..2, 7), ENGINE, 1);
        outbox.note(&event(Kind::Hold, 0..2, 9), ENGINE, 2);
        for (may, extra_chunks) in [(false, vec![7, 9]), (true, vec![0])] {
            let taken = outbox.take(1000);
            outbox.put_back(taken, may);
            let chunks: Vec<u32> = outbox.queue.iter().map(|it| it.extra_chunks).collect();
            assert_eq!(chunks, extra_chunks);
        }
        outbox.take(1000);
        assert_eq!(outbox.bytes, 0);
    }

    #[test]
    fn what_comes_back_to_where_it_failed_is_told() {
        let mut outbox = Outbox::new(1000);
        for (at, kind) in [Kind::Pin, Kind::Drop, Kind::Pin].into_iter().enumerate() {
            outbox.note(&event(kind, 0..2, 0), ENGINE, at as u64);
        }
        assert_eq!(links(&outbox.take(1000)), [[0, 1], [0, 1], [0, 1]]);
    }

    #[test]
    fn a_batch_takes_what_fits() {
        let mut outbox = Outbox::new(10_000);
        for number in 0..10 {
            outbox.note(&event(Kind::Drop, number..number + 1, 0), ENGINE, number);
        }
        assert_eq!(links(&outbox.take(35)), [vec![0], vec![1]]);
        assert_eq!(outbox.take(10_000).len(), 8);
        assert_eq!(outbox.bytes, 0);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut lately = Lately::new(u64::MAX);
        for number in 0..10 * MOST_TOLD as u64 {
            lately.enter(number, 1);
        }
        assert!(lately.newer.len() <= MOST_TOLD && lately.older.len() <= MOST_TOLD);
    }
}
