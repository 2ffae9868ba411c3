//! Any script of requests, ticks and damages to shared data: nothing that is read back is trusted.
#![no_main]

#[path = "../../filter/core/tests/shared_state/mod.rs"]
mod shared_state;

libfuzzer_sys::fuzz_target!(|script: &[u8]| shared_state::check(script));
