//! What clients ask: chats of 1 to 220 KB, streamed or not, in sessions or not.
//!
//! One idea: a request is a function of the seed, its client and its number, so a run can be repeated.
//! Prompts begin with one of a fixed set of documents, as they do where many ask about the same, so
//! that there is a cache to lose. O(body) a request; the documents take about 2 MB.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::bench::corpus::MODEL;
use crate::e2e::client::{Call, Transport};
use crate::e2e::conversation::text;

/// Documents that prompts begin with.
const DOCUMENTS: u32 = 40;
const SMALLEST_BYTES: f64 = 700.0;
const LARGEST_BYTES: f64 = 218_000.0;
/// Requests of a session; each repeats those before it.
const TURNS: u64 = 5;
const OUTPUT_TOKENS: std::ops::Range<u32> = 4..40;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Corpus {
    seed: u64,
    documents: Vec<String>,
}

impl Corpus {
    /// Requests that follow from `seed`.
    pub(super) fn new(seed: u64) -> Self {
        let growth = (LARGEST_BYTES / SMALLEST_BYTES).powf(1.0 / f64::from(DOCUMENTS - 1));
        let documents = (0..DOCUMENTS)
            .map(|number| {
                let bytes = SMALLEST_BYTES * growth.powi(number as i32);
                text(mixed(seed, u64::from(number)), bytes as usize)
            })
            .collect();
        Self { seed, documents }
    }

    /// How many documents there are.
    pub(super) fn len(&self) -> usize {
        self.documents.len()
    }

    /// A request that only repeats a document.
    pub(super) fn document(&self, number: usize) -> anyhow::Result<Call> {
        let document = self.documents.iter().cycle().nth(number);
        Ok(post(document.map_or("", |it| it), &[], "what?", false, 4))
    }

    /// The request of this number of a client.
    pub(super) fn call(&self, client: usize, number: u64) -> anyhow::Result<Call> {
        let own = mixed(mixed(self.seed, client as u64), number);
        let mut dice = SmallRng::seed_from_u64(own);
        let in_session = client.is_multiple_of(2);
        let session = mixed(mixed(self.seed, client as u64), number / TURNS);
        let chosen = if in_session { session } else { dice.random() };
        let document = self.documents.iter().cycle();
        let document = document
            .clone()
            .nth((chosen % u64::from(DOCUMENTS)) as usize);
        let turns: Vec<String> = match in_session {
            true => (0..number % TURNS)
                .map(|turn| format!("{session:x} {turn}"))
                .collect(),
            false => Vec::new(),
        };
        let (streamed, tokens) = (dice.random(), dice.random_range(OUTPUT_TOKENS));
        let question = format!("question {own:x}");
        let call = post(
            document.map_or("", |it| it),
            &turns,
            &question,
            streamed,
            tokens,
        );
        let call = call.over(match client % 4 {
            0 | 1 => Transport::Http1,
            2 => Transport::Http1NewConnection,
            _ => Transport::Http2,
        });
        match in_session {
            true => call.header("x-session-id", format!("{session:x}")),
            false => Ok(call),
        }
    }

    /// A body with something else in the place of the first part that is `from`.
    pub(super) fn replaced(body: &[u8], (from, to): (&[u8], &[u8])) -> Vec<u8> {
        let at = body.windows(from.len()).position(|it| it == from);
        let Some((before, rest)) = at.and_then(|at| body.split_at_checked(at)) else {
            return body.to_vec();
        };
        [before, to, rest.get(from.len()..).unwrap_or_default()].concat()
    }
}

/// A chat about a document. No text here needs to be escaped.
pub(super) fn post(
    document: &str,
    turns: &[String],
    question: &str,
    streamed: bool,
    tokens: u32,
) -> Call {
    let turns: String = turns
        .iter()
        .map(|turn| {
            format!(
                r#"{{"role":"user","content":"question {turn}"}},{{"role":"assistant","content":"answer {turn}"}},"#
            )
        })
        .collect();
    let body = format!(
        r#"{{"model":"{MODEL}","stream":{streamed},"max_tokens":{tokens},"messages":[{{"role":"system","content":"{document}"}},{turns}{{"role":"user","content":"{question}"}}]}}"#
    );
    Call::post("/v1/chat/completions", &serde_json::Value::Null).body(body)
}

/// A seed that follows from another one.
pub(super) fn mixed(seed: u64, number: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(&number.to_le_bytes(), seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_repeat_with_the_seed_and_are_mixed() {
        let corpus = Corpus::new(7);
        let calls = |corpus: &Corpus| -> Vec<Call> {
            (0..400)
                .map(|it| corpus.call(it % 8, it as u64 / 8).unwrap())
                .collect()
        };
        let first = calls(&corpus);
        let again = calls(&Corpus::new(7));
        assert!(first.iter().zip(&again).all(|(a, b)| a.body == b.body));
        let sizes = first.iter().map(|call| call.body.len());
        assert!(sizes.clone().min() < Some(2_000) && sizes.clone().max() > Some(180_000));
        assert!(sizes.max() <= Some(220_000));
        let streamed = |call: &&Call| call.body.windows(13).any(|it| it == b"\"stream\":true");
        assert!((100..300).contains(&first.iter().filter(streamed).count()));
        let in_session = |call: &&Call| call.headers.contains_key("x-session-id");
        assert_eq!(first.iter().filter(in_session).count(), 200);
        for call in &first {
            assert!(serde_json::from_slice::<serde_json::Value>(&call.body).is_ok());
        }
    }
}
