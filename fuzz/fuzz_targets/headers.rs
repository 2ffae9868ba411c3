//! Any headers of a request and of its answer: read as a plain second reading does, and nothing stays
//! counted.
#![no_main]

#[allow(dead_code, reason = "parts of it serve the property tests")]
#[path = "../../filter/core/tests/headers/mod.rs"]
mod headers;

libfuzzer_sys::fuzz_target!(|input: &[u8]| headers::check(input));
