//! Answers of the paths that give numbers instead of text: embeddings, rerank and score.
//!
//! One idea: every number is a hash of its prompt, so that equal inputs give equal answers on every
//! engine. O(prompts x dimensions).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::answer::{Heading, Usage};
use super::prompt::Api;

/// Length of an embedding unless the request sets it.
const DIMENSIONS: u64 = 64;
/// Largest length a request may set.
const MAX_DIMENSIONS: u64 = 8192;

/// The whole answer; `seeds` has the hash of each prompt, in order.
pub(super) fn whole(heading: &Heading, body: &Value, seeds: &[u64], usage: Usage) -> String {
    match heading.api {
        Api::Rerank => rerank(heading, body, seeds, usage),
        Api::Score => list(heading, usage, seeds, |index, seed| {
            json!({"index": index, "object": "score", "score": unit(seed, 0)}).to_string()
        }),
        _ => list(heading, usage, seeds, |index, seed| {
            json!({"index": index, "object": "embedding", "embedding": embedding(body, seed)})
                .to_string()
        }),
    }
}

fn list(
    heading: &Heading,
    usage: Usage,
    seeds: &[u64],
    item: impl Fn(usize, u64) -> String,
) -> String {
    let items: Vec<String> = seeds
        .iter()
        .enumerate()
        .map(|(index, &seed)| item(index, seed))
        .collect();
    format!(
        r#"{{{},"data":[{}],"usage":{{"prompt_tokens":{},"total_tokens":{},"completion_tokens":0,"prompt_tokens_details":{{"cached_tokens":{}}}}}}}"#,
        heading.open("list"),
        items.join(","),
        usage.prompt,
        usage.prompt,
        usage.cached
    )
}

fn rerank(heading: &Heading, body: &Value, seeds: &[u64], usage: Usage) -> String {
    let mut ranked: Vec<(usize, f64)> = seeds
        .iter()
        .map(|&seed| unit(seed, 0))
        .enumerate()
        .collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let top = body["top_n"]
        .as_u64()
        .filter(|&top| top > 0)
        .unwrap_or(u64::MAX);
    let results: Vec<Value> = ranked
        .into_iter()
        .take(usize::try_from(top).unwrap_or(usize::MAX))
        .map(|(index, score)| {
            let document = body["documents"].get(index).unwrap_or(&body["documents"]);
            let text = document.as_str().or_else(|| document["text"].as_str());
            json!({"index": index, "document": {"text": text}, "relevance_score": score})
        })
        .collect();
    format!(
        r#"{{"id":{},"model":{},"usage":{{"prompt_tokens":{},"total_tokens":{}}},"results":{}}}"#,
        heading.id(),
        heading.model(),
        usage.prompt,
        usage.prompt,
        Value::from(results)
    )
}

fn embedding(body: &Value, seed: u64) -> Value {
    let length = body["dimensions"]
        .as_u64()
        .unwrap_or(DIMENSIONS)
        .clamp(1, MAX_DIMENSIONS);
    let numbers = (0..length).map(|at| (unit(seed, at) * 2.0 - 1.0) as f32);
    if body["encoding_format"] == "base64" {
        let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
        return Value::from(STANDARD.encode(bytes));
    }
    numbers.collect()
}

/// The number at `at` of a seed, 0 to 1.
fn unit(seed: u64, at: u64) -> f64 {
    (xxh3_64_with_seed(&at.to_le_bytes(), seed) >> 11) as f64 / (1_u64 << 53) as f64
}
