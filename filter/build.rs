//! Packs the status page, as `src/packed.rs` unpacks it.

use std::collections::HashMap;
use std::{env, fs, io, path::PathBuf};

#[path = "src/packed.rs"]
mod packed;

/// Shorter copies are not worth their bits.
const LEAST_COPY: usize = 3;

fn main() -> io::Result<()> {
    const PAGE: &str = "src/status.html";
    println!("cargo::rerun-if-changed={PAGE}");
    println!("cargo::rerun-if-changed=src/packed.rs");
    let page = fs::read(PAGE)?;
    let packed = pack(&page);
    if packed::unpack(&packed) != page {
        return Err(io::Error::other("what was packed is not what is unpacked"));
    }
    let folder = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    fs::write(folder.join("status.packed"), packed)
}

/// The cheapest way to write the text with the longest copy, or a part of it, at each place.
fn pack(text: &[u8]) -> Vec<u8> {
    let copies = longest_copies(text);
    let mut ways = vec![(0, 1); text.len() + 1];
    for at in (0..text.len()).rev() {
        let cost = |length: usize| {
            ways.get(at + length)
                .map_or(0, |way: &(usize, usize)| way.0)
        };
        let mut best = (9 + cost(1), 1);
        let (longest, back) = copies.get(at).copied().unwrap_or_default();
        for length in LEAST_COPY..=longest {
            let cost = 1 + width(length - 1) + width((back >> 8) + 1) + 8 + cost(length);
            best = best.min((cost, length));
        }
        if let Some(way) = ways.get_mut(at) {
            *way = best;
        }
    }
    let mut bits = Vec::new();
    put(&mut bits, text.len(), 32);
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let length = ways.get(at).map_or(1, |way| way.1);
        let back = copies.get(at).map_or(0, |copy| copy.1);
        put(&mut bits, usize::from(length > 1), 1);
        if length > 1 {
            put(&mut bits, length - 1, width(length - 1));
            put(&mut bits, (back >> 8) + 1, width((back >> 8) + 1));
            put(&mut bits, back & 0xff, 8);
        } else {
            put(&mut bits, usize::from(*byte), 8);
        }
        at += length;
    }
    let byte = |bits: &[bool]| {
        (0..8).fold(0, |byte, at| {
            byte << 1 | u8::from(bits.get(at) == Some(&true))
        })
    };
    bits.chunks(8).map(byte).collect()
}

/// For each place the length of the longest copy that can be made there, and from how far back.
fn longest_copies(text: &[u8]) -> Vec<(usize, usize)> {
    let mut seen: HashMap<&[u8], Vec<usize>> = HashMap::new();
    let mut copies = vec![(0, 0); text.len()];
    for (at, key) in text.windows(LEAST_COPY).enumerate() {
        let places = seen.entry(key).or_default();
        for place in places.iter().rev() {
            let pairs = text.iter().skip(*place).zip(text.iter().skip(at));
            let length = pairs.take_while(|(one, other)| one == other).count();
            if let Some(copy) = copies.get_mut(at)
                && length > copy.0
            {
                *copy = (length, at - place);
            }
        }
        places.push(at);
    }
    copies
}

/// Bits of a number in its form of its own: its zeros and itself.
fn width(number: usize) -> usize {
    2 * number.ilog2() as usize + 1
}

fn put(bits: &mut Vec<bool>, number: usize, count: usize) {
    bits.extend((0..count).rev().map(|bit| number >> bit & 1 == 1));
}
