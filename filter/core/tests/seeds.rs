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
mod inputs;
mod metrics_page;
mod shared_state;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use std::path::Path;

/// Inputs made of the seeds of each target.
const CASES: u32 = 300;

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

#[test]
fn answers() {
    near("answer", |input| {
        if let Some((size, body)) = input.split_first() {
            let pieces: Vec<&[u8]> = body.chunks(1 << (size % 14)).collect();
            answer::check(&pieces);
        }
    });
}

#[test]
fn metrics_pages() {
    near("metrics_page", metrics_page::check);
}

#[test]
fn configs() {
    near("config", inputs::config);
}

#[test]
fn answers_about_clusters() {
    near("clusters", inputs::clusters);
}

#[test]
fn waits() {
    near("retry_after", inputs::retry_after);
}

#[test]
fn damaged_shared_state() {
    near("shared_state", shared_state::check);
}
