//! The golden vectors inside a wasm engine: 32-bit sizes, SIMD hashing, no clock and no randomness.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]
#![cfg(target_arch = "wasm32")]

mod vectors;

#[wasm_bindgen_test::wasm_bindgen_test]
fn the_format_is_the_same_on_wasm32() {
    assert_eq!(vectors::computed(), vectors::FIXED);
}
