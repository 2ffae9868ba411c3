//! The golden vectors, natively.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod vectors;

#[test]
fn the_format_has_not_changed() {
    let computed = vectors::computed();
    assert_eq!(computed, vectors::FIXED, "computed:\n{computed}");
}
