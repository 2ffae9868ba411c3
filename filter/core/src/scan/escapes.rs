//! Escapes of JSON strings that lie whole in a slice and stand for a character by themselves.

/// The byte that a one-letter escape stands for.
#[inline]
pub(super) const fn short_escape(letter: u8) -> Option<u8> {
    match letter {
        b'n' => Some(b'\n'),
        b'"' | b'\\' | b'/' => Some(letter),
        b't' => Some(b'\t'),
        b'r' => Some(b'\r'),
        b'b' => Some(0x08),
        b'f' => Some(0x0c),
        _ => None,
    }
}

/// The UTF-16 code unit that four hex digits are.
#[inline]
pub(super) fn code_unit(digits: &[u8; 4]) -> Option<u16> {
    let value = |byte: u8| u16::from(byte & 0xf) + u16::from(byte >> 6) * 9;
    let unit = digits.iter().fold(0, |unit, &byte| unit << 4 | value(byte));
    digits.iter().all(u8::is_ascii_hexdigit).then_some(unit)
}

/// Bytes of an escape that [`unicode_escape`] finds.
pub(super) const UNICODE_ESCAPE_BYTES: usize = 6;

/// The character of a `\u` escape at the start of `bytes`; `None` when it is cut or a surrogate.
/// Not inlined: that would slow down the loops for escapes of one letter, which are far more common.
#[inline(never)]
pub(super) fn unicode_escape(bytes: &[u8]) -> Option<char> {
    let ([b'\\', b'u'], digits) = bytes.split_first_chunk()? else {
        return None;
    };
    char::from_u32(u32::from(code_unit(digits.first_chunk()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_unicode_escapes_are_characters() {
        assert_eq!(unicode_escape(b"\\u00e9"), Some('é'));
        assert_eq!(unicode_escape(b"\\uFFfdzz"), Some('\u{fffd}'));
        for other in [
            "", "\\", "\\x", "n", "\\u00e", "\\u00g0", "\\ud83d", "\\ude00",
        ] {
            assert_eq!(unicode_escape(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn hex_digits_are_those_of_the_standard_library() {
        for byte in 0..=255 {
            let expected = char::from(byte).to_digit(16).map(|digit| digit as u16);
            assert_eq!(code_unit(&[b'0', b'0', b'0', byte]), expected, "{byte}");
            let high = expected.map(|digit| digit << 12);
            assert_eq!(code_unit(&[byte, b'0', b'0', b'0']), high, "{byte}");
        }
    }
}
