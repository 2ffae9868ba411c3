//! Reading an engine's own token counts from its answer, while the answer passes.
//!
//! The answer belongs to its client: nothing of it is held back or changed, and as little of it is
//! read as will do, because each read crosses the border of the VM. Of a whole answer that is the
//! last [`TAIL_BYTES`]; its length tells which callbacks to leave alone, and without a length the
//! ends of all are read, because the end of the stream may come in a callback of its own. Of a stream
//! it is the end of each piece, unless the request is known not to ask for token counts. O(bytes
//! read); at most [`TAIL_BYTES`] are kept.
//!
//! ```
//! use warmpath_core::feedback::{Expected, Finding, Reading};
//! let headers = [("content-length".to_owned(), b"58".to_vec())];
//! let expected = Expected { whole: true, ..Expected::default() };
//! let mut reading = Reading::new(expected, 200, &headers);
//! let body = br#"{"choices":[],"usage":{"prompt_tokens":7,"total_tokens":9}}"#;
//! if let Some(part) = reading.wants(body.len()) {
//!     reading.push(&body[part]);
//! }
//! let Finding::Report(report) = reading.finish(true, (0, 0)) else { panic!() };
//! assert_eq!(report.prompt_tokens, 7);
//! ```

use super::{Finding, Report, Unread};
use crate::scan::{Api, RequestScan};
use crate::session::header;
use crate::wire::usage::{self, Framing, UsageScan};
use std::ops::Range;

/// Most bytes that are read of one callback, and kept of a whole answer.
pub const TAIL_BYTES: usize = 4096;

/// Which answers to a request may have token counts in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// A whole one.
    pub whole: bool,
    /// A stream.
    pub events: bool,
    /// Whether a stream must have them.
    pub in_every_stream: bool,
}

impl Expected {
    /// Of a request, as far as it was scanned: what may yet stand in the rest of its body may be
    /// anything.
    pub fn of(api: Option<Api>, scan: Option<&RequestScan>) -> Expected {
        let Some(api) = api.filter(|api| !matches!(api, Api::Generate | Api::Tokenize)) else {
            return Expected::default();
        };
        let streamed = scan.is_some_and(RequestScan::stream);
        let known = scan.is_some_and(RequestScan::is_complete);
        // These two APIs count in every stream, the others only if they are told to.
        let always = matches!(api, Api::Messages | Api::Responses);
        let counted = always || scan.is_some_and(RequestScan::include_usage);
        Expected {
            whole: !streamed,
            events: (streamed && counted) || !known,
            in_every_stream: streamed && counted,
        }
    }

    /// Whether any answer may.
    pub fn any(self) -> bool {
        self.whole || self.events
    }
}

/// The reading of one answer.
#[derive(Debug, Default)]
pub enum Reading {
    /// Nothing of it is read.
    #[default]
    Off,
    /// It cannot be read.
    Compressed,
    /// A whole answer.
    Whole {
        /// Bytes that are still to come, if that is known.
        left: Option<usize>,
        /// The end of what has come.
        tail: Vec<u8>,
    },
    /// A stream of events.
    Events {
        /// Whether it must have token counts.
        certain: bool,
        /// What looks for the counts.
        scan: Box<UsageScan>,
        /// Whether bytes before the next ones are not read.
        gap: bool,
    },
}

impl Reading {
    /// How to read the answer with this status and these headers, names in lower case.
    pub fn new(expected: Expected, status: u16, headers: &[(String, Vec<u8>)]) -> Reading {
        let find = |name| header(headers, name);
        let plain = |value: &[u8]| value.eq_ignore_ascii_case(b"identity");
        let is_stream = is_event_stream(headers);
        let is_expected = match is_stream {
            true => expected.events,
            false => expected.whole,
        };
        if !is_expected || !(200..300).contains(&status) {
            return Reading::Off;
        }
        if !find("content-encoding").is_none_or(plain) {
            return Reading::Compressed;
        }
        if is_stream {
            return Reading::Events {
                certain: expected.in_every_stream,
                scan: Box::new(UsageScan::new(Framing::EventStream)),
                gap: false,
            };
        }
        let length = find("content-length").and_then(|value| std::str::from_utf8(value).ok());
        Reading::Whole {
            left: length.and_then(|value| value.parse().ok()),
            tail: Vec::new(),
        }
    }

    /// The next `size` bytes pass: which of them to [`push`](Reading::push), if any.
    pub fn wants(&mut self, size: usize) -> Option<Range<usize>> {
        let most = match self {
            Reading::Off | Reading::Compressed => return None,
            Reading::Whole { left, .. } => {
                let after = left.map(|left| left.saturating_sub(size));
                *left = after;
                TAIL_BYTES.saturating_sub(after.unwrap_or_default())
            }
            Reading::Events { gap, .. } => {
                *gap = size > TAIL_BYTES;
                TAIL_BYTES
            }
        };
        // The bytes that are not among the last of the answer are at the beginning of these.
        let start = size.saturating_sub(most);
        (start < size).then_some(start..size)
    }

    /// Reads the bytes that were wanted.
    pub fn push(&mut self, bytes: &[u8]) {
        match self {
            Reading::Off | Reading::Compressed => {}
            Reading::Whole { tail, .. } => {
                let excess = (tail.len() + bytes.len()).saturating_sub(TAIL_BYTES);
                tail.drain(..excess.min(tail.len()));
                tail.extend_from_slice(bytes);
            }
            Reading::Events { scan, gap, .. } => {
                if std::mem::take(gap) {
                    scan.skip();
                }
                scan.push(bytes);
            }
        }
    }

    /// What the engine reported, once the answer is over; `complete` says that it came to its end, and
    /// `predicted` how many of how many prompt tokens were believed to be cached. The reading ends.
    pub fn finish(&mut self, complete: bool, predicted: (u64, u64)) -> Finding {
        let (found, certain) = match std::mem::take(self) {
            Reading::Off => return Finding::Nothing,
            Reading::Compressed => return Finding::Unread(Unread::Compressed),
            Reading::Whole { tail, .. } => (usage::in_tail(&tail), true),
            Reading::Events {
                certain, mut scan, ..
            } => (scan.finish(), certain),
        };
        match found {
            Some(usage) => Finding::Report(Report::new(usage, predicted)),
            None if complete && certain => Finding::Unread(Unread::NoUsage),
            None => Finding::Nothing,
        }
    }
}

fn is_event_stream(headers: &[(String, Vec<u8>)]) -> bool {
    const TYPE: &[u8] = b"text/event-stream";
    let kind = header(headers, "content-type").and_then(|value| value.get(..TYPE.len()));
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case(TYPE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::ScanPlan;

    const BOTH: Expected = Expected {
        whole: true,
        events: true,
        in_every_stream: true,
    };

    fn headers(pairs: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
        let pair = |(name, value): &(&str, &str)| (name.to_string(), value.as_bytes().to_vec());
        pairs.iter().map(pair).collect()
    }

    /// Passes pieces of these sizes by; the bytes that were read, and what came of it.
    fn pass(reading: &mut Reading, body: &[u8], piece: usize) -> (usize, Option<Report>) {
        let mut read = 0;
        for piece in body.chunks(piece) {
            if let Some(part) = reading.wants(piece.len()) {
                assert!(part.len() <= TAIL_BYTES);
                read += part.len();
                reading.push(&piece[part]);
            }
        }
        match reading.finish(true, (0, 0)) {
            Finding::Report(report) => (read, Some(report)),
            _ => (read, None),
        }
    }

    fn body(words: usize) -> String {
        let usage = r#""usage":{"prompt_tokens":70,"completion_tokens":9}"#;
        format!(
            r#"{{"choices":[{{"text":"{}"}}],{usage},"x":null}}"#,
            "word ".repeat(words)
        )
    }

    #[test]
    fn of_a_whole_answer_no_more_than_its_end_is_read() {
        for words in [0, 10, 5000] {
            let body = body(words);
            let length = body.len().to_string();
            for piece in [1, 7, 100, 4095, 4096, 4097, 16384, usize::MAX] {
                let known = headers(&[("content-length", &length)]);
                let mut reading = Reading::new(BOTH, 200, &known);
                let (read, found) = pass(&mut reading, body.as_bytes(), piece);
                assert_eq!(read, body.len().min(TAIL_BYTES), "{words} {piece}");
                assert_eq!(found.unwrap().output_tokens, Some(9));
                let mut reading = Reading::new(BOTH, 200, &[]);
                let (_, found) = pass(&mut reading, body.as_bytes(), piece);
                assert_eq!(found.unwrap().prompt_tokens, 70, "{words} {piece}");
            }
        }
    }

    #[test]
    fn of_a_stream_the_end_of_each_piece_is_read() {
        let event = |text: &str| format!("data: {text}\n\n");
        let head = headers(&[("content-type", "text/event-stream; charset=utf-8")]);
        let mut answer = String::new();
        for _ in 0..300 {
            answer += &event(r#"{"choices":[{"text":"word"}],"usage":null}"#);
        }
        answer += &event(r#"{"choices":[],"usage":{"prompt_tokens":70}}"#);
        answer += &event("[DONE]");
        for piece in [1, 50, 4096, 5000, usize::MAX] {
            let mut reading = Reading::new(BOTH, 200, &head);
            let (_, found) = pass(&mut reading, answer.as_bytes(), piece);
            assert_eq!(found.unwrap().prompt_tokens, 70, "{piece}");
        }
    }

    #[test]
    fn what_is_not_expected_is_not_read() {
        let stream = headers(&[("content-type", "Text/Event-Stream")]);
        let packed = headers(&[("content-encoding", "gzip")]);
        let plain = headers(&[("content-encoding", "identity")]);
        let whole = Expected {
            events: false,
            ..BOTH
        };
        let events = Expected {
            whole: false,
            ..BOTH
        };
        for (expected, status, headers, read) in [
            (whole, 200, &[][..], true),
            (whole, 200, &plain, true),
            (whole, 200, &stream, false),
            (whole, 200, &packed, false),
            (whole, 404, &[], false),
            (events, 200, &stream, true),
            (events, 200, &[], false),
            (Expected::default(), 200, &[], false),
        ] {
            let mut reading = Reading::new(expected, status, headers);
            assert_eq!(
                reading.wants(10).is_some(),
                read,
                "{expected:?} {status} {headers:?}"
            );
        }
    }

    #[test]
    fn what_was_expected_and_not_read_has_a_cause() {
        let packed = headers(&[("content-encoding", "gzip")]);
        let plain = headers(&[("content-encoding", "Identity")]);
        for (headers, complete, want) in [
            (&packed, true, Finding::Unread(Unread::Compressed)),
            (&plain, true, Finding::Unread(Unread::NoUsage)),
            (&plain, false, Finding::Nothing),
        ] {
            let mut reading = Reading::new(BOTH, 200, headers);
            if let Some(part) = reading.wants(2) {
                reading.push(&b"{}"[part]);
            }
            assert_eq!(reading.finish(complete, (0, 0)), want);
            assert_eq!(reading.finish(complete, (0, 0)), Finding::Nothing);
        }
        let refused = Reading::new(BOTH, 500, &packed).finish(true, (0, 0));
        assert_eq!(refused, Finding::Nothing);
    }

    #[test]
    fn a_stream_that_may_have_counts_need_not() {
        let head = headers(&[("content-type", "text/event-stream")]);
        for (in_every_stream, want) in [
            (true, Finding::Unread(Unread::NoUsage)),
            (false, Finding::Nothing),
        ] {
            let expected = Expected {
                in_every_stream,
                ..BOTH
            };
            let mut reading = Reading::new(expected, 200, &head);
            assert!(reading.wants(10).is_some());
            reading.push(b"data: {}\n\n");
            assert_eq!(reading.finish(true, (0, 0)), want);
        }
    }

    #[test]
    fn a_request_tells_what_to_expect() {
        let expected = |api, body: &str| {
            let mut scan = RequestScan::new(api);
            scan.feed(&ScanPlan::default(), body.as_bytes()).unwrap();
            let expected = Expected::of(Some(api), Some(&scan));
            assert!(expected.events || !expected.in_every_stream);
            (expected.whole, expected.events, expected.in_every_stream)
        };
        let asks = r#"{"stream":true,"stream_options":{"include_usage":true}}"#;
        let streams = r#"{"stream":true}"#;
        const EVENTS: (bool, bool, bool) = (false, true, true);
        const NONE: (bool, bool, bool) = (false, false, false);
        for (api, of_asking, of_streaming) in [
            (Api::ChatCompletions, EVENTS, NONE),
            (Api::Completions, EVENTS, NONE),
            (Api::Messages, EVENTS, EVENTS),
            (Api::Responses, EVENTS, EVENTS),
            (Api::Generate, NONE, NONE),
        ] {
            assert_eq!(expected(api, asks), of_asking, "{api:?}");
            assert_eq!(expected(api, streams), of_streaming, "{api:?}");
        }
        let chat = Api::ChatCompletions;
        let unasked = r#"{"stream_options":{"include_usage":true}}"#;
        assert_eq!(expected(chat, unasked), (true, false, false));
        assert_eq!(expected(chat, r#"{"stream":true"#), (false, true, false));
        assert_eq!(expected(chat, r#"{"model":"x""#), (true, true, false));
        let unread = Expected::of(Some(Api::Completions), None);
        assert!(unread.whole && unread.events && !unread.in_every_stream);
        assert!(!Expected::of(None, None).any());
    }
}
