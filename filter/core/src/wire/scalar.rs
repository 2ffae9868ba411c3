//! JSON values of which only a plain form is of use; any other form is read over, not refused.
//!
//! Engines and people write `null`, `"2"` or `[]` where a number is meant. One such value must not
//! cost us the rest of an answer. Nothing nested is kept: an object or list gives its direct texts,
//! numbers and flags, at most [`MAX_ENTRIES`].

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use super::MAX_NAME_BYTES;

/// Most entries kept of a list or an object.
pub(super) const MAX_ENTRIES: usize = 256;

/// A text, number or flag; `Other` for everything else.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Scalar<'a> {
    Text(Cow<'a, str>),
    Whole(u64),
    Number(f64),
    Flag(bool),
    #[default]
    Other,
}

/// The direct scalars of a list.
#[derive(Debug, Default, PartialEq)]
pub(super) struct List<'a>(pub(super) Vec<Scalar<'a>>);

/// The direct scalars of an object.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Members<'a>(pub(super) Vec<(Cow<'a, str>, Scalar<'a>)>);

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

    /// A finite number, also one in quotes: Envoy makes texts of the fractions in a YAML file.
    pub(super) fn number(&self) -> Option<f64> {
        let number = match self {
            Self::Whole(number) => Some(*number as f64),
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.parse().ok(),
            _ => None,
        };
        number.filter(|number| number.is_finite())
    }

    /// Whether it is `true`.
    pub(super) fn is_true(&self) -> bool {
        *self == Self::Flag(true)
    }

    /// What a person would call it: the text, or the number or flag as it is written.
    pub(super) fn label(&self) -> Option<String> {
        match self {
            Self::Whole(number) => Some(number.to_string()),
            Self::Number(number) => Some(number.to_string()),
            Self::Flag(flag) => Some(flag.to_string()),
            other => other.name(),
        }
    }
}

/// What a value is made of, each form with what it gives.
trait Shape<'de>: Default {
    fn scalar(_: Scalar<'de>) -> Self {
        Self::default()
    }

    fn list<A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self::default())
    }

    fn object<A: MapAccess<'de>>(mut object: A) -> Result<Self, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self::default())
    }
}

impl<'de: 'a, 'a> Shape<'de> for Scalar<'a> {
    fn scalar(scalar: Scalar<'de>) -> Self {
        scalar
    }
}

impl<'de: 'a, 'a> Shape<'de> for List<'a> {
    // A list of one is often written without brackets.
    fn scalar(scalar: Scalar<'de>) -> Self {
        List(vec![scalar])
    }

    fn list<A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let mut kept = Vec::new();
        while kept.len() < MAX_ENTRIES {
            match list.next_element()? {
                Some(value) => kept.push(value),
                None => return Ok(List(kept)),
            }
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(List(kept))
    }
}

impl<'de: 'a, 'a> Shape<'de> for Members<'a> {
    fn object<A: MapAccess<'de>>(mut object: A) -> Result<Self, A::Error> {
        let mut kept = Vec::new();
        while kept.len() < MAX_ENTRIES {
            match object.next_entry::<Cow<'de, str>, _>()? {
                Some(member) => kept.push(member),
                None => return Ok(Members(kept)),
            }
        }
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Members(kept))
    }
}

struct Any<T>(PhantomData<T>);

impl<'de, T: Shape<'de>> Visitor<'de> for Any<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, flag: bool) -> Result<T, E> {
        Ok(T::scalar(Scalar::Flag(flag)))
    }

    fn visit_i64<E>(self, number: i64) -> Result<T, E> {
        Ok(T::scalar(Scalar::Number(number as f64)))
    }

    fn visit_u64<E>(self, number: u64) -> Result<T, E> {
        Ok(T::scalar(Scalar::Whole(number)))
    }

    fn visit_f64<E>(self, number: f64) -> Result<T, E> {
        Ok(T::scalar(Scalar::Number(number)))
    }

    fn visit_str<E>(self, text: &str) -> Result<T, E> {
        Ok(T::scalar(Scalar::Text(Cow::Owned(text.to_owned()))))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<T, E> {
        Ok(T::scalar(Scalar::Text(Cow::Borrowed(text))))
    }

    fn visit_unit<E>(self) -> Result<T, E> {
        Ok(T::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        T::list(list)
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<T, A::Error> {
        T::object(object)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Scalar<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any(PhantomData))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for List<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any(PhantomData))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_forms_are_read_over() {
        let list: List = serde_json::from_str(r#"["a",1,null,["b"],{"c":2},-1,true]"#).unwrap();
        assert_eq!(list.0.len(), 7);
        assert_eq!(list.0[0].text(), Some("a"));
        assert_eq!(list.0[3], Scalar::Other);
        assert_eq!(list.0[5].number(), Some(-1.0));
        assert_eq!(list.0[5].whole(), None);
        assert_eq!(serde_json::from_str::<List>("{\"a\":[]}").unwrap().0, []);
        assert_eq!(serde_json::from_str::<Members>("7").unwrap().0, []);
        let members: Members = serde_json::from_str(r#"{"a":1,"b":{"c":[]},"a":"2"}"#).unwrap();
        let names: Vec<&str> = members.0.iter().map(|(name, _)| name.as_ref()).collect();
        assert_eq!(names, ["a", "b", "a"]);
        assert_eq!(members.0[1].1, Scalar::Other);
        assert_eq!(members.0[2].1.whole(), Some(2));
    }

    #[test]
    fn lists_and_objects_have_a_bound() {
        let many: Vec<usize> = (0..MAX_ENTRIES + 5).collect();
        let text = serde_json::to_string(&many).unwrap();
        let list: List = serde_json::from_str(&text).unwrap();
        assert_eq!(list.0.len(), MAX_ENTRIES);
        let members: Vec<String> = many.iter().map(|i| format!("\"{i}\":{i}")).collect();
        let text = format!("{{{}}}", members.join(","));
        let members: Members = serde_json::from_str(&text).unwrap();
        assert_eq!(members.0.len(), MAX_ENTRIES);
    }

    #[test]
    fn numbers_may_stand_in_quotes() {
        assert_eq!(Scalar::Text("1.5".into()).number(), Some(1.5));
        assert_eq!(Scalar::Text("inf".into()).number(), None);
        assert_eq!(
            Scalar::Text("18446744073709551615".into()).whole(),
            Some(u64::MAX)
        );
        assert_eq!(
            Scalar::Text("x".repeat(MAX_NAME_BYTES + 1).into()).text(),
            None
        );
        assert_eq!(Scalar::Whole(7).label().as_deref(), Some("7"));
    }
}
