//! Any bytes, passed by as an answer in pieces of any size, say the same as the whole. The first byte
//! is the size of a piece, in powers of two up to more than is read of one.
#![no_main]

#[path = "../../filter/core/tests/answer/mod.rs"]
mod answer;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Some((size, body)) = input.split_first() {
        let pieces: Vec<&[u8]> = body.chunks(1 << (size % 14)).collect();
        answer::check(&pieces);
    }
});
