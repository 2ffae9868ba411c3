//! Finding the end of a clean run inside a JSON string: the next `"`, `\` or control byte.
//!
//! This loop sees every byte of every body. It looks at 64 bytes per step with an OR of compares,
//! and locates the byte only in the block that holds one. On wasm32 it uses SIMD intrinsics (safe
//! there); elsewhere it is written so that the compiler vectorises it.

use super::escapes::{UNICODE_ESCAPE_BYTES, short_escape, unicode_escape};

/// Bytes a single locating step looks at.
pub(super) const BLOCK: usize = 16;
/// Bytes a single skipping step looks at.
const STRIDE: usize = 4 * BLOCK;

/// Whether a byte ends a clean run.
#[inline]
pub(super) const fn is_special(byte: u8) -> bool {
    byte == b'"' || byte == b'\\' || byte < 0x20
}

/// The length of the longest prefix without a quote, a backslash or a control byte. O(n).
#[inline]
pub(crate) fn clean_len(bytes: &[u8]) -> usize {
    // Most strings are short: look at one block before the wide loop.
    let Some((block, rest)) = bytes.split_first_chunk::<BLOCK>() else {
        return clean_len_short(bytes);
    };
    match special_in_block(block) {
        Some(at) => at,
        None => BLOCK + clean_len_wide(rest),
    }
}

/// The same beyond escapes: up to a quote, a control byte or an escape that is not plain.
#[inline]
pub(super) fn text_len(bytes: &[u8]) -> usize {
    let mut len = 0;
    loop {
        len += clean_len(bytes.get(len..).unwrap_or_default());
        let stop = bytes.get(len..).unwrap_or_default();
        let Some([b'\\', letter]) = stop.first_chunk() else {
            return len;
        };
        len += if short_escape(*letter).is_some() {
            2
        } else if unicode_escape(stop).is_some() {
            UNICODE_ESCAPE_BYTES
        } else {
            return len;
        };
    }
}

fn clean_len_wide(bytes: &[u8]) -> usize {
    let (strides, _) = bytes.as_chunks::<STRIDE>();
    let skipped = strides
        .iter()
        .position(has_special)
        .unwrap_or(strides.len())
        * STRIDE;
    let rest = bytes.get(skipped..).unwrap_or_default();
    let (blocks, tail) = rest.as_chunks::<BLOCK>();
    let mut clean = skipped;
    for block in blocks {
        if let Some(at) = special_in_block(block) {
            return clean + at;
        }
        clean += BLOCK;
    }
    clean + clean_len_short(tail)
}

fn clean_len_short(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .position(|&byte| is_special(byte))
        .unwrap_or(bytes.len())
}

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod block {
    use super::{BLOCK, STRIDE};
    use core::arch::wasm32::{
        u8x16_bitmask, u8x16_eq, u8x16_le, u8x16_splat, u64x2, v128, v128_any_true, v128_or,
    };

    #[inline]
    fn load(block: &[u8; BLOCK]) -> v128 {
        // One unaligned load after optimisation.
        let word = u128::from_le_bytes(*block);
        u64x2(word as u64, (word >> 64) as u64)
    }

    #[inline]
    fn specials(block: v128) -> v128 {
        v128_or(
            v128_or(
                u8x16_eq(block, u8x16_splat(b'"')),
                u8x16_eq(block, u8x16_splat(b'\\')),
            ),
            u8x16_le(block, u8x16_splat(0x1f)),
        )
    }

    /// Where the first special byte of the block is.
    #[inline]
    pub(in super::super) fn special_in_block(block: &[u8; BLOCK]) -> Option<usize> {
        match u8x16_bitmask(specials(load(block))) {
            0 => None,
            mask => Some(mask.trailing_zeros() as usize),
        }
    }

    #[inline]
    pub(super) fn has_special(stride: &[u8; STRIDE]) -> bool {
        let (blocks, _) = stride.as_chunks::<BLOCK>();
        let found = blocks.iter().fold(u64x2(0, 0), |found, block| {
            v128_or(found, specials(load(block)))
        });
        v128_any_true(found)
    }
}

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
mod block {
    use super::{BLOCK, STRIDE};

    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;

    /// A word whose *lowest* set bit is in the first special byte. Bytes above it may be marked
    /// wrongly, by the borrow of the subtraction.
    #[inline]
    const fn specials(word: u64) -> u64 {
        let quote = word ^ (LOW * b'"' as u64);
        let backslash = word ^ (LOW * b'\\' as u64);
        let found = (quote.wrapping_sub(LOW) & !quote)
            | (backslash.wrapping_sub(LOW) & !backslash)
            | (word.wrapping_sub(LOW * 0x20) & !word);
        found & HIGH
    }

    /// Where the first special byte of the block is.
    #[inline]
    pub(in super::super) fn special_in_block(block: &[u8; BLOCK]) -> Option<usize> {
        let word = u128::from_le_bytes(*block);
        let (low, high) = (specials(word as u64), specials((word >> 64) as u64));
        match (low, high) {
            (0, 0) => None,
            (0, _) => Some(8 + high.trailing_zeros() as usize / 8),
            _ => Some(low.trailing_zeros() as usize / 8),
        }
    }

    #[inline]
    pub(super) fn has_special(stride: &[u8; STRIDE]) -> bool {
        stride.iter().fold(0_u8, |found, &byte| {
            found | u8::from(byte == b'"') | u8::from(byte == b'\\') | u8::from(byte < 0x20)
        }) != 0
    }
}

use block::has_special;
pub(super) use block::special_in_block;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_special_byte_is_found_at_every_place() {
        for len in 0..200 {
            for at in 0..len {
                for special in [b'"', b'\\', 0, b'\n', 0x1f] {
                    let mut bytes = vec![b'a'; len];
                    bytes[at] = special;
                    assert_eq!(clean_len(&bytes), at, "{special} at {at} of {len}");
                }
            }
        }
    }

    #[test]
    fn no_other_byte_ends_a_run() {
        let others: Vec<u8> = (0..=255).filter(|&byte| !is_special(byte)).collect();
        assert_eq!(clean_len(&others), others.len());
        for &byte in &others {
            assert_eq!(clean_len(&[byte; 100]), 100, "{byte}");
            let mut bytes = [byte; 100];
            bytes[77] = b'"';
            assert_eq!(clean_len(&bytes), 77, "{byte}");
        }
    }
}
