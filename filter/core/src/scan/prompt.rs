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
use super::escapes::{UNICODE_ESCAPE_BYTES, short_escape, unicode_escape};
use super::search::{BLOCK, clean_len, is_special, special_in_block};
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

    /// Appends a token id.
    #[inline]
    pub(super) fn write_id(&mut self, id: u32) {
        let bytes = id.to_le_bytes();
        let place = self.buffer.get_mut(self.filled..);
        match place.and_then(<[u8]>::first_chunk_mut) {
            Some(place) if self.filled + bytes.len() <= CHUNK_BYTES => {
                *place = bytes;
                self.advance(bytes.len());
            }
            _ => self.write(&bytes),
        }
    }

    /// Appends bytes between two marks.
    #[inline]
    pub(super) fn write_between(&mut self, before: u8, bytes: &[u8], after: u8) {
        let end = self.filled + bytes.len() + 2;
        let place = self.buffer.get_mut(self.filled..end.min(CHUNK_BYTES));
        if end <= CHUNK_BYTES
            && let Some([first, place @ .., last]) = place
        {
            *first = before;
            copy(place, bytes);
            *last = after;
            self.advance(bytes.len() + 2);
        } else {
            self.push(before);
            self.write(bytes);
            self.push(after);
        }
    }

    /// Appends bytes of any kind.
    pub(super) fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let free = CHUNK_BYTES - self.filled;
            let (now, later) = bytes.split_at_checked(free).unwrap_or((bytes, &[]));
            let place = self.buffer.get_mut(self.filled..self.filled + now.len());
            let Some(place) = place else { return };
            copy(place, now);
            self.advance(now.len());
            bytes = later;
        }
    }

    /// Appends string text from the start of `input`, plain escapes resolved, up to the first
    /// quote, control byte or other escape, and returns how many bytes of `input` that were.
    ///
    /// Whole chunks of clean text are hashed where they lie.
    #[inline]
    pub(super) fn absorb(&mut self, input: &[u8]) -> usize {
        let mut taken = 0;
        loop {
            if self.filled == 0 {
                taken += self.absorb_chunks(input.get(taken..).unwrap_or_default());
            }
            taken += self.fill(input.get(taken..).unwrap_or_default());
            if self.filled < CHUNK_BYTES {
                return taken;
            }
            self.advance(0);
        }
    }

    fn absorb_chunks(&mut self, input: &[u8]) -> usize {
        let mut rest = input;
        while let Some((chunk, tail)) = rest.split_first_chunk::<CHUNK_BYTES>()
            && clean_len(chunk) == CHUNK_BYTES
        {
            self.keep(hash(chunk));
            rest = tail;
        }
        input.len() - rest.len()
    }

    /// Copies text until the chunk is full or the text ends, and returns how many bytes of `input`
    /// were taken.
    ///
    /// Searching and copying are one pass: whole blocks are stored, and what was stored too much is
    /// overwritten later.
    #[inline]
    fn fill(&mut self, input: &[u8]) -> usize {
        let (mut filled, mut taken) = (self.filled, 0);
        while filled < CHUNK_BYTES {
            let block = input.get(taken..).and_then(<[u8]>::first_chunk::<BLOCK>);
            let place = self.buffer.get_mut(filled..);
            let place = place.and_then(<[u8]>::first_chunk_mut::<BLOCK>);
            let (Some(block), Some(place)) = (block, place) else {
                break;
            };
            *place = *block;
            // A branch, not a minimum: the next block must not wait for this one's compare.
            let Some(clean) = special_in_block(block) else {
                filled += BLOCK;
                taken += BLOCK;
                continue;
            };
            filled += clean;
            taken += clean;
            if filled >= CHUNK_BYTES {
                break;
            }
            let stop = input.get(taken..).unwrap_or_default();
            let Some([b'\\', letter]) = stop.first_chunk() else {
                self.filled = filled;
                return taken;
            };
            if let Some(byte) = short_escape(*letter)
                && let Some(place) = self.buffer.get_mut(filled)
            {
                *place = byte;
                filled += 1;
                taken += 2;
                continue;
            }
            let place = self.buffer.get_mut(filled..);
            match place.zip(unicode_escape(stop)) {
                Some((place, char)) if filled + char.len_utf8() <= CHUNK_BYTES => {
                    copy_char(place, char);
                    filled += char.len_utf8();
                    taken += UNICODE_ESCAPE_BYTES;
                }
                _ => {
                    self.filled = filled;
                    return taken;
                }
            }
        }
        let too_many = filled.saturating_sub(CHUNK_BYTES);
        filled -= too_many;
        taken -= too_many;
        // Less than a block of input is left.
        while filled < CHUNK_BYTES
            && let Some(&byte) = input.get(taken)
            && !is_special(byte)
            && let Some(place) = self.buffer.get_mut(filled)
        {
            *place = byte;
            filled += 1;
            taken += 1;
        }
        self.filled = filled;
        taken
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

/// Copies between slices of one length. Short ones go as one or two words that may overlap: a call
/// of `memory.copy` is dear in wasm.
#[inline]
fn copy(place: &mut [u8], bytes: &[u8]) {
    match bytes.len() {
        0 => {}
        1 => copy_ends::<1>(place, bytes),
        2..4 => copy_ends::<2>(place, bytes),
        4..8 => copy_ends::<4>(place, bytes),
        8..16 => copy_ends::<8>(place, bytes),
        16..=32 => copy_ends::<16>(place, bytes),
        _ => place.copy_from_slice(bytes),
    }
}

/// Writes the UTF-8 of a character, and possibly bytes after it.
#[inline]
fn copy_char(place: &mut [u8], char: char) {
    if let Some(place) = place.first_chunk_mut::<4>() {
        char.encode_utf8(place);
    }
}

/// Copies the first and the last `N` bytes.
#[inline]
fn copy_ends<const N: usize>(place: &mut [u8], bytes: &[u8]) {
    if let (Some(to), Some(from)) = (place.first_chunk_mut::<N>(), bytes.first_chunk()) {
        *to = *from;
    }
    if let (Some(to), Some(from)) = (place.last_chunk_mut::<N>(), bytes.last_chunk()) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(prompt: &mut Prompt, section: Section, bytes: &[u8]) {
        prompt.begin(section);
        prompt.write(bytes);
        prompt.end();
    }

    fn main(bytes: &[u8]) -> Prompt {
        let mut prompt = Prompt::default();
        section(&mut prompt, Section::Main, bytes);
        prompt
    }

    fn hashes(prompt: &Prompt) -> Vec<u64> {
        prompt
            .chunk_steps(Section::Main as usize)
            .map(|(hash, _)| hash)
            .collect()
    }

    #[test]
    fn all_ways_of_writing_give_the_same_chunks() {
        let text: Vec<u8> = (0..3000_u32).map(|i| b'a' + (i * i % 26) as u8).collect();
        let expected: Vec<u64> = text.chunks_exact(CHUNK_BYTES).map(hash).collect();
        for step in [1, 2, 3, 15, 16, 17, 100, 511, 512, 513, 3000] {
            let (mut written, mut absorbed) = (Prompt::default(), Prompt::default());
            written.begin(Section::Main);
            absorbed.begin(Section::Main);
            for piece in text.chunks(step) {
                written.write(piece);
                assert_eq!(absorbed.absorb(piece), piece.len());
            }
            assert_eq!(hashes(&written), expected, "step {step}");
            assert_eq!(hashes(&absorbed), expected, "step {step}");
            assert_eq!(written.bytes(), text.len());
            assert_eq!(absorbed.open_tail().hash, hash(&text[2560..]));
        }
    }

    #[test]
    fn absorbing_stops_at_what_is_no_text_and_resolves_plain_escapes() {
        for at in 0..600 {
            for stop in ["\"", "\\ud83d", "\n", "\\"] {
                let input = format!(
                    "{}\\n{}{stop}{}",
                    "a".repeat(at),
                    "b".repeat(30),
                    "c".repeat(40)
                );
                let text = format!("{}\n{}", "a".repeat(at), "b".repeat(30));
                let mut prompt = Prompt::default();
                prompt.begin(Section::Main);
                assert_eq!(prompt.absorb(input.as_bytes()), at + 32, "{at} {stop}");
                assert_eq!(prompt.bytes(), text.len());
                prompt.end();
                let expected = main(text.as_bytes());
                assert_eq!(hashes(&prompt), hashes(&expected));
                assert_eq!(
                    prompt.conversation(1),
                    expected.conversation(1),
                    "{at} {stop}"
                );
            }
        }
    }

    #[test]
    fn short_copies_are_exact() {
        let bytes: Vec<u8> = (1..=64).collect();
        for len in 0..=64 {
            let mut place = [0; 64];
            copy(&mut place[..len], &bytes[..len]);
            assert_eq!(place[..len], bytes[..len]);
            assert!(place[len..].iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn a_chain_links_chunks_and_the_tails_between_sections() {
        let mut prompt = main(&[b'm'; 600]);
        section(&mut prompt, Section::Tools, &[b't'; 700]);
        section(&mut prompt, Section::System, &[b's'; 512]);
        let links: Vec<Link> = prompt.chain(3).collect();
        let ends: Vec<usize> = links.iter().map(|link| link.end).collect();
        assert_eq!(ends, [512, 700, 1212, 1724]);
        assert_eq!(prompt.bytes(), 1812);
        let mut hash_so_far = chain(3, hash(&[b't'; 512]));
        hash_so_far = chain(hash_so_far, mix(hash(&[b't'; 188]), 0));
        hash_so_far = chain(hash_so_far, hash(&[b's'; 512]));
        hash_so_far = chain(hash_so_far, hash(&[b'm'; 512]));
        assert_eq!(links.last().map(|link| link.hash), Some(hash_so_far));
    }

    #[test]
    fn an_empty_prompt_has_no_links() {
        assert_eq!(Prompt::default().chain(1).count(), 0);
        assert_eq!(Prompt::default().bytes(), 0);
        assert_eq!(main(b"short").chain(1).count(), 0);
    }

    #[test]
    fn a_plain_prompt_is_marked_by_its_first_4096_bytes() {
        let text = |len: usize| vec![b'x'; len];
        let mark = |len: usize| main(&text(len)).conversation(5);
        assert_eq!(mark(4096), mark(4097));
        assert_eq!(mark(4096), mark(9000));
        assert_ne!(mark(4095), mark(4096));
        assert_ne!(mark(100), mark(101));
        assert_ne!(mark(4096), main(&text(4096)).conversation(6));
    }

    #[test]
    fn a_section_that_comes_again_replaces_the_first() {
        let mut prompt = main(&[b'a'; 2000]);
        section(&mut prompt, Section::Main, &[b'b'; 600]);
        assert_eq!(hashes(&prompt), hashes(&main(&[b'b'; 600])));
        assert_eq!(prompt.bytes(), 600);
    }
}
