//! The kept inputs of the fuzz targets and what is near them, checked as the targets do, in bounded
//! time and without a fuzzer.
#![cfg(not(target_arch = "wasm32"))]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a panic is a failed test"
)]
#![allow(dead_code, reason = "modules that other tests use more of")]

mod answer;
mod body_changes;
mod headers;
mod inputs;
mod metrics_page;
mod request_scan;
mod shared_state;
mod store_answer;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use std::path::Path;

/// Inputs made of the seeds of each target.
const CASES: u32 = 300;

/// What is kept for a target: enough to begin from, and small enough to read.
const MOST_SEEDS: usize = 64;
const MOST_SEED_BYTES: usize = 64 * 1024;

/// What parsers take to be something else than the bytes around it.
const PIECES: [&str; 8] = [
    "\"",
    "{",
    "]",
    "null",
    "-1e999",
    "99999999999999999999",
    "\\u0000",
    "\n",
];

/// The kept inputs of a target.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    let mut paths: Vec<_> = std::fs::read_dir(folder.join(target))
        .expect("seeds")
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{target} has no seeds");
    paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

/// What is done to a seed: bytes put in the place of others, which may be none.
type Edit = (Index, usize, Vec<u8>);

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let piece = prop_oneof![
        vec(any::<u8>(), 0..8),
        prop::sample::select(&PIECES[..]).prop_map(|piece| piece.as_bytes().to_vec()),
    ];
    vec((any::<Index>(), 0..12_usize, piece), 0..6)
}

/// Checks every seed of a target, and [`CASES`] inputs near them.
fn near(target: &str, check: impl Fn(&[u8])) {
    let seeds = seeds(target);
    seeds.iter().for_each(|seed| check(seed));
    let options = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(CASES)
    };
    let mut runner = proptest::test_runner::TestRunner::new(options);
    let strategy = (prop::sample::select(seeds), edits());
    let run = runner.run(&strategy, |(mut input, edits)| {
        for (at, length, piece) in edits {
            let from = at.index(input.len() + 1);
            let to = input.len().min(from + length);
            input.splice(from..to, piece);
        }
        check(&input);
        Ok(())
    });
    run.unwrap_or_else(|error| panic!("{target}: {error}"));
}

/// One test for each target, with the same check as the target has.
macro_rules! targets {
    ($($target:ident: $check:path,)*) => {
        /// Their names, in order.
        const TARGETS: &[&str] = &[$(stringify!($target)),*];

        mod kept {
            $(
                #[test]
                fn $target() {
                    super::near(stringify!($target), $check);
                }
            )*
        }
    };
}

targets! {
    answer: crate::answer::check_input,
    body_changes: crate::body_changes::check_input,
    clusters: crate::inputs::clusters,
    config: crate::inputs::config,
    headers: crate::headers::check,
    kv_index: crate::inputs::kv_index,
    metrics_page: crate::metrics_page::check,
    models: crate::inputs::models,
    peer_batch: crate::store_answer::check_batch,
    request_scan: crate::request_scan::check,
    retry_after: crate::inputs::retry_after,
    shared_state: crate::shared_state::check,
    store_answer: crate::store_answer::check_answers,
}

/// The names of what lies in a folder of `fuzz`, in order, without their endings.
fn names_in(folder: &str) -> Vec<String> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let entries = std::fs::read_dir(fuzz.join(folder)).expect(folder);
    let stem = |path: std::path::PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let mut names: Vec<_> = entries.map(|entry| stem(entry.unwrap().path())).collect();
    names.sort();
    names
}

#[test]
fn every_target_is_checked_here_too() {
    assert_eq!(names_in("fuzz_targets"), TARGETS);
    assert_eq!(names_in("seeds"), TARGETS);
    let manifest = include_str!("../../../fuzz/Cargo.toml");
    let named = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("name = "));
    let mut named: Vec<_> = named.map(|name| name.trim_matches('"')).collect();
    named.retain(|name| *name != "warmpath-fuzz");
    assert_eq!(named, TARGETS);
}

#[test]
fn the_kept_inputs_are_few_and_small() {
    for target in TARGETS {
        let seeds = seeds(target);
        let bytes: usize = seeds.iter().map(Vec::len).sum();
        assert!(seeds.len() <= MOST_SEEDS, "{target}: {} seeds", seeds.len());
        assert!(bytes <= MOST_SEED_BYTES, "{target}: {bytes} bytes of seeds");
    }
}
