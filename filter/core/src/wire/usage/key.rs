//! Finding the string `"usage"` in bytes that come in pieces.

const KEY: &[u8] = b"\"usage\"";

/// How much of the key the bytes so far end with.
#[derive(Clone, Debug, Default)]
pub(super) struct KeySearch {
    matched: usize,
    /// Whether the last byte was a backslash: a quote after it is part of a text.
    escaped: bool,
}

impl KeySearch {
    /// Looks for the key in the next bytes; gives those behind it. O(n), mostly vectorised.
    pub(super) fn find<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let mut rest = bytes;
        loop {
            if self.matched == 0 {
                let quote = rest.iter().position(|byte| *byte == b'"');
                let skipped = rest.get(..quote.unwrap_or(rest.len())).unwrap_or_default();
                if let Some(last) = skipped.last() {
                    self.escaped = *last == b'\\';
                }
                rest = rest.get(skipped.len()..).unwrap_or_default();
            }
            let (&byte, tail) = rest.split_first()?;
            rest = tail;
            if self.step(byte) {
                *self = KeySearch::default();
                return Some(rest);
            }
        }
    }

    /// Takes one byte; whether it completes the key.
    pub(super) fn step(&mut self, byte: u8) -> bool {
        self.matched = match KEY.get(self.matched) {
            Some(wanted) if *wanted == byte && !(byte == b'"' && self.escaped) => self.matched + 1,
            _ if byte == b'"' && !self.escaped => 1,
            _ => 0,
        };
        self.escaped = byte == b'\\';
        self.matched == KEY.len()
    }

    /// Forgets what has matched; the string that is being read is another one.
    pub(super) fn miss(&mut self) {
        self.matched = 0;
        self.escaped = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_found_however_it_is_cut() {
        let cases: [(&[u8], Option<&[u8]>); 8] = [
            (b"\"usage\":{", Some(b":{")),
            (b"\"a\",\"usage\"", Some(b"")),
            (b"\"\"usage\"x", Some(b"x")),
            (b"\"usa\"usage\"x", Some(b"x")),
            (b"\\\"usage\":", None),
            (b"\"usage\\\":", None),
            (b"\"usages\"", None),
            (b"usage\"", None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(KeySearch::default().find(bytes), expected);
            for cut in 0..=bytes.len() {
                let mut search = KeySearch::default();
                let (first, second) = bytes.split_at(cut);
                let found = match search.find(first) {
                    Some(after) => Some([after, second].concat()),
                    None => search.find(second).map(<[u8]>::to_vec),
                };
                assert_eq!(found.as_deref(), expected, "cut at {cut}");
            }
        }
    }
}
