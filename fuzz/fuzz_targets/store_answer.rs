//! Any answers of the store of a fleet: what is sent back is legal, and true answers make all well again.
#![no_main]

#[allow(dead_code, reason = "each target has one of its functions")]
#[path = "../../filter/core/tests/store_answer/mod.rs"]
mod store_answer;

libfuzzer_sys::fuzz_target!(|input: &[u8]| store_answer::check_answers(input));
