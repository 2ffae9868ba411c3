//! Request JSON to prompts and parameters, for every path that runs the model.
//!
//! One idea: whatever the path, a request becomes an [`Ask`]: prompts laid out as one text each
//! (tools, then system text, then the turns, so that a longer conversation extends the shorter
//! one) plus the few parameters this engine obeys. All others are accepted and ignored.
//! Cost: O(body).

use serde_json::Value;

use super::error::ApiError;
use super::tokens::{Prompt, salt};

/// Output tokens of a request that sets no limit.
pub(super) const DEFAULT_OUTPUT_TOKENS: u32 = 16;
/// Most choices of one prompt.
const MAX_CHOICES: u32 = 128;
/// How often the 24-byte mark of an image, sound or file is repeated: about 250 tokens in all.
const MEDIA_MARKS: usize = 42;

/// The paths that take prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/responses`
    Responses,
    /// `/v1/messages`
    Messages,
    /// `/generate`
    Generate,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/rerank`
    Rerank,
    /// `/v1/score`
    Score,
    /// `/tokenize`
    Tokenize,
}

impl Api {
    /// Whether it takes prompts in and gives no text out.
    pub(super) fn is_pooling(self) -> bool {
        matches!(self, Self::Embeddings | Self::Rerank | Self::Score)
    }
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ask {
    /// At least one.
    pub(super) prompts: Vec<Prompt>,
    /// Separates the prefix cache; 0 when absent.
    pub(super) salt: u64,
    /// Answer as server-sent events.
    pub(super) stream: bool,
    /// A usage chunk ends the stream.
    pub(super) include_usage: bool,
    /// Every chunk has the usage so far.
    pub(super) continuous_usage: bool,
    /// Most output tokens of a choice.
    pub(super) max_tokens: Option<u32>,
    /// Choices for each prompt.
    pub(super) n: u32,
    /// The answer starts with the prompt.
    pub(super) echo: bool,
}

/// Reads the body of a request to `api`.
///
/// # Errors
/// What vLLM would answer 400 to: a missing field, a wrong type, a value out of range.
pub(super) fn read(api: Api, body: &Value) -> Result<Ask, ApiError> {
    let options = &body["stream_options"];
    let flag = |value: &Value| value.as_bool().unwrap_or(false);
    Ok(Ask {
        prompts: prompts(api, body)?,
        salt: salt(body["cache_salt"].as_str()),
        stream: flag(&body["stream"]) && !api.is_pooling(),
        include_usage: flag(&options["include_usage"]),
        continuous_usage: flag(&options["continuous_usage_stats"]),
        max_tokens: max_tokens(api, body)?,
        n: count(body, "n")?.unwrap_or(1).min(MAX_CHOICES),
        echo: flag(&body["echo"]),
    })
}

fn max_tokens(api: Api, body: &Value) -> Result<Option<u32>, ApiError> {
    match api {
        Api::Responses => count(body, "max_output_tokens"),
        Api::Messages if body["max_tokens"].is_null() => Err(ApiError::missing("max_tokens")),
        Api::Generate if body["sampling_params"].is_object() => {
            count(&body["sampling_params"], "max_new_tokens")
        }
        _ => match count(body, "max_completion_tokens")? {
            Some(most) => Ok(Some(most)),
            None => count(body, "max_tokens"),
        },
    }
}

/// A field that is absent or a whole number from 1.
fn count(body: &Value, field: &str) -> Result<Option<u32>, ApiError> {
    let value = &body[field];
    if value.is_null() {
        return Ok(None);
    }
    let number = value
        .as_i64()
        .ok_or_else(|| ApiError::wrong_type(field, "integer"))?;
    if number < 1 {
        let message = format!(
            "{field} must be at least 1, got {number}. (parameter={field}, value={number})"
        );
        return Err(ApiError::bad_request(Some(field), message));
    }
    Ok(Some(u32::try_from(number).unwrap_or(u32::MAX)))
}

fn prompts(api: Api, body: &Value) -> Result<Vec<Prompt>, ApiError> {
    match api {
        Api::Chat => Ok(vec![turns(body, "messages")?]),
        Api::Messages => Ok(vec![turns(body, "messages")?]),
        Api::Responses => Ok(vec![turns(body, "input")?]),
        Api::Completions => several(body, "prompt"),
        Api::Tokenize if body["prompt"].is_null() => Ok(vec![turns(body, "messages")?]),
        Api::Tokenize => several(body, "prompt"),
        Api::Embeddings if body["input"].is_null() && !body["messages"].is_null() => {
            Ok(vec![turns(body, "messages")?])
        }
        Api::Embeddings => several(body, "input"),
        Api::Generate if !body["text"].is_null() => several(body, "text"),
        Api::Generate if !body["input_ids"].is_null() => several(body, "input_ids"),
        Api::Generate => several(body, "prompt"),
        Api::Rerank => pairs(texts(body, "query")?, texts(body, "documents")?),
        Api::Score => pairs(
            texts(body, first_present(body, ["text_1", "queries"]))?,
            texts(body, first_present(body, ["text_2", "documents"]))?,
        ),
    }
}

fn first_present<const N: usize>(body: &Value, fields: [&'static str; N]) -> &'static str {
    let present = fields.iter().find(|field| !body[**field].is_null());
    present.or(fields.first()).copied().unwrap_or_default()
}

/// A string, token ids, or an array of either.
fn several(body: &Value, field: &str) -> Result<Vec<Prompt>, ApiError> {
    let wrong = || ApiError::wrong_type(field, "string");
    match &body[field] {
        Value::Null => Err(ApiError::missing(field)),
        Value::String(text) => Ok(vec![Prompt::from_text(text)]),
        Value::Array(items) if items.iter().all(Value::is_number) && !items.is_empty() => {
            Ok(vec![ids(items).ok_or_else(wrong)?])
        }
        Value::Array(items) if !items.is_empty() => items
            .iter()
            .map(|item| match item {
                Value::String(text) => Ok(Prompt::from_text(text)),
                Value::Array(items) => ids(items).ok_or_else(wrong),
                _ => Err(wrong()),
            })
            .collect(),
        _ => Err(wrong()),
    }
}

fn ids(items: &[Value]) -> Option<Prompt> {
    let ids: Option<Vec<u32>> = items
        .iter()
        .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
        .collect();
    ids.map(|ids| Prompt::from_ids(&ids))
}

/// A text or an array of texts, each a string or an object with a `text`.
fn texts(body: &Value, field: &str) -> Result<Vec<String>, ApiError> {
    let one = |value: &Value| {
        let text = value.as_str().or_else(|| value["text"].as_str());
        text.map(str::to_owned)
            .ok_or_else(|| ApiError::wrong_type(field, "string"))
    };
    match &body[field] {
        Value::Null => Err(ApiError::missing(field)),
        Value::Array(items) if !items.is_empty() => items.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

/// One prompt for each pair; a single left text goes with every right one.
fn pairs(left: Vec<String>, right: Vec<String>) -> Result<Vec<Prompt>, ApiError> {
    if left.len() != 1 && left.len() != right.len() {
        let message = "Input lengths must be either 1:1, 1:N or N:N".to_owned();
        return Err(ApiError::bad_request(None, message));
    }
    let joined = right.iter().zip(left.iter().cycle());
    Ok(joined
        .map(|(right, left)| Prompt::from_text(format!("{left}\n{right}")))
        .collect())
}

/// The chat template over the turns in `field`: a string or an array of messages.
fn turns(body: &Value, field: &str) -> Result<Prompt, ApiError> {
    let mut text = String::new();
    if body["tools"]
        .as_array()
        .is_some_and(|tools| !tools.is_empty())
    {
        text.push_str("<|tools|>\n");
        text.push_str(&body["tools"].to_string());
        text.push('\n');
    }
    for system in ["system", "instructions"] {
        if !body[system].is_null() {
            turn(&mut text, "system", &body[system]);
        }
    }
    match &body[field] {
        Value::Null => return Err(ApiError::missing(field)),
        Value::String(only) if field == "input" => {
            turn(&mut text, "user", &Value::from(only.as_str()))
        }
        Value::Array(messages) if !messages.is_empty() => {
            for message in messages {
                let role = message["role"]
                    .as_str()
                    .or_else(|| message["type"].as_str());
                message_turn(&mut text, role.unwrap_or("user"), message);
            }
        }
        _ => return Err(ApiError::wrong_type(field, "list")),
    }
    if body["add_generation_prompt"].as_bool().unwrap_or(true) {
        text.push_str("<|im_start|>assistant\n");
    }
    Ok(Prompt::from_text(text))
}

fn message_turn(text: &mut String, role: &str, message: &Value) {
    if message["tool_calls"].is_null() && !message["content"].is_null() {
        return turn(text, role, &message["content"]);
    }
    // A tool call, a tool's output or an item of another type: all of it belongs to the prompt.
    let mut rest = message.clone();
    if let Some(fields) = rest.as_object_mut() {
        fields.remove("role");
    }
    turn(text, role, &Value::from(rest.to_string()));
}

fn turn(text: &mut String, role: &str, content: &Value) {
    text.push_str("<|im_start|>");
    text.push_str(role);
    text.push('\n');
    push_content(text, content);
    text.push_str("<|im_end|>\n");
}

/// Text as it is, media as a mark of its hash, anything else as JSON. Nesting is as deep as the
/// JSON parser allows.
fn push_content(text: &mut String, content: &Value) {
    match content {
        Value::Null => {}
        Value::String(plain) => text.push_str(plain),
        Value::Array(parts) => parts.iter().for_each(|part| push_content(text, part)),
        Value::Object(part) => match (part.get("text"), part.get("content"), media(content)) {
            (Some(Value::String(plain)), _, _) => text.push_str(plain),
            (_, Some(inner), _) => push_content(text, inner),
            (_, _, Some(mark)) => text.push_str(&mark.repeat(MEDIA_MARKS)),
            _ => text.push_str(&content.to_string()),
        },
        other => text.push_str(&other.to_string()),
    }
}

/// The mark of an image, sound or file part.
fn media(part: &Value) -> Option<String> {
    const FIELDS: [&str; 6] = [
        "image_url",
        "source",
        "input_audio",
        "audio_url",
        "video_url",
        "file",
    ];
    let data = FIELDS
        .iter()
        .map(|field| &part[*field])
        .find(|data| !data.is_null())?;
    let hash = xxhash_rust::xxh3::xxh3_64(data.to_string().as_bytes());
    Some(format!("<|mm:{hash:016x}|>\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn only(api: Api, body: Value) -> String {
        let ask = read(api, &body).unwrap();
        assert_eq!(ask.prompts.len(), 1);
        ask.prompts[0].text()
    }

    #[test]
    fn a_conversation_that_goes_on_extends_its_prompt() {
        let turn = |role: &str, text: &str| json!({"role": role, "content": text});
        let first = only(
            Api::Chat,
            json!({"messages": [turn("system", "be kind"), turn("user", "hi")]}),
        );
        let second = only(
            Api::Chat,
            json!({"messages": [turn("system", "be kind"), turn("user", "hi"), turn("assistant", "yo"), turn("user", "?")]}),
        );
        assert!(second.starts_with(&first), "{first} / {second}");
    }

    #[test]
    fn the_same_conversation_is_the_same_prompt_on_every_path() {
        let messages = json!([{"role": "user", "content": [{"type": "text", "text": "hi"}]}]);
        let chat = only(
            Api::Chat,
            json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]}),
        );
        assert_eq!(
            chat,
            only(
                Api::Messages,
                json!({"system": "s", "messages": messages, "max_tokens": 1})
            )
        );
        assert_eq!(
            chat,
            only(Api::Responses, json!({"instructions": "s", "input": "hi"}))
        );
    }

    #[test]
    fn tools_come_first_and_calls_and_media_count() {
        let text = only(
            Api::Chat,
            json!({"tools": [{"type": "function", "function": {"name": "f"}}], "messages": [
                {"role": "assistant", "content": null, "tool_calls": [{"id": "call-7"}]},
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
            ]}),
        );
        assert!(
            text.starts_with("<|tools|>\n[{") && text.contains("call-7"),
            "{text}"
        );
        assert!(text.contains("<|mm:") && !text.contains("base64"), "{text}");
    }

    #[test]
    fn completions_take_every_form_of_prompt() {
        let count = |prompt: Value| {
            read(Api::Completions, &json!({"prompt": prompt}))
                .unwrap()
                .prompts
                .len()
        };
        assert_eq!(count(json!("a")), 1);
        assert_eq!(count(json!(["a", "b"])), 2);
        assert_eq!(count(json!([1, 2, 3])), 1);
        assert_eq!(count(json!([[1, 2], [3]])), 2);
        for wrong in [json!([]), json!([{}]), json!([-1]), json!(7)] {
            assert!(read(Api::Completions, &json!({"prompt": wrong})).is_err());
        }
    }

    #[test]
    fn scores_pair_up() {
        let count = |left: Value, right: Value| {
            read(Api::Score, &json!({"text_1": left, "text_2": right})).map(|ask| ask.prompts.len())
        };
        assert_eq!(count(json!("q"), json!(["a", "b"])).unwrap(), 2);
        assert_eq!(count(json!(["q", "r"]), json!(["a", "b"])).unwrap(), 2);
        assert!(count(json!(["q", "r"]), json!(["a", "b", "c"])).is_err());
    }

    #[test]
    fn a_limit_below_one_is_refused() {
        for (api, body) in [
            (Api::Completions, json!({"prompt": "x", "max_tokens": -4})),
            (
                Api::Responses,
                json!({"input": "x", "max_output_tokens": 0}),
            ),
            (
                Api::Chat,
                json!({"messages": [{"role": "user", "content": "x"}], "n": 0}),
            ),
            (
                Api::Messages,
                json!({"messages": [{"role": "user", "content": "x"}]}),
            ),
        ] {
            assert!(read(api, &body).is_err(), "{body}");
        }
    }
}
