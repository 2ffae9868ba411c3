//! The members of one JSON object, with the places of their keys and values.
//!
//! Only the structure is read: strings are skipped from quote to quote, containers by their brackets, with
//! no recursion and no stack. What another parser has accepted as a JSON object is read in the same way
//! here; of what it has not, the answer is `None` or something harmless, never a panic.

use crate::json::Value;
use crate::scan::clean_len;
use std::borrow::Cow;
use std::ops::Range;

/// A member of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its key, quotes included.
    pub key: Range<usize>,
    /// Its value, without the white space around it.
    pub value: Range<usize>,
}

impl Member {
    /// The key, decoded; bytes that are no text are a key of no name.
    #[must_use]
    pub fn name<'a>(&self, body: &'a [u8]) -> Cow<'a, str> {
        let quoted = body.get(self.key.clone()).unwrap_or_default();
        let inner = quoted.get(1..quoted.len().saturating_sub(1));
        let inner = inner.unwrap_or_default();
        if inner.contains(&b'\\') {
            return match Value::read(quoted) {
                Ok(Value::String(name)) => Cow::Owned(name),
                _ => Cow::Borrowed(""),
            };
        }
        Cow::Borrowed(std::str::from_utf8(inner).unwrap_or_default())
    }
}

/// The members of the object within a part of the body, in its order.
#[derive(Debug)]
pub struct Members<'a> {
    body: &'a [u8],
    at: usize,
    first: bool,
}

/// The members of the object that stands in `span`, with white space around it at most.
#[must_use]
pub fn members(body: &[u8], span: Range<usize>) -> Option<Members<'_>> {
    let mut members = Members {
        body: body.get(..span.end)?,
        at: span.start,
        first: true,
    };
    members.skip_space();
    members.take(b'{').then_some(members)
}

impl Members<'_> {
    /// The next member, `Some(None)` at the end of the object, `None` where there is neither.
    pub fn step(&mut self) -> Option<Option<Member>> {
        self.skip_space();
        if self.peek() == Some(b'}') {
            return Some(None);
        }
        if !std::mem::take(&mut self.first) {
            self.take(b',').then_some(())?;
            self.skip_space();
        }
        let key = self.string()?;
        self.skip_space();
        self.take(b':').then_some(())?;
        self.skip_space();
        let value = self.value()?;
        Some(Some(Member { key, value }))
    }

    /// Where the next byte to be read is: after the opening brace before the first member, and after
    /// the value of the member read last.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }

    fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    /// A string with its quotes.
    fn string(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        self.take(b'"').then_some(())?;
        loop {
            self.at += clean_len(self.body.get(self.at..)?);
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(start..self.at);
                }
                b'\\' => self.at += 2,
                _ => return None,
            }
        }
    }

    fn value(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        let mut depth = 0_usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                    continue;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                b',' | b':' | b' ' | b'\n' | b'\r' | b'\t' if depth > 0 => {
                    self.at += 1;
                    continue;
                }
                _ => self.scalar()?,
            }
            if depth == 0 {
                return Some(start..self.at);
            }
        }
    }

    /// A number or a literal.
    fn scalar(&mut self) -> Option<()> {
        let rest = self.body.get(self.at..)?;
        let belongs = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
        let length = rest.iter().take_while(|byte| belongs(byte)).count();
        self.at += length;
        (length > 0).then_some(())
    }
}
