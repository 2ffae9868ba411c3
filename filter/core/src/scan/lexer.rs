//! The grammar: an incremental JSON parser that takes slices and gives events.
//!
//! Input may be cut anywhere, also inside an escape or a number; the whole state is a few words and
//! no input byte is kept. Memory is constant, time linear. It accepts what `serde_json` accepts as
//! a `Value`, nesting bound included, except that it checks neither UTF-8, nor lone surrogates (read
//! as U+FFFD), nor the range of numbers: the engine behind us does. The body must be an object.

use std::fmt;

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

/// A value without parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Literal {
    True,
    False,
    Null,
}

impl Literal {
    /// How it is written.
    pub(super) const fn text(self) -> &'static [u8] {
        match self {
            Self::True => b"true",
            Self::False => b"false",
            Self::Null => b"null",
        }
    }
}

/// The two kinds of container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Container {
    Object,
    Array,
}

/// What a value is to the container it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// The whole body.
    Body,
    /// The value of an object member.
    Member,
    /// The first element of an array.
    First,
    /// Another element of an array.
    Later,
}

/// Where a value stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// How many containers are open around it.
    pub(super) depth: usize,
    pub(super) position: Position,
}

/// Takes the events of a parse, in body order.
pub(super) trait Sink {
    fn open(&mut self, place: Place, container: Container);
    /// `depth` containers are still open.
    fn close(&mut self, depth: usize, container: Container);
    /// An object key starts, inside `depth` open containers.
    fn start_key(&mut self, depth: usize);
    fn end_key(&mut self, depth: usize);
    /// A string value starts; `at` is the offset of its opening quote.
    fn start_string(&mut self, place: Place, at: usize);
    /// `depth` containers are open; `end` is the offset after the closing quote.
    fn end_string(&mut self, depth: usize, end: usize);
    /// Takes the clean text at the start of `input`, up to the first quote, backslash or control
    /// byte, and returns its length.
    fn text(&mut self, input: &[u8]) -> usize;
    /// The byte that a short escape stands for.
    fn escaped(&mut self, byte: u8);
    /// The character that a `\u` escape stands for.
    fn escaped_char(&mut self, char: char);
    fn start_number(&mut self, place: Place, at: usize);
    /// A piece of a number's literal text.
    fn number(&mut self, piece: &[u8]);
    fn end_number(&mut self, depth: usize);
    fn literal(&mut self, place: Place, literal: Literal);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Body,
    Done,
    // Between tokens.
    Value,
    FirstElement,
    FirstKey,
    Key,
    Colon,
    AfterValue,
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

fn fault<'a>(left: &[u8], reason: &'static str) -> Step<'a> {
    Err(Fault {
        left: left.len(),
        reason,
    })
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
            State::Text => self.text(rest, end, sink),
            State::Escape => self.escape(rest, sink),
            State::Hex => self.hex(rest, sink),
            State::AfterHigh | State::EscapeAfterHigh => self.after_high(rest, sink),
            State::Minus
            | State::Zero
            | State::Integer
            | State::Point
            | State::Fraction
            | State::Exponent
            | State::ExponentSign
            | State::ExponentDigits => self.number(rest, sink),
            State::Literal => self.literal(rest, sink),
            _ => self.structure(rest, end, sink),
        }
    }

    /// One byte between tokens.
    #[inline]
    fn structure<'a, S: Sink>(&mut self, rest: &'a [u8], end: usize, sink: &mut S) -> Step<'a> {
        let Some((&byte, tail)) = rest.split_first() else {
            return Ok(rest);
        };
        if matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
            return Ok(tail);
        }
        match (self.state, byte) {
            (State::Colon, b':') => self.state = State::Value,
            (State::AfterValue, b',') if self.in_array() => self.state = State::Value,
            (State::AfterValue, b',') => self.state = State::Key,
            (State::Key | State::FirstKey, b'"') => {
                sink.start_key(self.depth);
                self.in_key = true;
                self.state = State::Text;
            }
            (State::AfterValue, b'}') if !self.in_array() => self.close(Container::Object, sink),
            (State::AfterValue, b']') if self.in_array() => self.close(Container::Array, sink),
            (State::FirstKey, b'}') => self.close(Container::Object, sink),
            (State::FirstElement, b']') => self.close(Container::Array, sink),
            (State::Value | State::FirstElement, _) => {
                return self.value(byte, rest, tail, end, sink);
            }
            (State::Body, b'{') => return self.open(Container::Object, rest, tail, sink),
            _ => return fault(rest, self.expected()),
        }
        Ok(tail)
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

    /// A value starts with `byte`.
    #[inline]
    fn value<'a, S: Sink>(
        &mut self,
        byte: u8,
        rest: &'a [u8],
        tail: &'a [u8],
        end: usize,
        sink: &mut S,
    ) -> Step<'a> {
        self.state = match byte {
            b'"' => {
                sink.start_string(self.place(), end - rest.len());
                self.in_key = false;
                State::Text
            }
            b'{' => return self.open(Container::Object, rest, tail, sink),
            b'[' => return self.open(Container::Array, rest, tail, sink),
            b'-' | b'0'..=b'9' => {
                sink.start_number(self.place(), end - rest.len());
                sink.number(rest.get(..1).unwrap_or_default());
                match byte {
                    b'-' => State::Minus,
                    b'0' => State::Zero,
                    _ => State::Integer,
                }
            }
            b't' => self.start_literal(Literal::True),
            b'f' => self.start_literal(Literal::False),
            b'n' => self.start_literal(Literal::Null),
            _ => return fault(rest, "expected a value"),
        };
        Ok(tail)
    }

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

    /// Text of a string up to its end, or to an escape that needs a state of its own.
    #[inline]
    fn text<'a, S: Sink>(&mut self, mut rest: &'a [u8], end: usize, sink: &mut S) -> Step<'a> {
        loop {
            let clean = sink.text(rest);
            let stop = rest.get(clean..).unwrap_or_default();
            let Some((&byte, tail)) = stop.split_first() else {
                return Ok(stop);
            };
            match byte {
                b'"' if self.in_key => {
                    sink.end_key(self.depth);
                    self.state = State::Colon;
                    return Ok(tail);
                }
                b'"' => {
                    sink.end_string(self.depth, end - tail.len());
                    self.state = State::AfterValue;
                    return Ok(tail);
                }
                b'\\' => {
                    let plain = tail
                        .split_first()
                        .and_then(|(&byte, tail)| Some((short_escape(byte)?, tail)));
                    let Some((byte, tail)) = plain else {
                        self.state = State::Escape;
                        return Ok(tail);
                    };
                    sink.escaped(byte);
                    rest = tail;
                }
                _ => return fault(stop, "a control byte in a string must be escaped"),
            }
        }
    }

    /// The byte after a backslash.
    fn escape<'a, S: Sink>(&mut self, rest: &'a [u8], sink: &mut S) -> Step<'a> {
        let Some((&byte, tail)) = rest.split_first() else {
            return Ok(rest);
        };
        self.state = match short_escape(byte) {
            Some(byte) => {
                sink.escaped(byte);
                State::Text
            }
            None if byte == b'u' => {
                self.unit = 0;
                self.unit_digits = 0;
                State::Hex
            }
            None => return fault(rest, "no such escape"),
        };
        Ok(tail)
    }

    /// Hex digits of a `\u` escape.
    fn hex<'a, S: Sink>(&mut self, rest: &'a [u8], sink: &mut S) -> Step<'a> {
        let mut left = rest;
        while let Some((&byte, tail)) = left.split_first() {
            let Some(digit) = char::from(byte).to_digit(16) else {
                return fault(left, "expected four hex digits");
            };
            left = tail;
            self.unit = self.unit << 4 | digit as u16;
            self.unit_digits += 1;
            if self.unit_digits == 4 {
                self.code_unit(sink);
                break;
            }
        }
        Ok(left)
    }

    /// A whole UTF-16 code unit.
    fn code_unit<S: Sink>(&mut self, sink: &mut S) {
        let (high, unit) = (u32::from(self.high), u32::from(self.unit));
        self.high = 0;
        self.state = State::Text;
        match unit {
            0xdc00..=0xdfff if high != 0 => {
                let scalar = 0x1_0000 + ((high & 0x3ff) << 10 | unit & 0x3ff);
                sink.escaped_char(char::from_u32(scalar).unwrap_or(char::REPLACEMENT_CHARACTER));
                return;
            }
            _ if high != 0 => sink.escaped_char(char::REPLACEMENT_CHARACTER),
            _ => {}
        }
        if matches!(unit, 0xd800..=0xdbff) {
            self.high = self.unit;
            self.state = State::AfterHigh;
        } else {
            sink.escaped_char(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
    }

    /// After a high surrogate only another `\u` escape can complete it.
    fn after_high<'a, S: Sink>(&mut self, rest: &'a [u8], sink: &mut S) -> Step<'a> {
        match (self.state, rest.split_first()) {
            (State::AfterHigh, Some((b'\\', tail))) => {
                self.state = State::EscapeAfterHigh;
                return Ok(tail);
            }
            (State::EscapeAfterHigh, Some((b'u', _))) => self.state = State::Escape,
            (state, _) => {
                self.high = 0;
                sink.escaped_char(char::REPLACEMENT_CHARACTER);
                self.state = match state {
                    State::EscapeAfterHigh => State::Escape,
                    _ => State::Text,
                };
            }
        }
        Ok(rest)
    }

    /// The rest of a number, up to the first byte that is not part of it.
    fn number<'a, S: Sink>(&mut self, rest: &'a [u8], sink: &mut S) -> Step<'a> {
        let mut ended = false;
        let mut len = 0;
        for byte in rest {
            self.state = match (self.state, byte) {
                (State::Integer, b'0'..=b'9') => State::Integer,
                (State::Minus, b'0') => State::Zero,
                (State::Minus, b'1'..=b'9') => State::Integer,
                (State::Zero | State::Integer, b'.') => State::Point,
                (State::Point | State::Fraction, b'0'..=b'9') => State::Fraction,
                (State::Zero | State::Integer | State::Fraction, b'e' | b'E') => State::Exponent,
                (State::Exponent, b'+' | b'-') => State::ExponentSign,
                (State::Exponent | State::ExponentSign | State::ExponentDigits, b'0'..=b'9') => {
                    State::ExponentDigits
                }
                (State::Zero | State::Integer | State::Fraction | State::ExponentDigits, _) => {
                    ended = true;
                    break;
                }
                _ => return fault(rest.get(len..).unwrap_or_default(), "expected a digit"),
            };
            len += 1;
        }
        let (piece, left) = rest.split_at_checked(len).unwrap_or((rest, &[]));
        if !piece.is_empty() {
            sink.number(piece);
        }
        if ended {
            sink.end_number(self.depth);
            self.state = State::AfterValue;
        }
        Ok(left)
    }

    fn start_literal(&mut self, literal: Literal) -> State {
        self.literal_place = self.place();
        self.literal = literal;
        self.literal_read = 1;
        State::Literal
    }

    /// The rest of `true`, `false` or `null`.
    fn literal<'a, S: Sink>(&mut self, rest: &'a [u8], sink: &mut S) -> Step<'a> {
        let wanted = self
            .literal
            .text()
            .get(self.literal_read..)
            .unwrap_or_default();
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

/// The byte that a one-letter escape stands for.
#[inline]
const fn short_escape(byte: u8) -> Option<u8> {
    match byte {
        b'n' => Some(b'\n'),
        b'"' | b'\\' | b'/' => Some(byte),
        b't' => Some(b'\t'),
        b'r' => Some(b'\r'),
        b'b' => Some(0x08),
        b'f' => Some(0x0c),
        _ => None,
    }
}
