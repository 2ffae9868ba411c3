//! The figures in a `usage` object, under the names that each API gives them.

use crate::json::Value;

/// Token counts of an answer, as the engine reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// `prompt_tokens` or `input_tokens`. The OpenAI APIs count cached tokens in; Anthropic's
    /// definition of `input_tokens` does not.
    pub prompt_tokens: Option<u64>,
    /// `completion_tokens` or `output_tokens`.
    pub completion_tokens: Option<u64>,
    /// Prompt tokens that the engine found in its cache: `cached_tokens` of the details, or
    /// `cache_read_input_tokens`. Absent when the engine does not tell.
    pub cached_tokens: Option<u64>,
}

impl Usage {
    /// Reads a `usage` object; `None` when none of the figures is in it.
    pub(super) fn parse(object: &[u8]) -> Option<Usage> {
        const CACHED: &str = "cached_tokens";
        let json = Value::read(object).ok()?;
        let count = |names: &[&str]| json.find(names).and_then(whole);
        let usage = Usage {
            prompt_tokens: count(&["prompt_tokens"]).or_else(|| count(&["input_tokens"])),
            completion_tokens: count(&["completion_tokens"]).or_else(|| count(&["output_tokens"])),
            cached_tokens: count(&["prompt_tokens_details", CACHED])
                .or_else(|| count(&["input_tokens_details", CACHED]))
                .or_else(|| count(&["cache_read_input_tokens"])),
        };
        (usage != Usage::default()).then_some(usage)
    }

    /// These figures, replaced by those that `later` has.
    pub(super) fn updated(self, later: Usage) -> Usage {
        Usage {
            prompt_tokens: later.prompt_tokens.or(self.prompt_tokens),
            completion_tokens: later.completion_tokens.or(self.completion_tokens),
            cached_tokens: later.cached_tokens.or(self.cached_tokens),
        }
    }
}

/// A whole number, also one in quotes.
fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => text.parse().ok(),
        value => value.as_u64(),
    }
}
