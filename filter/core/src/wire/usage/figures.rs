//! The figures in a `usage` object, under the names that each API gives them.

use serde::Deserialize;

use super::super::scalar::{Members, Scalar};

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
        let json: UsageJson = serde_json::from_slice(object).ok()?;
        let usage = json.usage();
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

#[derive(Default, Deserialize)]
#[serde(default)]
struct UsageJson<'a> {
    #[serde(borrow)]
    prompt_tokens: Scalar<'a>,
    #[serde(borrow)]
    input_tokens: Scalar<'a>,
    #[serde(borrow)]
    completion_tokens: Scalar<'a>,
    #[serde(borrow)]
    output_tokens: Scalar<'a>,
    #[serde(borrow)]
    cache_read_input_tokens: Scalar<'a>,
    #[serde(borrow)]
    prompt_tokens_details: Members<'a>,
    #[serde(borrow)]
    input_tokens_details: Members<'a>,
}

impl UsageJson<'_> {
    fn usage(&self) -> Usage {
        let either = |one: &Scalar, other: &Scalar| one.whole().or(other.whole());
        let cached = |details: &Members| details.get("cached_tokens").and_then(Scalar::whole);
        Usage {
            prompt_tokens: either(&self.prompt_tokens, &self.input_tokens),
            completion_tokens: either(&self.completion_tokens, &self.output_tokens),
            cached_tokens: cached(&self.prompt_tokens_details)
                .or_else(|| cached(&self.input_tokens_details))
                .or(self.cache_read_input_tokens.whole()),
        }
    }
}
