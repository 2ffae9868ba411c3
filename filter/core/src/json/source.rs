//! JSON, read in one pass from bytes that are all there.
//!
//! A reader asks for what it wants to find: an object's members one by one, a list's items, a plain value.
//! What it wants to know is a closure behind a reference, so every shape goes through the same few
//! functions and costs the module no more than the closure. Nothing is kept, and texts without escapes are
//! lent. It takes what RFC 8259 allows and no more, up to [`MAX_DEPTH`] containers deep. O(bytes).
//!
//! ```
//! use warmpath_core::json::{Token, read};
//! let mut ids = Vec::new();
//! let found = read(br#"{"ids": [1, 2], "more": {"x": null}}"#, |source| {
//!     source.object(&mut |source, name| match name {
//!         "ids" => source.list(&mut |source| match source.token()? {
//!             Token::Number(digits) => Some(ids.push(digits.to_owned())),
//!             _ => None,
//!         }),
//!         _ => source.skip(),
//!     })
//! });
//! assert_eq!((found, ids.join("+")), (Ok(()), "1+2".to_owned()));
//! ```

use crate::scan::{MAX_DEPTH, clean_len};
use std::borrow::Cow;
use std::fmt;

/// Where a text stops to be what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// Line, from 1.
    pub line: usize,
    /// Column in that line, in bytes from 1.
    pub column: usize,
    /// Whether the text ends there.
    pub is_end: bool,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.is_end {
            true => "an end",
            false => "something unexpected",
        };
        write!(f, "{what} at line {} column {}", self.line, self.column)
    }
}

/// A value, or the beginning of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Flag(bool),
    /// A number as it is written.
    Number(&'a str),
    /// A text, decoded.
    Text(Cow<'a, str>),
    /// A list begins here; nothing of it is read yet.
    List,
    /// An object begins here; nothing of it is read yet.
    Object,
}

/// A place in a text. Whatever returns `None` has found something that does not fit; then nothing more is
/// to be read.
#[derive(Debug)]
pub struct Source<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

/// Reads a whole text with `take`, which is to take one value.
///
/// # Errors
/// The text is not JSON, goes on after the value, or is not what `take` wants: where.
pub fn read<'a, T>(
    bytes: &'a [u8],
    take: impl FnOnce(&mut Source<'a>) -> Option<T>,
) -> Result<T, Flaw> {
    let mut source = Source {
        bytes,
        at: 0,
        depth: 0,
    };
    let taken = take(&mut source);
    source.skip_space();
    match taken {
        Some(taken) if source.at >= bytes.len() => Ok(taken),
        _ => Err(source.flaw()),
    }
}

impl<'a> Source<'a> {
    /// Reads an object: `member` takes the value of each name, in the order of the text.
    pub fn object(
        &mut self,
        member: &mut dyn FnMut(&mut Source<'a>, &str) -> Option<()>,
    ) -> Option<()> {
        self.open(b'{')?;
        let mut is_first = true;
        while self.goes_on(&mut is_first, b'}')? {
            self.skip_space();
            let name = self.text()?;
            self.skip_space();
            self.expect(b':')?;
            member(self, &name)?;
        }
        Some(())
    }

    /// Reads a list: `item` takes each of its values.
    pub fn list(&mut self, item: &mut dyn FnMut(&mut Source<'a>) -> Option<()>) -> Option<()> {
        self.open(b'[')?;
        let mut is_first = true;
        while self.goes_on(&mut is_first, b']')? {
            item(self)?;
        }
        Some(())
    }

    /// Reads over a `null`, if there is one.
    pub fn is_null(&mut self) -> bool {
        self.skip_space();
        self.word(b"null").is_some()
    }

    /// Reads a plain value whole, and of a list or an object nothing.
    pub fn token(&mut self) -> Option<Token<'a>> {
        self.skip_space();
        match self.peek()? {
            b'"' => self.text().map(Token::Text),
            b'{' => Some(Token::Object),
            b'[' => Some(Token::List),
            b'n' => self.word(b"null").map(|()| Token::Null),
            b't' => self.word(b"true").map(|()| Token::Flag(true)),
            b'f' => self.word(b"false").map(|()| Token::Flag(false)),
            _ => self.number().map(Token::Number),
        }
    }

    /// Reads over a value.
    pub fn skip(&mut self) -> Option<()> {
        match self.token()? {
            Token::List => self.list(&mut |source| source.skip()),
            Token::Object => self.object(&mut |source, _| source.skip()),
            _ => Some(()),
        }
    }

    fn flaw(&self) -> Flaw {
        let at = self.at.min(self.bytes.len());
        let before = self.bytes.get(..at).unwrap_or_default();
        let start = before.iter().rposition(|byte| *byte == b'\n');
        Flaw {
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            column: at - start.map_or(0, |newline| newline + 1) + 1,
            is_end: at == self.bytes.len(),
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.eat(byte).then_some(())
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    fn open(&mut self, bracket: u8) -> Option<()> {
        self.skip_space();
        if self.depth >= MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        self.expect(bracket)
    }

    /// Whether another member or item follows; otherwise the container is closed.
    fn goes_on(&mut self, is_first: &mut bool, bracket: u8) -> Option<bool> {
        self.skip_space();
        if self.eat(bracket) {
            self.depth -= 1;
            return Some(false);
        }
        if !std::mem::take(is_first) {
            self.expect(b',')?;
        }
        Some(true)
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        let end = self.at + word.len();
        let found = self.bytes.get(self.at..end)? == word;
        self.at = if found { end } else { self.at };
        found.then_some(())
    }

    fn number(&mut self) -> Option<&'a str> {
        let start = self.at;
        self.eat(b'-');
        if !self.eat(b'0') {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            let _ = self.eat(b'+') || self.eat(b'-');
            self.digits()?;
        }
        std::str::from_utf8(self.bytes.get(start..self.at)?).ok()
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    fn text(&mut self) -> Option<Cow<'a, str>> {
        self.expect(b'"')?;
        let clean = self.clean()?;
        if self.eat(b'"') {
            return std::str::from_utf8(clean).ok().map(Cow::Borrowed);
        }
        let mut text = clean.to_vec();
        while self.eat(b'\\') {
            let mut encoded = [0; 4];
            text.extend_from_slice(self.escape()?.encode_utf8(&mut encoded).as_bytes());
            text.extend_from_slice(self.clean()?);
        }
        self.expect(b'"')?;
        String::from_utf8(text).ok().map(Cow::Owned)
    }

    /// What stands here up to a quote, a backslash or a control byte.
    fn clean(&mut self) -> Option<&'a [u8]> {
        let rest = self.bytes.get(self.at..)?;
        let length = clean_len(rest);
        self.at += length;
        rest.get(..length)
    }

    fn escape(&mut self) -> Option<char> {
        let letter = self.peek()?;
        self.at += 1;
        Some(match letter {
            b'"' | b'\\' | b'/' => char::from(letter),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.unit()?;
                if !(0xd800..0xdc00).contains(&unit) {
                    return char::from_u32(unit);
                }
                self.word(b"\\u")?;
                let low = self
                    .unit()?
                    .checked_sub(0xdc00)
                    .filter(|low| *low < 0x400)?;
                return char::from_u32(0x1_0000 + ((unit - 0xd800) << 10) + low);
            }
            _ => return None,
        })
    }

    fn unit(&mut self) -> Option<u32> {
        let digits = self.bytes.get(self.at..self.at + 4)?;
        self.at += 4;
        digits.iter().try_fold(0, |unit, digit| {
            Some(unit << 4 | char::from(*digit).to_digit(16)?)
        })
    }
}

#[cfg(test)]
mod tests;
