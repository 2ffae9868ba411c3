//! What became of one request, and of all of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Requests in a row, in the order of their ends, that show that a fault is over.
pub(super) const CLEAN_WINDOW: usize = 50;

/// How a request ended, as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// With a whole answer.
    Answered,
    /// The client left by itself, in this phase.
    Left(&'static str),
    /// Not with a whole answer.
    Failed {
        /// What was seen of it.
        why: String,
    },
    /// It hung until nobody waited any more.
    GivenUp,
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    /// Its `x-request-id`.
    pub(super) id: String,
    /// Who sent it.
    pub(super) client: usize,
    /// The Envoy that was asked.
    pub(super) envoy: SocketAddr,
    /// When it was sent.
    pub(super) began: Instant,
    /// When it ended.
    pub(super) ended: Instant,
    /// Who answered, if headers came.
    pub(super) engine: Option<String>,
    /// Whether headers of a 2xx had come.
    pub(super) begun: bool,
    /// How it ended.
    pub(super) ending: Ending,
}

impl Exchange {
    /// Whether somebody waited for an answer and did not get it.
    pub(super) fn is_failure(&self) -> bool {
        matches!(self.ending, Ending::Failed { .. } | Ending::GivenUp)
    }

    /// Whether it was under way at some time of `from..=to`.
    pub(super) fn overlaps(&self, from: Instant, to: Instant) -> bool {
        self.began <= to && self.ended >= from
    }

    /// When it is known to be lost: what hangs is lost from the start.
    fn lost_at(&self) -> Instant {
        match self.ending {
            Ending::GivenUp => self.began,
            _ => self.ended,
        }
    }
}

/// Why a failed request could not have been saved; `None` if it should have been.
pub(super) type Excuse<'a> = dyn Fn(&Exchange) -> Option<&'static str> + 'a;

/// All requests of a fault, by what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// All.
    pub(super) sent: usize,
    /// Those with a whole answer.
    pub(super) answered: usize,
    /// Those whose client left.
    pub(super) left: usize,
    /// Those that nobody could have saved, by reason.
    pub(super) unsaved: BTreeMap<&'static str, usize>,
    /// Those that should have been saved.
    pub(super) lost: Vec<String>,
}

impl Tally {
    /// Sorts exchanges.
    pub(super) fn of(exchanges: &[Exchange], excuse: &Excuse<'_>) -> Self {
        let mut tally = Self {
            sent: exchanges.len(),
            ..Self::default()
        };
        for it in exchanges {
            match &it.ending {
                Ending::Answered => tally.answered += 1,
                Ending::Left(_) => tally.left += 1,
                Ending::Failed { .. } | Ending::GivenUp => match excuse(it) {
                    Some(reason) => *tally.unsaved.entry(reason).or_default() += 1,
                    None => tally.lost.push(format!(
                        "{} of client {}, {:?} after {:?}, engine {:?}",
                        it.id,
                        it.client,
                        it.ending,
                        it.ended.duration_since(it.began),
                        it.engine
                    )),
                },
            }
        }
        tally
    }

    /// All that nobody could have saved.
    pub(super) fn unsaved(&self) -> usize {
        self.unsaved.values().sum()
    }

    /// Whether nothing is missing and nothing counted twice.
    pub(super) fn adds_up(&self) -> bool {
        self.sent == self.answered + self.left + self.unsaved() + self.lost.len()
    }
}

/// Time from `struck` until the last failure before [`CLEAN_WINDOW`] requests in a row without one;
/// zero if nothing failed, `None` if there is no such window.
pub(super) fn recovery(exchanges: &[Exchange], struck: Instant) -> Option<Duration> {
    let mut after: Vec<_> = exchanges
        .iter()
        .filter(|it| it.lost_at() >= struck && !matches!(it.ending, Ending::Left(_)))
        .collect();
    after.sort_by_key(|it| it.lost_at());
    let (mut clean, mut last) = (0, struck);
    for it in after {
        if it.is_failure() {
            (clean, last) = (0, it.lost_at());
        } else {
            clean += 1;
        }
        if clean == CLEAN_WINDOW {
            return Some(last - struck);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(at: Instant, ms: u64, ending: Ending) -> Exchange {
        Exchange {
            id: "x".to_owned(),
            client: 0,
            envoy: ([127, 0, 0, 1], 1).into(),
            began: at + Duration::from_millis(ms),
            ended: at + Duration::from_millis(ms + 1),
            engine: None,
            begun: false,
            ending,
        }
    }

    #[test]
    fn a_tally_adds_up() {
        let now = Instant::now();
        let failed = Ending::Failed {
            why: "500".to_owned(),
        };
        let all = [Ending::Answered, Ending::Left("x"), failed, Ending::GivenUp];
        let all: Vec<_> = all.map(|ending| exchange(now, 0, ending)).into();
        let tally = Tally::of(&all, &|it| (it.ending == Ending::GivenUp).then_some("hung"));
        assert!(tally.adds_up());
        assert_eq!((tally.answered, tally.left, tally.lost.len()), (1, 1, 1));
        assert_eq!(tally.unsaved, BTreeMap::from([("hung", 1)]));
    }

    #[test]
    fn recovery_ends_with_the_last_failure_before_a_clean_window() {
        let now = Instant::now();
        let answered = |ms| exchange(now, ms, Ending::Answered);
        let failed = |ms| exchange(now, ms, Ending::Failed { why: String::new() });
        let clean: Vec<_> = (0..60).map(answered).collect();
        assert_eq!(recovery(&clean, now), Some(Duration::ZERO));
        let mut late = clean.clone();
        late.push(failed(10));
        late.extend((61..80).map(answered));
        assert_eq!(recovery(&late, now), Some(Duration::from_millis(11)));
        assert_eq!(recovery(&clean[..40], now), None);
    }
}
