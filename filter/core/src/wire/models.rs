//! The models of an engine: the answer to `GET /v1/models`.
//!
//! vLLM and SGLang list adapters (LoRA) beside the models they belong to. At most [`MAX_MODELS`]
//! entries are kept, and no name longer than [`MAX_NAME_BYTES`]; entries without a usable `id` are
//! left out. One pass.
//!
//! ```
//! let listed = warmpath_core::wire::models::parse(br#"{"data":[{"id":"llama","parent":null}]}"#);
//! assert_eq!(listed.unwrap()[0].id, "llama");
//! ```
//!
//! [`MAX_NAME_BYTES`]: super::MAX_NAME_BYTES

use super::WireError;
use super::scalar::Scalar;
use crate::json::{Source, read};

/// Most models taken from an answer; the rest is left out.
pub const MAX_MODELS: usize = 1024;

/// A model or adapter that an engine serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedModel {
    /// The name that requests give.
    pub id: String,
    /// The model that this adapter belongs to; `None` for a model of its own.
    pub parent: Option<String>,
    /// Longest prompt and output together, in tokens.
    pub max_model_len: Option<u32>,
}

/// Reads an answer. Fails when it is not JSON of that shape.
pub fn parse(body: &[u8]) -> Result<Vec<ServedModel>, WireError> {
    let models = read(body, |source| {
        let mut models = None;
        source.object(&mut |source, name| match name {
            "data" => {
                models = Some(list(source)?);
                Some(())
            }
            _ => source.skip(),
        })?;
        models
    })?;
    Ok(models)
}

fn list(source: &mut Source) -> Option<Vec<ServedModel>> {
    let mut models = Vec::new();
    source.list(&mut |source| {
        if models.len() >= MAX_MODELS {
            return source.skip();
        }
        models.extend(model(source)?);
        Some(())
    })?;
    Some(models)
}

/// An entry, which may be without a usable name.
fn model(source: &mut Source) -> Option<Option<ServedModel>> {
    let (mut id, mut parent, mut length) = Default::default();
    source.object(&mut |source, name| {
        let field = match name {
            "id" => &mut id,
            "parent" => &mut parent,
            "max_model_len" => &mut length,
            _ => return source.skip(),
        };
        *field = Scalar::read(source)?;
        Some(())
    })?;
    let max_model_len = length.whole();
    Some(id.name().map(|id| ServedModel {
        id,
        parent: parent.name(),
        max_model_len: max_model_len.and_then(|tokens| u32::try_from(tokens).ok()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTURED: &[u8] = include_bytes!("../../tests/fixtures/vllm/models.json");

    #[test]
    fn vllms_answer_is_read() {
        let expected = ServedModel {
            id: "tiny-llama".to_owned(),
            parent: None,
            max_model_len: Some(8192),
        };
        assert_eq!(parse(CAPTURED), Ok(vec![expected]));
    }

    #[test]
    fn adapters_name_their_model() {
        let body = br#"{"object":"list","data":[{"id":"llama","max_model_len":4096},
            {"id":"sql","root":"/adapters/sql","parent":"llama","max_model_len":null},
            {"id":null},{"id":""},{"id":["x"],"parent":"llama"}]}"#;
        let models = parse(body).unwrap();
        assert_eq!(models.len(), 2);
        assert_eq!(models[1].parent.as_deref(), Some("llama"));
        assert_eq!(models[1].max_model_len, None);
    }

    #[test]
    fn the_list_and_its_names_have_a_bound() {
        let entry = |name: &str| format!("{{\"id\":\"{name}\"}}");
        let long = "x".repeat(super::super::MAX_NAME_BYTES + 1);
        let mut entries: Vec<String> = (0..MAX_MODELS + 9).map(|i| entry(&i.to_string())).collect();
        entries.insert(0, entry(&long));
        let body = format!("{{\"data\":[{}]}}", entries.join(","));
        let models = parse(body.as_bytes()).unwrap();
        assert_eq!(models.len(), MAX_MODELS);
        assert_eq!(models[0].id, "0");
    }

    #[test]
    fn what_is_not_a_list_of_models_is_an_error() {
        for body in [
            "",
            "{}",
            "{\"data\":null}",
            "{\"detail\":\"Not Found\"}",
            "{\"data\":[7]}",
        ] {
            assert!(parse(body.as_bytes()).is_err(), "{body}");
        }
    }
}
