//! Token counts of an answer: `usage`, found while the answer passes.
//!
//! The answer is not parsed as a whole. The bytes `"usage"` with no backslash before them can only
//! be a complete JSON string, whatever came before, so the search needs no state but how much of
//! them has matched. What follows such a key is kept up to [`MAX_OBJECT_BYTES`] and parsed; from
//! there to the end of the event or body brackets are counted, and the object counts only if it
//! turns out to stand where engines write it. So neither a model nor a tool schema that a client
//! sent can pass for it. Linear; a chunk without the key costs one pass over its bytes.
//!
//! Known places: at the top of a body or event (OpenAI chat and completions, Anthropic messages and
//! their `message_delta`, OpenAI responses), and one object down in an event (`message` of
//! `message_start`, `response` of `response.completed`).
//!
//! ```
//! use warmpath_core::wire::usage::{Framing, UsageScan};
//! let mut scan = UsageScan::new(Framing::EventStream);
//! scan.push(b"data: {\"choices\":[],\"usage\":{\"prompt_to");
//! scan.push(b"kens\":12,\"completion_tokens\":4}}\n\n");
//! assert_eq!(scan.finish().and_then(|usage| usage.prompt_tokens), Some(12));
//! ```

mod figures;
mod key;

pub use figures::Usage;
use key::KeySearch;

/// Most bytes of a `usage` object. vLLM's largest, of `/v1/responses`, has about 250.
pub const MAX_OBJECT_BYTES: usize = 1024;

/// How the answer is cut into JSON texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// The body is one JSON text.
    Json,
    /// Server-sent events, each with its JSON in one line.
    EventStream,
}

/// Looks for the token counts of one answer.
#[derive(Clone, Debug)]
pub struct UsageScan {
    framing: Framing,
    state: State,
    search: KeySearch,
    /// Containers opened less containers closed since the first candidate of this JSON text.
    level: i64,
    /// The bytes of the object that is being read, and the level it stands on.
    object: Vec<u8>,
    object_level: Option<i64>,
    /// The outermost candidate and its level.
    candidate: Option<(i64, Usage)>,
    usage: Option<Usage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Looking for the key, anywhere.
    Search,
    /// Between tokens.
    Outside,
    Text,
    Escape,
    /// After a string `usage`.
    AfterKey,
    AfterColon,
}

/// The token counts in the end of a JSON body, of which any number of bytes may be cut off before
/// the key. Linear.
pub fn in_tail(tail: &[u8]) -> Option<Usage> {
    let mut scan = UsageScan::new(Framing::Json);
    scan.push(tail);
    scan.finish()
}

impl UsageScan {
    /// A scan of an answer that has not begun.
    pub fn new(framing: Framing) -> UsageScan {
        UsageScan {
            framing,
            state: State::Search,
            search: KeySearch::default(),
            level: 0,
            object: Vec::new(),
            object_level: None,
            candidate: None,
            usage: None,
        }
    }

    /// Reads the next piece of the answer, cut anywhere. Keeps at most [`MAX_OBJECT_BYTES`].
    pub fn push(&mut self, chunk: &[u8]) {
        let mut rest = chunk;
        loop {
            if self.state == State::Search {
                match self.search.find(rest) {
                    Some(after) => rest = after,
                    None => return,
                }
                self.level = 0;
                self.state = State::AfterKey;
            }
            let Some((&byte, tail)) = rest.split_first() else {
                return;
            };
            rest = tail;
            self.byte(byte);
        }
    }

    /// Some bytes are left out here. An object that had begun, or whose place is not known yet, is
    /// given up; what was counted stays.
    pub fn skip(&mut self) {
        self.candidate = None;
        self.end_text();
    }

    /// The counts of the complete events so far. Later figures replace earlier ones, one by one.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// The counts when the answer has ended.
    pub fn finish(&mut self) -> Option<Usage> {
        self.end_text();
        self.usage
    }

    fn byte(&mut self, byte: u8) {
        // JSON has no raw line ends inside strings, and engines write events in one line.
        if self.framing == Framing::EventStream && matches!(byte, b'\n' | b'\r') {
            return self.end_text();
        }
        if self.object_level.is_some() {
            self.keep(byte);
        }
        match self.state {
            State::Text => self.in_text(byte),
            State::Escape => self.state = State::Text,
            State::AfterKey | State::AfterColon if byte.is_ascii_whitespace() => {}
            State::AfterKey if byte == b':' => self.state = State::AfterColon,
            State::AfterColon if byte == b'{' => {
                self.object_level = Some(self.level);
                self.keep(byte);
                self.between(byte);
            }
            _ => self.between(byte),
        }
        // Nothing to place: no need to look at every byte.
        if self.state == State::Outside && self.candidate.is_none() && self.object_level.is_none() {
            self.search = KeySearch::default();
            self.state = State::Search;
            self.search.find(&[byte]);
        }
    }

    fn in_text(&mut self, byte: u8) {
        match byte {
            b'\\' => {
                self.search.miss();
                self.state = State::Escape;
            }
            b'"' => {
                let is_key = self.search.step(byte) && self.object_level.is_none();
                self.state = if is_key {
                    State::AfterKey
                } else {
                    State::Outside
                };
            }
            _ => {
                self.search.step(byte);
            }
        }
    }

    fn between(&mut self, byte: u8) {
        self.state = State::Outside;
        match byte {
            b'"' => {
                self.search = KeySearch::default();
                self.search.step(byte);
                self.state = State::Text;
            }
            b'{' | b'[' => self.level += 1,
            b'}' | b']' => {
                self.level -= 1;
                if self.object_level == Some(self.level) {
                    self.end_object();
                }
            }
            _ => {}
        }
    }

    fn keep(&mut self, byte: u8) {
        if self.object.len() < MAX_OBJECT_BYTES {
            self.object.push(byte);
        } else {
            self.object.clear();
            self.object_level = None;
        }
    }

    fn end_object(&mut self) {
        self.object_level = None;
        let found = Usage::parse(&self.object);
        self.object.clear();
        let outermost = self.candidate.is_none_or(|(level, _)| self.level <= level);
        if let Some(usage) = found.filter(|_| outermost) {
            self.candidate = Some((self.level, usage));
        }
    }

    /// A JSON text is over; now the depth of the candidate is known.
    fn end_text(&mut self) {
        if let Some((level, usage)) = self.candidate.take() {
            let depth = level - self.level;
            let deepest = match self.framing {
                Framing::Json => 1,
                Framing::EventStream => 2,
            };
            if (1..=deepest).contains(&depth) {
                self.usage = Some(self.usage.unwrap_or_default().updated(usage));
            }
        }
        self.object.clear();
        self.object_level = None;
        self.search = KeySearch::default();
        self.state = State::Search;
    }
}

#[cfg(test)]
mod tests;
