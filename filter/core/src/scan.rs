//! The request scan: what the router needs to know of a JSON body, while the body arrives.
//!
//! One pass over each slice as it comes, a true parse (text inside a prompt never matches), no copy
//! of the body: [`RequestScan::feed`] gives events of the grammar (`lexer`) to the kept fields
//! (`fields`, along the pointers of a [`ScanPlan`]) and to the prompt (`canonical` says which bytes
//! it consists of, [`Prompt`] hashes them in chunks). Any cut of the body into slices gives the same
//! result. Time is linear; memory is bounded by the plan but for 8 bytes per 512 bytes of prompt.
//!
//! ```
//! # use warmpath_core::scan::{Api, Field, RequestScan, ScanPlan};
//! let plan = ScanPlan::new(&["/user".to_owned()], true).expect("a valid pointer");
//! let mut scan = RequestScan::new(Api::ChatCompletions);
//! scan.feed(&plan, br#"{"model":"llama","user":"u1","mess"#)?;
//! assert_eq!(scan.model(), Field::Text(b"llama"));
//! scan.feed(&plan, br#"ages":[{"role":"user","content":"Hi"}]}"#)?;
//! scan.finish()?;
//! assert_eq!(scan.pointer(0), Some(&b"u1"[..]));
//! # Ok::<(), warmpath_core::scan::ScanError>(())
//! ```

mod api;
mod canonical;
#[cfg(test)]
mod canonical_tests;
mod escapes;
mod events;
mod fields;
mod lexer;
mod plan;
mod prompt;
mod receiver;
mod scratch;
mod search;

use std::ops::Range;

pub use api::Api;
pub use fields::{Field, MAX_VALUE_BYTES};
pub use lexer::{MAX_DEPTH, ScanError};
pub use plan::{MAX_KEY_BYTES, MAX_POINTER_DEPTH, MAX_POINTERS, OWNED, PointerError, ScanPlan};
pub use prompt::{CHUNK_BYTES, Link, Prompt};

pub(crate) use search::clean_len;

use lexer::Lexer;
use receiver::{Collected, Receiver};

/// How many prompts and answers a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Prompts; a list of token ids is one.
    pub prompts: u32,
    /// Whether more than one answer to a prompt is wanted, or how many is not clear.
    pub several_choices: bool,
    /// Answers wanted for each prompt, as far as that is a number.
    pub choices: u32,
    /// Whether the answer is to have something of the prompt in it: its text or its log probabilities.
    pub prompt_back: bool,
}

/// The scan of one request body. It must be fed with one and the same plan.
#[derive(Clone, Debug)]
pub struct RequestScan {
    api: Api,
    lexer: Lexer,
    collected: Collected,
}

impl RequestScan {
    /// A scan that has seen nothing yet.
    #[must_use]
    pub fn new(api: Api) -> Self {
        Self {
            api,
            lexer: Lexer::new(),
            collected: Collected::default(),
        }
    }

    /// Reads the next slice of the body.
    ///
    /// # Errors
    /// The body is no JSON object. What was read before stays readable; every later call returns
    /// the same error.
    pub fn feed(&mut self, plan: &ScanPlan, bytes: &[u8]) -> Result<(), ScanError> {
        let mut receiver = Receiver {
            api: self.api,
            plan,
            collected: &mut self.collected,
        };
        self.lexer.feed(bytes, &mut receiver)
    }

    /// Whether the whole object has been read, so that nothing of interest can follow.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.lexer.is_complete()
    }

    /// The body has ended.
    ///
    /// # Errors
    /// The object is not complete, or [`Self::feed`] failed before.
    pub fn finish(&mut self) -> Result<(), ScanError> {
        self.lexer.finish()
    }

    /// The top-level `model`.
    #[must_use]
    pub fn model(&self) -> Field<'_> {
        self.collected.fields.text(plan::MODEL)
    }

    /// Where in the body the string that is the model stands, quotes included.
    #[must_use]
    pub fn model_span(&self) -> Option<Range<usize>> {
        self.collected.fields.model_span()
    }

    /// Whether the top-level `stream` is `true`.
    #[must_use]
    pub fn stream(&self) -> bool {
        self.collected.fields.is_true(plan::STREAM)
    }

    /// Whether `stream_options.include_usage` is `true`: the stream is to end with its token counts.
    #[must_use]
    pub fn include_usage(&self) -> bool {
        self.collected.fields.is_true(plan::INCLUDE_USAGE)
    }

    /// The value of the plan's pointer number `index`: a decoded, non-empty string or the literal
    /// text of a number, cut at [`MAX_VALUE_BYTES`].
    #[must_use]
    pub fn pointer(&self, index: usize) -> Option<&[u8]> {
        let slot = plan::FIRST_POINTER.checked_add(index)?;
        self.collected.fields.scalar(slot)
    }

    /// The top-level `cache_salt`, a non-empty string, cut at [`MAX_VALUE_BYTES`].
    #[must_use]
    pub fn cache_salt(&self) -> Option<&[u8]> {
        self.collected.fields.string(plan::CACHE_SALT)
    }

    /// How many tokens the answer may have: the first whole number of `max_completion_tokens`,
    /// `max_tokens`, `max_output_tokens`, `sampling_params.max_new_tokens`.
    #[must_use]
    pub fn max_tokens(&self) -> Option<u32> {
        let fields = &self.collected.fields;
        plan::MAX_TOKENS.iter().find_map(|&slot| fields.count(slot))
    }

    /// Whether there is a field of [`OWNED`], in which clients have no say.
    #[must_use]
    pub fn has_owned(&self) -> bool {
        self.collected.fields.owned()
    }

    /// How many prompts and answers the request is about; only with [`ScanPlan::with_shape`].
    #[must_use]
    pub fn shape(&self) -> Shape {
        let fields = &self.collected.fields;
        let set = |slots: &'static [usize]| slots.iter().filter(|slot| fields.is_set(**slot));
        let choices = || set(&plan::CHOICES).map(|slot| fields.count(*slot));
        let prompts = plan::FIRST_PROMPT
            .iter()
            .find_map(|slot| fields.elements(*slot));
        Shape {
            prompts: prompts.unwrap_or(1).max(1),
            several_choices: choices().any(|count| count != Some(1)),
            choices: choices().flatten().next().unwrap_or(1).max(1),
            prompt_back: set(&plan::PROMPT_BACK).next().is_some(),
        }
    }

    /// Whether an engine's `/tokenize` gives the tokens of this body that its cache is keyed by, and
    /// nothing else tells its blocks apart: a chat or one text, without media and salt.
    #[must_use]
    pub fn is_tokenizable(&self) -> bool {
        let canonical = &self.collected.canonical;
        let form = match self.api {
            Api::ChatCompletions => !canonical.main_is_text(),
            Api::Completions => canonical.main_is_text(),
            _ => false,
        };
        form && !canonical.has_media() && self.cache_salt().is_none()
    }

    /// The prompt as far as it was read; empty when the plan does not ask for it.
    #[must_use]
    pub fn prompt(&self) -> &Prompt {
        self.collected.canonical.prompt()
    }

    /// How many bytes were fed; after an error, the offset of the error.
    #[must_use]
    pub fn scanned(&self) -> usize {
        self.lexer.scanned()
    }
}
