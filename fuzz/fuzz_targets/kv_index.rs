//! Any bytes where the tokens of a prompt are expected, or who holds them: refused, or read within bounds.
#![no_main]

#[allow(dead_code, reason = "each target has one of its functions")]
#[path = "../../filter/core/tests/inputs/mod.rs"]
mod inputs;

libfuzzer_sys::fuzz_target!(|input: &[u8]| inputs::kv_index(input));
