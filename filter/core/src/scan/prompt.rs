//! The prompt as chunk hashes: what the prefix policy matches against the engines' caches.
//!
//! A prompt is up to four *sections* in the order in which a chat template lays them out: tools,
//! system, the main text, documents. The keys of a body come in any order, so each section is cut
//! into 512-byte chunks and hashed on its own, and the sections are chained only when asked. What
//! bytes a section consists of is told in `canonical`.
//!
//! Memory: 8 bytes per 512 bytes of prompt, and one chunk. Every chunk is hashed once: from the
//! body slice when it lies there whole and unescaped, otherwise from the chunk buffer.

use super::api::Section;
use super::search::{BLOCK, clean_in_block, clean_len, is_special};
use crate::hash::{chain, hash, mix};

/// Bytes of prompt that one chunk hash covers; about 128 tokens.
pub const CHUNK_BYTES: usize = 512;

/// Chunks that identify a conversation whose main section has no messages.
const OPENING_CHUNKS: usize = 4096 / CHUNK_BYTES;

/// One link of the prompt's hash chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Attests the seed and all prompt bytes up to `end`.
    pub hash: u64,
    /// How many bytes of the prompt the chain covers up to and with this link.
    pub end: usize,
}

/// The prompt of one request, as far as it has been read.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    sections: [Chunks; Section::COUNT],
    /// The section being read.
    open: Option<Section>,
    /// The incomplete chunk of the open section, and a block of slack so that whole blocks can be
    /// stored. Empty until there is a section.
    buffer: Vec<u8>,
    filled: usize,
    /// Where the first user message ends in the main section.
    opening: Option<Tail>,
}

#[derive(Clone, Debug, Default)]
struct Chunks {
    hashes: Vec<u64>,
    /// The incomplete chunk after them, once the section has ended.
    tail: Tail,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tail {
    /// Whole chunks before it.
    chunks: usize,
    bytes: usize,
    hash: u64,
}

impl Prompt {
    /// The hash chain of all sections, in order, from `seed` (which should tell apart all that
    /// must not share a cache: model, `cache_salt`).
    ///
    /// Each whole chunk is a link of 512 bytes. The incomplete chunk at the end of a section is a
    /// link of its own length when another section follows; at the end of the last section it is
    /// none, as the next turn of the conversation will extend it. [`Link::end`] counts it all, so
    /// a match at a link is a match of that many bytes.
    ///
    /// Complete only at the end of the body: a section may still come before those already read.
    pub fn chain(&self, seed: u64) -> impl Iterator<Item = Link> {
        let mut link = Link { hash: seed, end: 0 };
        self.steps().map(move |(hash, bytes)| {
            link.hash = chain(link.hash, hash);
            link.end += bytes;
            link
        })
    }

    /// How many bytes the canonical prompt has; tokens are about a quarter of it. Media count as a
    /// few bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let section = |index| self.chunks(index) * CHUNK_BYTES + self.tail(index).bytes;
        (0..Section::COUNT).map(section).sum()
    }

    /// A mark that all turns of one conversation share: a hash of `seed`, tools, system and the
    /// main section up to the end of its first `user` message. Without messages (plain prompts,
    /// token ids) it covers the first 4096 bytes of the main section, and so differs between turns
    /// while the prompt is shorter than that.
    #[must_use]
    pub fn conversation(&self, seed: u64) -> u64 {
        let main = Section::Main as usize;
        let before = (0..main).flat_map(|index| self.section_steps(index));
        let mark = before.fold(seed, |mark, (hash, _)| chain(mark, hash));
        let opening = self.opening.unwrap_or_else(|| match self.chunks(main) {
            ..OPENING_CHUNKS => self.tail(main),
            _ => Tail {
                chunks: OPENING_CHUNKS,
                bytes: 0,
                hash: 0,
            },
        });
        let hashes = self.hashes(main).iter().take(opening.chunks);
        let mark = hashes.fold(mark, |mark, &hash| chain(mark, hash));
        mix(mark, opening.hash)
    }

    /// The hash and length of every link.
    fn steps(&self) -> impl Iterator<Item = (u64, usize)> {
        let last = (0..Section::COUNT)
            .rfind(|&index| self.chunks(index) + self.tail(index).bytes > 0)
            .unwrap_or_default();
        let before = (0..last).flat_map(|index| self.section_steps(index));
        before.chain(self.chunk_steps(last))
    }

    /// The links of a section that another one follows.
    fn section_steps(&self, index: usize) -> impl Iterator<Item = (u64, usize)> {
        let tail = self.tail(index);
        let step = (mix(tail.hash, index as u64), tail.bytes);
        self.chunk_steps(index)
            .chain(Some(step).filter(|&(_, bytes)| bytes > 0))
    }

    fn chunk_steps(&self, index: usize) -> impl Iterator<Item = (u64, usize)> {
        self.hashes(index).iter().map(|&hash| (hash, CHUNK_BYTES))
    }

    fn hashes(&self, index: usize) -> &[u64] {
        self.sections
            .get(index)
            .map_or(&[], |chunks| &chunks.hashes)
    }

    fn chunks(&self, index: usize) -> usize {
        self.hashes(index).len()
    }

    /// The incomplete chunk of a section, which may be the one being read.
    fn tail(&self, index: usize) -> Tail {
        if self.open.is_some_and(|open| open as usize == index) {
            return self.open_tail();
        }
        let chunks = self.sections.get(index);
        chunks.map(|chunks| chunks.tail).unwrap_or_default()
    }

    fn open_tail(&self) -> Tail {
        let bytes = self.buffer.get(..self.filled).unwrap_or_default();
        let chunks = self.open.map_or(0, |open| self.chunks(open as usize));
        let hash = if bytes.is_empty() { 0 } else { hash(bytes) };
        Tail {
            chunks,
            bytes: bytes.len(),
            hash,
        }
    }
}

/// Writing, by `canonical`.
impl Prompt {
    /// A section starts; when it was there before, this one replaces it.
    pub(super) fn begin(&mut self, section: Section) {
        if let Some(chunks) = self.sections.get_mut(section as usize) {
            *chunks = Chunks::default();
        }
        if section == Section::Main {
            self.opening = None;
        }
        self.buffer.resize(CHUNK_BYTES + BLOCK, 0);
        self.filled = 0;
        self.open = Some(section);
    }

    /// The open section ends.
    pub(super) fn end(&mut self) {
        let tail = self.open_tail();
        let open = self.open.take();
        if let Some(chunks) = open.and_then(|open| self.sections.get_mut(open as usize)) {
            chunks.tail = tail;
        }
        self.filled = 0;
    }

    /// The first user message of the main section, which is open, ends here.
    pub(super) fn end_opening(&mut self) {
        if self.opening.is_none() {
            self.opening = Some(self.open_tail());
        }
    }

    /// Appends one byte.
    #[inline]
    pub(super) fn push(&mut self, byte: u8) {
        if let Some(free) = self.buffer.get_mut(self.filled) {
            *free = byte;
            self.advance(1);
        }
    }

    /// Appends bytes of any kind.
    pub(super) fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let free = CHUNK_BYTES - self.filled;
            let (now, later) = bytes.split_at_checked(free).unwrap_or((bytes, &[]));
            let place = self.buffer.get_mut(self.filled..self.filled + now.len());
            let Some(place) = place else { return };
            place.copy_from_slice(now);
            self.advance(now.len());
            bytes = later;
        }
    }

    /// Appends the clean text at the start of `input`, up to the first quote, backslash or control
    /// byte, and returns its length.
    ///
    /// Searching and copying are one pass: whole blocks are stored, and the bytes after the found
    /// one are overwritten later.
    #[inline]
    pub(super) fn absorb(&mut self, input: &[u8]) -> usize {
        let mut rest = input;
        loop {
            if self.filled == 0 {
                rest = self.absorb_chunks(rest);
            }
            let place = self.buffer.get_mut(self.filled..self.filled + BLOCK);
            let (Some(block), Some(place)) = (rest.first_chunk::<BLOCK>(), place) else {
                break;
            };
            place.copy_from_slice(block);
            let clean = clean_in_block(block);
            let taken = clean.min(CHUNK_BYTES - self.filled);
            self.advance(taken);
            rest = rest.get(taken..).unwrap_or_default();
            if taken == clean && clean < BLOCK {
                return input.len() - rest.len();
            }
        }
        while let Some((&byte, tail)) = rest.split_first().filter(|&(&byte, _)| !is_special(byte)) {
            self.push(byte);
            rest = tail;
        }
        input.len() - rest.len()
    }

    /// Hashes whole chunks of clean text where they lie.
    fn absorb_chunks<'a>(&mut self, mut input: &'a [u8]) -> &'a [u8] {
        while let Some((chunk, rest)) = input.split_first_chunk::<CHUNK_BYTES>()
            && clean_len(chunk) == CHUNK_BYTES
        {
            self.keep(hash(chunk));
            input = rest;
        }
        input
    }

    #[inline]
    fn advance(&mut self, bytes: usize) {
        self.filled += bytes;
        if self.filled == CHUNK_BYTES {
            self.filled = 0;
            let chunk = hash(self.buffer.get(..CHUNK_BYTES).unwrap_or_default());
            self.keep(chunk);
        }
    }

    fn keep(&mut self, chunk: u64) {
        let open = self.open.map_or(Section::COUNT, |open| open as usize);
        if let Some(chunks) = self.sections.get_mut(open) {
            chunks.hashes.push(chunk);
        }
    }
}
