//! Which engine was sent which prompt a moment ago.
//!
//! An index service learns from the engines' own events, which come after a prompt was computed. What
//! was routed in the meantime is known here: by the same events that keep the replicas alike, so that
//! every worker knows what any of them routed. A link is remembered for at least the span and at most
//! twice as long, however much else the engine gets. Bounds: [`MOST_LINKS`] links for each of two
//! generations, and four engines for each link.

use super::{Event, Kind};
use crate::fading::Fading;
use crate::ids::EndpointId;
use crate::scan::Link;

/// A prompt of 12,000 tokens stores about 40 links.
const MOST_LINKS: usize = 32_768;
/// Engines of a link; of more, those that came last.
const ENGINES: usize = 4;

/// See the module documentation.
#[derive(Debug)]
pub struct Lately {
    links: Fading<u64, [Option<EndpointId>; ENGINES]>,
}

impl Lately {
    /// Nothing was routed.
    pub fn new(span_us: u64) -> Self {
        Lately {
            links: Fading::new(span_us, MOST_LINKS),
        }
    }

    /// Forgets what is due.
    pub fn turn(&mut self, now_us: u64) {
        self.links.turn(now_us);
    }

    /// Takes over an event of any worker.
    pub fn note(&mut self, event: &Event) {
        for mark in &event.marks {
            match event.kind {
                Kind::Pin => self.sent(mark.link, event.engine),
                Kind::Drop => self.lost(mark.link, event.engine),
                // It was sent before it was complete.
                Kind::Hold => {}
            }
        }
    }

    /// Reports the links of a chain that were sent lately, shallowest first, with the engine.
    pub fn lookup(&self, chain: &[Link], mut hit: impl FnMut(EndpointId, &Link)) {
        if self.links.is_empty() {
            return;
        }
        for link in chain {
            let engines = self.links.get(&link.hash).into_iter().flatten();
            engines.flatten().for_each(|engine| hit(*engine, link));
        }
    }

    fn sent(&mut self, link: u64, engine: EndpointId) {
        let mut engines = self.links.get(&link).copied().unwrap_or_default();
        let at = engines.iter().position(|it| *it == Some(engine));
        let upto = at.unwrap_or(ENGINES - 1);
        if let Some(part) = engines.get_mut(..=upto) {
            part.rotate_right(1);
            part.first_mut()
                .into_iter()
                .for_each(|it| *it = Some(engine));
        }
        self.links.insert(link, engines);
    }

    fn lost(&mut self, link: u64, engine: EndpointId) {
        if let Some(engines) = self.links.get_mut(&link) {
            for entry in engines.iter_mut().filter(|it| **it == Some(engine)) {
                *entry = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Mark;
    use super::*;

    fn event(kind: Kind, engine: u16, links: &[u64]) -> Event {
        let mark = |link: &u64| Mark {
            link: *link,
            chunks: 1,
        };
        Event {
            kind,
            engine: EndpointId(engine),
            extra_chunks: 0,
            marks: links.iter().map(mark).collect(),
        }
    }

    fn hits(lately: &Lately, links: &[u64]) -> Vec<(u16, u64)> {
        let chain: Vec<Link> = links.iter().map(|&hash| Link { hash, end: 512 }).collect();
        let mut found = Vec::new();
        lately.lookup(&chain, |engine, link| found.push((engine.0, link.hash)));
        found
    }

    #[test]
    fn what_was_sent_is_known_for_a_while_and_what_failed_is_not() {
        let mut lately = Lately::new(100);
        lately.turn(1000);
        lately.note(&event(Kind::Pin, 7, &[1, 2]));
        lately.note(&event(Kind::Pin, 8, &[1]));
        lately.note(&event(Kind::Hold, 9, &[1]));
        assert_eq!(hits(&lately, &[1, 2, 3]), [(8, 1), (7, 1), (7, 2)]);
        lately.note(&event(Kind::Drop, 7, &[1, 2, 3]));
        assert_eq!(hits(&lately, &[1, 2, 3]), [(8, 1)]);
        lately.turn(1200);
        assert_eq!(hits(&lately, &[1, 2, 3]), []);
    }

    #[test]
    fn the_engines_that_came_last_are_kept() {
        let mut lately = Lately::new(100);
        for engine in [1, 2, 3, 1, 4, 5] {
            lately.note(&event(Kind::Pin, engine, &[9]));
        }
        assert_eq!(hits(&lately, &[9]), [(5, 9), (4, 9), (1, 9), (3, 9)]);
    }
}
