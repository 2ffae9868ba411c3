//! Numbers: whole integers at once, others byte by byte along the grammar.

use super::super::events::Sink;
use super::{Lexer, State, Step, fault};

impl Lexer {
    /// A number that starts with `byte`; `tail` is what follows it in `rest`.
    #[inline]
    pub(super) fn number<'a, S: Sink>(
        &mut self,
        byte: u8,
        rest: &'a [u8],
        tail: &'a [u8],
        sink: &mut S,
    ) -> &'a [u8] {
        if let Some((digits, value, mut stop)) = short_integer(rest) {
            sink.integer(self.place(), digits, value);
            self.state = State::AfterValue;
            // Most numbers come in arrays, by the thousand.
            while self.in_array()
                && let Some((b',', next)) = stop.split_first()
                && let Some((digits, value, after)) =
                    short_integer(next.strip_prefix(b" ").unwrap_or(next))
            {
                sink.integer(self.place(), digits, value);
                stop = after;
            }
            return stop;
        }
        sink.start_number(self.place());
        sink.number(rest.get(..1).unwrap_or_default());
        self.state = match byte {
            b'-' => State::Minus,
            b'0' => State::Zero,
            _ => State::Integer,
        };
        tail
    }

    /// A number after its first byte, up to the first byte that is not part of it.
    pub(super) fn rest_of_number<'a, S: Sink>(&mut self, rest: &'a [u8], sink: &mut S) -> Step<'a> {
        let mut len = 0;
        for byte in rest {
            let Some(state) = self.state.with(*byte) else {
                break;
            };
            self.state = state;
            len += 1;
        }
        let (piece, left) = rest.split_at_checked(len).unwrap_or((rest, &[]));
        if !piece.is_empty() {
            sink.number(piece);
        }
        if !left.is_empty() {
            if !self.state.may_end() {
                return fault(left, "expected a digit");
            }
            sink.end_number(self.depth);
            self.state = State::AfterValue;
        }
        Ok(left)
    }
}

/// A whole number of at most 7 digits at the start of `rest`: its text, its value, and what follows.
#[inline]
fn short_integer(rest: &[u8]) -> Option<(&[u8], u32, &[u8])> {
    let (value, len) = digits(u64::from_le_bytes(*rest.first_chunk()?))?;
    let (digits, stop) = rest.split_at_checked(len)?;
    let is_whole = matches!(stop.first()?, b',' | b']' | b'}' | b' ' | b'\n');
    let is_plain = len == 1 || digits.first() != Some(&b'0');
    (is_whole && is_plain).then_some((digits, value, stop))
}

/// The value and length of a run of 1 to 7 digits at the low end of `word`. Without a loop: token
/// ids vary in length, and its end would be guessed wrong at nearly each of them.
#[inline]
fn digits(word: u64) -> Option<(u32, usize)> {
    // A digit is now 0 to 9 and no other byte is; 6 more tells those from 10 to 15.
    let values = word ^ 0x3030_3030_3030_3030;
    let others = (values | values.wrapping_add(0x0606_0606_0606_0606)) & 0xf0f0_f0f0_f0f0_f0f0;
    let len = others.trailing_zeros() / 8;
    if len == 0 || len == 8 {
        return None;
    }
    // The digits move to the end of the word, after leading zeros, and are added up in pairs.
    let digits = values << (64 - 8 * len);
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8) & 0x00ff_00ff_00ff_00ff;
    let fours = pairs.wrapping_mul(100).wrapping_add(pairs >> 16) & 0x0000_ffff_0000_ffff;
    let value = fours.wrapping_mul(10_000).wrapping_add(fours >> 32);
    Some((value as u32, len as usize))
}

impl State {
    /// The state of a number after one more byte, if the byte may be part of it.
    const fn with(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Minus, b'0') => Self::Zero,
            (Self::Minus, b'1'..=b'9') | (Self::Integer, b'0'..=b'9') => Self::Integer,
            (Self::Zero | Self::Integer, b'.') => Self::Point,
            (Self::Point | Self::Fraction, b'0'..=b'9') => Self::Fraction,
            (Self::Zero | Self::Integer | Self::Fraction, b'e' | b'E') => Self::Exponent,
            (Self::Exponent, b'+' | b'-') => Self::ExponentSign,
            (Self::Exponent | Self::ExponentSign | Self::ExponentDigits, b'0'..=b'9') => {
                Self::ExponentDigits
            }
            _ => return None,
        })
    }

    /// Whether a number is complete.
    const fn may_end(self) -> bool {
        matches!(
            self,
            Self::Zero | Self::Integer | Self::Fraction | Self::ExponentDigits
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_integers_have_one_to_seven_digits() {
        for value in [0_u32, 7, 10, 99, 128_000, 999_999, 1_234_567, 9_999_999] {
            let digits = value.to_string();
            for stop in ",]} \n".chars() {
                let text = format!("{digits}{stop}98765432");
                let found = short_integer(text.as_bytes());
                let rest = &text.as_bytes()[digits.len()..];
                assert_eq!(found, Some((digits.as_bytes(), value, rest)), "{text}");
            }
            for stop in "./:eE+-x\u{7f}\u{ff}".chars() {
                let text = format!("{digits}{stop}98765432");
                assert_eq!(short_integer(text.as_bytes()), None, "{text}");
            }
        }
    }

    #[test]
    fn other_numbers_take_the_long_way() {
        for text in ["12345678, ", ",1234567", "01,xxxxx", "-1,xxxxx", "1.5,xxxx"] {
            assert_eq!(short_integer(text.as_bytes()), None, "{text}");
        }
        assert_eq!(
            short_integer(b"1,"),
            None,
            "too near to the end of the slice"
        );
    }
}
