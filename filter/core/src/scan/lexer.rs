//! The grammar: an incremental JSON parser that takes slices and gives events.
//!
//! Input may be cut anywhere, also inside an escape or a number; the whole state is a few words and
//! no input byte is kept. Memory is constant, time linear. It accepts what `serde_json` accepts as
//! a `Value`, nesting bound included, except that it checks neither UTF-8, nor lone surrogates (read
//! as U+FFFD), nor the range of numbers: the engine behind us does. The body must be an object.
//!
//! Tokens that lie whole in a slice take a short way; the states inside a token are for those that
//! do not, and for the rare escapes.

mod numbers;
mod strings;

use std::fmt;

use super::events::{Container, Literal, Place, Position, Sink};

/// Most containers open at once; the bound of `serde_json`.
pub const MAX_DEPTH: usize = 127;

/// Why and where a body is not a JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanError {
    /// Offset in the body of the offending byte, or the body's length when it ended too early.
    pub offset: usize,
    /// What was wrong there.
    pub reason: &'static str,
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: {}", self.offset, self.reason)
    }
}

impl std::error::Error for ScanError {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    // Between tokens; `Done` is the last of these.
    Key,
    FirstKey,
    Colon,
    Value,
    FirstElement,
    AfterValue,
    Body,
    Done,
    // Inside a string.
    Text,
    Escape,
    Hex,
    AfterHigh,
    EscapeAfterHigh,
    // Inside a number, named after what was read last.
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    // Inside `true`, `false`, `null`.
    Literal,
}

#[derive(Clone, Debug)]
pub(super) struct Lexer {
    state: State,
    /// Whether the string being read is a key.
    in_key: bool,
    depth: usize,
    /// The kinds of the open containers, innermost in the lowest bit; 1 is an array.
    arrays: u128,
    /// Hex digits of a `\u` escape read so far, and how many.
    unit: u16,
    unit_digits: u8,
    /// A high surrogate that waits for its low one, or 0.
    high: u16,
    literal: Literal,
    literal_read: usize,
    literal_place: Place,
    scanned: usize,
    failed: Option<ScanError>,
}

/// A refusal with `left` bytes of the slice unread.
struct Fault {
    left: usize,
    reason: &'static str,
}

/// What is left of the slice after a step.
type Step<'a> = Result<&'a [u8], Fault>;

#[cold]
fn fault<'a>(left: &[u8], reason: &'static str) -> Step<'a> {
    Err(Fault {
        left: left.len(),
        reason,
    })
}

/// What follows the whitespace at the start of `rest`.
#[inline]
fn skip_space(rest: &[u8]) -> &[u8] {
    let mut rest = rest;
    while let Some((b' ' | b'\n' | b'\r' | b'\t', tail)) = rest.split_first() {
        rest = tail;
    }
    rest
}

impl Lexer {
    pub(super) fn new() -> Self {
        Self {
            state: State::Body,
            in_key: false,
            depth: 0,
            arrays: 0,
            unit: 0,
            unit_digits: 0,
            high: 0,
            literal: Literal::Null,
            literal_read: 0,
            literal_place: Place {
                depth: 0,
                position: Position::Body,
            },
            scanned: 0,
            failed: None,
        }
    }

    /// Bytes read so far.
    pub(super) fn scanned(&self) -> usize {
        self.scanned
    }

    /// Reads the next slice of the body.
    pub(super) fn feed<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<(), ScanError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let end = self.scanned + bytes.len();
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.step(rest, end, sink) {
                Ok(left) => rest = left,
                Err(Fault { left, reason }) => return self.fail(end - left, reason),
            }
        }
        self.scanned = end;
        Ok(())
    }

    /// Whether the object is complete; only white space may follow.
    pub(super) fn is_complete(&self) -> bool {
        self.failed.is_none() && matches!(self.state, State::Done)
    }

    /// The body has ended.
    pub(super) fn finish(&mut self) -> Result<(), ScanError> {
        match (self.failed, self.state) {
            (Some(error), _) => Err(error),
            (None, State::Done) => Ok(()),
            (None, State::Body) => self.fail(self.scanned, "the body is empty, want `{`"),
            (None, _) => self.fail(self.scanned, "the body ends inside a value"),
        }
    }

    fn fail(&mut self, offset: usize, reason: &'static str) -> Result<(), ScanError> {
        let error = ScanError { offset, reason };
        self.scanned = offset;
        self.failed = Some(error);
        Err(error)
    }

    /// Reads at least one byte of `rest`, which is not empty. `end` is the offset of its end.
    #[inline]
    fn step<'a, S: Sink>(&mut self, rest: &'a [u8], end: usize, sink: &mut S) -> Step<'a> {
        match self.state {
            State::Body
            | State::Done
            | State::Value
            | State::FirstElement
            | State::FirstKey
            | State::Key
            | State::Colon
            | State::AfterValue => self.tokens(rest, end, sink),
            State::Text => self.text(rest, end, sink),
            State::Escape => self.escape(rest, sink),
            State::Hex => self.hex(rest, sink),
            State::AfterHigh | State::EscapeAfterHigh => self.after_high(rest, sink),
            State::Literal => self.rest_of_literal(rest, sink),
            _ => self.rest_of_number(rest, sink),
        }
    }

    /// Whole tokens, up to one that needs a state of its own or to the end of `rest`.
    ///
    /// The states follow each other in the order of the branches, so that the processor can guess
    /// nearly all of them.
    fn tokens<'a, S: Sink>(&mut self, rest: &'a [u8], end: usize, sink: &mut S) -> Step<'a> {
        let mut rest = rest;
        while self.state as u8 <= State::Done as u8 {
            if let State::Key | State::FirstKey = self.state {
                rest = skip_space(rest);
                rest = match (rest.split_first(), self.state) {
                    (Some((b'"', tail)), _) => self.key(tail, sink),
                    (Some((b'}', tail)), State::FirstKey) => {
                        self.close(Container::Object, sink);
                        tail
                    }
                    _ => return self.unexpected(rest),
                };
            }
            if self.state == State::Colon {
                rest = skip_space(rest);
                let Some((b':', tail)) = rest.split_first() else {
                    return self.unexpected(rest);
                };
                self.state = State::Value;
                rest = tail;
            }
            if let State::Value | State::FirstElement = self.state {
                rest = self.value(skip_space(rest), end, sink)?;
            }
            if self.state == State::AfterValue {
                rest = self.after_value(skip_space(rest), sink)?;
            }
            if let State::Body | State::Done = self.state {
                rest = skip_space(rest);
                match (rest.split_first(), self.state) {
                    (Some((b'{', tail)), State::Body) => {
                        rest = self.open(Container::Object, rest, tail, sink)?;
                    }
                    _ => return self.unexpected(rest),
                }
            }
            if rest.is_empty() {
                break;
            }
        }
        Ok(rest)
    }

    /// The end of the slice, or a byte that may not stand here.
    #[cold]
    fn unexpected<'a>(&self, rest: &'a [u8]) -> Step<'a> {
        if rest.is_empty() {
            return Ok(rest);
        }
        fault(rest, self.expected())
    }

    fn expected(&self) -> &'static str {
        match self.state {
            State::Body => "expected `{`",
            State::Done => "expected nothing more after the object",
            State::Colon => "expected `:`",
            State::Key => "expected `\"`",
            State::FirstKey => "expected `\"` or `}`",
            State::AfterValue if self.in_array() => "expected `,` or `]`",
            State::AfterValue => "expected `,` or `}`",
            _ => "expected a value",
        }
    }

    /// A value starts.
    #[inline]
    fn value<'a, S: Sink>(&mut self, rest: &'a [u8], end: usize, sink: &mut S) -> Step<'a> {
        let Some((&byte, tail)) = rest.split_first() else {
            return Ok(rest);
        };
        match byte {
            b'"' => {
                sink.start_string(self.place(), end - rest.len());
                self.in_key = false;
                self.state = State::Text;
                self.text(tail, end, sink)
            }
            b'-' | b'0'..=b'9' => Ok(self.number(byte, rest, tail, sink)),
            b'{' => self.open(Container::Object, rest, tail, sink),
            b'[' => self.open(Container::Array, rest, tail, sink),
            b't' => Ok(self.literal(Literal::True, tail)),
            b'f' => Ok(self.literal(Literal::False, tail)),
            b'n' => Ok(self.literal(Literal::Null, tail)),
            b']' if self.state == State::FirstElement => {
                self.close(Container::Array, sink);
                Ok(tail)
            }
            _ => self.unexpected(rest),
        }
    }

    /// What follows a value.
    #[inline]
    fn after_value<'a, S: Sink>(&mut self, rest: &'a [u8], sink: &mut S) -> Step<'a> {
        match (rest.split_first(), self.in_array()) {
            (Some((b',', tail)), in_array) => {
                self.state = if in_array { State::Value } else { State::Key };
                Ok(tail)
            }
            (Some((b'}', tail)), false) => {
                self.close(Container::Object, sink);
                Ok(tail)
            }
            (Some((b']', tail)), true) => {
                self.close(Container::Array, sink);
                Ok(tail)
            }
            _ => self.unexpected(rest),
        }
    }

    #[inline]
    fn in_array(&self) -> bool {
        self.arrays & 1 == 1
    }

    #[inline]
    fn place(&self) -> Place {
        let position = match self.state {
            State::Body => Position::Body,
            State::FirstElement => Position::First,
            _ if self.in_array() => Position::Later,
            _ => Position::Member,
        };
        Place {
            depth: self.depth,
            position,
        }
    }

    fn open<'a, S: Sink>(
        &mut self,
        container: Container,
        rest: &'a [u8],
        tail: &'a [u8],
        sink: &mut S,
    ) -> Step<'a> {
        if self.depth >= MAX_DEPTH {
            return fault(rest, "nested too deeply");
        }
        sink.open(self.place(), container);
        self.depth += 1;
        self.arrays = self.arrays << 1 | u128::from(container == Container::Array);
        self.state = match container {
            Container::Object => State::FirstKey,
            Container::Array => State::FirstElement,
        };
        Ok(tail)
    }

    fn close<S: Sink>(&mut self, container: Container, sink: &mut S) {
        self.depth = self.depth.saturating_sub(1);
        self.arrays >>= 1;
        self.state = match self.depth {
            0 => State::Done,
            _ => State::AfterValue,
        };
        sink.close(self.depth, container);
    }

    #[inline]
    fn literal<'a>(&mut self, literal: Literal, tail: &'a [u8]) -> &'a [u8] {
        self.literal_place = self.place();
        self.literal = literal;
        self.literal_read = 1;
        self.state = State::Literal;
        tail
    }

    /// `true`, `false` or `null` after its first letter.
    fn rest_of_literal<'a, S: Sink>(&mut self, rest: &'a [u8], sink: &mut S) -> Step<'a> {
        let wanted = self.literal.text().get(self.literal_read..);
        let wanted = wanted.unwrap_or_default();
        let same = rest.iter().zip(wanted).take_while(|(a, b)| a == b).count();
        let left = rest.get(same..).unwrap_or_default();
        self.literal_read += same;
        if same == wanted.len() {
            sink.literal(self.literal_place, self.literal);
            self.state = State::AfterValue;
        } else if !left.is_empty() {
            return fault(left, "expected `true`, `false` or `null`");
        }
        Ok(left)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Api, RequestScan, ScanPlan};
    use super::*;

    fn error(body: &str) -> String {
        let mut scan = RequestScan::new(Api::ChatCompletions);
        let fed = scan.feed(&ScanPlan::default(), body.as_bytes());
        let error = fed.and_then(|()| scan.finish()).unwrap_err();
        assert_eq!(scan.finish(), Err(error), "an error stays");
        assert_eq!(scan.feed(&ScanPlan::default(), b"{}"), Err(error));
        assert_eq!(scan.scanned(), error.offset);
        error.to_string()
    }

    #[test]
    fn an_error_says_where_and_what() {
        let cases = [
            ("", "byte 0: the body is empty, want `{`"),
            ("  [1]", "byte 2: expected `{`"),
            ("{\"a\" 1}", "byte 5: expected `:`"),
            ("{1}", "byte 1: expected `\"` or `}`"),
            ("{\"a\":1,}", "byte 7: expected `\"`"),
            ("{\"a\":1]", "byte 6: expected `,` or `}`"),
            ("{\"a\":[1}", "byte 7: expected `,` or `]`"),
            ("{\"a\":[1,]}", "byte 8: expected a value"),
            ("{\"a\":+1}", "byte 5: expected a value"),
            ("{\"a\":-}", "byte 6: expected a digit"),
            ("{\"a\":1.}", "byte 7: expected a digit"),
            ("{\"a\":01}", "byte 6: expected `,` or `}`"),
            ("{\"a\":nul}", "byte 8: expected `true`, `false` or `null`"),
            ("{\"a\":\"\\x\"}", "byte 7: no such escape"),
            ("{\"a\":\"\\u12g4\"}", "byte 10: expected four hex digits"),
            (
                "{\"a\n\":1}",
                "byte 3: a control byte in a string must be escaped",
            ),
            ("{} x", "byte 3: expected nothing more after the object"),
            ("{\"a\":\"b", "byte 7: the body ends inside a value"),
        ];
        for (body, expected) in cases {
            assert_eq!(error(body), expected, "{body}");
        }
    }

    #[test]
    fn nesting_has_a_bound() {
        let nested = |depth: usize| {
            let (open, close) = ("[".repeat(depth - 1), "]".repeat(depth - 1));
            format!("{{\"a\":{open}{close}}}")
        };
        assert_eq!(error(&nested(MAX_DEPTH + 1)), "byte 131: nested too deeply");
        let mut scan = RequestScan::new(Api::Completions);
        let body = nested(MAX_DEPTH);
        assert_eq!(scan.feed(&ScanPlan::default(), body.as_bytes()), Ok(()));
        assert_eq!(scan.finish(), Ok(()));
    }
}
