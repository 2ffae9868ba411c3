//! What the Makefile pins, and what pages say of it.

use crate::pages::{page, root};

fn makefile() -> String {
    std::fs::read_to_string(root().join("Makefile")).unwrap()
}

/// The default of a variable of the Makefile.
fn variable(name: &str) -> String {
    let makefile = makefile();
    let start = format!("{name} ?= ");
    let line = makefile.lines().find_map(|line| line.strip_prefix(&start));
    line.expect(name).trim().to_owned()
}

#[test]
fn the_matrix_has_the_envoys_that_the_makefile_pins() {
    let table = page("docs/compatibility.md").table("Tested Envoys");
    let versions: Vec<_> = table.rows.iter().map(|row| row[0].clone()).collect();
    let pinned = variable("ENVOY_VERSIONS");
    assert_eq!(versions, pinned.split(' ').collect::<Vec<_>>());
    assert_eq!(versions.last(), Some(&variable("ENVOY_VERSION")));
    let mut passed = 0;
    for row in &table.rows {
        for runtime in ["v8", "wasmtime", "wamr"] {
            let cell = table.cell(row, runtime);
            let tests = cell.strip_prefix("all ");
            let ran = tests.is_some_and(|tests| tests.parse::<u32>().is_ok_and(|tests| tests > 0));
            assert!(ran || cell == "not in this build", "{}: {cell}", row[0]);
            passed += u32::from(ran);
        }
    }
    assert!(passed >= 5, "one of each minor version: {passed}");
}

/// Tools are no part of what is built.
#[test]
fn whatever_is_built_is_built_from_the_lock_file() {
    let mut seen = 0;
    for line in makefile().lines() {
        let Some((_, call)) = line.split_once("cargo ") else {
            continue;
        };
        let verb = call.split(' ').next().unwrap_or_default();
        if ["bench", "build", "clippy", "fetch", "test"].contains(&verb) {
            seen += 1;
            assert!(call.contains(" --locked"), "not locked: {line}");
        }
    }
    assert!(seen >= 8, "only {seen} calls of cargo found");
}
