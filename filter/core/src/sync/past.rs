//! What the end of the stream told of prompts, until it is passed on.
//!
//! It is read newest first, and passed on oldest first. An Envoy that starts may read it before it knows any
//! engine; so what speaks of an engine that is not known waits for it, some seconds. Bound: what a look back
//! may read.

use super::batch::News;
use super::inbox::WAIT_US;
use crate::ids::EndpointId;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Past {
    news: Vec<News>,
    /// Since when all of it is read.
    since_us: Option<u64>,
}

impl Past {
    /// Adds the news of a batch, which came before all that was added.
    pub(super) fn add(&mut self, news: Vec<News>) {
        self.news.extend(news.into_iter().rev());
    }

    /// All was added.
    pub(super) fn end(&mut self, now_us: u64) {
        self.news.reverse();
        self.since_us = Some(now_us);
    }

    /// Takes out the news whose engine is known by now, oldest first.
    pub(super) fn take_known(
        &mut self,
        engine: impl Fn(u64) -> Option<EndpointId>,
        mut pass: impl FnMut(News, EndpointId),
    ) {
        if self.since_us.is_none() {
            return;
        }
        for news in std::mem::take(&mut self.news) {
            match engine(news.engine) {
                Some(engine) => pass(news, engine),
                None => self.news.push(news),
            }
        }
    }

    /// Gives up what waited for long; how much that was.
    pub(super) fn expire(&mut self, now_us: u64) -> u64 {
        let waits = |since_us: u64| now_us.checked_sub(since_us).is_some_and(|it| it < WAIT_US);
        if self.since_us.is_none_or(waits) {
            return 0;
        }
        self.since_us = None;
        std::mem::take(&mut self.news).len() as u64
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.news.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix::Kind;

    fn news(engine: u64, extra_chunks: u32) -> News {
        News {
            kind: Kind::Hold,
            engine,
            extra_chunks,
            marks: Vec::new(),
        }
    }

    fn known(past: &mut Past, engines: &[u64]) -> Vec<u32> {
        let mut found = Vec::new();
        let engine = |it: u64| engines.contains(&it).then_some(EndpointId(it as u16));
        past.take_known(engine, |news, _| found.push(news.extra_chunks));
        found
    }

    #[test]
    fn it_is_passed_on_oldest_first_as_engines_become_known() {
        let mut past = Past::default();
        past.add(vec![news(1, 4), news(2, 5), news(1, 6)]);
        past.add(vec![news(2, 2), news(1, 3)]);
        assert!(known(&mut past, &[1, 2]).is_empty(), "more may come");
        past.end(7);
        assert_eq!(known(&mut past, &[1]), [3, 4, 6]);
        assert_eq!(past.expire(WAIT_US), 0);
        assert_eq!(known(&mut past, &[1, 2]), [2, 5]);
        assert!(past.is_empty());
        assert_eq!(past.expire(WAIT_US + 7), 0);
    }

    #[test]
    fn it_does_not_wait_for_ever() {
        for (end_us, now_us) in [(7, WAIT_US + 7), (9, 8)] {
            let mut past = Past::default();
            past.add(vec![news(1, 1)]);
            past.end(end_us);
            assert_eq!(past.expire(now_us), 1);
            assert!(past.is_empty());
        }
    }
}
