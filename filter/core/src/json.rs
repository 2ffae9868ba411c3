//! JSON: [read](read()) in one pass or as a [tree](Value), and written field by field.
//!
//! A document is made from the inside out: what [`object`] and [`list`] return goes into the next one
//! as [`Field::Json`]. One plain function writes every field, whatever its type, which takes a small
//! part of the module that derived or macro-built documents would. O(bytes) for each level of nesting.

mod source;
mod value;

pub use source::{Flaw, Source, Token, read};
pub use value::{Map, Number, Value};

use std::fmt::Write as _;

/// Decimals of a number that is not whole.
const DECIMALS: usize = 6;

/// A value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Field<'a> {
    /// Nothing is known.
    Null,
    /// True or false.
    Flag(bool),
    /// A whole number.
    Count(u64),
    /// A number with 6 decimals; one that is not finite becomes null.
    Decimal(f64),
    /// A text.
    Text(&'a str),
    /// A document of its own.
    Json(&'a str),
}

impl From<bool> for Field<'_> {
    fn from(value: bool) -> Self {
        Field::Flag(value)
    }
}

impl From<u64> for Field<'_> {
    fn from(value: u64) -> Self {
        Field::Count(value)
    }
}

impl From<u32> for Field<'_> {
    fn from(value: u32) -> Self {
        Field::Count(u64::from(value))
    }
}

impl From<u16> for Field<'_> {
    fn from(value: u16) -> Self {
        Field::Count(u64::from(value))
    }
}

impl From<f64> for Field<'_> {
    fn from(value: f64) -> Self {
        Field::Decimal(value)
    }
}

impl From<f32> for Field<'_> {
    fn from(value: f32) -> Self {
        Field::Decimal(f64::from(value))
    }
}

impl<'a> From<&'a str> for Field<'a> {
    fn from(value: &'a str) -> Self {
        Field::Text(value)
    }
}

impl<'a, T: Into<Field<'a>>> From<Option<T>> for Field<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Field::Null, Into::into)
    }
}

/// An object with these fields, in this order.
pub fn object(fields: &[(&str, Field)]) -> String {
    let mut out = String::from("{");
    for (at, (name, value)) in fields.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        text(&mut out, name);
        out.push(':');
        write(&mut out, value);
    }
    out.push('}');
    out
}

/// A list of documents.
pub fn list(items: &[String]) -> String {
    let mut out = String::from("[");
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        out.push_str(item);
    }
    out.push(']');
    out
}

/// A text as a document.
pub fn string(value: &str) -> String {
    let mut out = String::new();
    text(&mut out, value);
    out
}

fn write(out: &mut String, value: &Field) {
    match value {
        Field::Null => out.push_str("null"),
        Field::Flag(true) => out.push_str("true"),
        Field::Flag(false) => out.push_str("false"),
        Field::Count(count) => digits(out, *count, 1),
        Field::Decimal(number) if number.is_finite() => out.push_str(&decimal(*number)),
        Field::Decimal(_) => out.push_str("null"),
        Field::Text(value) => text(out, value),
        Field::Json(document) => out.push_str(document),
    }
}

fn digits(out: &mut String, count: u64, width: usize) {
    // Writing to a string cannot fail.
    write!(out, "{count:0width$}").ok();
}

/// A finite number, as a whole number of millionths: the standard library's way to write a float is many times larger.
pub fn decimal(number: f64) -> String {
    let mut out = String::new();
    let unit = 10_u64.pow(DECIMALS as u32);
    let scaled = (number.abs() * unit as f64).round() as u64;
    if number < 0.0 && scaled > 0 {
        out.push('-');
    }
    digits(&mut out, scaled / unit, 1);
    if !scaled.is_multiple_of(unit) {
        out.push('.');
        digits(&mut out, scaled % unit, DECIMALS);
        while out.ends_with('0') {
            out.pop();
        }
    }
    out
}

fn text(out: &mut String, value: &str) {
    out.push('"');
    for character in value.chars() {
        match character {
            '"' | '\\' => {
                out.push('\\');
                out.push(character);
            }
            '\0'..='\x1f' => {
                write!(out, "\\u{:04x}", u32::from(character)).ok();
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::{Field, list, object, string, write};
    use serde_json::{Value, json};

    #[test]
    fn what_is_written_is_read_back() {
        let odd = "a\"b\\c\u{0}\n\u{1f}\u{7f}\u{2028}é😀";
        let inner = object(&[("deep", Field::Json("[]"))]);
        let items = list(&[string(odd), inner, "7".to_owned()]);
        let document = object(&[
            ("null", Field::Null),
            ("none", None::<u64>.into()),
            ("flag", true.into()),
            ("most", u64::MAX.into()),
            ("some", Some(3_u32).into()),
            (odd, odd.into()),
            ("list", Field::Json(&items)),
        ]);
        let read: Value = serde_json::from_str(&document).unwrap();
        let want = json!({
            "null": null, "none": null, "flag": true, "most": u64::MAX, "some": 3, odd: odd,
            "list": [odd, {"deep": []}, 7],
        });
        assert_eq!(read, want);
        assert_eq!((object(&[]), list(&[])), ("{}".to_owned(), "[]".to_owned()));
    }

    #[test]
    fn decimals_are_short_and_near() {
        let written = |number: f64| {
            let mut out = String::new();
            write(&mut out, &Field::Decimal(number));
            out
        };
        for (number, want) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.5, "1.5"),
            (-2.25, "-2.25"),
            (0.000_000_4, "0"),
            (-0.000_000_4, "0"),
            (0.05, "0.05"),
            (123_456_789.000_001, "123456789.000001"),
            (100.0, "100"),
            (f64::NAN, "null"),
            (f64::INFINITY, "null"),
        ] {
            assert_eq!(written(number), want);
        }
        let huge: f64 = written(f64::MAX).parse().unwrap();
        assert!(huge > 1e12);
    }
}
