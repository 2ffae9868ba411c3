//! Any bytes where Envoy's answer about its clusters is expected: refused, or read within bounds.
#![no_main]

#[allow(dead_code, reason = "each target has one of its functions")]
#[path = "../../filter/core/tests/inputs/mod.rs"]
mod inputs;

libfuzzer_sys::fuzz_target!(|input: &[u8]| inputs::clusters(input));
