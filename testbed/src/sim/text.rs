//! Prompt text made from block ids, for policies that work on the real bytes of a prompt.
//!
//! One id always yields the same ASCII text, so requests with a common prefix of ids have a common
//! prefix of bytes. Text is made at about 2 GB/s and any range of it can be made alone.
//! [`ChunkCache`] saves most of that: since ids are chained, the block that a chunk ends in and the
//! chunk's number determine all text up to there, and so the hash of the chunk.

use std::collections::HashMap;

use hashlink::DefaultHashBuilder;

use super::request::SimRequest;

/// A usual ratio for English text and code.
pub const BYTES_PER_TOKEN: usize = 4;

/// Appends the bytes `from..to` of the request's prompt.
pub fn write(request: &SimRequest, from: usize, to: usize, out: &mut Vec<u8>) {
    let to = to.min(request.text_len());
    let block_bytes = request.block_tokens as usize * BYTES_PER_TOKEN;
    let mut at = from;
    while at < to {
        let id = request.blocks.get(at / block_bytes).copied().unwrap_or(0);
        let end = to.min((at / block_bytes + 1) * block_bytes);
        write_block(id, at % block_bytes, end - at, out);
        at = end;
    }
}

/// Appends `len` bytes of the text of block `id`, from byte `from` of the block.
fn write_block(id: u64, from: usize, len: usize, out: &mut Vec<u8>) {
    let (first, last) = (from / 8, (from + len).div_ceil(8));
    let start = out.len();
    for word in first..last {
        out.extend_from_slice(&letters(mix(id, word as u64)));
    }
    out.drain(start..start + from % 8);
    out.truncate(start + len);
}

/// Eight letters or spaces from 64 random bits: 32 symbols, 5 bits a byte.
fn letters(bits: u64) -> [u8; 8] {
    const SYMBOLS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz ,.\ne ";
    (bits & 0x1f1f_1f1f_1f1f_1f1f)
        .to_le_bytes()
        .map(|symbol| SYMBOLS.get(usize::from(symbol)).copied().unwrap_or(b' '))
}

/// SplitMix64 of a block's id and a word's number.
fn mix(id: u64, word: u64) -> u64 {
    let mut z = id
        .wrapping_mul(0xd1b5_4a32_d192_ed03)
        .wrapping_add(word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Remembers a value for each chunk of text, by the block that the chunk ends in and its number.
///
/// Bounded by the distinct chunks of the workload (16 bytes and map overhead each).
#[derive(Debug)]
pub struct ChunkCache {
    chunk_bytes: usize,
    hashes: HashMap<(u64, u64), u64, DefaultHashBuilder>,
}

impl ChunkCache {
    /// For chunks of `chunk_bytes` (at least 1).
    pub fn new(chunk_bytes: usize) -> Self {
        Self {
            chunk_bytes: chunk_bytes.max(1),
            hashes: HashMap::default(),
        }
    }

    /// `hash` of every whole chunk of the prompt, in order. `hash` must be a function of the bytes
    /// alone; it is called only for chunks that were not seen before.
    pub fn hashes(&mut self, request: &SimRequest, hash: impl Fn(&[u8]) -> u64) -> Vec<u64> {
        let block_bytes = request.block_tokens as usize * BYTES_PER_TOKEN;
        let mut bytes = Vec::with_capacity(self.chunk_bytes);
        (0..request.text_len() / self.chunk_bytes)
            .map(|chunk| {
                let (from, to) = (chunk * self.chunk_bytes, (chunk + 1) * self.chunk_bytes);
                let id = request.blocks.get((to - 1) / block_bytes).copied();
                *self
                    .hashes
                    .entry((id.unwrap_or(0), chunk as u64))
                    .or_insert_with(|| {
                        bytes.clear();
                        write(request, from, to, &mut bytes);
                        hash(&bytes)
                    })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(blocks: &[u64], prompt_tokens: u32) -> SimRequest {
        SimRequest {
            id: 0,
            session: None,
            key: 0,
            blocks: blocks.into(),
            block_tokens: 10,
            prompt_tokens,
            output_tokens: 1,
        }
    }

    #[test]
    fn common_ids_are_common_bytes() {
        let (a, b) = (
            request(&[1, 2, 3], 30).text(),
            request(&[1, 2, 4], 25).text(),
        );
        assert_eq!((a.len(), b.len()), (120, 100));
        assert_eq!(a[..80], b[..80]);
        assert_ne!(a[80..88], b[80..88]);
        assert!(a.is_ascii());
    }

    #[test]
    fn any_range_equals_the_whole() {
        let request = request(&[7, 8, 9], 27);
        let whole = request.text();
        for from in 0..whole.len() {
            for to in [from + 1, from + 13, from + 50] {
                let mut part = Vec::new();
                write(&request, from, to, &mut part);
                assert_eq!(part, whole[from..to.min(whole.len())]);
            }
        }
    }

    #[test]
    fn cached_chunks_equal_fresh_ones() {
        let hash = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(7, |h: u64, b| h * 31 % 65_521 + u64::from(*b))
        };
        let mut cache = ChunkCache::new(32);
        for request in [request(&[1, 2, 3], 30), request(&[1, 2, 5], 29)] {
            let fresh: Vec<u64> = request.text().chunks_exact(32).map(hash).collect();
            assert_eq!(cache.hashes(&request, hash), fresh);
            assert_eq!(cache.hashes(&request, |_| unreachable!()), fresh);
        }
    }
}
