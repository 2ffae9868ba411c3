//! Any bytes as a request body of which members are taken out and put in: the rest stays as it came.
#![no_main]

#[path = "../../filter/core/tests/body_changes/mod.rs"]
mod body_changes;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body_changes::check_input(input));
