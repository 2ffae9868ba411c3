//! JSON values of which only a plain form is of use; any other form is read over, not refused.
//!
//! Engines and people write `null`, `"2"` or `[]` where a number is meant. One such value must not
//! cost us the rest of an answer. Nothing nested is kept.

use std::borrow::Cow;

use super::MAX_NAME_BYTES;
use crate::json::{Source, Token};

/// A text, whole number or flag; `Other` for everything else.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Scalar<'a> {
    Text(Cow<'a, str>),
    Whole(u64),
    Flag(bool),
    #[default]
    Other,
}

impl<'a> Scalar<'a> {
    /// Reads the next value.
    pub(super) fn read(source: &mut Source<'a>) -> Option<Scalar<'a>> {
        Some(match source.token()? {
            Token::Text(text) => Self::Text(text),
            Token::Number(digits) => digits.parse().map_or(Self::Other, Self::Whole),
            Token::Flag(flag) => Self::Flag(flag),
            Token::Null => Self::Other,
            Token::List | Token::Object => {
                source.skip()?;
                Self::Other
            }
        })
    }

    /// A non-empty text of bounded length.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) if !text.is_empty() && text.len() <= MAX_NAME_BYTES => Some(text),
            _ => None,
        }
    }

    /// The same as an owned name.
    pub(super) fn name(&self) -> Option<String> {
        self.text().map(str::to_owned)
    }

    /// A whole number, also one in quotes: protobuf writes 64 bits that way.
    pub(super) fn whole(&self) -> Option<u64> {
        match self {
            Self::Whole(number) => Some(*number),
            Self::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// Whether it is `true`.
    pub(super) fn is_true(&self) -> bool {
        *self == Self::Flag(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::read;

    #[test]
    fn other_forms_are_read_over() {
        let mut list = Vec::new();
        let json = br#"["a",1,null,["b"],{"c":2},-1,true,1.5]"#;
        let whole = read(json, |source| {
            source.list(&mut |source| {
                list.push(Scalar::read(source)?);
                Some(())
            })
        });
        assert_eq!((whole, list.len()), (Ok(()), 8));
        assert_eq!(list[0].text(), Some("a"));
        assert_eq!(list[1].whole(), Some(1));
        assert!(list[6].is_true());
        for other in [2, 3, 4, 5, 7] {
            assert_eq!(list[other], Scalar::Other);
        }
    }

    #[test]
    fn numbers_may_stand_in_quotes() {
        assert_eq!(
            Scalar::Text("18446744073709551615".into()).whole(),
            Some(u64::MAX)
        );
        assert_eq!(Scalar::Text("1.5".into()).whole(), None);
        assert_eq!(
            Scalar::Text("x".repeat(MAX_NAME_BYTES + 1).into()).text(),
            None
        );
    }
}
