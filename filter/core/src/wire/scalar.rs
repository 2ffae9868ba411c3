//! JSON values of which only a plain form is of use; any other form is read over, not refused.
//!
//! Engines and people write `null`, `"2"` or `[]` where a number is meant. One such value must not
//! cost us the rest of an answer. Nothing nested is kept.

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

use super::MAX_NAME_BYTES;

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

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Scalar<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Flag(flag))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Other)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Whole(number))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Other)
    }

    fn visit_str<E>(self, text: &str) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Text(Cow::Borrowed(text)))
    }

    fn visit_unit<E>(self) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Scalar<'de>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Scalar<'de>, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Scalar<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_forms_are_read_over() {
        let list: Vec<Scalar> =
            serde_json::from_str(r#"["a",1,null,["b"],{"c":2},-1,true,1.5]"#).unwrap();
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
