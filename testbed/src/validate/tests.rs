//! What is printed of many wrong documents, and what the process ends with.

use serde_json::json;

use super::*;

const CASES: &str = "src/validate/cases";

fn case(name: &str) -> Report {
    let file = Path::new(CASES).join(name);
    check(&[file], None).remove(0)
}

/// Each file of `cases` beside the text that is printed of it.
#[test]
fn what_is_printed_of_a_file_is_as_kept() {
    let mut checked = 0;
    for entry in std::fs::read_dir(CASES).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|extension| extension == "txt") {
            continue;
        }
        let kept = file.with_extension(format!("{}.txt", file.extension().unwrap().display()));
        let kept = std::fs::read_to_string(&kept).unwrap_or_default();
        let printed = check(std::slice::from_ref(&file), None).remove(0).shown();
        assert_eq!(printed, kept, "{}, now:\n{printed}", file.display());
        checked += 1;
    }
    assert!(checked >= 8, "{checked}");
}

#[test]
fn the_status_tells_what_was_found() {
    let of = |names: &[&str], strict| {
        let files: Vec<PathBuf> = names
            .iter()
            .map(|name| Path::new(CASES).join(name))
            .collect();
        let mut reports = check(&files, None);
        if strict {
            reports.iter_mut().for_each(Report::tighten);
        }
        status(&reports)
    };
    assert_eq!(of(&["patched.yaml"], true), 0);
    assert_eq!(of(&["envoy.yaml"], false), 0, "warnings are no errors");
    assert_eq!(of(&["envoy.yaml"], true), 1, "unless it is asked for");
    assert_eq!(of(&["plugin.json", "patched.yaml"], false), 1);
    assert_eq!(of(&["nothing.yaml"], false), 2);
    assert_eq!(of(&["nothing.yaml", "patched.yaml"], false), 0);
    assert_eq!(of(&["plugin.json", "broken.yaml"], false), 2);
    assert_eq!(of(&["no-such-file.yaml"], false), 2);
}

/// Lines are those of the file, at every depth of documents in documents.
#[test]
fn lines_lead_to_what_is_wrong() {
    for (name, expected) in [
        ("plugin.json", "\"policy\": \"least_requests\""),
        ("errors-in-envoy.yaml", "\"default_pool\": \"lama\""),
        ("manifests.yaml", "\"endpoints\": \"envoi\""),
        ("manifests.yaml", "\"candidates\": 17"),
        ("manifests.yaml", "\"session_keys\": []"),
    ] {
        let text = std::fs::read_to_string(Path::new(CASES).join(name)).unwrap();
        let line = text
            .lines()
            .position(|line| line.contains(expected))
            .unwrap()
            + 1;
        let findings = case(name).findings;
        let there = findings.iter().any(|finding| finding.line == Some(line));
        assert!(there, "{expected} is on line {line}: {findings:#?}");
    }
}

/// Programs read the same as people.
#[test]
fn json_has_every_part_of_a_finding() {
    let report = case("plugin.json");
    let printed = serde_json::to_value(&report).unwrap();
    let first = printed.pointer("/findings/0").expect("a finding");
    for (name, value) in [
        ("file", json!(format!("{CASES}/plugin.json"))),
        ("document", json!(1)),
        ("line", json!(5)),
        ("at", json!("")),
        ("path", json!("pools[0].name")),
        ("level", json!("error")),
        ("rule", json!("refused")),
        ("suggestion", Value::Null),
    ] {
        assert_eq!(first.get(name), Some(&value), "{name} of {first}");
    }
    assert_eq!(printed.get("plugins"), Some(&json!(1)));
}

#[test]
fn a_filter_that_steers_by_filter_state_needs_no_bodies() {
    let object = json!({"vm_config": {"vm_id": "w"}, "failure_policy": "FAIL_RELOAD"});
    let rules = |text: &str| {
        let plugin = Plugin {
            text: text.to_owned(),
            at: String::new(),
            lines: lines::Lines::on(1),
            holder: find::Holder::Envoy,
            object: &object,
            line: None,
            around: find::Around::default(),
        };
        let config =
            Config::parse(br#"{"pools": [{"name": "p", "models": ["m"], "endpoints": "envoy"}]}"#);
        let advice = advice::advice(&plugin, config.as_ref().ok(), false);
        advice.iter().map(|advice| advice.rule).collect::<Vec<_>>()
    };
    assert_eq!(rules("{}"), ["stop-iteration"]);
    assert!(rules(r#"{"steer_by": "filter_state"}"#).is_empty());
    assert!(rules(r#"{"steer_by": {"filter_state": {}}}"#).is_empty());
    assert_eq!(rules(r#"{"steer_by": "headers"}"#), ["stop-iteration"]);
}
