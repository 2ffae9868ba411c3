//! Server-sent events of a streamed answer, in vLLM's order and shapes.
//!
//! One idea: a [`Script`] turns one token at a time into the bytes it causes. What opens an answer
//! comes with the first token, as it does from the real engine, so that the first body byte marks
//! the time to first token. Cost: O(1) a token, O(text) at the end for the paths that repeat it.

use super::answer::{
    Choice, Heading, Usage, finish_reason, generated_object, output_item, quote, response_object,
    stop_reason,
};
use super::clock::Token;
use super::metrics::Ending;
use super::prompt::{Api, Ask};
use super::tokens;

/// A streamed answer in the making.
#[derive(Debug)]
pub(super) struct Script {
    heading: Heading,
    choices: Vec<Choice>,
    /// `n` of the request.
    per_prompt: usize,
    ending: Ending,
    include_usage: bool,
    continuous_usage: bool,
    usage: Usage,
    opened: bool,
    /// Events of `/v1/responses` so far.
    sequence: u32,
}

impl Script {
    /// An answer with these choices; `prompt_tokens` is the sum over its prompts.
    pub(super) fn new(
        heading: Heading,
        choices: Vec<Choice>,
        ending: Ending,
        ask: &Ask,
        prompt_tokens: u32,
    ) -> Self {
        Self {
            heading,
            choices,
            per_prompt: ask.n.max(1) as usize,
            ending,
            include_usage: ask.include_usage,
            continuous_usage: ask.continuous_usage,
            usage: Usage {
                prompt: prompt_tokens,
                ..Usage::default()
            },
            opened: false,
            sequence: 0,
        }
    }

    /// Tokens so far.
    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// The events that a token causes.
    pub(super) fn token(&mut self, token: Token) -> String {
        let mut out = String::new();
        if token.index == 0 && token.job.is_multiple_of(self.per_prompt) {
            self.usage.cached += token.cached_tokens;
        }
        if !self.opened {
            self.opened = true;
            self.open(&mut out);
        }
        self.usage.completion += 1;
        let (word, echo) = match self.choices.get(token.job) {
            Some(choice) => (tokens::word(choice.seed, token.index), choice.echo.as_str()),
            None => ("", ""),
        };
        let text = quote(&if token.index == 0 {
            format!("{echo}{word}")
        } else {
            word.to_owned()
        });
        let ending = token.finished.then_some(self.ending);
        match self.heading.api {
            Api::Chat => self.chat_token(&mut out, token.job, &text, ending),
            Api::Responses => self.event(&mut out, "response.output_text.delta", &format!(
                r#""content_index":0,"delta":{text},"item_id":"msg_0","logprobs":[],"output_index":0"#
            )),
            Api::Messages => named(&mut out, "content_block_delta", &format!(
                r#""index":0,"delta":{{"type":"text_delta","text":{text}}}"#
            )),
            Api::Generate => {
                let so_far = self.text_so_far(token);
                data(&mut out, &generated_object(&self.heading, &so_far, ending, self.usage));
            }
            _ => self.completion_token(&mut out, token.job, &text, ending),
        }
        out
    }

    /// The events after the last token.
    pub(super) fn end(&mut self) -> String {
        let mut out = String::new();
        match self.heading.api {
            Api::Responses => self.end_response(&mut out),
            Api::Messages => self.end_message(&mut out),
            Api::Chat if self.include_usage => self.usage_chunk(
                &mut out,
                "chat.completion.chunk",
                r#","created_cache_tokens":0"#,
            ),
            Api::Completions if self.include_usage => {
                self.usage_chunk(&mut out, "text_completion", "")
            }
            _ => {}
        }
        if self.heading.api != Api::Responses {
            data(&mut out, "[DONE]");
        }
        out
    }

    fn open(&mut self, out: &mut String) {
        match self.heading.api {
            Api::Chat => {
                let usage = self.usage_so_far();
                for index in 0..self.choices.len() {
                    data(
                        out,
                        &format!(
                            r#"{{{},"choices":[{{"index":{index},"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}]{usage},"prompt_token_ids":null,"prompt_text":null}}"#,
                            self.heading.open("chat.completion.chunk")
                        ),
                    );
                }
            }
            Api::Responses => {
                let object = response_object(&self.heading, "in_progress", None);
                for kind in ["response.created", "response.in_progress"] {
                    self.event(out, kind, &format!(r#""response":{object}"#));
                }
                self.event(out, "response.output_item.added", r#""item":{"id":"msg_0","content":[],"role":"assistant","status":"in_progress","type":"message"},"output_index":0"#);
                self.event(out, "response.content_part.added", r#""content_index":0,"item_id":"msg_0","output_index":0,"part":{"annotations":[],"text":"","type":"output_text","logprobs":[]}"#);
            }
            Api::Messages => {
                named(
                    out,
                    "message_start",
                    &format!(
                        r#""message":{{"id":{},"type":"message","role":"assistant","content":[],"model":{},"stop_reason":null,"stop_sequence":null,"usage":{{"input_tokens":{},"output_tokens":0,"cache_creation_input_tokens":0,"cache_read_input_tokens":{}}}}}"#,
                        self.heading.id(),
                        self.heading.model(),
                        self.usage.prompt,
                        self.usage.cached
                    ),
                );
                named(
                    out,
                    "content_block_start",
                    r#""index":0,"content_block":{"type":"text","text":""}"#,
                );
            }
            _ => {}
        }
    }

    fn chat_token(&self, out: &mut String, index: usize, text: &str, ending: Option<Ending>) {
        data(
            out,
            &format!(
                r#"{{{},"choices":[{{"index":{index},"delta":{{"content":{text}}},"logprobs":null,{},"token_ids":null}}]{}}}"#,
                self.heading.open("chat.completion.chunk"),
                match ending {
                    None => r#""finish_reason":null"#.to_owned(),
                    Some(ending) => format!(
                        r#""finish_reason":"{}","stop_reason":null"#,
                        finish_reason(ending)
                    ),
                },
                self.usage_so_far(),
            ),
        );
    }

    fn completion_token(&self, out: &mut String, index: usize, text: &str, ending: Option<Ending>) {
        let reason =
            ending.map_or_else(|| "null".to_owned(), |ending| quote(finish_reason(ending)));
        data(
            out,
            &format!(
                r#"{{{},"choices":[{{"index":{index},"text":{text},"logprobs":null,"finish_reason":{reason},"stop_reason":null,"prompt_token_ids":null,"token_ids":null}}]{}}}"#,
                self.heading.open("text_completion"),
                self.usage_so_far(),
            ),
        );
    }

    fn usage_so_far(&self) -> String {
        if !(self.include_usage && self.continuous_usage) {
            return String::new();
        }
        format!(
            r#","usage":{{{},"completion_tokens_details":null}}"#,
            self.usage.sums()
        )
    }

    fn usage_chunk(&self, out: &mut String, object: &str, more_details: &str) {
        data(
            out,
            &format!(
                r#"{{{},"choices":[],"usage":{{{},"prompt_tokens_details":{{"cached_tokens":{}{more_details}}}}},"system_fingerprint":{}}}"#,
                self.heading.open(object),
                self.usage.sums(),
                self.usage.cached,
                self.heading.fingerprint(),
            ),
        );
    }

    fn text_so_far(&self, token: Token) -> String {
        let choice = self.choices.get(token.job);
        quote(&choice.map_or_else(String::new, |choice| {
            tokens::words(choice.seed, token.index + 1)
        }))
    }

    fn end_response(&mut self, out: &mut String) {
        let choice = self.choices.first();
        let text =
            quote(&choice.map_or_else(String::new, |c| tokens::words(c.seed, c.output_tokens)));
        let part =
            format!(r#"{{"annotations":[],"text":{text},"type":"output_text","logprobs":null}}"#);
        self.event(out, "response.output_text.done", &format!(
            r#""content_index":0,"item_id":"msg_0","logprobs":[],"output_index":0,"text":{text}"#
        ));
        self.event(
            out,
            "response.content_part.done",
            &format!(r#""content_index":0,"item_id":"msg_0","output_index":0,"part":{part}"#),
        );
        self.event(
            out,
            "response.output_item.done",
            &format!(
                r#""item":{},"output_index":0"#,
                output_item("completed", &text)
            ),
        );
        let (status, kind) = match self.ending {
            Ending::Stop => ("completed", "response.completed"),
            Ending::Length => ("incomplete", "response.incomplete"),
        };
        let object = response_object(&self.heading, status, Some((&text, self.usage)));
        self.event(out, kind, &format!(r#""response":{object}"#));
    }

    fn end_message(&self, out: &mut String) {
        named(out, "content_block_stop", r#""index":0"#);
        named(
            out,
            "message_delta",
            &format!(
                r#""delta":{{"stop_reason":"{}","stop_sequence":null}},"usage":{{"input_tokens":{},"output_tokens":{}}}"#,
                stop_reason(self.ending),
                self.usage.prompt,
                self.usage.completion
            ),
        );
        out.push_str("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n");
    }

    /// An event of `/v1/responses`, which are numbered.
    fn event(&mut self, out: &mut String, kind: &str, fields: &str) {
        named(
            out,
            kind,
            &format!(r#""sequence_number":{},{fields}"#, self.sequence),
        );
        self.sequence += 1;
    }
}

/// An event with its type on the event line and in the object.
fn named(out: &mut String, kind: &str, fields: &str) {
    out.push_str("event: ");
    out.push_str(kind);
    out.push('\n');
    data(out, &format!(r#"{{"type":"{kind}",{fields}}}"#));
}

fn data(out: &mut String, object: &str) {
    out.push_str("data: ");
    out.push_str(object);
    out.push_str("\n\n");
}
