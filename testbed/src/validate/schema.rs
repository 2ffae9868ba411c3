//! The options that filter/config.schema.json has, by the paths of the docs: `pools[].policy.random`.
//!
//! References are followed and `allOf` is merged, so each option is one object with its type, bounds and
//! default. Choices are options of their own, in whichever spelling they are allowed. Definitions do not
//! refer to themselves, so this ends.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Every option of a schema, by its path.
pub fn options(schema: &Value) -> BTreeMap<String, Map<String, Value>> {
    let mut walk = Walk {
        schema,
        found: BTreeMap::new(),
    };
    let root = walk.merged(schema);
    walk.below("", &root);
    walk.found
}

/// The option that the path of an error is about: `pools[].name` for `config.pools[3].name`.
pub fn option_of(path: &str) -> String {
    let path = path.strip_prefix("config").unwrap_or(path);
    let mut option = String::new();
    for part in path.strip_prefix('.').unwrap_or(path).split('[') {
        match part.split_once(']') {
            Some((_, rest)) => option = format!("{option}[]{rest}"),
            None => option.push_str(part),
        }
    }
    option
}

struct Walk<'a> {
    schema: &'a Value,
    found: BTreeMap<String, Map<String, Value>>,
}

impl Walk<'_> {
    /// A part of the schema, with what it refers to.
    fn merged(&self, part: &Value) -> Map<String, Value> {
        let mut whole = Map::new();
        let own = part.as_object().cloned().unwrap_or_default();
        for (key, value) in own {
            let inner = match (key.as_str(), &value) {
                ("$ref", Value::String(name)) => {
                    let pointer = name.strip_prefix('#').unwrap_or(name);
                    let definition = self.schema.pointer(pointer).unwrap_or(&Value::Null);
                    vec![self.merged(definition)]
                }
                ("allOf", Value::Array(parts)) => {
                    parts.iter().map(|part| self.merged(part)).collect()
                }
                _ => {
                    whole.insert(key, value);
                    continue;
                }
            };
            for (key, value) in inner.into_iter().flatten() {
                whole.entry(key).or_insert(value);
            }
        }
        whole
    }

    /// Finds the options below a path.
    fn below(&mut self, path: &str, part: &Map<String, Value>) {
        let properties = part.get("properties").and_then(Value::as_object);
        for (name, value) in properties.into_iter().flatten() {
            let path = match path {
                "" => name.clone(),
                path => format!("{path}.{name}"),
            };
            let whole = self.merged(value);
            self.below(&path, &whole);
            self.found.insert(path, whole);
        }
        if let Some(items) = part.get("items") {
            let whole = self.merged(items);
            self.below(&format!("{path}[]"), &whole);
        }
        let choices = part.get("oneOf").and_then(Value::as_array);
        for choice in choices.into_iter().flatten() {
            let whole = self.merged(choice);
            self.below(path, &whole);
            if let Some(name) = whole.get("const").and_then(Value::as_str) {
                self.found.entry(format!("{path}.{name}")).or_insert(whole);
            }
        }
    }
}
