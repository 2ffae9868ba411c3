//! kustomize's replacements: the value of one field, copied into fields of other documents.
//!
//! A path is `a.b.[key=value].0.c`: fields, an item of a list by a field of its own or by its number,
//! and `[a.b/c]` for a field with dots in its name.

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::assemble::Selector;

/// One entry of `replacements`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Replacement {
    source: Source,
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Source {
    kind: String,
    name: Option<String>,
    field_path: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Target {
    select: Selector,
    field_paths: Vec<String>,
    options: Option<Options>,
}

/// Only the part of a text between two delimiters is replaced.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    delimiter: String,
    index: usize,
}

/// Copies a value to all its targets. A target that selects nothing is left out, as kustomize does.
pub(super) fn replace(replacement: &Replacement, all: &mut [Value]) -> anyhow::Result<()> {
    let source = &replacement.source;
    let wanted = Selector {
        kind: Some(source.kind.clone()),
        name: source.name.clone(),
        namespace: None,
    };
    let found: Vec<_> = all.iter_mut().filter(|it| wanted.selects(it)).collect();
    let [document] = <[_; 1]>::try_from(found)
        .map_err(|found| anyhow::anyhow!("{} documents are a {wanted:?}", found.len()))?;
    let value = field(document, &source.field_path)?.clone();
    let value = value.as_str().context("a text is copied")?;
    for target in &replacement.targets {
        for document in all.iter_mut().filter(|it| target.select.selects(it)) {
            for path in &target.field_paths {
                let place = field(document, path)?;
                *place = replaced(place, value, target.options.as_ref())
                    .with_context(|| path.clone())?
                    .into();
            }
        }
    }
    Ok(())
}

/// The field at a path, which must be there.
fn field<'a>(document: &'a mut Value, path: &str) -> anyhow::Result<&'a mut Value> {
    let kind = document.get("kind").and_then(Value::as_str);
    let missing = format!("no {path} in a {}", kind.unwrap_or("document"));
    let mut place = document;
    for step in steps(path) {
        let next = match (place, &step) {
            (Value::Object(fields), Step::Field(name)) => fields.get_mut(name),
            (Value::Array(items), Step::Field(number)) => match number.parse::<usize>() {
                Ok(at) => items.get_mut(at),
                Err(_) => None,
            },
            (Value::Array(items), Step::Item(name, value)) => items
                .iter_mut()
                .find(|it| it.get(name).and_then(Value::as_str) == Some(value)),
            _ => None,
        };
        place = next.context(missing.clone())?;
    }
    Ok(place)
}

enum Step {
    Field(String),
    Item(String, String),
}

fn steps(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        let bracketed = rest.strip_prefix('[').and_then(|it| it.split_once(']'));
        let (step, after) = match bracketed {
            Some((inside, after)) => {
                let step = match inside.split_once('=') {
                    Some((name, value)) => Step::Item(name.to_owned(), value.to_owned()),
                    None => Step::Field(inside.to_owned()),
                };
                (step, after.strip_prefix('.').unwrap_or(after))
            }
            None => {
                let (name, after) = rest.split_once('.').unwrap_or((rest, ""));
                (Step::Field(name.to_owned()), after)
            }
        };
        steps.push(step);
        rest = after;
    }
    steps
}

fn replaced(old: &Value, new: &str, options: Option<&Options>) -> anyhow::Result<String> {
    let Some(old) = old.as_str() else {
        bail!("only a text is replaced, not {old}");
    };
    let Some(Options { delimiter, index }) = options else {
        return Ok(new.to_owned());
    };
    let mut parts: Vec<_> = old.split(delimiter.as_str()).collect();
    // kustomize would append a part; nothing here wants that.
    ensure!(*index < parts.len(), "{old} has no part {index}");
    if let Some(part) = parts.get_mut(*index) {
        *part = new;
    }
    Ok(parts.join(delimiter))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn try_replace(target: Value) -> anyhow::Result<Value> {
        let mut all = [
            json!({"kind": "ConfigMap", "metadata": {"name": "values"}, "data": {"ns": "models"}}),
            json!({"kind": "Thing", "metadata": {"name": "a", "labels": {"x.y/z": "old"}},
                   "list": [{"name": "no"}, {"name": "yes", "at": "vllm.llm.svc"}]}),
        ];
        let replacement = serde_json::from_value(json!({
            "source": {"kind": "ConfigMap", "name": "values", "fieldPath": "data.ns"},
            "targets": [target],
        }))?;
        replace(&replacement, &mut all)?;
        Ok(all[1].clone())
    }

    #[test]
    fn a_value_replaces_a_field_or_a_part_of_it() {
        let part = json!({"select": {"kind": "Thing"}, "fieldPaths": ["list.[name=yes].at"],
                          "options": {"delimiter": ".", "index": 1}});
        let thing = try_replace(part).unwrap();
        assert_eq!(thing["list"][1]["at"], "vllm.models.svc");
        let whole = json!({"select": {"name": "a"}, "fieldPaths": ["metadata.labels.[x.y/z]", "list.0.name"]});
        let thing = try_replace(whole).unwrap();
        assert_eq!(thing["metadata"]["labels"]["x.y/z"], "models");
        assert_eq!(thing["list"][0]["name"], "models");
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        for path in ["spec.none", "list.7.name", "list.[name=none].at", "list"] {
            let target = json!({"select": {"kind": "Thing"}, "fieldPaths": [path]});
            assert!(try_replace(target).is_err(), "{path}");
        }
        let elsewhere = json!({"select": {"kind": "Other"}, "fieldPaths": ["spec.none"]});
        assert!(try_replace(elsewhere).is_ok());
    }
}
