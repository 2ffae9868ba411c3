//! The wasm filter in a file of its own, which Envoy reads again while it runs (ECDS).
//!
//! To everything that edits a configuration the filter is part of it: it is put in when the configuration is
//! read, and taken out again when Envoy is given the text.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use super::bootstrap::{FILTER_TYPE, WASM_TYPE, for_each_object};
use super::files;

/// Where a filter says that it is found elsewhere.
const DISCOVERY: &str = "config_discovery";
/// The path of the file, from there.
const PATH: &str = "/config_source/path_config_source/path";

/// Whether it is a wasm filter of a connection manager.
pub(super) fn is_plugin(object: &Map<String, Value>) -> bool {
    let kind = object.get("typed_config").and_then(|it| it.get("@type"));
    kind.and_then(Value::as_str) == Some(WASM_TYPE)
}

/// Puts every filter that a file beside the configuration holds into its place. Gives the words with which
/// the configuration asked for it, if it did.
pub(super) fn put_in(tree: &mut Value, folder: &Path) -> anyhow::Result<Option<Value>> {
    let mut asked = None;
    let mut outcome = Ok(());
    for_each_object(tree, &mut |object| {
        let Some(words) = object.remove(DISCOVERY) else {
            return;
        };
        match filter(object.get("name"), &words, folder) {
            Ok(filter) => object.insert("typed_config".to_owned(), filter),
            Err(error) => return outcome = Err(error),
        };
        asked = Some(words);
    });
    outcome.map(|()| asked)
}

/// What the file has under this name.
fn filter(name: Option<&Value>, asked: &Value, folder: &Path) -> anyhow::Result<Value> {
    let path = asked.pointer(PATH).and_then(Value::as_str);
    let file = path.and_then(|path| Path::new(path).file_name());
    let file = folder.join(file.context("a filter is not in a file")?);
    let shown = || format!("reading the filter {}", file.display());
    let text = std::fs::read_to_string(&file).with_context(shown)?;
    let response: Value = serde_yaml_ng::from_str(&text).with_context(shown)?;
    let resources = response.get("resources").and_then(Value::as_array);
    let mut resources = resources.into_iter().flatten();
    let found = resources.find(|it| {
        it.get("name") == name && it.get("@type").and_then(Value::as_str) == Some(FILTER_TYPE)
    });
    let found = found.and_then(|it| it.get("typed_config")).cloned();
    found.context("not in it").with_context(shown)
}

/// Names `file` in the place of the filter, if it is one; in these words, if the configuration has some.
pub(super) fn take_out(object: &mut Map<String, Value>, words: Option<&Value>, file: &Path) {
    if !is_plugin(object) {
        return;
    }
    object.remove("typed_config");
    let own = || json!({"config_source": files::source(file), "type_urls": [WASM_TYPE]});
    let mut words = words.cloned().unwrap_or_else(own);
    if let Some(path) = words.pointer_mut(PATH) {
        *path = json!(file);
    }
    object.insert(DISCOVERY.to_owned(), words);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::bootstrap::Bootstrap;

    fn root() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    /// The tree that Envoy gets.
    fn tree(bootstrap: &Bootstrap) -> Value {
        serde_json::from_str(&bootstrap.text()).unwrap()
    }

    #[test]
    fn what_is_shipped_with_a_file_differs_from_what_is_shipped_without_by_that() {
        let with = Bootstrap::load(&root().join("envoy/ecds/envoy.yaml")).unwrap();
        let without = Bootstrap::load(&root().join("envoy/static.yaml")).unwrap();
        let mut with = tree(&with);
        let node = with.as_object_mut().unwrap().remove("node").unwrap();
        assert!(node["id"].is_string() && node["cluster"].is_string());
        assert_eq!(with, tree(&without));
    }

    #[test]
    fn the_shipped_words_are_kept_but_for_the_path() {
        let path = root().join("envoy/ecds/envoy.yaml");
        let shipped: Value =
            serde_yaml_ng::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut bootstrap = Bootstrap::load(&path).unwrap();
        bootstrap
            .read_filter_from(&folder.path().join("filter.json"))
            .unwrap();
        let text = tree(&bootstrap).to_string();
        let own = format!("{}/filter.json", folder.path().display());
        assert_eq!(text.matches(&own).count(), 2, "a filter in each listener");
        let mut given: Value =
            serde_json::from_str(&text.replace(&own, "envoy/ecds/warmpath.yaml")).unwrap();
        // The testbed's own.
        given["node"] = shipped["node"].clone();
        assert_eq!(given, shipped);
    }

    #[test]
    fn a_filter_that_its_file_does_not_have_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let asked = |name: &str| json!({"name": name, DISCOVERY: {"config_source": files::source(Path::new("/x/f.yaml"))}});
        let load = |name: &str| put_in(&mut asked(name), folder.path());
        assert!(load("one").is_err(), "no file");
        let resource =
            json!({"@type": FILTER_TYPE, "name": "one", "typed_config": {"@type": WASM_TYPE}});
        let file = folder.path().join("f.yaml");
        std::fs::write(file, json!({"resources": [resource]}).to_string()).unwrap();
        assert!(load("one").unwrap().is_some());
        assert!(load("two").is_err(), "another name");
    }
}
