//! Keys and strings: their text, escapes and surrogate pairs.

use super::super::escapes::{code_unit, short_escape};
use super::super::events::Sink;
use super::super::search::clean_len;
use super::{Lexer, State, Step, fault};

impl Lexer {
    /// A key after its opening quote: whole when it can be.
    #[inline]
    pub(super) fn key<'a, S: Sink>(&mut self, rest: &'a [u8], sink: &mut S) -> &'a [u8] {
        let (key, stop) = rest
            .split_at_checked(clean_len(rest))
            .unwrap_or((rest, &[]));
        if let Some((b'"', tail)) = stop.split_first() {
            sink.key(self.depth, key);
            self.state = State::Colon;
            return tail;
        }
        sink.start_key(self.depth);
        self.in_key = true;
        self.state = State::Text;
        rest
    }

    /// Text of a string up to its end, or to an escape that needs a state of its own.
    #[inline]
    pub(super) fn text<'a, S: Sink>(
        &mut self,
        mut rest: &'a [u8],
        end: usize,
        sink: &mut S,
    ) -> Step<'a> {
        loop {
            let taken = sink.text(rest);
            let stop = rest.get(taken..).unwrap_or_default();
            let Some((&byte, tail)) = stop.split_first() else {
                return Ok(stop);
            };
            match byte {
                b'"' if self.in_key => {
                    sink.end_key(self.depth);
                    self.state = State::Colon;
                    return Ok(tail);
                }
                b'"' => {
                    sink.end_string(self.depth, end - tail.len());
                    self.state = State::AfterValue;
                    return Ok(tail);
                }
                b'\\' => {
                    self.state = State::Escape;
                    if tail.is_empty() {
                        return Ok(tail);
                    }
                    rest = self.escape(tail, sink)?;
                    if self.state != State::Text {
                        return Ok(rest);
                    }
                }
                _ => return fault(stop, "a control byte in a string must be escaped"),
            }
        }
    }

    /// The byte after a backslash.
    pub(super) fn escape<'a, S: Sink>(&mut self, rest: &'a [u8], sink: &mut S) -> Step<'a> {
        let Some((&byte, tail)) = rest.split_first() else {
            return Ok(rest);
        };
        self.state = match short_escape(byte) {
            Some(byte) => {
                sink.escaped(char::from(byte));
                State::Text
            }
            None if byte == b'u' => {
                if let Some((digits, tail)) = tail.split_first_chunk()
                    && let Some(unit) = code_unit(digits)
                {
                    self.unit = unit;
                    self.code_unit(sink);
                    return Ok(tail);
                }
                self.unit = 0;
                self.unit_digits = 0;
                State::Hex
            }
            None => return fault(rest, "no such escape"),
        };
        Ok(tail)
    }

    /// Hex digits of a `\u` escape.
    pub(super) fn hex<'a, S: Sink>(&mut self, rest: &'a [u8], sink: &mut S) -> Step<'a> {
        let mut left = rest;
        while let Some((&byte, tail)) = left.split_first() {
            let Some(digit) = char::from(byte).to_digit(16) else {
                return fault(left, "expected four hex digits");
            };
            left = tail;
            self.unit = self.unit << 4 | digit as u16;
            self.unit_digits += 1;
            if self.unit_digits == 4 {
                self.code_unit(sink);
                break;
            }
        }
        Ok(left)
    }

    /// A whole UTF-16 code unit.
    fn code_unit<S: Sink>(&mut self, sink: &mut S) {
        let (high, unit) = (u32::from(self.high), u32::from(self.unit));
        self.high = 0;
        self.state = State::Text;
        match unit {
            0xdc00..=0xdfff if high != 0 => {
                let scalar = 0x1_0000 + ((high & 0x3ff) << 10 | unit & 0x3ff);
                sink.escaped(char::from_u32(scalar).unwrap_or(char::REPLACEMENT_CHARACTER));
                return;
            }
            _ if high != 0 => sink.escaped(char::REPLACEMENT_CHARACTER),
            _ => {}
        }
        if matches!(unit, 0xd800..=0xdbff) {
            self.high = self.unit;
            self.state = State::AfterHigh;
        } else {
            sink.escaped(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
    }

    /// After a high surrogate only another `\u` escape can complete it.
    pub(super) fn after_high<'a, S: Sink>(&mut self, rest: &'a [u8], sink: &mut S) -> Step<'a> {
        match (self.state, rest.split_first()) {
            (State::AfterHigh, Some((b'\\', tail))) => {
                self.state = State::EscapeAfterHigh;
                return Ok(tail);
            }
            (State::EscapeAfterHigh, Some((b'u', _))) => self.state = State::Escape,
            (state, _) => {
                self.high = 0;
                sink.escaped(char::REPLACEMENT_CHARACTER);
                self.state = match state {
                    State::EscapeAfterHigh => State::Escape,
                    _ => State::Text,
                };
            }
        }
        Ok(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{Api, Field, RequestScan, ScanPlan};

    /// The model of a body, fed in every possible cut in two.
    fn model(json: &str) -> String {
        let body = format!("{{\"model\":{json}}}");
        let mut models = (0..=body.len()).map(|cut| {
            let (before, after) = body.as_bytes().split_at(cut);
            let mut scan = RequestScan::new(Api::ChatCompletions);
            scan.feed(&ScanPlan::default(), before).unwrap();
            scan.feed(&ScanPlan::default(), after).unwrap();
            scan.finish().unwrap();
            match scan.model() {
                Field::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
                other => panic!("{other:?}"),
            }
        });
        let first = models.next().unwrap();
        assert!(models.all(|model| model == first), "{json}");
        first
    }

    #[test]
    fn escapes_are_resolved() {
        assert_eq!(model(r#""a\"\\\/\b\f\n\r\tz""#), "a\"\\/\u{8}\u{c}\n\r\tz");
        assert_eq!(model(r#""\u0041\u00e9\u20AC""#), "Aé€");
        assert_eq!(model(r#""\ud83d\ude00""#), "😀");
    }

    #[test]
    fn a_lone_surrogate_is_a_replacement_character() {
        assert_eq!(model(r#""\ud83d""#), "\u{fffd}");
        assert_eq!(model(r#""\ude00x""#), "\u{fffd}x");
        assert_eq!(model(r#""\ud83dx""#), "\u{fffd}x");
        assert_eq!(model(r#""\ud83d\n""#), "\u{fffd}\n");
        assert_eq!(model(r#""\ud83d\u0041""#), "\u{fffd}A");
        assert_eq!(model(r#""\ud83d\ud83d\ude00""#), "\u{fffd}😀");
    }

    #[test]
    fn keys_match_after_their_escapes_are_resolved() {
        let mut scan = RequestScan::new(Api::ChatCompletions);
        let body = br#"{"\u006dodel":"a","modelx":"b"}"#;
        scan.feed(&ScanPlan::default(), body).unwrap();
        assert_eq!(scan.model(), Field::Text(b"a"));
    }
}
