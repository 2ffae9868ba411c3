//! JSON as a tree, for documents that are short or seldom read.
//!
//! A number is kept as it is written unless it is a whole one, so nothing here writes a fraction. The members
//! of an object are sorted by name; of several with the same name the last one counts. O(n log n) to read,
//! memory in proportion to the text.

use super::source::{Flaw, Source, Token, read};
use super::text as write_text;
use crate::sorted::Sorted;
use std::fmt;

/// A value.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    /// Nothing.
    #[default]
    Null,
    /// True or false.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A text.
    String(String),
    /// A list.
    Array(Vec<Value>),
    /// An object.
    Object(Map),
}

/// A number.
#[derive(Clone, Debug, PartialEq)]
pub enum Number {
    /// A whole one that is not negative and fits 64 bits.
    Whole(u64),
    /// Any other of which there is a finite `f64`, as it is written.
    Written(Box<str>),
}

/// The members of an object, by name.
pub type Map = Sorted<String, Value>;

impl Value {
    /// Reads a text.
    ///
    /// # Errors
    /// It is not JSON, or has a number of which there is no finite `f64`.
    pub fn read(text: &[u8]) -> Result<Value, Flaw> {
        read(text, Value::take)
    }

    fn take(source: &mut Source) -> Option<Value> {
        Some(match source.token()? {
            Token::Null => Value::Null,
            Token::Flag(flag) => Value::Bool(flag),
            Token::Number(digits) => Value::Number(Number::take(digits)?),
            Token::Text(text) => Value::String(text.into_owned()),
            Token::List => {
                let mut items = Vec::new();
                source.list(&mut |source| {
                    items.push(Value::take(source)?);
                    Some(())
                })?;
                Value::Array(items)
            }
            Token::Object => {
                let mut members = Vec::new();
                source.object(&mut |source, name| {
                    members.push((name.to_owned(), Value::take(source)?));
                    Some(())
                })?;
                Value::Object(members.into())
            }
        })
    }

    /// Whether it is nothing.
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// Whether it is a text.
    pub fn is_string(&self) -> bool {
        matches!(self, Value::String(_))
    }

    /// The flag that it is.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// The whole number from 0 that it is.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::Number(Number::Whole(number)) => Some(*number),
            _ => None,
        }
    }

    /// The number that it is, a finite one.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Number(Number::Whole(number)) => Some(*number as f64),
            Value::Number(Number::Written(digits)) => digits.parse().ok(),
            _ => None,
        }
    }

    /// The text that it is.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The list that it is.
    pub fn as_array(&self) -> Option<&Vec<Value>> {
        match self {
            Value::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The object that it is.
    pub fn as_object(&self) -> Option<&Map> {
        match self {
            Value::Object(members) => Some(members),
            _ => None,
        }
    }

    /// The member of this name, if this is an object that has it.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.as_object()?.get(name)
    }

    /// What the names lead to, each a member of the object before. O(names log members).
    pub fn find(&self, names: &[&str]) -> Option<&Value> {
        names.iter().try_fold(self, |value, name| value.get(name))
    }

    /// The member of this name, taken out of the tree.
    pub fn into_member(self, name: &str) -> Option<Value> {
        match self {
            Value::Object(mut members) => members.remove(name),
            _ => None,
        }
    }
}

impl Number {
    fn take(digits: &str) -> Option<Number> {
        if let Ok(whole) = digits.parse() {
            return Some(Number::Whole(whole));
        }
        let number: f64 = digits.parse().ok()?;
        number.is_finite().then(|| Number::Written(digits.into()))
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Value {
        Value::Number(Number::Whole(number))
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Value {
        (number as u64).into()
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Value {
        Value::Bool(flag)
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Value {
        u64::from(number).into()
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::String(text)
    }
}

/// As JSON without white space.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        write(&mut out, self);
        f.write_str(&out)
    }
}

fn write(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(Number::Whole(number)) => super::digits(out, *number, 1),
        Value::Number(Number::Written(digits)) => out.push_str(digits),
        Value::String(text) => write_text(out, text),
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                out.push(if at == 0 { '[' } else { ',' });
                write(out, item);
            }
            out.push_str(if items.is_empty() { "[]" } else { "]" });
        }
        Value::Object(members) => {
            for (at, (name, member)) in members.iter().enumerate() {
                out.push(if at == 0 { '{' } else { ',' });
                write_text(out, name);
                out.push(':');
                write(out, member);
            }
            out.push_str(if members.is_empty() { "{}" } else { "}" });
        }
    }
}

#[cfg(test)]
mod tests;
