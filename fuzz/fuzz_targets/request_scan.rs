//! Any bytes as a request body, cut anywhere: the same as the whole, as `serde_json`, and in bounds.
#![no_main]

#[allow(dead_code, reason = "parts of it serve the property tests")]
#[path = "../../filter/core/tests/request_scan/mod.rs"]
mod request_scan;

libfuzzer_sys::fuzz_target!(|input: &[u8]| request_scan::check(input));
