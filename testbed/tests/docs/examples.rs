//! Every example of the pages and every file of envoy/, given to `testbed validate`.
//!
//! A block of JSON or YAML is a plugin configuration, or a part of one that is completed here, or a part of
//! Envoy's configuration or a manifest, in which the verb looks for plugin configurations itself. What is
//! none of these is marked as such in the page; what nobody knows fails.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::options::{errors, options};
use crate::pages::{Block, Page, page, pages, root};

/// The line before a block that is no configuration.
const MARK: &str = "<!-- not a configuration -->";
/// Fields of Envoy's configuration, and of the rules of an HTTPRoute, that pages show by themselves.
const PARTS: [&str; 17] = [
    "access_log",
    "admin",
    "backendRefs",
    "circuit_breakers",
    "lb_endpoints",
    "matches",
    "outlier_detection",
    "path_config_source",
    "resources",
    "retry_policy",
    "route_config",
    "static_resources",
    "stats_config",
    "stats_tags",
    "timeouts",
    "transport_socket",
    "typed_config",
];

/// What the verb says: its status, and its answer about each file.
fn validated(files: &[PathBuf], folder: &Path) -> (Option<i32>, Vec<Value>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_testbed"));
    command.args(["validate", "--json"]).args(files);
    let output = command.current_dir(folder).output().expect("the verb");
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    (
        output.status.code(),
        said["files"].as_array().unwrap().clone(),
    )
}

/// The whole configuration that a JSON block is a part of.
fn completed(part: Value, known: &BTreeSet<String>) -> Option<Value> {
    let pool = |policy: Value| {
        let endpoints = json!({"static": [{"address": "10.0.0.11:8000"}]});
        json!({"pools": [{"name": "p", "endpoints": endpoints, "policy": policy}]})
    };
    let mut whole = pool(json!("least_request"));
    let names: Vec<String> = part.as_object()?.keys().cloned().collect();
    if names.iter().all(|name| known.contains(name)) {
        for name in names {
            whole[name.as_str()] = part[name.as_str()].clone();
        }
        return Some(whole);
    }
    let policy = |name: &String| known.contains(&format!("pools[].policy.{name}"));
    (names.len() == 1 && names.iter().all(policy)).then(|| pool(part))
}

/// Whether a part of a YAML block is known, and the part in its place.
fn placed(part: Value) -> Option<Value> {
    if let Value::Array(items) = &part {
        let items: Option<Vec<Value>> = items.iter().cloned().map(placed).collect();
        return Some(items?.into());
    }
    let names: Vec<&str> = part.as_object()?.keys().map(String::as_str).collect();
    let is_manifest = names.contains(&"apiVersion") && names.contains(&"kind");
    let is_cluster = part.get("name").is_some() && part.get("type").is_some();
    let is_part = names.iter().all(|name| PARTS.contains(name));
    if names.contains(&"http_filters") {
        let chain = json!({"filters": [{"typed_config": part}]});
        return Some(json!({"name": "inference", "filter_chains": [chain]}));
    }
    let is_known = names.contains(&"pools") || is_manifest || is_cluster || is_part;
    is_known.then_some(part)
}

/// The documents of a block as files have them; `None` if nobody knows what it is.
fn documents(block: &Block, known: &BTreeSet<String>) -> Option<Vec<Value>> {
    if block.language == "json" {
        let value = serde_json::from_str(&block.text).expect(&block.text);
        return Some(vec![completed(value, known)?]);
    }
    let documents = serde_yaml_ng::Deserializer::from_str(&block.text);
    let value = |document| Value::deserialize(document).expect(&block.text);
    documents.map(|document| placed(value(document))).collect()
}

/// Its documents as a file.
fn written(folder: &Path, name: String, documents: &[Value]) -> PathBuf {
    let texts: Vec<_> = documents.iter().map(Value::to_string).collect();
    let file = folder.join(name);
    std::fs::write(&file, texts.join("\n---\n")).unwrap();
    file
}

/// Fails unless there is nothing to say about it, or the page says it.
fn check(page: &Page, block: &Block, report: &Value) {
    let shown = format!("{}:\n{}", page.path.display(), block.text);
    assert_eq!(report["unreadable"], Value::Null, "{shown}");
    let findings = report["findings"].as_array().unwrap();
    let line = |finding: &Value| {
        assert_eq!(finding["level"], "error", "{finding} in {shown}");
        let text = |name: &str| finding[name].as_str().unwrap().to_owned();
        let path = ["config".to_owned(), text("path")].join(".");
        format!(
            "refused: {}: {}\n",
            path.trim_end_matches('.'),
            text("message")
        )
    };
    let printed = page.code("text").concat();
    for finding in findings {
        let line = line(finding);
        assert!(printed.contains(&line), "{line} is not printed in {shown}");
    }
    let is_json = block.language == "json";
    let has_pools = is_json || block.text.contains("pools:") || block.text.contains("\"pools\"");
    assert_eq!(has_pools, report["plugins"].as_u64() > Some(0), "{shown}");
}

#[test]
fn every_example_is_accepted_or_refused_as_printed() {
    let folder = tempfile::tempdir().unwrap();
    let (pages, known) = (pages(), options());
    let mut blocks = Vec::new();
    let mut files = Vec::new();
    for page in &pages {
        for block in page.blocks() {
            if !["json", "yaml"].contains(&block.language.as_str()) || block.before == MARK {
                continue;
            }
            let shown = format!("{}: what is this?\n{}", page.path.display(), block.text);
            let documents = documents(&block, &known).unwrap_or_else(|| panic!("{shown}"));
            files.push(written(
                folder.path(),
                format!("{}.yaml", files.len()),
                &documents,
            ));
            blocks.push((page, block));
        }
    }
    let (_, reports) = validated(&files, folder.path());
    assert!(reports.len() >= 20 && reports.len() == blocks.len());
    for ((page, block), report) in blocks.iter().zip(&reports) {
        check(page, block, report);
    }
}

#[test]
fn every_file_of_envoy_is_accepted() {
    let mut folders = vec![root().join("envoy")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.to_string_lossy().into_owned();
            match path.is_dir() {
                true if !name.ends_with("/dashboards") => folders.push(path),
                // That of another server.
                false if name.ends_with("/webdis.json") => {}
                false if name.ends_with(".yaml") || name.ends_with(".json") => files.push(path),
                _ => {}
            }
        }
    }
    let (status, reports) = validated(&files, &root());
    for report in &reports {
        assert_eq!(report["unreadable"], Value::Null, "{report}");
        assert_eq!(report["findings"], json!([]), "{report:#}");
    }
    assert_eq!(status, Some(0));
    let with_plugin = reports.iter().filter(|report| report["plugins"] != 0);
    assert!(with_plugin.count() >= 2);
}

/// What the page prints of the verb is what the verb prints.
#[test]
fn the_verb_prints_what_the_page_shows() {
    let page = page("docs/configuration.md");
    let refused = page
        .json()
        .into_iter()
        .find(|config| config.get("pools").is_some() && !errors(config).is_empty());
    let folder = tempfile::tempdir().unwrap();
    let block = page.blocks().into_iter().find(|block| {
        block.language == "json" && serde_json::from_str::<Value>(&block.text).ok() == refused
    });
    std::fs::write(
        folder.path().join("plugin.json"),
        block.expect("a block").text,
    )
    .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_testbed"));
    command
        .args(["validate", "plugin.json"])
        .current_dir(folder.path());
    let output = command.output().expect("the verb");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let shown = page.code("console").concat();
    let command = "$ testbed validate plugin.json\n";
    assert!(
        shown.contains(&format!("{command}{printed}")),
        "the page lacks:\n{printed}"
    );
}
