//! Holds filter/config.schema.json against the config reader and the page.
//!
//! The page's tables say which options there are, with their defaults and bounds. The reader is asked about
//! thousands of configurations, each a valid one with one thing changed: what the schema refuses the
//! reader refuses, and what the reader refuses for a reason that lies in one place the schema refuses.

use std::collections::{BTreeMap, BTreeSet};

use jsonschema::Validator;
use serde_json::{Map, Value, json};
use warmpath_core::Config;
use warmpath_core::config::ConfigError;

use crate::options::{Place, complete, documented, errors, options, places, with};
use crate::pages::{page, pages, root};
use crate::{BOUNDS, DEFAULT, plugins};

#[path = "../../src/validate/schema.rs"]
mod read;

/// Column of the type in a row of an options table.
const TYPE: usize = 2;

/// What no schema can say, by the end of what the reader wants, with the rule's name.
const BEYOND: [(&str, &str); 19] = [
    ("a name no other pool has", "names of pools are unique"),
    (
        "a model or alias that no other pool serves",
        "a model leads to one pool",
    ),
    (
        "already takes every model",
        "one pool takes all other models",
    ),
    (
        "endpoints in all, each rank counted",
        "the number of all endpoints is bounded",
    ),
    (
        "each address once in a pool",
        "addresses of a pool are unique",
    ),
    (
        "the same as in the other pool that lists this address",
        "an engine has one number of ranks",
    ),
    (
        "because `discovery` is off",
        "endpoints of Envoy need discovery",
    ),
    ("because `scrape` is off", "what asks engines needs scrape"),
    (
        "engines are asked for tokens by its cluster",
        "kv_aware needs scrape",
    ),
    ("the name of a pool", "default_pool names a pool"),
    (
        "a pool that does not prefill for another",
        "the default pool serves",
    ),
    (
        "the name of another pool",
        "prefill_pool names another pool",
    ),
    (
        "nothing: the pool prefills for another",
        "a pool that prefills has no disaggregation",
    ),
    (
        "the pool prefills for another, which has the models",
        "a pool that prefills has no models",
    ),
    (
        "at least `cool_down_ms`",
        "the longest cool-down is no shorter than the first",
    ),
    (
        "the name of a model that the pool serves",
        "an alias leads to a model of its pool",
    ),
    (
        "a name that is not an alias too",
        "a name is a model or an alias",
    ),
    (
        "because only some endpoints have one",
        "all endpoints of a pool list models, or none",
    ),
    (
        "because the pool's policy does not look at prompts",
        "queued tokens need prompts",
    ),
];

fn schema() -> Value {
    let text = std::fs::read_to_string(root().join("filter/config.schema.json")).unwrap();
    serde_json::from_str(&text).expect("JSON")
}

fn validator() -> Validator {
    jsonschema::draft7::new(&schema()).expect("a schema")
}

/// Every configuration in pages, shipped files, fuzz seeds and string literals of tests.
fn written() -> Vec<Value> {
    let mut texts: Vec<String> = Vec::new();
    let files = |folder: &str, end: &str| files_below(&root().join(folder), end);
    for seed in std::fs::read_dir(root().join("fuzz/seeds/config")).unwrap() {
        texts.extend(std::fs::read_to_string(seed.unwrap().path()));
    }
    let sources = [
        "filter/core/src",
        "filter/core/tests",
        "testbed/src",
        "fuzz",
    ];
    for file in sources.iter().flat_map(|folder| files(folder, ".rs")) {
        let source = std::fs::read_to_string(file).unwrap();
        let fields = source.match_indices("\"pools\"");
        texts.extend(fields.filter_map(|(at, _)| object_around(&source, at).map(str::to_owned)));
    }
    for file in files("envoy", ".yaml") {
        let text = std::fs::read_to_string(file).unwrap();
        use serde::Deserialize;
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let document = Value::deserialize(document).unwrap_or_default();
            plugins(&document, &mut texts);
        }
    }
    let blocks = pages();
    let blocks = blocks.iter().flat_map(|page| page.code("json"));
    texts.extend(blocks);
    let values = texts.iter().map(|text| serde_json::from_str(text));
    values.filter_map(Result::ok).collect()
}

fn files_below(folder: &std::path::Path, end: &str) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    let nested = paths.flat_map(|path| match path.is_dir() {
        true => files_below(&path, end),
        false => vec![path],
    });
    nested
        .filter(|path| path.to_string_lossy().ends_with(end))
        .collect()
}

/// The innermost pair of braces around a place of a text.
fn object_around(text: &str, at: usize) -> Option<&str> {
    let mut depth = 0;
    let braces = |text: &str| -> Vec<(usize, char)> {
        let braces = text.char_indices().filter(|(_, char)| "{}".contains(*char));
        braces.collect()
    };
    let mut before = braces(text.get(..at)?).into_iter().rev();
    let (start, _) = before.find(|(_, char)| {
        depth += if *char == '{' { -1 } else { 1 };
        depth < 0
    })?;
    depth = 0;
    let mut after = braces(text.get(start..)?).into_iter();
    let (end, _) = after.find(|(_, char)| {
        depth += if *char == '{' { 1 } else { -1 };
        depth == 0
    })?;
    text.get(start..=start + end)
}

fn valid() -> Vec<Value> {
    let mut valid = written();
    valid.retain(|config| config.get("pools").is_some() && errors(config).is_empty());
    let mut seen = BTreeSet::new();
    valid.retain(|config| seen.insert(config.to_string()));
    valid
}

/// Errors whose reason lies in one place.
fn local(errors: &[ConfigError]) -> Vec<&ConfigError> {
    let beyond = |error: &ConfigError| BEYOND.iter().any(|(want, _)| error.want.ends_with(want));
    errors.iter().filter(|error| !beyond(error)).collect()
}

/// The schema and the reader must agree on it.
fn compare(validator: &Validator, config: &Value, what: &str) -> usize {
    let errors = errors(config);
    let local = local(&errors);
    let refusal = validator.validate(config).err();
    match (&refusal, local.first()) {
        (Some(refusal), None) => panic!(
            "{what}: the schema refuses ({refusal} at {}), the reader does not: {errors:?}",
            refusal.instance_path()
        ),
        (None, Some(error)) => panic!("{what}: the reader refuses ({error}), the schema does not"),
        _ => {}
    }
    usize::from(refusal.is_some())
}

/// Values that may stand anywhere.
fn strangers() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(0),
        json!(7),
        json!(-1),
        json!(1.5),
        json!(1e300),
        json!(""),
        json!("zz unknown!"),
        json!("10.0.0.1:80"),
        json!("/path/"),
        json!("x".repeat(300)),
        json!("x".repeat(1025)),
        json!([]),
        json!([null]),
        json!({}),
        json!({"zz_unknown": null}),
        json!({"zz_unknown": {}}),
    ]
}

/// What may stand at a place by the schema, and what just may not.
fn neighbours(option: &Map<String, Value>, value: &Value) -> Vec<Value> {
    let mut found = Vec::new();
    let whole = option.get("type") == Some(&json!("integer"));
    for (key, out) in [("minimum", -1), ("maximum", 1)] {
        let Some(bound) = option.get(key) else {
            continue;
        };
        found.push(bound.clone());
        match (bound.as_i64(), whole) {
            (Some(bound), true) => found.push(json!(bound + out)),
            _ => found.push(json!(
                bound.as_f64().unwrap() + 0.001 * f64::from(out as i32)
            )),
        }
    }
    for (key, more) in [("maxLength", 0), ("maxLength", 1), ("minLength", 0)] {
        if let Some(length) = option.get(key).and_then(Value::as_u64) {
            found.push(json!("a".repeat(length as usize + more)));
        }
    }
    if let (Some(most), Some(items)) = (option.get("maxItems"), value.as_array()) {
        let most = most.as_u64().unwrap() as usize;
        for length in [most, most + 1] {
            let first = items.first().unwrap_or(&Value::Null);
            let named = |at: usize| match first {
                Value::String(text) => json!(format!("{text}{at}")),
                other => other.clone(),
            };
            found.push((0..length).map(named).collect());
        }
    }
    if let (Some(most), Some(map)) = (option.get("maxProperties"), value.as_object()) {
        let most = most.as_u64().unwrap() as usize;
        for length in [most, most + 1] {
            let first = map.values().next().cloned().unwrap_or_default();
            let entries = (0..length).map(|at| (format!("n{at}"), first.clone()));
            found.push(Value::Object(entries.collect()));
        }
    }
    found
}

/// What a place could have instead.
fn others(
    config: &Value,
    place: &Place,
    known: &BTreeMap<String, Map<String, Value>>,
) -> Vec<Value> {
    let value = config.pointer(&place.pointer).expect("a place");
    let option = path_of(place);
    let mut others = strangers();
    if let Some(option) = known.get(&option) {
        others.extend(neighbours(option, value));
    }
    let below = format!("{option}.");
    let names = known.keys().filter_map(|path| path.strip_prefix(&below));
    for name in names.filter(|name| !name.contains('.') && !name.contains('[')) {
        others.extend([json!(name), json!({name: null}), json!({name: {}})]);
        others.push(json!({name: 1, "zz_unknown": 1}));
    }
    if let Value::Object(map) = value {
        let mut more = map.clone();
        more.insert("zz_unknown".to_owned(), Value::Null);
        others.push(more.into());
        for name in map.keys() {
            let mut fewer = map.clone();
            fewer.remove(name);
            others.push(fewer.into());
        }
    }
    others
}

/// The path of a place without positions, choices that are named again included.
fn path_of(place: &Place) -> String {
    let mut path = String::new();
    let full = place.path.strip_prefix("config").unwrap_or(&place.path);
    for part in full.strip_prefix('.').unwrap_or(full).split('[') {
        match part.split_once(']') {
            Some((_, rest)) => path = format!("{path}[]{rest}"),
            None => path.push_str(part),
        }
    }
    path
}

#[test]
fn the_schema_is_one_that_editors_read() {
    let schema = schema();
    assert!(jsonschema::draft7::meta::is_valid(&schema));
    assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
    for (path, option) in read::options(&schema) {
        let description = option.get("description").and_then(Value::as_str);
        let description = description.unwrap_or_else(|| panic!("{path}: no description"));
        assert!(description.ends_with('.'), "{path}: {description}");
        let properties = option.get("properties").is_some();
        let closed = option.get("additionalProperties") == Some(&Value::Bool(false));
        assert_eq!(properties, closed, "{path}: unknown fields");
    }
}

#[test]
fn the_schema_has_the_options_of_the_reader() {
    let known = read::options(&schema());
    let documented: BTreeSet<String> = known.keys().map(|path| documented(path)).collect();
    assert_eq!(documented, options());
}

#[test]
fn types_bounds_and_defaults_are_those_of_the_page() {
    let known = read::options(&schema());
    let mut checked = 0;
    for (path, row) in page("docs/configuration.md").option_rows() {
        let option = &known[&path];
        let kind = row[TYPE]
            .split([' ', ',', ':', ';'])
            .next()
            .unwrap_or_default();
        let read = option.get("type").map(Value::to_string).unwrap_or_default();
        let fits = match kind {
            "whole" => read == r#""integer""#,
            "number" => read == r#""number""#,
            "boolean" => read == r#""boolean""#,
            "list" => read == r#""array""#,
            "text" | "path" | "JSON" | "name" => read == r#""string""#,
            "choice" => option.contains_key("oneOf"),
            "object" => read == r#""object""#,
            "options" | "no" => read.contains("object"),
            "`ip" => option.contains_key("pattern"),
            other => panic!("{path}: what is {other:?}?"),
        };
        assert!(fits, "{path}: {} is {option:?}", row[TYPE]);

        let shown = match option.get("default") {
            None => None,
            Some(Value::String(text)) => Some(format!("`{text}`")),
            Some(Value::Array(names))
                if names.iter().all(Value::is_string) && !names.is_empty() =>
            {
                let names: Vec<_> = names.iter().filter_map(Value::as_str).collect();
                Some(format!("`{}`", names.join("`, `")))
            }
            // Shown below its own heading, and compared with the code there.
            Some(Value::Array(places)) if !places.is_empty() => None,
            Some(other) => Some(format!("`{other}`")),
        };
        let written = &row[DEFAULT];
        match shown {
            Some(shown) => assert_eq!(*written, shown, "default of {path}"),
            None => assert!(!written.starts_with('`'), "{path}: no default {written}"),
        }

        let words: Vec<&str> = row[BOUNDS].split([' ', ';']).collect();
        if let [
            "1" | "0" | "2" | "10" | "100" | "1000" | "1024" | "3000" | "4096" | "65536",
            "to",
            ..,
        ] = words[..]
        {
            let keys = match words.get(3) {
                Some(&"items" | &"items,") => ["minItems", "maxItems"],
                Some(&"entries") => ["minProperties", "maxProperties"],
                Some(&"bytes") => ["minLength", "maxLength"],
                Some(&"letters,") => continue,
                _ => ["minimum", "maximum"],
            };
            let bound = |key: &str| option.get(key).map_or("0".to_owned(), Value::to_string);
            assert_eq!(words[0], bound(keys[0]), "{} of {path}", keys[0]);
            assert_eq!(words[2], bound(keys[1]), "{} of {path}", keys[1]);
            checked += 1;
        } else {
            assert!(!option.contains_key("maximum"), "{path}: bounds {words:?}");
        }
    }
    assert!(checked >= 55, "only {checked} bounds compared");
}

#[test]
fn defaults_change_nothing() {
    let complete = complete();
    let known = read::options(&schema());
    let mut compared = BTreeSet::new();
    let mut configs = valid();
    configs.push(complete);
    for config in &configs {
        for place in places(config) {
            let path = path_of(&place);
            let Some(default) = known.get(&path).and_then(|option| option.get("default")) else {
                continue;
            };
            let set = with(config, &place, default.clone());
            let mut without = config.clone();
            let (parent, name) = place.pointer.rsplit_once('/').expect("a field");
            let fields = without.pointer_mut(parent).and_then(Value::as_object_mut);
            fields.expect("an object").remove(name);
            let parsed = |config: &Value| {
                let parsed = Config::parse(config.to_string().as_bytes());
                parsed.map(|config| Config { hash: 0, ..config })
            };
            if let (Ok(set), Ok(without)) = (parsed(&set), parsed(&without)) {
                assert_eq!(set, without, "{}", place.path);
                compared.insert(documented(&path));
            }
        }
    }
    let defaults = known
        .values()
        .filter(|option| option.contains_key("default"));
    let missing = known.iter().filter(|(path, option)| {
        option.contains_key("default") && !compared.contains(*path) && documented(path) == **path
    });
    let missing: Vec<_> = missing.map(|(path, _)| path).collect();
    assert!(
        missing.is_empty(),
        "of {} defaults: {missing:?}",
        defaults.count()
    );
}

#[test]
fn valid_configurations_pass_the_schema() {
    let valid = valid();
    let validator = validator();
    assert!(valid.len() >= 15, "only {} configurations", valid.len());
    for config in valid {
        if let Err(error) = validator.validate(&config) {
            panic!("{error} at {} of {config}", error.instance_path());
        }
    }
}

#[test]
fn schema_and_reader_refuse_the_same() {
    let validator = validator();
    let known = read::options(&schema());
    let mut configs = valid();
    configs.push(complete());
    let (mut compared, mut refused) = (0, 0);
    let mut done = BTreeSet::new();
    configs.sort_by_key(|config| config.to_string().len());
    for config in &configs {
        for place in places(config) {
            for other in others(config, &place, &known) {
                // What was tried at another place of the same option need not be tried again.
                if done.insert((path_of(&place), other.to_string())) {
                    let what = format!("{} = {other:.80}", place.path);
                    let mutant = with(config, &place, other);
                    refused += compare(&validator, &mutant, &what);
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 4000, "only {compared} compared");
    assert!(
        refused > compared / 2,
        "only {refused} of {compared} refused"
    );
}

#[test]
fn refusals_of_written_configurations_agree() {
    let validator = validator();
    let written = written();
    let refused = written
        .iter()
        .filter(|config| config.get("pools").is_some());
    let refused = refused.map(|config| compare(&validator, config, &config.to_string()));
    assert!(refused.sum::<usize>() >= 3);
}

/// What the reader refuses and the schema cannot, though its reason lies in one place.
#[test]
fn the_schema_is_laxer_in_these_places_only() {
    let validator = validator();
    let two_bytes = "\u{e9}".repeat(600);
    for (pointer, value) in [
        ("/default_pool", json!(two_bytes)),
        ("/pools/0/candidates", json!(3.0)),
        (
            "/pools/0/endpoints/static/0/address",
            json!("[fd00::1::2]:80"),
        ),
    ] {
        let mut config = json!({
            "pools": [{"name": "p", "candidates": 1, "endpoints": {"static": [{"address": "10.0.0.1:1"}]}}],
            "default_pool": "p",
        });
        *config.pointer_mut(pointer).expect("a place") = value;
        let errors = errors(&config);
        assert_eq!(local(&errors).len(), 1, "{pointer}: {errors:?}");
        assert!(validator.is_valid(&config), "{pointer}");
    }
}

#[test]
fn every_rule_beyond_the_schema_exists() {
    let mut sources = String::new();
    let mut files = files_below(&root().join("filter/core/src/config"), ".rs");
    files.retain(|file| !file.ends_with("tests.rs"));
    files.push(root().join("filter/core/src/config.rs"));
    for file in files {
        sources.push_str(&std::fs::read_to_string(file).unwrap());
    }
    for (want, rule) in BEYOND {
        assert!(sources.contains(want), "{rule}: nobody wants {want:?}");
    }
}
