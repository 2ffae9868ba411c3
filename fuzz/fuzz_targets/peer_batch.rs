//! Any bytes for a batch of another Envoy: refused, or taken over once and within bounds.
#![no_main]

#[allow(dead_code, reason = "each target has one of its functions")]
#[path = "../../filter/core/tests/store_answer/mod.rs"]
mod store_answer;

libfuzzer_sys::fuzz_target!(|input: &[u8]| store_answer::check_batch(input));
