//! Any bytes where the header `retry-after` is expected: refused, or read within bounds.
#![no_main]

#[allow(dead_code, reason = "each target has one of its functions")]
#[path = "../../filter/core/tests/inputs/mod.rs"]
mod inputs;

libfuzzer_sys::fuzz_target!(|input: &[u8]| inputs::retry_after(input));
