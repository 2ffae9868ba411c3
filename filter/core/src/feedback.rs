//! What engines tell in their answers: token counts, to be held against the prediction, and load.
//!
//! Token counts are read while the answer passes ([`Reading`]). Load comes in a response header, on
//! answers that are not streamed, from engines that are asked for it (ORCA). It is for us: a client
//! gets it only if it asked itself. A report corrects nothing in the index: after the request its
//! engine holds the whole prompt, so what the index says is true again. What reports tell is whether
//! the index remembers too long or forgets too soon, and that shows in sums. O(1) beside the reading.
//!
//! ```
//! use warmpath_core::feedback::Report;
//! use warmpath_core::wire::usage::Usage;
//! let usage = Usage { prompt_tokens: Some(1000), cached_tokens: Some(740), ..Usage::default() };
//! // By our measure 600 of 800 tokens were believed to be cached: 750 of the engine's.
//! assert_eq!(Report::new(usage, (600, 800)).predicted_tokens, Some(750));
//! ```

mod reading;

pub use reading::{Expected, Reading, TAIL_BYTES};

use crate::scan::{Api, RequestScan};
use crate::session::header;
use crate::wire::orca::{self, OrcaLoad};
use crate::wire::usage::Usage;

/// What is read of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedbackOptions {
    /// Whether bodies are looked at for token counts.
    pub usage: bool,
    /// Whether engines are asked for their load with each answer that is not streamed.
    pub orca: bool,
}

impl Default for FeedbackOptions {
    fn default() -> Self {
        FeedbackOptions {
            usage: true,
            orca: false,
        }
    }
}

/// Why an answer's token counts are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// It is compressed.
    Compressed,
    /// It has none where engines write them, or more stands behind them than is read.
    NoUsage,
    /// It has, but the engine does not tell what it had cached.
    NoCachedTokens,
}

impl Unread {
    /// Every cause, in the order of their numbers.
    pub const ALL: [Unread; 3] = [Unread::Compressed, Unread::NoUsage, Unread::NoCachedTokens];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Unread::Compressed => "compressed",
            Unread::NoUsage => "no_usage",
            Unread::NoCachedTokens => "no_cached_tokens",
        }
    }
}

/// What an engine reported, beside what was predicted. In tokens as the engine counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Those of them that it had cached, if it says so.
    pub cached_tokens: Option<u64>,
    /// Tokens of the output, if it says so.
    pub output_tokens: Option<u64>,
    /// Those of the prompt that were predicted as cached; `None` if nothing was predicted or there is
    /// nothing to hold against it.
    pub predicted_tokens: Option<u64>,
}

impl Report {
    /// What the engine counted, when `cached` of `prompt` tokens were predicted by our own measure.
    pub fn new(usage: Usage, (cached, prompt): (u64, u64)) -> Report {
        // Anthropic does not count cached tokens among those of the input.
        let counted = usage.prompt_tokens.max(usage.cached_tokens);
        let counted = counted.unwrap_or_default();
        // We count bytes, the engine tokens: what can be compared is the share.
        let predicted = u128::from(cached.min(prompt)) * u128::from(counted);
        let predicted = predicted.checked_div(u128::from(prompt));
        Report {
            prompt_tokens: counted,
            cached_tokens: usage.cached_tokens,
            output_tokens: usage.completion_tokens,
            predicted_tokens: predicted
                .filter(|_| usage.cached_tokens.is_some())
                .and_then(|tokens| u64::try_from(tokens).ok()),
        }
    }
}

/// What came of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Token counts were not expected, or the answer broke off before them.
    Nothing,
    /// They could not be read.
    Unread(Unread),
    /// They were.
    Report(Report),
}

/// What a response header told of the engine's load.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadReport {
    /// The load, if it was one that can be read.
    pub load: Option<OrcaLoad>,
    /// Whether the header is there for us alone, so that the client must not get it.
    pub is_ours: bool,
}

/// The feedback of one request.
#[derive(Debug, Default)]
pub struct Feedback {
    expected: Expected,
    orca: bool,
    /// Whether the client itself asks the engine for its load.
    client_asks: bool,
    reading: Reading,
}

impl Feedback {
    /// Looks at the request's headers, names in lower case.
    pub(crate) fn on_request(&mut self, headers: &[(String, Vec<u8>)]) {
        self.client_asks = header(headers, orca::REQUEST_HEADER).is_some();
    }

    /// Fixes what to expect of the answer, by what was scanned of the request.
    pub(crate) fn prepare(
        &mut self,
        options: FeedbackOptions,
        api: Option<Api>,
        scan: Option<&RequestScan>,
    ) {
        let expected = Expected::of(api, scan);
        self.orca = options.orca && expected.whole;
        if options.usage {
            self.expected = expected;
        }
    }

    /// Whether the engine is to be asked for its load with its answer.
    pub fn asks_load(&self) -> bool {
        self.orca && !self.client_asks
    }

    /// Whether the answer's headers are of interest.
    pub fn wants_headers(&self) -> bool {
        self.orca || self.expected.any()
    }

    /// Looks at the answer's headers, names in lower case.
    pub fn on_headers(&mut self, status: u16, headers: &[(String, Vec<u8>)]) -> LoadReport {
        self.reading = Reading::new(self.expected, status, headers);
        let told = header(headers, orca::RESPONSE_HEADER).filter(|_| self.orca);
        LoadReport {
            load: told.and_then(orca::parse),
            is_ours: told.is_some() && self.asks_load(),
        }
    }

    /// The reading of the answer's body.
    pub fn reading(&mut self) -> &mut Reading {
        &mut self.reading
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(prompt: u64, cached: u64) -> Usage {
        Usage {
            prompt_tokens: Some(prompt),
            completion_tokens: Some(3),
            cached_tokens: Some(cached),
        }
    }

    #[test]
    fn shares_are_compared_in_the_engines_tokens() {
        let report = Report::new(usage(10_000, 7400), (6000, 8000));
        let want = Report {
            prompt_tokens: 10_000,
            cached_tokens: Some(7400),
            output_tokens: Some(3),
            predicted_tokens: Some(7500),
        };
        assert_eq!(report, want);
        let most = Report::new(usage(u64::MAX, u64::MAX), (u64::MAX, u64::MAX));
        assert_eq!(most.predicted_tokens, Some(u64::MAX));
        let more = Report::new(usage(100, 0), (90, 80));
        assert_eq!(more.predicted_tokens, Some(100));
    }

    #[test]
    fn what_cannot_be_compared_is_not() {
        assert_eq!(Report::new(usage(100, 0), (0, 0)).predicted_tokens, None);
        assert_eq!(Report::new(Usage::default(), (5, 10)), Report::default());
        let partly = Usage {
            prompt_tokens: Some(100),
            ..Usage::default()
        };
        let report = Report::new(partly, (10, 100));
        assert_eq!((report.prompt_tokens, report.predicted_tokens), (100, None));
        // Anthropic's input is what was not cached.
        assert_eq!(Report::new(usage(10, 90), (0, 0)).prompt_tokens, 90);
    }

    #[test]
    fn load_is_ours_unless_the_client_asked() {
        let on = FeedbackOptions {
            usage: false,
            orca: true,
        };
        let line = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        let asks = [line(orca::REQUEST_HEADER, "JSON")];
        let told = [line(
            orca::RESPONSE_HEADER,
            "TEXT named_metrics.num_requests_waiting=2.0",
        )];
        let of = |options, request: &[(String, Vec<u8>)], api| {
            let mut feedback = Feedback::default();
            feedback.on_request(request);
            feedback.prepare(options, Some(api), None);
            let asked = feedback.asks_load();
            let report = feedback.on_headers(200, &told);
            assert!(!report.is_ours || asked);
            assert_eq!(feedback.reading().wants(10).is_some(), options.usage);
            let waiting = report.load.and_then(|load| load.waiting);
            (asked, waiting, report.is_ours)
        };
        let chat = Api::ChatCompletions;
        assert_eq!(of(on, &[], chat), (true, Some(2), true));
        assert_eq!(of(on, &asks, chat), (false, Some(2), false));
        assert_eq!(of(on, &[], Api::Tokenize), (false, None, false));
        let off = FeedbackOptions::default();
        assert_eq!(of(off, &[], chat), (false, None, false));
        assert_eq!(of(off, &asks, chat), (false, None, false));
    }
}
