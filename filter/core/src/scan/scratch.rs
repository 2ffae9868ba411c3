//! A small fixed buffer for one key, role or number that may come in pieces.

use super::plan::MAX_KEY_BYTES;
use super::search::BLOCK;

/// Holds up to [`MAX_KEY_BYTES`] bytes; what is longer is not of interest as a whole.
#[derive(Clone, Debug)]
pub(super) struct Scratch {
    /// With a block of slack, so that short texts are copied as whole blocks.
    bytes: [u8; MAX_KEY_BYTES + BLOCK],
    len: usize,
    is_whole: bool,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            bytes: [0; MAX_KEY_BYTES + BLOCK],
            len: 0,
            is_whole: true,
        }
    }
}

impl Scratch {
    pub(super) fn clear(&mut self) {
        self.len = 0;
        self.is_whole = true;
    }

    /// Appends a piece, or returns false and appends nothing when it or an earlier one does not
    /// fit.
    pub(super) fn push(&mut self, piece: &[u8]) -> bool {
        let end = self.len + piece.len();
        self.is_whole &= end <= MAX_KEY_BYTES;
        if self.is_whole
            && let Some(place) = self.bytes.get_mut(self.len..end)
        {
            place.copy_from_slice(piece);
            self.len = end;
        }
        self.is_whole
    }

    /// All pieces, when they fitted.
    pub(super) fn whole(&self) -> Option<&[u8]> {
        Some(self.held()).filter(|_| self.is_whole)
    }

    /// The pieces that fitted.
    pub(super) fn held(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_exactly_its_bound() {
        let mut scratch = Scratch::default();
        assert!(scratch.push(&[b'a'; MAX_KEY_BYTES - 1]));
        assert!(scratch.push(b"b"));
        assert_eq!(scratch.whole().map(<[u8]>::len), Some(MAX_KEY_BYTES));
        assert!(!scratch.push(b"c"));
        assert_eq!(scratch.whole(), None);
        assert_eq!(scratch.held().len(), MAX_KEY_BYTES);
        scratch.clear();
        assert_eq!(scratch.whole(), Some(&b""[..]));
    }
}
