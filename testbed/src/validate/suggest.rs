//! What may have been meant, by the names that filter/config.schema.json has.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};
use warmpath_core::config::ConfigError;

use super::schema;
use crate::nearest::nearest;

/// From here on two names are alike: `least_requests` and `least_request`, not `fastest` and `static`.
const ALIKE: f64 = 0.85;

static OPTIONS: LazyLock<BTreeMap<String, Map<String, Value>>> = LazyLock::new(|| {
    let schema = include_str!("../../../filter/config.schema.json");
    schema::options(&serde_json::from_str(schema).unwrap_or_default())
});

/// What may have been meant where there is an error, as a question or a hint.
pub fn suggestion(error: &ConfigError) -> Option<String> {
    let path = schema::option_of(&error.path);
    if error.got == "an unknown field" {
        let (parent, name) = path.rsplit_once('.').unwrap_or(("", &path));
        if let Some(meant) = alike(name, below(parent)) {
            return Some(format!("did you mean `{meant}`?"));
        }
        let end = format!(".{name}");
        let elsewhere = OPTIONS
            .keys()
            .find(|path| **path == name || path.ends_with(&end));
        return elsewhere.map(|path| format!("there is `{path}`"));
    }
    if error.want.starts_with("one of ") {
        if error.got == "false" && below(&path).contains(&"off") {
            return Some("write \"off\" in quotes: in this YAML the bare word is false".to_owned());
        }
        let given = error.got.split('"').nth(1)?;
        let meant = alike(given, below(&path))?;
        return Some(format!("did you mean `{meant}`?"));
    }
    let bare = error.got.strip_prefix('"')?.strip_suffix('"')?;
    let is_number = error.want.contains(" number in ") && bare.parse::<f64>().is_ok();
    let is_flag = error.want.starts_with("true or false") && bare.parse::<bool>().is_ok();
    if is_number || is_flag {
        return Some(format!("write {bare} without quotes"));
    }
    let is_name = error.want == "`ip:port` or `[ipv6]:port`" && !bare.contains("://");
    let is_name = is_name && bare.chars().any(|char| char.is_ascii_alphabetic());
    is_name.then(|| {
        "Envoy compares with the addresses that it resolved; `\"endpoints\": \"envoy\"` takes them from its cluster"
            .to_owned()
    })
}

/// The name of a list that is most like a strange one, if any is like it.
pub fn alike<'a>(strange: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let known = known.into_iter().map(|name| (name, ()));
    let (score, name, ()) = nearest(strange, known)?;
    (score >= ALIKE).then_some(name)
}

/// Names of the fields or choices at a path.
fn below(path: &str) -> Vec<&'static str> {
    let inner = OPTIONS.keys().filter_map(|option| match path {
        "" => Some(option.as_str()),
        path => option.strip_prefix(path)?.strip_prefix('.'),
    });
    inner.filter(|name| !name.contains(['.', '['])).collect()
}
