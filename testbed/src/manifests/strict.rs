//! Documents held against the schemas of custom resource definitions, with every field refused that
//! no schema knows. The API server drops such fields without a word.
//!
//! Rules in CEL (`x-kubernetes-validations`) are not run: nothing here understands them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use jsonschema::{Draft, Validator};
use serde_json::{Map, Value, json};

use super::assemble::documents;

/// Keeps fields that no schema names.
const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";

/// The closed schemas of a folder of CRDs, by `apiVersion` and `kind`.
pub struct Schemas(BTreeMap<(String, String), Validator>);

impl Schemas {
    /// Reads every YAML file of a folder.
    ///
    /// # Errors
    /// A file cannot be read, a schema cannot be compiled, or there is no CRD at all.
    pub fn load(folder: &Path) -> anyhow::Result<Self> {
        let mut found = BTreeMap::new();
        let entries = std::fs::read_dir(folder);
        for entry in entries.with_context(|| format!("reading {}", folder.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|it| it == "yaml") {
                let read = documents(&std::fs::read_to_string(&path)?);
                for crd in read.with_context(|| path.display().to_string())? {
                    add(&crd, &mut found).with_context(|| path.display().to_string())?;
                }
            }
        }
        ensure!(!found.is_empty(), "no CRD in {}", folder.display());
        Ok(Self(found))
    }

    /// What is wrong with a document, a line for each mistake; nothing if no CRD describes its kind.
    pub fn mistakes(&self, document: &Value) -> Option<Vec<String>> {
        let schema = self.0.get(&kind(document))?;
        let mistakes = schema.iter_errors(document);
        Some(
            mistakes
                .map(|it| format!("{}: {it}", it.instance_path()))
                .collect(),
        )
    }
}

/// `apiVersion` and `kind` of a document.
pub fn kind(document: &Value) -> (String, String) {
    let text = |name: &str| document.get(name).and_then(Value::as_str);
    let text = |name: &str| text(name).unwrap_or_default().to_owned();
    (text("apiVersion"), text("kind"))
}

fn add(crd: &Value, found: &mut BTreeMap<(String, String), Validator>) -> anyhow::Result<()> {
    if crd.get("kind") != Some(&"CustomResourceDefinition".into()) {
        return Ok(());
    }
    let text = |pointer: &str| crd.pointer(pointer).and_then(Value::as_str);
    let group = text("/spec/group").context("a CRD without a group")?;
    let name = text("/spec/names/kind").context("a CRD without a kind")?;
    let versions = crd.pointer("/spec/versions").and_then(Value::as_array);
    for version in versions.context("a CRD without versions")? {
        let number = version.get("name").and_then(Value::as_str);
        let number = number.context("a version without a name")?;
        let mut schema = version.pointer("/schema/openAPIV3Schema").cloned();
        let schema = schema.as_mut().context("a version without a schema")?;
        if let Some(fields) = schema.get_mut("properties").and_then(Value::as_object_mut) {
            fields.insert("apiVersion".to_owned(), json!({"type": "string"}));
            fields.insert("kind".to_owned(), json!({"type": "string"}));
            fields.insert("metadata".to_owned(), metadata());
        }
        close(schema);
        let compiled = jsonschema::options()
            .with_draft(Draft::Draft7)
            .build(schema);
        let compiled = compiled.map_err(|error| anyhow::anyhow!("{name} {number}: {error}"))?;
        found.insert((format!("{group}/{number}"), name.to_owned()), compiled);
    }
    Ok(())
}

/// What the manifests set of every object's metadata.
fn metadata() -> Value {
    let texts = json!({"type": "object", "additionalProperties": {"type": "string"}});
    json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string"}, "namespace": {"type": "string"},
            "labels": texts, "annotations": texts,
        },
    })
}

/// Refuses all fields that the schema does not name, at every level. Conditions (`anyOf` and the like)
/// stay open: they repeat a part of what stands beside them.
fn close(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else {
        return;
    };
    if schema.get("nullable") == Some(&true.into())
        && let Some(single) = schema.get("type").cloned()
    {
        schema.insert("type".to_owned(), json!([single, "null"]));
    }
    if let Some(fields) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        fields.values_mut().for_each(close);
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(inner) {
            close(inner);
        }
    }
    if is_closed(schema) {
        schema.insert("additionalProperties".to_owned(), false.into());
    }
}

fn is_closed(schema: &Map<String, Value>) -> bool {
    schema.contains_key("properties")
        && !schema.contains_key("additionalProperties")
        && schema.get(PRESERVE) != Some(&true.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schemas() -> Schemas {
        let crd = json!({
            "kind": "CustomResourceDefinition",
            "spec": {"group": "example.org", "names": {"kind": "Thing"}, "versions": [{
                "name": "v1",
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {
                    "type": "object",
                    "required": ["size"],
                    "properties": {
                        "size": {"anyOf": [{"type": "integer"}, {"type": "string"}],
                                 "x-kubernetes-int-or-string": true},
                        "mode": {"type": "string", "enum": ["A", "B"]},
                        "list": {"type": "array", "items": {
                            "type": "object", "properties": {"name": {"type": "string"}}}},
                        "any": {"type": "object", PRESERVE: true},
                        "none": {"type": "string", "nullable": true},
                    },
                }}}},
            }]},
        });
        let mut found = BTreeMap::new();
        add(&crd, &mut found).unwrap();
        Schemas(found)
    }

    fn mistakes(spec: Value) -> Vec<String> {
        let document = json!({"apiVersion": "example.org/v1", "kind": "Thing",
                              "metadata": {"name": "a"}, "spec": spec});
        schemas().mistakes(&document).unwrap()
    }

    #[test]
    fn a_misspelt_field_is_refused_wherever_it_stands() {
        assert_eq!(
            mistakes(json!({"size": "8Mi", "list": [{"name": "a"}]})),
            [""; 0]
        );
        assert_eq!(
            mistakes(json!({"size": 8, "any": {"what": "ever"}, "none": null})),
            [""; 0]
        );
        for wrong in [
            json!({"size": 1, "sise": 2}),
            json!({"size": 1, "list": [{"nmae": "a"}]}),
            json!({"size": 1, "mode": "C"}),
            json!({"size": true}),
            json!({}),
        ] {
            assert_eq!(mistakes(wrong.clone()).len(), 1, "{wrong}");
        }
        let named = mistakes(json!({"size": 1, "list": [{"nmae": "a"}]})).concat();
        assert!(
            named.contains("/spec/list/0") && named.contains("nmae"),
            "{named}"
        );
    }

    #[test]
    fn a_kind_without_a_crd_is_not_checked() {
        let other = json!({"apiVersion": "v1", "kind": "Service"});
        assert!(schemas().mistakes(&other).is_none());
    }
}
