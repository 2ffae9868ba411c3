//! The requests that are sent: complete HTTP/1.1 messages made before the clock runs.
//!
//! Prompts come in groups that share their first part. A message is kept as two pieces with room
//! for a *stamp* between them: a stamp that was never used before makes everything after it a prompt
//! nobody has seen, without copying or generating a body while the clock runs. Memory is bounded by
//! [`MAX_CORPUS_BYTES`].

use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// The model that every request names.
pub const MODEL: &str = "llama-3-8b";
/// Bytes of a stamp.
const STAMP_BYTES: usize = 16;
/// Groups of prompts that share their first part.
const GROUPS: usize = 20;
/// Prompts of a group.
const MEMBERS: usize = 10;
/// How much of a prompt its group shares, in percent.
const SHARED_PERCENT: usize = 60;
/// Most bytes of all messages; large bodies come in fewer groups.
const MAX_CORPUS_BYTES: usize = 64 << 20;
/// Prefixes of the memory run.
const MEMORY_PREFIXES: usize = 50;
/// Bytes of such a prefix.
const MEMORY_PREFIX_BYTES: usize = 8 << 10;
/// Bytes of a prompt of the memory run.
const MEMORY_PROMPT_BYTES: usize = 32 << 10;

/// Counts stamps over all corpora of this process, so that none is used twice.
static NEXT_STAMP: AtomicU64 = AtomicU64::new(1);

/// How often a prompt is one that was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Warmth {
    /// Always, once all prompts were sent.
    Hot,
    /// Never: the prompts differ from their first bytes on.
    Cold,
    /// Nine times of ten.
    Mixed,
}

impl Warmth {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Warmth::Hot => "hot",
            Warmth::Cold => "cold",
            Warmth::Mixed => "mixed",
        }
    }
}

/// What prompts consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Text without a single JSON escape, instead of about one in 70 bytes.
    pub plain: bool,
    /// The model stands at the body's end, as some clients write it, instead of its beginning.
    pub model_last: bool,
}

/// A message of a corpus, ready to be written.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The head and the body up to the stamp.
    pub before: &'a [u8],
    /// The stamp.
    pub stamp: [u8; STAMP_BYTES],
    /// The rest of the body.
    pub after: &'a [u8],
}

/// Messages of one kind, given out in turn.
#[derive(Debug)]
pub struct Corpus {
    templates: Vec<Template>,
    warmth: Warmth,
    turn: AtomicU64,
}

#[derive(Debug)]
struct Template {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Corpus {
    /// Chat completions whose bodies have `body_bytes` bytes (at least some 300), in 20 groups of 10
    /// that share 60 % of their prompt. Successive messages belong to different groups.
    pub fn shared_prefix(body_bytes: usize, warmth: Warmth, style: Style) -> Self {
        let groups = (MAX_CORPUS_BYTES / MEMBERS / body_bytes.max(1)).clamp(1, GROUPS);
        let prompt_bytes = body_bytes.saturating_sub(frame(style, "", "", "").total());
        let shared_bytes = prompt_bytes * SHARED_PERCENT / 100;
        let mut writer = Writer::new(style);
        let shared: Vec<_> = (0..groups).map(|_| writer.text(shared_bytes)).collect();
        let mut templates = Vec::with_capacity(groups * MEMBERS);
        for member in 0..MEMBERS {
            for (group, shared) in shared.iter().enumerate() {
                let own = writer.text(prompt_bytes - shared_bytes);
                let session = format!("session-{group}-{member}");
                templates.push(message(&session, frame(style, "", shared, &own)));
            }
        }
        Self::of(templates, warmth)
    }

    /// Prompts of 32 KB, each sent once: the first 8 KB are one of 50 prefixes, the rest is new.
    pub fn distinct() -> Self {
        let style = Style {
            plain: false,
            model_last: false,
        };
        let mut writer = Writer::new(style);
        let templates = (0..MEMORY_PREFIXES).map(|index| {
            let prefix = writer.text(MEMORY_PREFIX_BYTES);
            let own = writer.text(MEMORY_PROMPT_BYTES - MEMORY_PREFIX_BYTES);
            message(&format!("session-{index}"), frame(style, &prefix, "", &own))
        });
        Self::of(templates.collect(), Warmth::Cold)
    }

    fn of(templates: Vec<Template>, warmth: Warmth) -> Self {
        Self {
            templates,
            warmth,
            turn: AtomicU64::new(0),
        }
    }

    /// How many messages there are before they repeat.
    pub fn len(&self) -> usize {
        self.templates.len()
    }

    /// The next message.
    pub fn next(&self) -> Message<'_> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let new = match self.warmth {
            Warmth::Hot => false,
            Warmth::Cold => true,
            Warmth::Mixed => turn % 10 == 9,
        };
        let mut stamp = [b'0'; STAMP_BYTES];
        if new {
            write_hex(&mut stamp, NEXT_STAMP.fetch_add(1, Ordering::Relaxed));
        }
        let at = turn as usize % self.templates.len().max(1);
        let (before, after) = self.templates.get(at).map_or((&[][..], &[][..]), |found| {
            (found.before.as_slice(), found.after.as_slice())
        });
        Message {
            before,
            stamp,
            after,
        }
    }
}

/// The parts of a body around its stamp.
struct Frame {
    before: String,
    after: String,
}

impl Frame {
    fn total(&self) -> usize {
        self.before.len() + STAMP_BYTES + self.after.len()
    }
}

/// A chat completion: `prefix`, the stamp and `shared` are its system prompt, `own` the question.
fn frame(style: Style, prefix: &str, shared: &str, own: &str) -> Frame {
    let options = format!(r#""model":"{MODEL}","stream":false,"max_tokens":16"#);
    let before = format!(r#""messages":[{{"role":"system","content":"{prefix}"#);
    let after = format!(r#"{shared}"}},{{"role":"user","content":"{own}"}}]"#);
    if style.model_last {
        return Frame {
            before: format!("{{{before}"),
            after: format!("{after},{options}}}"),
        };
    }
    Frame {
        before: format!("{{{options},{before}"),
        after: format!("{after}}}"),
    }
}

fn message(session: &str, frame: Frame) -> Template {
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         x-session-id: {session}\r\ncontent-length: {}\r\n\r\n",
        frame.total()
    );
    Template {
        before: (head + &frame.before).into_bytes(),
        after: frame.after.into_bytes(),
    }
}

fn write_hex(stamp: &mut [u8; STAMP_BYTES], number: u64) {
    for (place, digit) in stamp.iter_mut().rev().enumerate() {
        let nibble = (number >> (4 * place)) & 15;
        *digit = char::from_digit(nibble as u32, 16).map_or(b'0', |digit| digit as u8);
    }
}

/// Writes text of words, the same in every run.
struct Writer {
    random: SmallRng,
    plain: bool,
}

const WORDS: [&str; 40] = [
    "the", "of", "and", "to", "in", "is", "that", "for", "with", "request", "engine", "answer",
    "a", "cache", "prompt", "token", "policy", "worker", "model", "system", "user", "function",
    "returns", "value", "between", "every", "under", "please", "explain", "how", "why", "first",
    "second", "context", "document", "section", "result", "error", "history", "message",
];

impl Writer {
    fn new(style: Style) -> Self {
        Self {
            random: SmallRng::seed_from_u64(7),
            plain: style.plain,
        }
    }

    /// Exactly `length` bytes of JSON string content.
    fn text(&mut self, length: usize) -> String {
        let mut text = String::with_capacity(length + 32);
        let mut next_escape = self.random.random_range(60..80);
        while text.len() < length {
            text.push_str(WORDS.choose(&mut self.random).copied().unwrap_or("a"));
            text.push(' ');
            if text.len() >= next_escape {
                next_escape = text.len() + self.random.random_range(60..80);
                if !self.plain {
                    text.push_str(if self.random.random() { "\\n" } else { "\\\"" });
                }
            }
        }
        text.truncate(length);
        // A cut escape would open the string's end; an odd count of backslashes says it was cut.
        if text.ends_with('\\') {
            text.pop();
            text.push('.');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn body(message: &Message) -> String {
        let bytes = [message.before, &message.stamp, message.after].concat();
        let text = String::from_utf8(bytes).unwrap();
        text.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    fn style(plain: bool, model_last: bool) -> Style {
        Style { plain, model_last }
    }

    #[test]
    fn bodies_are_json_of_the_asked_size() {
        for (plain, model_last) in [(false, false), (true, false), (false, true)] {
            for size in [1 << 10, 32 << 10, 1 << 20] {
                let corpus = Corpus::shared_prefix(size, Warmth::Hot, style(plain, model_last));
                for _ in 0..corpus.len() {
                    let text = body(&corpus.next());
                    assert_eq!(text.len(), size);
                    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(value["model"], MODEL);
                }
            }
        }
    }

    #[test]
    fn escapes_come_about_once_in_70_bytes() {
        let count = |plain| {
            let corpus = Corpus::shared_prefix(64 << 10, Warmth::Hot, style(plain, false));
            body(&corpus.next()).matches('\\').count()
        };
        assert_eq!(count(true), 0);
        assert!((700..1200).contains(&count(false)), "{}", count(false));
    }

    #[test]
    fn members_of_a_group_share_most_of_their_prompt() {
        let corpus = Corpus::shared_prefix(8 << 10, Warmth::Hot, style(false, false));
        let bodies: Vec<_> = (0..corpus.len()).map(|_| body(&corpus.next())).collect();
        let common =
            |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
        assert!(common(&bodies[0], &bodies[GROUPS]) > (8 << 10) / 2);
        assert!(common(&bodies[0], &bodies[1]) < 200);
    }

    #[test]
    fn warmth_says_how_many_prompts_are_new() {
        let repeated = |warmth| {
            let corpus = Corpus::shared_prefix(1 << 10, warmth, style(false, false));
            let mut seen: HashSet<_> = (0..corpus.len()).map(|_| body(&corpus.next())).collect();
            (0..corpus.len())
                .filter(|_| !seen.insert(body(&corpus.next())))
                .count()
        };
        assert_eq!(repeated(Warmth::Hot), 200);
        assert_eq!(repeated(Warmth::Cold), 0);
        assert_eq!(repeated(Warmth::Mixed), 180);
    }

    #[test]
    fn prompts_of_the_memory_run_never_repeat_but_share_prefixes() {
        let corpus = Corpus::distinct();
        let bodies: HashSet<_> = (0..500).map(|_| body(&corpus.next())).collect();
        assert_eq!(bodies.len(), 500);
        let prefixes: HashSet<_> = bodies.iter().map(|body| body[..8000].to_owned()).collect();
        assert_eq!(prefixes.len(), MEMORY_PREFIXES);
    }
}
