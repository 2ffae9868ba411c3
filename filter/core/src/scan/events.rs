//! What the parse tells: the events of the grammar and who takes them.

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

/// Takes the events of a parse, in body order. `depth` is how many containers are open.
pub(super) trait Sink {
    fn open(&mut self, place: Place, container: Container);
    /// A container closed and `depth` are still open.
    fn close(&mut self, depth: usize, container: Container);

    /// A whole key without escapes.
    fn key(&mut self, depth: usize, key: &[u8]);
    /// Another key starts.
    fn start_key(&mut self, depth: usize);
    fn end_key(&mut self, depth: usize);

    /// A string value starts; `at` is the offset of its opening quote.
    fn start_string(&mut self, place: Place, at: usize);
    /// `end` is the offset after the closing quote.
    fn end_string(&mut self, depth: usize, end: usize);

    /// Takes string text from the start of `input` and returns how many bytes it took: up to the
    /// first quote, backslash or control byte, or beyond escapes if it resolved them.
    fn text(&mut self, input: &[u8]) -> usize;
    /// A character that stood as an escape.
    fn escaped(&mut self, char: char);

    /// A whole number of few digits without sign, fraction and exponent.
    fn integer(&mut self, place: Place, digits: &[u8], value: u32);
    /// Another number starts.
    fn start_number(&mut self, place: Place);
    /// A piece of its literal text.
    fn number(&mut self, piece: &[u8]);
    fn end_number(&mut self, depth: usize);

    fn literal(&mut self, place: Place, literal: Literal);
}
