//! What the Makefile pins.

use crate::pages::root;

fn makefile() -> String {
    std::fs::read_to_string(root().join("Makefile")).unwrap()
}

#[test]
fn whatever_is_built_is_built_from_the_lock_file() {
    let mut seen = 0;
    for line in makefile().lines() {
        let Some((_, call)) = line.split_once("cargo ") else {
            continue;
        };
        let verb = call.split(' ').next().unwrap_or_default();
        if ["bench", "build", "clippy", "fetch", "install", "test"].contains(&verb) {
            seen += 1;
            assert!(call.contains(" --locked"), "not locked: {line}");
        }
    }
    assert!(seen >= 9, "only {seen} calls of cargo found");
}
