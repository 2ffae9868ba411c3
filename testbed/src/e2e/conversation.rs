//! Conversations as a client holds them: every turn sends all turns before it.

use anyhow::{Context as _, ensure};
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::client::{Call, Reply};

/// A chat that grows by a question and its answer at every turn.
#[derive(Clone, Debug)]
pub struct Conversation {
    fields: Map<String, Value>,
    messages: Vec<Value>,
}

impl Conversation {
    /// A conversation with `llama-3-8b` that begins with this system prompt.
    pub fn new(system: &str) -> Self {
        Self {
            fields: Map::new(),
            messages: vec![json!({"role": "system", "content": system})],
        }
    }

    /// Sets a field of every request.
    pub fn field(mut self, name: &str, value: Value) -> Self {
        self.fields.insert(name.to_owned(), value);
        self
    }

    /// The next request, which asks `question`.
    pub fn ask(&mut self, question: &str) -> Call {
        let question = json!({"role": "user", "content": question});
        self.messages.push(question);
        let mut document = json!({
            "model": "llama-3-8b", "messages": self.messages, "max_tokens": 16,
        });
        if let Some(document) = document.as_object_mut() {
            document.extend(self.fields.clone());
        }
        Call::post("/v1/chat/completions", &document)
    }

    /// Takes the answer in, so that the next request repeats it.
    pub fn heard(&mut self, reply: &Reply) -> anyhow::Result<()> {
        let document = reply.json()?;
        let answer = document
            .pointer("/choices/0/message")
            .context("no answer")?;
        ensure!(
            answer.get("content").is_some_and(Value::is_string),
            "{answer}"
        );
        self.messages.push(answer.clone());
        Ok(())
    }
}

/// Text of `bytes` bytes that no other `seed` shares any part with.
pub fn text(seed: u64, bytes: usize) -> String {
    let words = (0_u64..).map(|at| format!("{:016x} ", xxh3_64_with_seed(&at.to_le_bytes(), seed)));
    let mut text: String = words.take(bytes / 17 + 1).collect();
    text.truncate(bytes);
    text
}
