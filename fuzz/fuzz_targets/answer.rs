//! Any bytes, passed by as an answer or as a stream of events in pieces of any size, say the same as the
//! whole.
#![no_main]

#[path = "../../filter/core/tests/answer/mod.rs"]
mod answer;

libfuzzer_sys::fuzz_target!(|input: &[u8]| answer::check_input(input));
