//! The last answer about each conversation, for its next turns.
//!
//! A turn extends the one before it. So what an engine holds of the earlier prompt it holds of the later
//! one, unless it has evicted it since, and where the last turn went all of it is held. The answer is used
//! for a short while only, counted from when the service gave it; what was routed since is added but
//! does not make it younger. That the later prompt does extend the earlier one is seen from the hash
//! chain: it must have the earlier one's last link. At most [`MOST_ANSWERS`] for each of two generations.

use super::Told;
use crate::fading::Fading;
use crate::scan::Link;

/// Conversations under way at a time in one worker and pool.
const MOST_ANSWERS: usize = 4096;

/// What is known of a conversation's last prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    told_us: u64,
    /// The last link of the prompt.
    link: Link,
    /// Tokens up to there, and the rest of its figures as far as there.
    told: Told,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Answers {
    answers: Fading<u64, Answer>,
    ttl_us: u64,
}

impl Answers {
    /// No answers; with a time to live of 0 there will be none.
    pub fn new(ttl_us: u64) -> Self {
        Answers {
            answers: Fading::new(ttl_us, MOST_ANSWERS),
            ttl_us,
        }
    }

    /// What is known of a prompt of `bytes` bytes with this chain.
    pub fn recall(
        &self,
        conversation: u64,
        chain: &[Link],
        bytes: usize,
        now_us: u64,
    ) -> Option<Told> {
        let answer = self.answers.get(&conversation)?;
        let age_us = now_us.checked_sub(answer.told_us)?;
        let at = chain.binary_search_by_key(&answer.link.end, |link| link.end);
        let same = at.ok().and_then(|at| chain.get(at)) == Some(&answer.link);
        (same && age_us < self.ttl_us).then(|| Told {
            tokens: scaled(answer.told.tokens, answer.link.end, bytes),
            held: answer.told.held.clone(),
        })
    }

    /// The service said this of a prompt.
    pub fn learn(
        &mut self,
        conversation: u64,
        chain: &[Link],
        bytes: usize,
        told: &Told,
        now_us: u64,
    ) {
        self.answers.turn(now_us);
        self.enter(conversation, chain, bytes, told, now_us);
    }

    /// A prompt of which this is known was routed to an endpoint, which holds all of it now.
    pub fn routed(
        &mut self,
        conversation: u64,
        chain: &[Link],
        bytes: usize,
        told: &Told,
        position: usize,
    ) {
        let Some(told_us) = self.answers.get(&conversation).map(|it| it.told_us) else {
            return;
        };
        let mut told = told.clone();
        told.held.retain(|(other, _)| *other != position);
        told.held.push((position, told.tokens));
        self.enter(conversation, chain, bytes, &told, told_us);
    }

    /// What is known of a conversation is not so: an endpoint failed it.
    pub fn forget(&mut self, conversation: u64) {
        self.answers.remove(&conversation);
    }

    /// Positions mean other endpoints now.
    pub fn clear(&mut self) {
        self.answers.clear();
    }

    fn enter(
        &mut self,
        conversation: u64,
        chain: &[Link],
        bytes: usize,
        told: &Told,
        told_us: u64,
    ) {
        let Some(link) = chain.last().copied() else {
            return;
        };
        let tokens = scaled(told.tokens, bytes, link.end);
        let upto = |(position, held): &(usize, u64)| (*position, (*held).min(tokens));
        let answer = Answer {
            told_us,
            link,
            told: Told {
                tokens,
                held: told.held.iter().map(upto).collect(),
            },
        };
        match self.answers.get_mut(&conversation) {
            // It must not become younger by being extended.
            Some(known) if known.told_us == told_us => *known = answer,
            _ => self.answers.insert(conversation, answer),
        }
    }
}

/// Tokens of `to` bytes, where `from` bytes have so many.
fn scaled(tokens: u64, from: usize, to: usize) -> u64 {
    let scaled = u128::from(tokens) * to as u128 / from.max(1) as u128;
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(hashes: &[u64]) -> Vec<Link> {
        let link = |(at, hash): (usize, &u64)| Link {
            hash: *hash,
            end: 512 * (at + 1),
        };
        hashes.iter().enumerate().map(link).collect()
    }

    fn told(tokens: u64, held: &[(usize, u64)]) -> Told {
        let held = held.to_vec();
        Told { tokens, held }
    }

    #[test]
    fn an_answer_serves_the_prompts_that_extend_its_own() {
        let mut answers = Answers::new(1000);
        answers.learn(
            7,
            &chain(&[1, 2]),
            1024,
            &told(200, &[(0, 200), (3, 100)]),
            5000,
        );
        let longer = answers.recall(7, &chain(&[1, 2, 3, 4]), 2048, 5500);
        assert_eq!(longer, Some(told(400, &[(0, 200), (3, 100)])));
        let same = answers.recall(7, &chain(&[1, 2]), 1024, 5500);
        assert_eq!(same, Some(told(200, &[(0, 200), (3, 100)])));
        for other in [&[1, 9, 3][..], &[1], &[]] {
            assert_eq!(answers.recall(7, &chain(other), 2048, 5500), None);
        }
        assert_eq!(answers.recall(8, &chain(&[1, 2]), 1024, 5500), None);
        assert_eq!(
            answers.recall(7, &chain(&[1, 2]), 1024, 6000),
            None,
            "too old"
        );
    }

    #[test]
    fn what_was_routed_since_is_added_and_makes_it_no_younger() {
        let mut answers = Answers::new(1000);
        answers.learn(7, &chain(&[1, 2]), 1100, &told(220, &[(0, 200)]), 5000);
        let longer = chain(&[1, 2, 3]);
        let known = answers.recall(7, &longer, 1650, 5400).unwrap();
        answers.routed(7, &longer, 1650, &known, 4);
        let next = answers
            .recall(7, &chain(&[1, 2, 3, 5]), 2048, 5900)
            .unwrap();
        assert_eq!(next.held, [(0, 200), (4, 305)]);
        assert_eq!(answers.recall(7, &longer, 1650, 6000), None);
        answers.forget(7);
        assert_eq!(answers.recall(7, &longer, 1650, 5900), None);
        // Nothing is known of it by now, so nothing is added.
        answers.routed(7, &longer, 1650, &known, 4);
        assert_eq!(answers.recall(7, &longer, 1650, 5900), None);
    }

    #[test]
    fn the_end_that_no_link_covers_is_held_by_nobody() {
        let mut answers = Answers::new(1000);
        answers.learn(7, &chain(&[1]), 1000, &told(250, &[(0, 250)]), 5000);
        let known = answers.recall(7, &chain(&[1, 2]), 1024, 5001).unwrap();
        assert_eq!(known.held, [(0, 128)]);
        answers.learn(8, &[], 100, &told(25, &[(0, 25)]), 5000);
        assert_eq!(answers.recall(8, &[], 100, 5001), None);
    }
}
