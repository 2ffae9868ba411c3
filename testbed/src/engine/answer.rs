//! Whole (not streamed) answers, in the shapes and the key order of vLLM 0.32.
//!
//! One idea: each path has one template; only ids, names and texts vary, and those are quoted
//! before they go in. Cost: O(text).

use super::metrics::Ending;
use super::prompt::Api;
use super::tokens;

/// What all answers of one request share. The strings are quoted JSON.
#[derive(Debug, Clone)]
pub(super) struct Heading {
    /// The path that answers.
    pub(super) api: Api,
    id: String,
    model: String,
    fingerprint: String,
    created_unix_s: u64,
}

impl Heading {
    /// `request_id` becomes part of the id of the answer.
    pub(super) fn new(
        api: Api,
        request_id: &str,
        model: &str,
        engine: &str,
        created_unix_s: u64,
    ) -> Self {
        let prefix = id_prefix(api);
        Self {
            api,
            id: quote(&format!("{prefix}{request_id}")),
            model: quote(model),
            fingerprint: quote(&format!("vllm-0.32.0-{engine}")),
            created_unix_s,
        }
    }

    /// The fields that open an answer of this kind.
    pub(super) fn open(&self, object: &str) -> String {
        format!(
            r#""id":{},"object":"{object}","created":{},"model":{}"#,
            self.id, self.created_unix_s, self.model
        )
    }

    /// Id of the answer, quoted.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Name of the model, quoted.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// Fingerprint of the engine, quoted.
    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// What stands before the client's id of a request in the engine's own.
pub(super) fn id_prefix(api: Api) -> &'static str {
    match api {
        Api::Chat | Api::Messages => "chatcmpl-",
        Api::Completions => "cmpl-",
        Api::Responses => "resp_",
        Api::Embeddings => "embd-",
        Api::Rerank => "rerank-",
        Api::Score => "score-",
        Api::Generate | Api::Tokenize => "",
    }
}

/// A whole answer with these `kv_transfer_params`, if its path has any.
pub(super) fn with_transfer(body: &str, params: &str) -> String {
    let none = r#""kv_transfer_params":null"#;
    match body.rsplit_once(none) {
        Some((before, after)) => format!(r#"{before}"kv_transfer_params":{params}{after}"#),
        None => body.to_owned(),
    }
}

/// Tokens of one request, all its choices together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Prompt tokens; a prompt counts once, whatever `n`.
    pub(super) prompt: u32,
    /// Output tokens.
    pub(super) completion: u32,
    /// Prompt tokens that were served from the prefix cache.
    pub(super) cached: u32,
}

impl Usage {
    /// The three sums that every usage object has, without braces.
    pub(super) fn sums(&self) -> String {
        format!(
            r#""prompt_tokens":{},"total_tokens":{},"completion_tokens":{}"#,
            self.prompt,
            self.prompt.saturating_add(self.completion),
            self.completion
        )
    }
}

/// One generated text.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    /// Seed of its words.
    pub(super) seed: u64,
    /// Tokens it has in the end.
    pub(super) output_tokens: u32,
    /// What stands before the words.
    pub(super) echo: String,
}

impl Choice {
    fn text(&self) -> String {
        quote(&format!(
            "{}{}",
            self.echo,
            tokens::words(self.seed, self.output_tokens)
        ))
    }
}

/// `text` as a JSON string.
pub(super) fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `finish_reason` of the OpenAI paths.
pub(super) fn finish_reason(ending: Ending) -> &'static str {
    match ending {
        Ending::Stop => "stop",
        Ending::Length => "length",
    }
}

/// `stop_reason` of `/v1/messages`.
pub(super) fn stop_reason(ending: Ending) -> &'static str {
    match ending {
        Ending::Stop => "end_turn",
        Ending::Length => "max_tokens",
    }
}

/// The whole answer of a path that generates text.
pub(super) fn whole(heading: &Heading, choices: &[Choice], ending: Ending, usage: Usage) -> String {
    match heading.api {
        Api::Chat => chat(heading, choices, ending, usage),
        Api::Responses => response(heading, choices, ending, usage),
        Api::Messages => message(heading, choices, ending, usage),
        Api::Generate => generated(heading, choices, ending, usage),
        _ => completion(heading, choices, ending, usage),
    }
}

fn chat(heading: &Heading, choices: &[Choice], ending: Ending, usage: Usage) -> String {
    let choices = joined(choices, |index, choice| {
        format!(
            r#"{{"index":{index},"message":{{"role":"assistant","content":{},"refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null}},"logprobs":null,"finish_reason":"{}","stop_reason":null,"token_ids":null,"routed_experts":null}}"#,
            choice.text(),
            finish_reason(ending)
        )
    });
    format!(
        r#"{{{},"choices":[{choices}],"service_tier":null,"system_fingerprint":{},"usage":{{{},"prompt_tokens_details":{{"cached_tokens":{},"created_cache_tokens":0,"multimodal_tokens":null}},"completion_tokens_details":null}},"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}"#,
        heading.open("chat.completion"),
        heading.fingerprint,
        usage.sums(),
        usage.cached
    )
}

fn completion(heading: &Heading, choices: &[Choice], ending: Ending, usage: Usage) -> String {
    let choices = joined(choices, |index, choice| {
        format!(
            r#"{{"index":{index},"text":{},"logprobs":null,"finish_reason":"{}","stop_reason":null,"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null,"routed_experts":null}}"#,
            choice.text(),
            finish_reason(ending)
        )
    });
    format!(
        r#"{{{},"choices":[{choices}],"service_tier":null,"system_fingerprint":{},"usage":{{{},"prompt_tokens_details":{{"cached_tokens":{},"created_cache_tokens":null,"multimodal_tokens":null}},"completion_tokens_details":null}},"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}"#,
        heading.open("text_completion"),
        heading.fingerprint,
        usage.sums(),
        usage.cached
    )
}

fn response(heading: &Heading, choices: &[Choice], ending: Ending, usage: Usage) -> String {
    let status = match ending {
        Ending::Stop => "completed",
        Ending::Length => "incomplete",
    };
    let text = choices.first().map_or_else(|| quote(""), Choice::text);
    response_object(heading, status, Some((&text, usage)))
}

/// The object of `/v1/responses`; `done` is its text, quoted, and its usage.
pub(super) fn response_object(
    heading: &Heading,
    status: &str,
    done: Option<(&str, Usage)>,
) -> String {
    let output = done.map_or_else(String::new, |(text, _)| output_item("completed", text));
    let usage = done.map_or_else(
        || "null".to_owned(),
        |(_, usage)| {
            format!(
                r#"{{"input_tokens":{},"input_tokens_details":{{"cached_tokens":{},"cache_write_tokens":0,"input_tokens_per_turn":[],"cached_tokens_per_turn":[]}},"output_tokens":{},"output_tokens_details":{{"reasoning_tokens":0,"tool_output_tokens":0,"output_tokens_per_turn":[],"tool_output_tokens_per_turn":[]}},"total_tokens":{}}}"#,
                usage.prompt,
                usage.cached,
                usage.completion,
                usage.prompt.saturating_add(usage.completion)
            )
        },
    );
    let incomplete = match status {
        "incomplete" => r#"{"reason":"max_output_tokens"}"#,
        _ => "null",
    };
    format!(
        r#"{{"id":{},"created_at":{},"incomplete_details":{incomplete},"instructions":null,"metadata":null,"model":{},"object":"response","output":[{output}],"parallel_tool_calls":true,"temperature":1.0,"tool_choice":"none","tools":[],"top_p":1.0,"background":false,"max_output_tokens":null,"max_tool_calls":null,"previous_response_id":null,"prompt":null,"reasoning":null,"service_tier":"auto","status":"{status}","text":null,"top_logprobs":null,"truncation":"disabled","usage":{usage},"user":null}}"#,
        heading.id, heading.created_unix_s, heading.model
    )
}

/// The one output item of `/v1/responses`; `text` is quoted.
pub(super) fn output_item(status: &str, text: &str) -> String {
    format!(
        r#"{{"id":"msg_0","content":[{{"annotations":[],"text":{text},"type":"output_text","logprobs":null}}],"role":"assistant","status":"{status}","type":"message","phase":null}}"#
    )
}

fn message(heading: &Heading, choices: &[Choice], ending: Ending, usage: Usage) -> String {
    let text = choices.first().map_or_else(|| quote(""), Choice::text);
    format!(
        r#"{{"id":{},"type":"message","role":"assistant","content":[{{"type":"text","text":{text}}}],"model":{},"stop_reason":"{}","usage":{{"input_tokens":{},"output_tokens":{},"cache_creation_input_tokens":0,"cache_read_input_tokens":{}}}}}"#,
        heading.id,
        heading.model,
        stop_reason(ending),
        usage.prompt,
        usage.completion,
        usage.cached
    )
}

fn generated(heading: &Heading, choices: &[Choice], ending: Ending, usage: Usage) -> String {
    let text = choices.first().map_or_else(|| quote(""), Choice::text);
    generated_object(heading, &text, Some(ending), usage)
}

/// The object of `/generate`; `text` is quoted, no ending means that more follows.
pub(super) fn generated_object(
    heading: &Heading,
    text: &str,
    ending: Option<Ending>,
    usage: Usage,
) -> String {
    let reason = ending.map_or_else(
        || "null".to_owned(),
        |ending| {
            format!(
                r#"{{"type":"{}","length":{}}}"#,
                finish_reason(ending),
                usage.completion
            )
        },
    );
    format!(
        r#"{{"text":{text},"meta_info":{{"id":{},"finish_reason":{reason},"prompt_tokens":{},"completion_tokens":{},"cached_tokens":{}}}}}"#,
        heading.id, usage.prompt, usage.completion, usage.cached
    )
}

fn joined<T>(items: &[T], write: impl Fn(usize, &T) -> String) -> String {
    let written: Vec<String> = items
        .iter()
        .enumerate()
        .map(|(index, item)| write(index, item))
        .collect();
    written.join(",")
}
