//! Walks a JSON value and collects every error with its path, instead of stopping at the first.

use crate::json::{Map, Value, decimal};
use std::fmt;
use std::ops::RangeInclusive;

/// One mistake in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where, such as `config.pools[0].policy`.
    pub path: String,
    /// What stands there, shortened.
    pub got: String,
    /// What may stand there.
    pub want: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: got {}, want {}", self.path, self.got, self.want)
    }
}

/// The errors found so far.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) errors: Vec<ConfigError>,
}

/// The fields of one object; remembers which names were asked for.
pub(super) struct Fields<'a> {
    path: String,
    map: &'a Map,
    known: Vec<&'static str>,
}

/// How much of a wrong value an error repeats.
const SHOWN_CHARS: usize = 60;

impl Reader {
    pub(super) fn error(&mut self, path: &str, got: &Value, want: &str) {
        let full = match got {
            Value::Null => "nothing".to_owned(),
            other => other.to_string(),
        };
        let mut shown: String = full.chars().take(SHOWN_CHARS).collect();
        if shown.len() < full.len() {
            shown.push_str("...");
        }
        self.errors.push(ConfigError {
            path: path.to_owned(),
            got: shown,
            want: want.to_owned(),
        });
    }

    pub(super) fn object<'a>(&mut self, path: &str, value: &'a Value) -> Option<Fields<'a>> {
        match value {
            Value::Object(map) => Some(Fields {
                path: path.to_owned(),
                map,
                known: Vec::new(),
            }),
            other => {
                self.error(path, other, "an object");
                None
            }
        }
    }

    /// Reads an externally tagged value: `"kind"`, or `{"kind": ...}` with exactly one of `kinds`.
    pub(super) fn tagged<'a>(
        &mut self,
        path: &str,
        value: &'a Value,
        kinds: &[&'static str],
    ) -> Option<(&'static str, &'a Value)> {
        const NOTHING: &Value = &Value::Null;
        let found = match value {
            Value::String(kind) => Some((kind.as_str(), NOTHING)),
            Value::Object(map) if map.len() == 1 => map
                .iter()
                .next()
                .map(|(kind, value)| (kind.as_str(), value)),
            _ => None,
        };
        let known = found.and_then(|(kind, value)| {
            kinds
                .iter()
                .find(|known| **known == kind)
                .map(|known| (*known, value))
        });
        if known.is_none() {
            self.error(path, value, &format!("one of {}", kinds.join(", ")));
        }
        known
    }

    /// Refuses options of a choice that has none.
    pub(super) fn no_options(&mut self, path: &str, value: &Value) {
        if !value.is_null()
            && let Some(fields) = self.object(path, value)
        {
            fields.finish(self);
        }
    }
}

impl<'a> Fields<'a> {
    /// The path of a field of this object.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }

    pub(super) fn optional<T>(
        &mut self,
        reader: &mut Reader,
        name: &'static str,
        parse: impl FnOnce(&mut Reader, &str, &'a Value) -> Option<T>,
    ) -> Option<T> {
        let (path, value) = self.take(name)?;
        parse(reader, &path, value)
    }

    #[inline(never)]
    fn take(&mut self, name: &'static str) -> Option<(String, &'a Value)> {
        self.known.push(name);
        Some((self.path(name), self.map.get(name)?))
    }

    pub(super) fn required<T>(
        &mut self,
        reader: &mut Reader,
        name: &'static str,
        parse: impl FnOnce(&mut Reader, &str, &'a Value) -> Option<T>,
    ) -> Option<T> {
        self.demand(reader, name);
        self.optional(reader, name, parse)
    }

    #[inline(never)]
    fn demand(&self, reader: &mut Reader, name: &str) {
        if self.map.get(name).is_none() {
            let want = "a value (the field is required)";
            reader.error(&self.path(name), &Value::Null, want);
        }
    }

    pub(super) fn flag(&mut self, reader: &mut Reader, name: &'static str, default: bool) -> bool {
        let read = self.optional(reader, name, |reader, path, value| {
            if value.as_bool().is_none() {
                reader.error(path, value, &format!("true or false (default {default})"));
            }
            value.as_bool()
        });
        read.unwrap_or(default)
    }

    pub(super) fn count(
        &mut self,
        reader: &mut Reader,
        name: &'static str,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> u64 {
        let read = self.optional(reader, name, |reader, path, value| {
            whole(reader, path, value, &range, &format!("default {default}"))
        });
        read.unwrap_or(default)
    }

    /// A whole number that may be left out; `default` tells what happens then.
    pub(super) fn optional_count(
        &mut self,
        reader: &mut Reader,
        name: &'static str,
        range: RangeInclusive<u64>,
        default: &str,
    ) -> Option<u64> {
        self.optional(reader, name, |reader, path, value| {
            whole(reader, path, value, &range, &format!("default: {default}"))
        })
    }

    pub(super) fn number(
        &mut self,
        reader: &mut Reader,
        name: &'static str,
        range: RangeInclusive<f64>,
    ) -> Option<f64> {
        self.optional(reader, name, |reader, path, value| {
            let number = value.as_f64().filter(|number| range.contains(number));
            if number.is_none() {
                let [low, high] = [range.start(), range.end()].map(|end| decimal(*end));
                reader.error(path, value, &format!("a number in {low}..={high}"));
            }
            number
        })
    }

    /// Refuses the fields that nobody asked for.
    pub(super) fn finish(self, reader: &mut Reader) {
        for (name, _) in self
            .map
            .iter()
            .filter(|(name, _)| !self.known.contains(&name.as_str()))
        {
            let want = match self.known.as_slice() {
                [] => "nothing: there are no options".to_owned(),
                known => format!("one of {}", known.join(", ")),
            };
            reader.errors.push(ConfigError {
                path: self.path(name),
                got: "an unknown field".to_owned(),
                want,
            });
        }
    }
}

fn whole(
    reader: &mut Reader,
    path: &str,
    value: &Value,
    range: &RangeInclusive<u64>,
    default: &str,
) -> Option<u64> {
    let number = value.as_u64().filter(|number| range.contains(number));
    if number.is_none() {
        let (low, high) = (range.start(), range.end());
        let want = format!("a whole number in {low}..={high} ({default})");
        reader.error(path, value, &want);
    }
    number
}

/// Longest text in a configuration.
const MAX_TEXT_BYTES: usize = 1024;

/// A non-empty string.
pub(super) fn text(reader: &mut Reader, path: &str, value: &Value) -> Option<String> {
    match value.as_str() {
        Some(text) if !text.is_empty() && text.len() <= MAX_TEXT_BYTES => Some(text.to_owned()),
        _ => {
            reader.error(path, value, "a non-empty string");
            None
        }
    }
}

/// A list; items that fail are reported and left out.
pub(super) fn list<T>(
    reader: &mut Reader,
    path: &str,
    value: &Value,
    sizes: RangeInclusive<usize>,
    parse: impl Fn(&mut Reader, &str, &Value) -> Option<T>,
) -> Option<Vec<T>> {
    let mut parsed = Vec::new();
    for (index, item) in items(reader, path, value, sizes)?.iter().enumerate() {
        parsed.extend(parse(reader, &format!("{path}[{index}]"), item));
    }
    Some(parsed)
}

#[inline(never)]
fn items<'a>(
    reader: &mut Reader,
    path: &str,
    value: &'a Value,
    sizes: RangeInclusive<usize>,
) -> Option<&'a [Value]> {
    let Some(items) = value.as_array() else {
        reader.error(path, value, "a list");
        return None;
    };
    if !sizes.contains(&items.len()) {
        let want = format!("{} to {} items", sizes.start(), sizes.end());
        reader.error(path, &format!("{} items", items.len()).into(), &want);
    }
    Some(items)
}
