//! The requests of a soak, each made from its number alone: equal numbers make equal requests.
//!
//! Bodies are cut from one text, so that making one costs a copy. A message is O(its body).

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Model of the pool with policy `prefix`.
pub(super) const PREFIX_MODEL: &str = "llama-3-8b";
/// Model of the pool with policy `consistent_hash`.
pub(super) const HASH_MODEL: &str = "qwen-2.5-7b";
/// Bodies of most requests, in bytes.
const USUAL_BYTES: std::ops::Range<usize> = 1 << 10..32 << 10;
/// One in a hundred is as long as this.
const LONG_BYTES: usize = 160 << 10;
/// System prompts, and how long they are.
const SYSTEMS: usize = 50;
const SYSTEM_BYTES: usize = 600;
/// Half of all prompts are one of so many, the others are new.
const KNOWN_PROMPTS: u64 = 5000;
/// Sessions of the six in ten requests that have one.
const SESSIONS: u64 = 20_000;
const MOST_OUTPUT_TOKENS: u32 = 24;
const TEXT_BYTES: usize = 512 << 10;

const WORDS: [&str; 16] = [
    "engine ",
    "answer ",
    "the ",
    "of ",
    "a cache ",
    "tokens ",
    "\\n",
    "why ",
    "model ",
    "with ",
    "\\\"quoted\\\" ",
    "1024 ",
    "worker ",
    "is ",
    "caf\u{e9} ",
    "between ",
];

/// Which requests are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Chats of all lengths, streamed or not, with a session or without.
    Mixed,
    /// The shortest of prompts, and a session that never was before.
    Sessions,
}

/// Makes messages.
#[derive(Debug)]
pub(super) struct Messages {
    kind: Kind,
    text: String,
    seed: u64,
}

impl Messages {
    /// Messages of a kind.
    pub(super) fn new(kind: Kind, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut text = String::with_capacity(TEXT_BYTES + 16);
        while text.len() < TEXT_BYTES {
            text.push_str(WORDS.choose(&mut rng).copied().unwrap_or(" "));
        }
        Self { kind, text, seed }
    }

    /// Writes a whole HTTP/1.1 request in place of what `out` has.
    pub(super) fn write(&self, number: u64, out: &mut Vec<u8>) {
        let mut rng =
            SmallRng::seed_from_u64(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (path, session, body) = match self.kind {
            Kind::Mixed => {
                let session = rng.random_bool(0.6).then(|| rng.random_range(0..SESSIONS));
                ("chat/completions", session, self.chat(number, &mut rng))
            }
            Kind::Sessions => {
                let model = match number % 2 {
                    0 => PREFIX_MODEL,
                    _ => HASH_MODEL,
                };
                let body = format!(r#"{{"model":"{model}","prompt":"hi","max_tokens":1}}"#);
                ("completions", Some(number), body)
            }
        };
        let session = session.map_or(String::new(), |session| {
            format!("x-session-id: session-{session:016x}\r\n")
        });
        out.clear();
        out.extend_from_slice(
            format!(
                "POST /v1/{path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                 {session}content-length: {}\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        );
    }

    fn chat(&self, number: u64, rng: &mut SmallRng) -> String {
        // The length must follow from the prompt's name: a known prompt is the same to its end.
        let known = rng.random_bool(0.5);
        let name = match known {
            true => rng.random_range(0..KNOWN_PROMPTS),
            false => KNOWN_PROMPTS + number,
        };
        let mut of_prompt = SmallRng::seed_from_u64(name);
        let bytes = match of_prompt.random_range(0..100) {
            0 => LONG_BYTES,
            _ => {
                let (least, most) = (USUAL_BYTES.start as f64, USUAL_BYTES.end as f64);
                (least * (most / least).powf(of_prompt.random())) as usize
            }
        };
        let system = self.cut(
            of_prompt.random_range(0..SYSTEMS) * SYSTEM_BYTES,
            SYSTEM_BYTES,
        );
        let from = of_prompt.random_range(0..TEXT_BYTES - LONG_BYTES);
        let own = self.cut(from, bytes.saturating_sub(SYSTEM_BYTES));
        let stream = match rng.random_bool(0.5) {
            true => r#""stream":true,"stream_options":{"include_usage":true}"#,
            false => r#""stream":false"#,
        };
        let max_tokens = rng.random_range(1..=MOST_OUTPUT_TOKENS);
        format!(
            r#"{{"model":"{PREFIX_MODEL}",{stream},"max_tokens":{max_tokens},"messages":[{{"role":"system","content":"{system}"}},{{"role":"user","content":"{name} {own}"}}]}}"#
        )
    }

    /// About `bytes` bytes of text, cut where a word begins.
    fn cut(&self, from: usize, bytes: usize) -> &str {
        let word = |at: usize| {
            let at = at.min(self.text.len());
            let tail = self.text.as_bytes().get(at..).unwrap_or_default();
            let space = tail.iter().position(|byte| *byte == b' ');
            space.map_or(self.text.len(), |space| at + space + 1)
        };
        self.text.get(word(from)..word(from + bytes)).unwrap_or("")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn parts(message: &[u8]) -> (String, serde_json::Value) {
        let text = std::str::from_utf8(message).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let length = head.rsplit_once("content-length: ").unwrap().1;
        assert_eq!(length.parse::<usize>().unwrap(), body.len());
        (head.to_owned(), serde_json::from_str(body).unwrap())
    }

    #[test]
    fn chats_are_json_of_all_kinds() {
        let messages = Messages::new(Kind::Mixed, 1);
        let mut out = Vec::new();
        let mut prompts = HashSet::new();
        let (mut streams, mut sessions, mut long) = (0, 0, 0);
        for number in 0..1000 {
            messages.write(number, &mut out);
            let (head, body) = parts(&out);
            streams += u32::from(body["stream"] == true);
            sessions += u32::from(head.contains("x-session-id"));
            long += u32::from(out.len() > 100 << 10);
            prompts.insert(body["messages"].to_string());
        }
        assert!((400..600).contains(&streams) && (500..700).contains(&sessions));
        assert!((2..30).contains(&long));
        assert!((900..1000).contains(&prompts.len()), "{}", prompts.len());
    }

    #[test]
    fn every_session_is_a_new_one() {
        let messages = Messages::new(Kind::Sessions, 1);
        let mut out = Vec::new();
        let mut seen = HashSet::new();
        let mut models = HashSet::new();
        for number in 0..500 {
            messages.write(number, &mut out);
            let (head, body) = parts(&out);
            assert!(seen.insert(head));
            models.insert(body["model"].as_str().unwrap().to_owned());
        }
        assert_eq!(models.len(), 2);
    }
}
