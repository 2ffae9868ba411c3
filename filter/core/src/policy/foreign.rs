//! What engines said of the requests that did not come through this process.
//!
//! Our own count of what is in flight is exact and at hand, so it stays the base; other Envoys and
//! clients past the filter are only known from what an engine told last. What it told of *more* than
//! we had there is added, as it was then, until it tells anew or its word is too old.
//!
//! Several Envoys that hear the same and all make good for it overshoot together, the more the more
//! they are. So each follows a change by [as much as its share](Heard::follow) of all requests: alone
//! at once, one of eight by an eighth of it with each word. What lasts is made good for in full.

use crate::fleet::Engine;
use crate::load::Load;

/// An Envoy that has no requests follows as if it were one of so many.
const MOST_SHARERS: f32 = 8.0;

/// An engine's fresh word; the default stands for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Requests there that are not ours.
    pub requests: u32,
    /// Those of them that wait to be admitted.
    pub waiting: u32,
    /// Work that the waiting ones are taken to be, in tokens of prefill.
    pub prefill_tokens: u64,
    /// How full its KV memory was.
    pub usage: Option<Usage>,
}

/// How full the KV memory of an engine was, and for how many requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Used share, in millionths.
    pub ppm: u32,
    /// Requests that were there.
    pub requests: u32,
    /// Those of them that were ours.
    pub ours: u32,
}

impl Foreign {
    /// Our own count with the word added to it.
    pub fn added_to(&self, own: &Load) -> Load {
        Load {
            in_flight: own.in_flight.saturating_add(self.requests),
            waiting: own.waiting.saturating_add(self.waiting),
            prefill_tokens: own.prefill_tokens.saturating_add(self.prefill_tokens),
            ..*own
        }
    }
}

/// What was heard of an engine so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heard {
    told: Option<Figures>,
    requests: f32,
    waiting: f32,
    usage: Option<Usage>,
}

/// What an engine told. An answer may tell anew what a scrape did, and leaves the time of the scrape.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Figures {
    told_ms: u64,
    running: Option<u32>,
    waiting: Option<u32>,
    foreign: u32,
    kv_usage: Option<f32>,
}

impl Figures {
    fn of(engine: &Engine) -> Self {
        Figures {
            told_ms: engine.told_ms,
            running: engine.running,
            waiting: engine.waiting,
            foreign: engine.foreign,
            kv_usage: engine.kv_usage,
        }
    }
}

/// How much of a change an Envoy follows at once: its share of the requests at these engines.
pub fn share<'a>(engines: impl Iterator<Item = &'a Engine>) -> f32 {
    let (mut all, mut foreign) = (0_u64, 0_u64);
    for engine in engines {
        all += u64::from(requests(engine));
        foreign += u64::from(engine.foreign);
    }
    let ours = all.saturating_sub(foreign) as f32;
    (ours / all.max(1) as f32).max(1.0 / MOST_SHARERS)
}

impl Heard {
    /// Takes over what an engine told, by a scrape or with an answer, if it is new; `share` is
    /// [ours](share).
    pub fn follow(&mut self, engine: &Engine, share: f32) {
        let told = Some(Figures::of(engine));
        if self.told == told {
            return;
        }
        let (all, waiting) = (requests(engine), engine.waiting.unwrap_or_default());
        // The engine does not tell whose requests wait: the same part as of all that are there.
        let part = engine.foreign as f32 / all.max(1) as f32;
        let weight = if self.told.is_none() { 1.0 } else { share };
        self.told = told;
        self.requests += weight * (engine.foreign as f32 - self.requests);
        self.waiting += weight * (waiting as f32 * part - self.waiting);
        self.usage = engine.kv_usage.map(|usage| Usage {
            ppm: (f64::from(usage) * 1e6) as u32,
            requests: all,
            ours: all.saturating_sub(engine.foreign),
        });
    }

    /// The word for decisions; `mean_work_tokens` is the work that a request is, as far as we have
    /// seen.
    pub fn word(&self, mean_work_tokens: f64) -> Foreign {
        let waiting = self.waiting.round();
        Foreign {
            requests: self.requests.round() as u32,
            waiting: waiting as u32,
            prefill_tokens: (f64::from(waiting) * mean_work_tokens) as u64,
            usage: self.usage,
        }
    }
}

/// Requests at an engine, as it told.
fn requests(engine: &Engine) -> u32 {
    let waiting = engine.waiting.unwrap_or_default();
    engine.running.unwrap_or_default().saturating_add(waiting)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(told_ms: u64, running: u32, waiting: u32, foreign: u32) -> Engine {
        Engine {
            told_ms,
            running: Some(running),
            waiting: Some(waiting),
            foreign,
            kv_usage: Some(0.5),
            ..Engine::default()
        }
    }

    #[test]
    fn waiting_requests_are_foreign_by_share() {
        let mut heard = Heard::default();
        heard.follow(&engine(1, 6, 4, 5), 1.0);
        let told = heard.word(700.0);
        let want = Foreign {
            requests: 5,
            waiting: 2,
            prefill_tokens: 1400,
            usage: Some(Usage {
                ppm: 500_000,
                requests: 10,
                ours: 5,
            }),
        };
        assert_eq!(told, want);
        let own = Load {
            in_flight: 5,
            waiting: 1,
            prefill_tokens: 100,
            ..Load::default()
        };
        let seen = told.added_to(&own);
        assert_eq!(
            (seen.in_flight, seen.waiting, seen.prefill_tokens),
            (10, 3, 1500)
        );
        assert_eq!(Heard::default().word(700.0), Foreign::default());
    }

    #[test]
    fn the_first_word_counts_in_full_and_a_change_by_our_share() {
        let engines = [engine(1, 30, 0, 20), engine(1, 10, 0, 10)];
        let share = share(engines.iter());
        assert_eq!(share, 0.25, "10 of 40 are ours");
        let mut heard = Heard::default();
        heard.follow(&engines[0], share);
        assert_eq!(heard.word(0.0).requests, 20);
        heard.follow(&engines[0], share);
        assert_eq!(heard.word(0.0).requests, 20, "no new word");
        heard.follow(&engine(2, 50, 0, 40), share);
        assert_eq!(heard.word(0.0).requests, 25);
        for told_ms in 3..30 {
            heard.follow(&engine(told_ms, 50, 0, 40), share);
        }
        assert_eq!(heard.word(0.0).requests, 40, "what lasts counts in full");
        assert_eq!(super::share([].iter()), 0.125);
    }

    #[test]
    fn what_an_answer_tells_counts_before_the_next_scrape() {
        let mut heard = Heard::default();
        heard.follow(&engine(1, 4, 0, 0), 1.0);
        let answered = Engine {
            kv_usage: Some(0.75),
            ..engine(1, 4, 8, 6)
        };
        heard.follow(&answered, 0.5);
        let told = heard.word(100.0);
        assert_eq!((told.requests, told.waiting), (3, 2));
        assert_eq!(told.usage.map(|usage| usage.ppm), Some(750_000));
        heard.follow(&answered, 0.5);
        assert_eq!(heard.word(100.0), told, "once for each word");
    }
}
