//! Any bytes, read as a metrics page, say the same as in the plain reading of the property tests.
#![no_main]

#[allow(dead_code, reason = "the tables serve the generators of the property tests")]
#[path = "../../filter/core/tests/metrics_page/mod.rs"]
mod metrics_page;

libfuzzer_sys::fuzz_target!(|page: &[u8]| metrics_page::check(page));
