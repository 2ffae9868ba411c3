//! What became of lookups, until the next tick.

/// Most durations that wait for the tick; what does not fit is not in the histogram.
const MOST_DURATIONS: usize = 1024;

/// How a lookup ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Some engine holds enough of the prompt.
    Matched,
    /// None does.
    Unmatched,
    /// An answer that the conversation had before was used, and nobody was asked.
    Remembered,
    /// No tokens came from an engine: it failed, or said something else.
    NoTokens,
    /// The service did not answer, or not in time.
    Unanswered,
    /// It answered with an error.
    Refused,
    /// Its answer could not be read.
    Unreadable,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Outcome; 7] = [
        Outcome::Matched,
        Outcome::Unmatched,
        Outcome::Remembered,
        Outcome::NoTokens,
        Outcome::Unanswered,
        Outcome::Refused,
        Outcome::Unreadable,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Matched => "matched",
            Outcome::Unmatched => "unmatched",
            Outcome::Remembered => "remembered",
            Outcome::NoTokens => "no_tokens",
            Outcome::Unanswered => "unanswered",
            Outcome::Refused => "refused",
            Outcome::Unreadable => "unreadable",
        }
    }
}

/// Why nothing was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// The prompt is short.
    Short,
    /// Its tokens alone do not tell the cache: it has a salt or media, is of another form, or is meant for
    /// a LoRA adapter.
    Form,
    /// The service or the engines have failed, and are left alone.
    Resting,
    /// Too many requests wait for it already.
    Full,
}

impl Skip {
    /// All of them.
    pub const ALL: [Skip; 4] = [Skip::Short, Skip::Form, Skip::Resting, Skip::Full];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Skip::Short => "short",
            Skip::Form => "form",
            Skip::Resting => "resting",
            Skip::Full => "full",
        }
    }
}

/// See the module documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Lookups, by the number of their [`Outcome`].
    pub outcomes: [u64; Outcome::ALL.len()],
    /// Requests that looked nothing up, by the number of their [`Skip`].
    pub skips: [u64; Skip::ALL.len()],
    /// How long lookups took that asked somebody.
    pub took_us: Vec<u64>,
    /// Prompt tokens that the service said the chosen endpoints hold.
    pub overlap_tokens: u64,
}

impl Tally {
    /// A lookup ended; with the time that it took, if anybody was asked.
    pub fn count(&mut self, outcome: Outcome, took_us: Option<u64>) {
        if let Some(count) = self.outcomes.get_mut(outcome as usize) {
            *count += 1;
        }
        let room = MOST_DURATIONS.saturating_sub(self.took_us.len());
        self.took_us.extend(took_us.into_iter().take(room));
    }

    /// Nothing was looked up.
    pub fn skip(&mut self, cause: Skip) {
        if let Some(count) = self.skips.get_mut(cause as usize) {
            *count += 1;
        }
    }
}
