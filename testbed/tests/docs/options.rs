//! The options that the config reader knows, asked from itself.
//!
//! A field that nobody knows is put into every object of the complete example; the reader's answer
//! lists the fields that it does know. So nothing here repeats the code.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use warmpath_core::Config;
use warmpath_core::config::ConfigError;

use crate::pages::page;
use crate::schema::read::option_of;

/// Options whose choices are those of another: documented once.
const SAME_AS: [(&str, &str); 2] = [
    ("pools[].policy.kv_aware.fallback", "pools[].policy"),
    (
        "pools[].policy.consistent_hash.without_key",
        "pools[].policy",
    ),
];
/// A field that nobody knows.
const UNKNOWN: &str = "zz_unknown";

/// A value of a config.
pub struct Place {
    /// JSON pointer to it.
    pub pointer: String,
    /// Its path in error messages, such as `config.pools[3].name`.
    pub path: String,
}

impl Place {
    /// Its path in the docs, such as `pools[].name`.
    pub fn option(&self) -> String {
        documented(&self.path)
    }
}

/// The longest example of the configuration page.
pub fn complete() -> Value {
    let texts = page("docs/configuration.md").code("json");
    let longest = texts
        .into_iter()
        .max_by_key(String::len)
        .expect("an example");
    serde_json::from_str(&longest).expect("JSON")
}

/// What the reader has to say about a config.
pub fn errors(config: &Value) -> Vec<ConfigError> {
    let parsed = Config::parse(config.to_string().as_bytes());
    parsed.err().unwrap_or_default()
}

/// Every value of a config, the config itself first.
pub fn places(config: &Value) -> Vec<Place> {
    let mut found = vec![Place {
        pointer: String::new(),
        path: "config".to_owned(),
    }];
    let mut next = 0;
    while let Some(Place { pointer, path }) = found.get(next) {
        next += 1;
        let inner: Vec<Place> = match config.pointer(pointer) {
            Some(Value::Object(map)) => map
                .keys()
                .map(|key| Place {
                    pointer: format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1")),
                    path: format!("{path}.{key}"),
                })
                .collect(),
            Some(Value::Array(items)) => (0..items.len())
                .map(|at| Place {
                    pointer: format!("{pointer}/{at}"),
                    path: format!("{path}[{at}]"),
                })
                .collect(),
            _ => Vec::new(),
        };
        found.extend(inner);
    }
    found
}

/// `config` with another value at a place.
pub fn with(config: &Value, place: &Place, value: Value) -> Value {
    let mut changed = config.clone();
    *changed.pointer_mut(&place.pointer).expect("a place") = value;
    changed
}

/// Every option, by its path in the docs.
pub fn options() -> BTreeSet<String> {
    let complete = complete();
    let mut found = BTreeSet::new();
    let mut add = |path: &str, names: &[String]| {
        let options = names
            .iter()
            .map(|name| documented(&format!("{path}.{name}")));
        found.extend(options);
    };
    for place in places(&complete) {
        let path = &place.path;
        let mut object = match complete.pointer(&place.pointer) {
            Some(Value::Object(map)) => map.clone(),
            Some(Value::String(_)) => Map::new(),
            _ => continue,
        };
        object.insert(UNKNOWN.to_owned(), Value::Null);
        let disturbed = with(&complete, &place, object.into());
        if let Some(fields) = names(&disturbed, &format!("{path}.{UNKNOWN}")) {
            add(path, &fields);
        } else if let Some(choices) = names(&disturbed, path) {
            add(path, &choices);
            for choice in choices {
                let chosen = with(&complete, &place, json!({&choice: {UNKNOWN: null}}));
                let path = format!("{path}.{choice}");
                if let Some(fields) = names(&chosen, &format!("{path}.{UNKNOWN}")) {
                    add(&path, &fields);
                }
            }
        }
    }
    found
}

/// The names in the `one of a, b, c` of the error at `path`.
fn names(config: &Value, path: &str) -> Option<Vec<String>> {
    let errors = errors(config);
    let error = errors.iter().find(|error| error.path == path)?;
    let names = error.want.strip_prefix("one of ")?.split(", ");
    let names = names.filter(|name| !name.is_empty());
    Some(names.map(str::to_owned).collect())
}

/// The path by which the docs name an option.
pub fn documented(path: &str) -> String {
    let mut short = option_of(path);
    for (same, other) in SAME_AS {
        if let Some(rest) = short.strip_prefix(same).filter(|rest| !rest.is_empty()) {
            short = format!("{other}{rest}");
        }
    }
    short
}
