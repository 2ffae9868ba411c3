//! Configurations that the schema and the config reader must refuse both, or neither.
//!
//! Each is a valid one with one thing changed: a value of another type or just out of bounds, a name that is
//! not known, a field more or less. What the schema refuses the reader refuses; what the reader refuses
//! for a reason that lies in one place the schema refuses. The reasons that lie in several places are
//! listed by name.

use std::collections::{BTreeMap, BTreeSet};

use jsonschema::Validator;
use serde_json::{Map, Value, json};
use warmpath_core::config::ConfigError;

use crate::options::{Place, complete, errors, places, with};
use crate::pages::root;
use crate::schema::read::{self, option_of};
use crate::schema::{files_below, schema, valid, validator, written};

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
    let option = option_of(&place.path);
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
                if done.insert((option_of(&place.path), other.to_string())) {
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
