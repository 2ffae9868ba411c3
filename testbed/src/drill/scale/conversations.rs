//! What clients of a fleet ask: conversations that grow by a turn at a time, each turn through any Envoy.
//!
//! One idea: an Envoy that hears nothing of the others has not seen the turn before and does not know which
//! engine holds it. A conversation begins with a text of its own, so nothing else is there to be found. A
//! request is a function of the seed, its client and its number, but not which Envoys are open when it is
//! sent. O(body) a request.

use std::time::Duration;

use anyhow::Context as _;
use parking_lot::RwLock;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::drill::corpus::{mixed, post};
use crate::drill::load::Asking;
use crate::e2e::client::{Call, Client};
use crate::e2e::conversation::text;

/// Turns of a conversation.
const TURNS: u64 = 6;
/// Bytes of the text that it begins with.
const SYSTEM_BYTES: usize = 6000;
/// Bytes of a question, and about those of an answer.
const TURN_BYTES: usize = 800;
/// Longer than it takes until all Envoys know of a turn.
const THINKING_MS: std::ops::Range<u64> = 300..700;
const OUTPUT_TOKENS: std::ops::Range<u32> = 20..100;

/// See the module documentation.
pub(super) struct Conversations {
    seed: u64,
    /// The Envoys that requests are sent to.
    open: RwLock<Vec<Client>>,
}

impl Conversations {
    /// Conversations that follow from `seed`, through these Envoys.
    pub(super) fn new(seed: u64, envoys: Vec<Client>) -> Self {
        Self {
            seed,
            open: RwLock::new(envoys),
        }
    }

    /// Sends what comes next through these Envoys.
    pub(super) fn open(&self, envoys: Vec<Client>) {
        *self.open.write() = envoys;
    }

    fn dice(&self, client: usize, number: u64) -> SmallRng {
        SmallRng::seed_from_u64(mixed(mixed(self.seed, client as u64), number))
    }
}

impl Asking for Conversations {
    fn ask(&self, client: usize, number: u64) -> anyhow::Result<(Client, Call)> {
        let mut dice = self.dice(client, number);
        // Clients do not begin all at once.
        let number = number + client as u64 % TURNS;
        let session = mixed(mixed(!self.seed, client as u64), number / TURNS);
        let said = |turn: u64| text(mixed(session, turn), TURN_BYTES);
        let turns: Vec<_> = (0..number % TURNS).map(said).collect();
        let (streamed, tokens) = (dice.random(), dice.random_range(OUTPUT_TOKENS));
        let question = said(number % TURNS);
        let system = text(session, SYSTEM_BYTES);
        let call = post(&system, &turns, &question, streamed, tokens)
            .header("x-session-id", format!("{session:x}"))?;
        let open = self.open.read();
        let chosen = dice.random_range(0..open.len().max(1));
        let envoy = open.get(chosen).context("no Envoy is open")?;
        Ok((envoy.clone(), call))
    }

    fn thinking(&self, client: usize, number: u64) -> Duration {
        let mut dice = self.dice(client, !number);
        Duration::from_millis(dice.random_range(THINKING_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_repeats_those_before_it_and_goes_anywhere() {
        let client = |port| Client::new(([127, 0, 0, 1], port).into()).unwrap();
        let all = Conversations::new(3, vec![client(1), client(2)]);
        let calls: Vec<_> = (0..TURNS).map(|turn| all.ask(0, turn).unwrap()).collect();
        let asked = |port: u16| calls.iter().any(|(it, _)| it.target().port() == port);
        assert!(asked(1) && asked(2));
        let bodies: Vec<_> = calls.iter().map(|(_, call)| call.body.as_ref()).collect();
        let sessions: Vec<_> = calls
            .iter()
            .map(|it| &it.1.headers["x-session-id"])
            .collect();
        for (two, sessions) in bodies.windows(2).zip(sessions.windows(2)) {
            assert!(two[0].len() < two[1].len() && sessions[0] == sessions[1]);
        }
        let next = all.ask(0, TURNS).unwrap().1;
        assert!(next.headers["x-session-id"] != *sessions[0]);
        assert!(next.body.len() < bodies[1].len());
        all.open(vec![client(2)]);
        assert!((0..20).all(|turn| all.ask(1, turn).unwrap().0.target().port() == 2));
        all.open(Vec::new());
        assert!(all.ask(0, 0).is_err());
    }
}
