//! One version everywhere, and commands of the pages that say what is there.

use std::process::Command;

use crate::pages::{page, pages, root};

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn read(path: &std::path::Path) -> String {
    std::fs::read_to_string(path).expect("a file")
}

/// Every YAML file of a folder.
fn yaml_files(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            yaml_files(&path, found);
        } else if path.extension().is_some_and(|it| it == "yaml") {
            found.push(path);
        }
    }
}

/// Versions of the module or its image that a text names, such as `warmpath:1.2.3`.
fn versions(text: &str) -> Vec<&str> {
    let starts = ["warmpath:", "warmpath-", "image:"];
    let named = starts.iter().flat_map(|start| text.split(start).skip(1));
    named
        .map(|rest| {
            let end = rest.find(|char: char| !char.is_ascii_digit() && char != '.');
            rest.get(..end.unwrap_or(rest.len())).unwrap_or_default()
        })
        .map(|version| version.trim_end_matches('.'))
        .filter(|version| version.split('.').count() == 3)
        .collect()
}

#[test]
fn every_crate_has_the_version_of_the_workspace() {
    let workspace = read(&root().join("Cargo.toml"));
    let members = workspace.split("members = [").nth(1).unwrap();
    let members = members.split(']').next().unwrap();
    let members: Vec<_> = members.split('"').skip(1).step_by(2).collect();
    assert!(members.len() >= 4);
    for member in members {
        let manifest = read(&root().join(member).join("Cargo.toml"));
        assert!(
            manifest.contains("\nversion.workspace = true\n"),
            "{member}"
        );
    }
    let declared = format!("[workspace.package]\nversion = \"{VERSION}\"\n");
    assert!(workspace.contains(&declared));
}

#[test]
fn the_changelog_begins_with_the_version() {
    let changelog = page("CHANGELOG.md").text;
    let newest = changelog.lines().find(|line| line.starts_with("## ["));
    let newest = newest.expect("a section");
    let date = newest.strip_prefix(&format!("## [{VERSION}] - "));
    let date = date.unwrap_or_else(|| panic!("{newest} is not {VERSION}"));
    let is_date = date.len() == 10 && date.split('-').count() == 3;
    assert!(is_date || date == "unreleased", "{date}");
}

#[test]
fn pages_and_manifests_name_no_other_version() {
    let mut texts: Vec<_> = pages().into_iter().map(|it| (it.path, it.text)).collect();
    let mut files = Vec::new();
    yaml_files(&root().join("envoy"), &mut files);
    texts.extend(files.into_iter().map(|path| (path.clone(), read(&path))));
    let mut seen = 0;
    for (path, text) in texts {
        for version in versions(&text) {
            seen += 1;
            // What the pages upgrade to.
            let next = path.to_string_lossy().contains("/deploy-") && version == "0.2.0";
            assert!(version == VERSION || next, "{}: {version}", path.display());
        }
    }
    assert!(seen >= 5, "only {seen} versions found");
}

#[test]
fn what_commands_name_exists() {
    let verbs = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .arg("--help")
        .output()
        .unwrap();
    let verbs = String::from_utf8(verbs.stdout).unwrap();
    let makefile = read(&root().join("Makefile"));
    let mut seen = 0;
    for page in pages() {
        let shown = page.path.display();
        for block in page.code("bash") {
            for word in block.split(|char: char| char.is_whitespace() || "'\"|;".contains(char)) {
                let room = word.split('/').next().unwrap_or_default();
                if ["envoy", "docs", "testbed", "filter"].contains(&room) && word.contains('/') {
                    seen += 1;
                    assert!(root().join(word).exists(), "{shown}: no {word}");
                }
                if let Some(rest) = word.strip_prefix(".tools/envoy-") {
                    let version = rest.split('/').next().unwrap_or_default();
                    let line = format!("\nENVOY_VERSION ?= {version}\n");
                    assert!(makefile.contains(&line), "{shown}: {word}");
                }
            }
            for line in block.lines() {
                if let Some(rest) = line.strip_prefix("target/native/testbed ") {
                    let verb = rest.split(' ').next().unwrap_or_default();
                    assert!(verbs.contains(&format!("\n  {verb} ")), "{shown}: {verb}");
                }
            }
        }
    }
    assert!(seen >= 6, "only {seen} files found");
}

/// A replacement that finds nothing is silent, so a page that was right would become wrong unseen.
#[test]
fn what_commands_replace_is_there() {
    let mut seen = 0;
    for page in pages() {
        for line in page.code("bash").iter().flat_map(|block| block.lines()) {
            let Some((script, rest)) = line
                .strip_prefix("sed '")
                .and_then(|rest| rest.split_once("' "))
            else {
                continue;
            };
            let file = rest.split(' ').next().unwrap_or_default();
            if !file.starts_with("envoy/") {
                continue;
            }
            let text = read(&root().join(file));
            for replacement in script.split("; ") {
                seen += 1;
                let found = replacement.split('|').nth(1).expect("s|from|to|");
                assert!(text.contains(found), "{file} has no {found}");
            }
        }
    }
    assert!(seen >= 3, "only {seen} replacements found");
}
