//! The tokenizer: four bytes of text are one token.
//!
//! One idea: a prompt is its bytes, cut into units of four, and a token id is a unit read as a
//! little-endian number. So ids and text convert both ways, a prompt given as ids hits the cache of
//! the same prompt given as text, and blocks are hashed straight from the bytes. The last unit may
//! be short; it counts as one token. Everything is O(bytes).

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bytes of a token.
const TOKEN_BYTES: usize = 4;

/// Output tokens, each exactly one token when the text comes back in a later prompt.
const WORDS: [&str; 32] = [
    " the", " way", " is ", "warm", " and", " far", " to ", " old", "road", " map", " of ", "rain",
    " sea", " ask", " new", " one", " two", " day", " for", " you", " are", " not", " but", " all",
    " can", " her", " was", " our", " out", " who", " its", " let",
];

/// One prompt, laid out as text or as packed token ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Prompt(Vec<u8>);

impl Prompt {
    /// The prompt that has this text.
    pub(super) fn from_text(text: impl Into<String>) -> Self {
        Self(text.into().into_bytes())
    }

    /// The prompt that has these tokens.
    pub(super) fn from_ids(ids: &[u32]) -> Self {
        Self(ids.iter().flat_map(|id| id.to_le_bytes()).collect())
    }

    /// Its length in tokens.
    pub(super) fn tokens(&self) -> u32 {
        u32::try_from(self.0.len().div_ceil(TOKEN_BYTES)).unwrap_or(u32::MAX)
    }

    /// Its token ids.
    pub(super) fn ids(&self) -> Vec<u32> {
        self.0
            .chunks(TOKEN_BYTES)
            .map(|unit| {
                unit.iter()
                    .rev()
                    .fold(0, |id, &byte| id << 8 | u32::from(byte))
            })
            .collect()
    }

    /// Its text, with a replacement character for what is not UTF-8. Padding of ids that stand for
    /// less than four bytes is left out.
    pub(super) fn text(&self) -> String {
        let bytes: Vec<u8> = self
            .0
            .chunks(TOKEN_BYTES)
            .flat_map(|unit| {
                let len = unit.iter().rposition(|&b| b != 0).map_or(0, |at| at + 1);
                unit.iter().take(len).copied()
            })
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The text of each token.
    pub(super) fn pieces(&self) -> Vec<String> {
        self.0
            .chunks(TOKEN_BYTES)
            .map(|unit| String::from_utf8_lossy(unit).into_owned())
            .collect()
    }

    /// Hash of each block of `block_tokens` tokens, chained, so that equal hashes mean equal
    /// prefixes. `salt` separates caches; the last block may be partial.
    pub(super) fn blocks(&self, block_tokens: u32, salt: u64) -> Vec<u64> {
        let block_bytes = block_tokens.max(1) as usize * TOKEN_BYTES;
        let mut parent = salt;
        self.0
            .chunks(block_bytes)
            .map(|block| {
                parent = xxh3_64_with_seed(block, parent);
                parent
            })
            .collect()
    }
}

/// Hash that separates the cache of a tenant; 0 without one.
pub(super) fn salt(name: Option<&str>) -> u64 {
    name.map_or(0, |name| xxh3_64(name.as_bytes()))
}

/// The output token at `index` of the answer that `seed` stands for.
pub(super) fn word(seed: u64, index: u32) -> &'static str {
    let at = xxh3_64_with_seed(&index.to_le_bytes(), seed) as usize % WORDS.len();
    WORDS.get(at).copied().unwrap_or(" the")
}

/// The first `count` output tokens of an answer.
pub(super) fn words(seed: u64, count: u32) -> String {
    (0..count).map(|index| word(seed, index)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_text_are_the_same_prompt() {
        let text = Prompt::from_text("The quick brown fox");
        assert_eq!(text.tokens(), 5);
        let ids = Prompt::from_ids(&text.ids());
        assert_eq!(ids.text(), "The quick brown fox");
        assert_eq!(text.pieces().concat(), "The quick brown fox");
        let (a, b) = (text.blocks(2, 0), ids.blocks(2, 0));
        assert_eq!((a.len(), a.get(..2)), (3, b.get(..2)));
    }

    #[test]
    fn blocks_are_chained_and_salted() {
        let long = Prompt::from_text("aaaabbbbccccdddd");
        let short = Prompt::from_text("aaaabbbbcccc");
        let other = Prompt::from_text("xaaabbbbcccc");
        assert_eq!(long.blocks(1, 0)[..3], short.blocks(1, 0)[..]);
        assert_ne!(other.blocks(1, 0)[2], short.blocks(1, 0)[2]);
        assert_ne!(short.blocks(1, 0), short.blocks(1, salt(Some("tenant"))));
    }

    #[test]
    fn every_word_is_one_token() {
        assert!(
            WORDS.iter().all(|word| word.len() == TOKEN_BYTES),
            "{WORDS:?}"
        );
        assert_eq!(words(7, 3), [word(7, 0), word(7, 1), word(7, 2)].concat());
        assert_eq!(Prompt::from_text(words(9, 40)).tokens(), 40);
    }
}
