//! Finding the end of a line. Every byte of every page is seen here.
//!
//! Strides of 32 bytes are compared in a form that the compiler turns into vector instructions, on
//! wasm32 too; the byte is located only in the stride that holds it.

const WORD: usize = 8;
const STRIDE: usize = 4 * WORD;
const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// Where the first line feed is. O(n).
#[inline]
pub(super) fn newline(bytes: &[u8]) -> Option<usize> {
    let (strides, tail) = bytes.as_chunks::<STRIDE>();
    let found = strides.iter().position(has_newline);
    let skipped = found.unwrap_or(strides.len()) * STRIDE;
    let near = found
        .and_then(|at| strides.get(at))
        .map_or(tail, |s| &s[..]);
    let (words, tail) = near.as_chunks::<WORD>();
    for (i, word) in words.iter().enumerate() {
        if let Some(at) = newline_in_word(*word) {
            return Some(skipped + i * WORD + at);
        }
    }
    let at = tail.iter().position(|&byte| byte == b'\n')?;
    Some(skipped + words.len() * WORD + at)
}

#[inline]
fn has_newline(stride: &[u8; STRIDE]) -> bool {
    let found = stride
        .iter()
        .fold(0_u8, |found, &byte| found | u8::from(byte == b'\n'));
    found != 0
}

/// A zero byte borrows, so its top bit is set; bytes above the lowest one may be marked wrongly.
#[inline]
fn newline_in_word(word: [u8; WORD]) -> Option<usize> {
    let word = u64::from_le_bytes(word) ^ (LOW * u64::from(b'\n'));
    match word.wrapping_sub(LOW) & !word & HIGH {
        0 => None,
        found => Some(found.trailing_zeros() as usize / 8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_feed_is_found_at_every_place() {
        for len in 0..150 {
            let mut bytes: Vec<u8> = (0..len).map(|i| [0x0b, 0x8a, 0, 0xff][i % 4]).collect();
            assert_eq!(newline(&bytes), None);
            for at in (0..len).rev() {
                bytes[at] = b'\n';
                assert_eq!(newline(&bytes), Some(at), "{at} of {len}");
            }
        }
    }
}
