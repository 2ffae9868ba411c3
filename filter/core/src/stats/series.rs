//! One line of a page, after the name of the metric: labels, value, what may follow.
//!
//! A value of a label stays as it is written, with its escapes; [`unescape`] resolves them.

/// Longest text of a number; longer ones are none.
const MAX_NUMBER_BYTES: usize = 64;
/// Largest number of which a double still holds the ones.
pub(super) const MAX_COUNT: u64 = 1 << 53;

/// Labels whose text matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LabelText {
    RequestType,
    BlockType,
    KvTokens,
    BlockSize,
    NumBlocks,
    PageSize,
    NumPages,
    SleepState,
    RunningAdapters,
    WaitingAdapters,
    MaxAdapters,
}

const TEXTS: usize = LabelText::MaxAdapters as usize + 1;

/// The labels of a series that matter.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Labels<'a> {
    /// The data-parallel rank, if there is a number of one.
    pub(super) rank: Option<u32>,
    /// Pipeline- and tensor-parallel shard, as one number; 0 without such labels.
    pub(super) shard: u32,
    texts: [&'a [u8]; TEXTS],
}

impl<'a> Labels<'a> {
    /// The text of a label, empty if it is not there.
    pub(super) fn get(&self, label: LabelText) -> &'a [u8] {
        self.texts.get(label as usize).copied().unwrap_or_default()
    }

    fn set(&mut self, key: &[u8], value: &'a [u8]) {
        let label = match key {
            b"engine" | b"dp_rank" => {
                let number = digits(value).and_then(|number| u32::try_from(number).ok());
                self.rank = number.or(self.rank);
                return;
            }
            b"pp_rank" => {
                self.shard = (self.shard & 0xffff) | (shard(value) << 16);
                return;
            }
            b"tp_rank" => {
                self.shard = (self.shard & !0xffff) | shard(value);
                return;
            }
            b"request_type" => LabelText::RequestType,
            b"kv_cache_block_type" => LabelText::BlockType,
            b"kv_cache_size_tokens" => LabelText::KvTokens,
            b"block_size" => LabelText::BlockSize,
            b"num_gpu_blocks" => LabelText::NumBlocks,
            b"page_size" => LabelText::PageSize,
            b"num_pages" => LabelText::NumPages,
            b"sleep_state" => LabelText::SleepState,
            b"running_lora_adapters" => LabelText::RunningAdapters,
            b"waiting_lora_adapters" => LabelText::WaitingAdapters,
            b"max_lora" => LabelText::MaxAdapters,
            _ => return,
        };
        if let Some(text) = self.texts.get_mut(label as usize) {
            *text = value;
        }
    }
}

/// A series with its value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Series<'a> {
    pub(super) labels: Labels<'a>,
    /// Finite and not negative.
    pub(super) value: f64,
}

impl<'a> Series<'a> {
    /// Reads what follows the name. `None` if it is not of the format, or the value is none that a
    /// figure can have.
    pub(super) fn parse(after_name: &'a [u8]) -> Option<Self> {
        let mut labels = Labels::default();
        let mut rest = after_name.trim_ascii_start();
        if let Some(inside) = rest.strip_prefix(b"{") {
            rest = read_labels(inside, &mut labels)?;
        }
        let (value, rest) = token(rest)?;
        let value = number(value)?;
        if !value.is_finite() || value < 0.0 || !is_tail(rest) {
            return None;
        }
        Some(Self { labels, value })
    }
}

/// Reads up to the closing brace and returns what follows it.
fn read_labels<'a>(mut rest: &'a [u8], labels: &mut Labels<'a>) -> Option<&'a [u8]> {
    loop {
        rest = rest.trim_ascii_start();
        if let Some(after) = rest.strip_prefix(b"}") {
            return Some(after);
        }
        let equals = rest.iter().position(|&byte| !is_key(byte))?;
        let (key, after) = rest.split_at_checked(equals)?;
        let after = after.trim_ascii_start().strip_prefix(b"=")?;
        let text = after.trim_ascii_start().strip_prefix(b"\"")?;
        let (value, after) = text.split_at_checked(quote(text)?)?;
        labels.set(key, value);
        rest = after.get(1..)?.trim_ascii_start();
        match rest.split_first()? {
            (b',', after) => rest = after,
            (b'}', _) => {}
            _ => return None,
        }
    }
}

fn is_key(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Where the first quote without a backslash before it is.
fn quote(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let rest = text.get(at..)?;
        let stop = rest.iter().position(|&byte| matches!(byte, b'"' | b'\\'))?;
        at += stop;
        if rest.get(stop) == Some(&b'"') {
            return Some(at);
        }
        at += 2;
    }
}

/// The next word and what follows it.
fn token(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = rest.trim_ascii_start();
    let end = rest.iter().position(u8::is_ascii_whitespace);
    rest.split_at_checked(end.unwrap_or(rest.len()))
}

fn number(text: &[u8]) -> Option<f64> {
    if text.len() > MAX_NUMBER_BYTES {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}

/// Whether this may follow a value: nothing, a time, an exemplar or both.
fn is_tail(rest: &[u8]) -> bool {
    let rest = rest.trim_ascii_start();
    if rest.is_empty() || rest.starts_with(b"#") {
        return true;
    }
    let Some((time, rest)) = token(rest) else {
        return false;
    };
    let rest = rest.trim_ascii_start();
    number(time).is_some() && (rest.is_empty() || rest.starts_with(b"#"))
}

/// A whole number up to [`MAX_COUNT`] of nothing but digits.
pub(super) fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.checked_sub(b'0').filter(|&digit| digit < 10)?;
        let number = number * 10 + u64::from(digit);
        (number <= MAX_COUNT).then_some(number)
    })
}

fn shard(text: &[u8]) -> u32 {
    digits(text).map_or(0, |number| number.min(0xffff) as u32)
}

/// The value of a label with its escapes resolved; `None` if it is no UTF-8.
pub(super) fn unescape(text: &[u8]) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match bytes.next() {
            Some(b'n') => out.push(b'\n'),
            Some(&escaped @ (b'\\' | b'"')) => out.push(escaped),
            Some(&other) => out.extend([b'\\', other]),
            None => out.push(b'\\'),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(after_name: &str) -> Option<f64> {
        Series::parse(after_name.as_bytes()).map(|series| series.value)
    }

    #[test]
    fn the_format_is_read_in_all_its_forms() {
        for (text, expected) in [
            (" 1", 1.0),
            ("\t1.5e3 ", 1500.0),
            ("{} 7\r", 7.0),
            ("{a=\"b\"}8", 8.0),
            ("{ a = \"b\" , c=\"d\", } 9 1700000000000", 9.0),
            (
                "{a=\"}{,= \\\\\\\"\\n\"} 10 # {trace_id=\"x\"} 0.5 17",
                10.0,
            ),
            (" +2 1700000000.5 # {} 1", 2.0),
            (" -0", 0.0),
        ] {
            assert_eq!(value(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn anything_else_is_absent() {
        for text in [
            "",
            " ",
            " NaN",
            " +Inf",
            " -Inf",
            " -1",
            " 1e999",
            " x",
            " 0x1f",
            " 1 x",
            " 1 2 3",
            "{",
            "{a",
            "{a=",
            "{a=b} 1",
            "{a=\"b} 1",
            "{a=\"b\\\"} 1",
            "{a=\"b\"c=\"d\"} 1",
            "{\"a\"} 1",
            "{,} 1",
            "{a=\"b\"",
            "{a=\"b\"} ",
            " 1_000",
            " \u{661}",
        ] {
            assert_eq!(value(text), None, "{text}");
        }
        assert_eq!(value(&format!(" {}", "0".repeat(64))), Some(0.0));
        assert_eq!(value(&format!(" {}", "0".repeat(65))), None);
    }

    #[test]
    fn escapes_are_resolved() {
        let unescaped = |text: &str| unescape(text.as_bytes());
        assert_eq!(
            unescaped(r#"a\\b\"c\nd\te\"#).as_deref(),
            Some("a\\b\"c\nd\\te\\")
        );
        assert_eq!(unescape(b"\xff"), None);
    }

    #[test]
    fn numbers_of_labels_are_digits() {
        assert_eq!(digits(b"9007199254740992"), Some(MAX_COUNT));
        for text in [
            "",
            "9007199254740993",
            "99999999999999999999999",
            "1.0",
            "-1",
            "None",
        ] {
            assert_eq!(digits(text.as_bytes()), None, "{text}");
        }
    }
}
