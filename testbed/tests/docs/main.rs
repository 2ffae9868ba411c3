//! Holds README and docs against the code.
//!
//! What can be asked from the code is asked: option names, bounds and defaults come from the errors
//! of the config reader, so an option that is added without its line of documentation fails here.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod agreement;
mod breakers;
mod compose;
mod engines;
mod example;
mod examples;
mod metrics;
mod options;
mod pages;
mod prompts;
mod release;
mod schema;
mod state;
mod supply;
mod tables;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use warmpath_core::admission::Priority;
use warmpath_core::answer::Shed;
use warmpath_core::config::PolicyConfig;
use warmpath_core::{Answer, Config, Fallback, Reason};

use options::{complete, errors, options, places, with};
use pages::{Page, page, pages, root};

/// Folders whose paths are named in the docs.
const ROOMS: [&str; 4] = ["filter", "envoy", "testbed", "docs"];
/// Cells of a row of an options table.
const DEFAULT: usize = 3;
const BOUNDS: usize = 4;
/// Choices that a configuration makes once, so that an example can show only one of them.
const MADE_ONCE: [&str; 4] = ["discovery", "scrape", "steer_by", "health.none_usable"];

fn parsed(config: Value) -> Config {
    Config::parse(config.to_string().as_bytes()).expect("a valid config")
}

fn smallest() -> Config {
    parsed(json!({"pools": [{"name": "p", "endpoints": {"static": [{"address": "10.0.0.1:1"}]}}]}))
}

/// The names of all reasons, from the source: an enum cannot be asked for its variants.
fn reasons() -> Vec<String> {
    let source = std::fs::read_to_string(root().join("filter/core/src/decision.rs")).unwrap();
    let arms = source.split("Reason::").skip(1);
    let names = arms.filter_map(|arm| arm.split_once(" => \"")?.1.split('"').next());
    names.map(str::to_owned).collect()
}

#[test]
fn the_complete_example_sets_every_option() {
    let complete = complete();
    let mut set = BTreeSet::new();
    for place in places(&complete) {
        if let Some(Value::String(choice)) = complete.pointer(&place.pointer) {
            set.insert(format!("{}.{choice}", place.option()));
        }
        set.insert(place.option());
    }
    // The other choices have no options of their own that could be shown.
    let other = |option: &String| {
        let made = option.rsplit_once('.').map(|(choice, _)| choice);
        made.is_some_and(|choice| MADE_ONCE.contains(&choice) && set.contains(choice))
    };
    let options = options();
    let missing: Vec<_> = options
        .difference(&set)
        .filter(|option| !other(option))
        .collect();
    assert!(
        missing.is_empty(),
        "not in the complete example: {missing:?}"
    );
}

#[test]
fn every_option_is_documented_and_none_is_made_up() {
    let known = options();
    assert!(known.len() >= 30, "only {} options found", known.len());
    let rows = page("docs/configuration.md").option_rows();
    let documented: BTreeSet<String> = rows.into_keys().collect();
    let missing: Vec<_> = known.difference(&documented).collect();
    assert!(
        missing.is_empty(),
        "no row in docs/configuration.md: {missing:?}"
    );
    let made_up: Vec<_> = documented.difference(&known).collect();
    assert!(
        made_up.is_empty(),
        "documented, but unknown to the code: {made_up:?}"
    );

    let starts = [
        "pools[]",
        "session_key[]",
        "headers.",
        "limits.",
        "discovery.",
        "scrape.",
        "health.",
        "status.",
        "sync.",
    ];
    let in_path = |char: char| char.is_ascii_lowercase() || "[]._".contains(char);
    for page in pages() {
        for name in page.names() {
            let is_path =
                starts.iter().any(|start| name.starts_with(start)) && name.chars().all(in_path);
            let shown = page.path.display();
            assert!(
                !is_path || known.contains(&name),
                "{shown}: no option `{name}`"
            );
        }
    }
}

#[test]
fn bounds_and_defaults_are_those_that_errors_name() {
    let complete = complete();
    let rows = page("docs/configuration.md").option_rows();
    let mut checked = 0;
    for place in places(&complete) {
        let wrong = match complete.pointer(&place.pointer) {
            Some(Value::Number(_) | Value::Bool(_)) => json!("wrong"),
            Some(Value::Array(_)) => vec![Value::Null; 5000].into(),
            _ => continue,
        };
        let path = &place.path;
        let errors = errors(&with(&complete, &place, wrong));
        let error = errors.iter().find(|error| error.path == *path).expect(path);
        let row = &rows[&place.option()];
        // `(default 3)` names a value, `(default: off)` says what happens without one.
        let (want, default) = match error.want.split_once(" (default") {
            Some((want, rest)) => (want, rest.strip_suffix(')').expect("a closed parenthesis")),
            None => (error.want.as_str(), ""),
        };
        if let Some((low, high)) = want.split_once("..=") {
            let low = low.rsplit(' ').next().unwrap_or_default();
            assert_eq!(row[BOUNDS], format!("{low} to {high}"), "bounds of {path}");
        } else if want.ends_with(" items") {
            let bounds = &row[BOUNDS];
            assert!(
                bounds.contains(want),
                "bounds of {path}: no {want:?} in {bounds:?}"
            );
        }
        if let Some(value) = default.strip_prefix(' ') {
            assert_eq!(row[DEFAULT], format!("`{value}`"), "default of {path}");
        } else if let Some(words) = default.strip_prefix(": ") {
            let documented = row[DEFAULT].replace('`', "");
            assert!(documented.contains(words), "default of {path}: {words}");
        }
        checked += 1;
    }
    assert!(checked >= 30, "only {checked} bounds checked");
}

#[test]
fn other_defaults_are_those_of_the_code() {
    let config = smallest();
    let rows = page("docs/configuration.md").option_rows();
    let default = |path: &str| rows[path][DEFAULT].as_str();
    let code = |name: &str| format!("`{name}`");
    let (pool, headers) = (&config.pools[0], &config.headers);
    assert_eq!(default("pools[].policy"), code(pool.policy.name()));
    assert_eq!(default("pools[].cluster"), "the pool's name");
    assert_eq!(pool.cluster, pool.name);
    assert_eq!(default("pools[].admission"), "none: nothing is refused");
    assert_eq!(pool.admission, None);
    assert_eq!(default("pools[].models"), "`[]`");
    assert_eq!(default("pools[].aliases"), "`{}`");
    assert!(pool.models.is_empty() && pool.aliases.is_empty());
    assert_eq!(default("pools[].endpoints.static[].models"), "`[]`");
    assert!(pool.endpoints[0].models.is_empty());
    assert_eq!(default("headers.destination"), code(&headers.destination));
    assert_eq!(default("headers.cluster"), code(&headers.cluster));
    assert_eq!(default("headers.pool"), code(&headers.pool));
    assert_eq!(default("headers.priority"), code(&headers.priority));
    let ids: Vec<String> = headers.request_id.iter().map(|name| code(name)).collect();
    assert_eq!(default("headers.request_id"), ids.join(", "));

    let page = parsed(json!({"status": {}, "pools": [{"name": "p", "endpoints": {"static": []}}]}));
    let page = page.status.expect("a page");
    assert_eq!(default("status"), "none: no page is served");
    assert_eq!(config.status, None);
    assert_eq!(default("status.filter_chain"), code(&page.filter_chain));
    assert_eq!(default("status.path"), code(&page.path));

    let two = parsed(json!({"pools": [
        {"name": "p", "endpoints": {"static": []}, "models": ["m"], "policy": "consistent_hash"},
        {"name": "q", "endpoints": {"static": []}},
    ]}));
    assert_eq!(
        default("default_pool"),
        "the only pool; none if there are several"
    );
    assert_eq!((config.default_pool, two.default_pool), (Some(0), None));
    let PolicyConfig::ConsistentHash {
        bounded_load,
        without_key,
    } = &two.pools[0].policy
    else {
        panic!("another policy");
    };
    let hash = "pools[].policy.consistent_hash";
    assert_eq!(
        default(&format!("{hash}.without_key")),
        code(without_key.name())
    );
    assert_eq!(default(&format!("{hash}.bounded_load")), "none: no bound");
    assert_eq!(*bounded_load, None);
}

#[test]
fn the_default_session_key_is_that_of_the_code() {
    let printed = page("docs/configuration.md").json();
    let printed = printed
        .iter()
        .filter(|value| value.get("pools").is_none())
        .find_map(|value| value.get("session_key"));
    let config = parsed(json!({
        "session_key": printed.expect("the default session key"),
        "pools": [{"name": "p", "endpoints": {"static": []}}],
    }));
    assert_eq!(config.session_key, smallest().session_key);
}

#[test]
fn every_policy_and_reason_is_described() {
    let policies = page("docs/policies.md");
    let sections = policies.anchors();
    let options = options();
    let names = options
        .iter()
        .filter_map(|option| option.strip_prefix("pools[].policy."));
    for name in names.filter(|name| !name.contains('.')) {
        assert!(sections.contains(name), "no section `{name}`");
    }
    let described = policies.names();
    let reasons = reasons();
    assert!(reasons.iter().any(|name| name == Reason::Turn.name()));
    for reason in reasons {
        assert!(described.contains(&reason), "docs/policies.md: no {reason}");
    }
}

#[test]
fn every_fallback_and_answer_is_described() {
    let architecture = page("docs/architecture.md").text;
    for fallback in Fallback::ALL {
        let row = format!("| `{}` |", fallback.name());
        assert!(
            architecture.contains(&row),
            "docs/architecture.md: no {row}"
        );
    }
    let troubleshooting = page("docs/troubleshooting.md").text;
    let shed = Shed {
        pool: 0,
        priority: Priority::High,
    };
    let answers = [
        Answer::bad_json(""),
        Answer::missing_model(),
        Answer::unknown_model(b"m"),
        Answer::no_endpoint("p"),
        Answer::overloaded("p", shed, 1),
    ];
    for answer in answers {
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        let code = body["error"]["code"].as_str().expect("a code");
        let row = format!("| {} `{code}` |", answer.status);
        assert!(
            troubleshooting.contains(&row),
            "docs/troubleshooting.md: no {row}"
        );
        let cause = format!("`{}`", answer.cause);
        assert!(
            troubleshooting.contains(&cause),
            "docs/troubleshooting.md: no {cause}"
        );
    }
}

#[test]
fn every_link_leads_somewhere() {
    for page in pages() {
        for link in page.links() {
            if link.starts_with("https://") {
                continue;
            }
            let shown = format!("{}: link to {link}", page.path.display());
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let path = match file {
                "" => page.path.clone(),
                file => page.path.parent().unwrap().join(file),
            };
            assert!(path.exists(), "{shown}: no such file");
            if !anchor.is_empty() {
                let text = std::fs::read_to_string(&path).unwrap();
                let sections = Page { path, text }.anchors();
                assert!(sections.contains(anchor), "{shown}: no such section");
            }
        }
    }
}

#[test]
fn every_path_and_verb_that_is_named_exists() {
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    for page in pages() {
        let shown = page.path.display();
        let commands = page.code("bash");
        let commands = commands.iter().flat_map(|text| text.lines());
        for name in page.names().iter().map(String::as_str).chain(commands) {
            let room = name.split('/').next().unwrap_or_default();
            if ROOMS.contains(&room) && !name.contains(' ') {
                assert!(root().join(name).exists(), "{shown}: no file {name}");
            }
            let verb = name.strip_prefix("make ");
            if let Some(verb) = verb.and_then(|rest| rest.split(' ').next()) {
                assert!(
                    makefile.contains(&format!("\n{verb}:")),
                    "{shown}: no verb {verb}"
                );
            }
        }
    }
}

#[test]
fn every_file_of_the_core_has_a_row() {
    let table = page("docs/architecture.md").table("Rooms of the core");
    let rows: BTreeSet<_> = table.rows.iter().map(|row| row[0].clone()).collect();
    for entry in std::fs::read_dir(root().join("filter/core/src")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let row = format!("`filter/core/src/{name}`");
        let is_idea = name.ends_with(".rs") && name != "lib.rs";
        assert!(!is_idea || rows.contains(&row), "no row {row}");
    }
}
