//! A file as documents: their values, and on which lines these stand.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

use super::find::is_alone;
use super::lines::Lines;

/// One document of a file.
pub struct Document {
    /// What it says, aliases and merges resolved.
    pub value: Value,
    /// Where it says it.
    pub lines: Lines,
}

/// The text of a file; `-` is the standard input.
///
/// # Errors
/// It cannot be read, or is no UTF-8.
pub fn text(path: &Path) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    Ok(std::fs::read_to_string(path)?)
}

/// The documents of a text, YAML or JSON.
///
/// # Errors
/// It is neither.
pub fn documents(text: &str) -> anyhow::Result<Vec<Document>> {
    let mut lines = Lines::of(text).into_iter();
    let values = values(text)?.into_iter().map(|value| {
        let lines = lines.next().unwrap_or_default();
        Document {
            value: as_read(value, &lines),
            lines,
        }
    });
    Ok(values.collect())
}

/// A document as those read it who get it. Kubernetes and Envoy take `off` without quotes for `false`; of
/// a plugin configuration by itself nobody knows who turns it into JSON.
fn as_read(mut value: Value, lines: &Lines) -> Value {
    if !is_alone(&value) {
        for (pointer, flag) in lines.flags() {
            if let Some(word) = value.pointer_mut(pointer).filter(|word| word.is_string()) {
                *word = flag.into();
            }
        }
    }
    value
}

/// The values of the documents of a text.
///
/// # Errors
/// It is neither YAML nor JSON.
fn values(text: &str) -> anyhow::Result<Vec<Value>> {
    // Tabs are white space in JSON, and not in YAML.
    if let Ok(value) = serde_json::from_str(text) {
        return Ok(vec![value]);
    }
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    let read = |document| -> anyhow::Result<Value> {
        let mut value = serde_yaml_ng::Value::deserialize(document)?;
        value.apply_merge()?;
        serde_json::to_value(value).context("names and values must be those of JSON")
    };
    documents.map(read).collect()
}
