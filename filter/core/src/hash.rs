//! The one hash of warmpath: everything that two workers or two Envoys must agree on is hashed here.
//!
//! Prompt chunks, session keys and ring positions meet in shared tables and across replicas, so
//! these values are a *format*: they are the same natively and on wasm32, on every release, and the
//! golden vectors below fail when they change. Hash maps private to one worker may use any hash.
//!
//! Bytes are hashed with XXH3-64, seed 0, default secret (about 8 GB/s on 512-byte chunks with wasm
//! SIMD). Two hashes are combined with [`mix`], which needs only 64-bit multiplications: wasm has
//! no 128-bit product.

mod table;

pub use table::Table;

use std::hash::{BuildHasher, Hasher};
use xxhash_rust::xxh3::xxh3_64;

/// 2^64 divided by the golden ratio, odd: spreads the left operand before the operands meet.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// Keeps `mix(0, 0)` away from the fixed point of the finaliser.
const OFFSET: u64 = 0xd6e8_feb8_6659_fd93;
/// Sets links of a chain apart from any other use of [`mix`].
const LINK: u64 = 0xa076_1d64_78bd_642f;

/// The hash of a byte string: XXH3-64 with seed 0.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// Combines two hashes into one. Not commutative; for a fixed operand it is a permutation of the
/// other, so a combination loses nothing.
///
/// `finalise(rotl(a * SPREAD, 32) ^ b ^ OFFSET)`, with the finaliser of SplitMix64.
#[must_use]
pub const fn mix(a: u64, b: u64) -> u64 {
    finalise(a.wrapping_mul(SPREAD).rotate_left(32) ^ b ^ OFFSET)
}

/// [`mix`] of one left operand with many right ones that were prepared once, for finding the highest
/// results: about half the work, because most results are only compared.
#[derive(Clone, Copy, Debug)]
pub struct Mixer(u64);

/// A right operand of a [`Mixer`].
#[derive(Clone, Copy, Debug)]
pub struct Prepared(u64);

impl Prepared {
    /// Prepares `b` of `mix(a, b)`.
    #[must_use]
    pub const fn new(b: u64) -> Self {
        // The first step of the finaliser has no carries: it may be applied to each operand.
        Prepared(b ^ (b >> 30))
    }
}

impl Mixer {
    /// A mixer for `a` of `mix(a, b)`.
    #[must_use]
    pub const fn new(a: u64) -> Self {
        let left = a.wrapping_mul(SPREAD).rotate_left(32) ^ OFFSET;
        Mixer(left ^ (left >> 30))
    }

    /// `mix(a, b)`, or `None` if it is certainly below `floor`.
    #[must_use]
    pub const fn at_least(self, b: Prepared, floor: u64) -> Option<u64> {
        let x = (self.0 ^ b.0).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // The last step leaves the upper 31 bits as they are.
        if x < floor & (u64::MAX << 33) {
            return None;
        }
        Some(x ^ (x >> 31))
    }
}

/// The next link of a hash chain: it attests `chunk_hash` and, through `previous`, everything
/// before it.
#[must_use]
pub const fn chain(previous: u64, chunk_hash: u64) -> u64 {
    mix(previous ^ LINK, chunk_hash)
}

/// The finaliser of SplitMix64: a permutation in which every input bit moves every output bit.
const fn finalise(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Sets the hashes of a [`Table`] apart from those of others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seed(pub u64);

/// Hashes a key for a [`Table`]; the result is no format. Made of [`hash`] and [`mix`], which are there
/// anyway, and of the same functions for all keys.
#[derive(Clone, Debug)]
pub struct KeyHasher(u64);

impl BuildHasher for Seed {
    type Hasher = KeyHasher;

    fn build_hasher(&self) -> KeyHasher {
        KeyHasher(self.0)
    }
}

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.write_u64(hash(bytes));
    }

    #[inline(never)]
    fn write_u64(&mut self, part: u64) {
        self.0 = mix(self.0, part);
    }

    fn write_u8(&mut self, part: u8) {
        self.write_u64(u64::from(part));
    }

    fn write_u16(&mut self, part: u16) {
        self.write_u64(u64::from(part));
    }

    fn write_u32(&mut self, part: u32) {
        self.write_u64(u64::from(part));
    }

    fn write_usize(&mut self, part: usize) {
        self.write_u64(part as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_vectors() {
        let chunk: Vec<u8> = (0..512_u32).map(|i| (i * 7 % 251) as u8).collect();
        assert_eq!(hash(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(hash(b"warmpath"), 0x1adc_b139_6fb3_00e3);
        assert_eq!(hash(&chunk), 0x95e4_fda7_2852_917f);
        assert_eq!(mix(0, 0), 0xb55a_8fa0_6753_7a73);
        assert_eq!(mix(1, 2), 0xf213_af38_794e_63f0);
        assert_eq!(mix(2, 1), 0xa42a_4a5e_3230_0eea);
        assert_eq!(chain(0, 0), 0xed95_e4e2_729e_de68);
        assert_eq!(chain(hash(b"a"), hash(b"b")), 0xcbe4_d47b_0d48_214f);
    }

    #[test]
    fn a_mixer_mixes() {
        for n in 0..1000 {
            let (a, b) = (mix(n, 1), mix(2, n));
            let at_least = |floor| Mixer::new(a).at_least(Prepared::new(b), floor);
            let mixed = mix(a, b);
            assert_eq!(at_least(0), Some(mixed));
            assert_eq!(at_least(mixed), Some(mixed));
            assert_eq!(at_least(mixed.saturating_add(1 << 33) | 1 << 33), None);
        }
    }

    #[test]
    fn every_input_bit_moves_about_half_of_the_output() {
        for bit in 0..64 {
            let left = (mix(7, 9) ^ mix(7 ^ (1 << bit), 9)).count_ones();
            let right = (mix(7, 9) ^ mix(7, 9 ^ (1 << bit))).count_ones();
            assert!((12..=52).contains(&left), "bit {bit} of a moves {left}");
            assert!((12..=52).contains(&right), "bit {bit} of b moves {right}");
        }
    }
}
