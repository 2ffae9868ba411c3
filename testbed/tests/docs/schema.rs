//! Holds filter/config.schema.json against the page and the config reader.
//!
//! The page's tables say which options there are, with their types, bounds and defaults; the reader, whether
//! a default changes anything. That both refuse the same is the matter of [`agreement`](crate::agreement).

use std::collections::BTreeSet;

use jsonschema::Validator;
use serde_json::Value;
use warmpath_core::Config;

use crate::options::{complete, documented, errors, options, places, with};
use crate::pages::{page, pages, root};
use crate::{BOUNDS, DEFAULT};

#[path = "../../src/validate/schema.rs"]
pub mod read;

/// Column of the type in a row of an options table.
const TYPE: usize = 2;

pub fn schema() -> Value {
    let text = std::fs::read_to_string(root().join("filter/config.schema.json")).unwrap();
    serde_json::from_str(&text).expect("JSON")
}

pub fn validator() -> Validator {
    jsonschema::draft7::new(&schema()).expect("a schema")
}

/// Every configuration in pages, shipped files, fuzz seeds and string literals of tests.
pub fn written() -> Vec<Value> {
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

/// The plugin configuration of every wasm filter within a part of an Envoy configuration.
fn plugins(value: &Value, found: &mut Vec<String>) {
    let text = value.pointer("/config/configuration/value");
    found.extend(text.and_then(Value::as_str).map(str::to_owned));
    match value {
        Value::Object(map) => map.values().for_each(|value| plugins(value, found)),
        Value::Array(items) => items.iter().for_each(|value| plugins(value, found)),
        _ => {}
    }
}

pub fn files_below(folder: &std::path::Path, end: &str) -> Vec<std::path::PathBuf> {
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

pub fn valid() -> Vec<Value> {
    let mut valid = written();
    valid.retain(|config| config.get("pools").is_some() && errors(config).is_empty());
    let mut seen = BTreeSet::new();
    valid.retain(|config| seen.insert(config.to_string()));
    valid
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
            "1" | "0" | "2" | "10" | "16" | "50" | "100" | "1000" | "1024" | "3000" | "4096"
            | "65536",
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
            let path = read::option_of(&place.path);
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
