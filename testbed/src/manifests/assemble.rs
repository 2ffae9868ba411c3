//! Manifests put together as `kustomize build` does.
//!
//! Only what the shipped trees use is understood: resources, components, JSON patches and
//! replacements. Anything else in a `kustomization.yaml` is an error, so that no tree can come to use
//! what was never tried. Each folder is read once; time grows with the number of documents times that
//! of replacements.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::replace::{Replacement, replace};

/// Says that a document is for kustomize alone and is not applied.
const LOCAL: &str = "/metadata/annotations/config.kubernetes.io~1local-config";

/// A `kustomization.yaml`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kustomization {
    api_version: String,
    kind: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    components: Vec<String>,
    #[serde(default)]
    patches: Vec<Patch>,
    #[serde(default)]
    replacements: Vec<Replacement>,
}

/// JSON patches of the documents that are selected.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    target: Selector,
    patch: String,
}

/// Which documents are meant: all that have what is named here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Selector {
    pub(super) kind: Option<String>,
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
}

impl Selector {
    pub(super) fn selects(&self, document: &Value) -> bool {
        let has = |wanted: &Option<String>, pointer: &str| {
            let found = document.pointer(pointer).and_then(Value::as_str);
            wanted.is_none() || wanted.as_deref() == found
        };
        has(&self.kind, "/kind")
            && has(&self.name, "/metadata/name")
            && has(&self.namespace, "/metadata/namespace")
    }
}

/// The documents that `kustomize build` prints for a folder.
///
/// # Errors
/// A file is missing or is no YAML, or a kustomization says what is not understood here, or patches or
/// copies what is not there.
pub fn build(folder: &Path) -> anyhow::Result<Vec<Value>> {
    build_with(folder, &mut |_| {})
}

/// The same, with documents changed as they are read: what a person edits.
///
/// # Errors
/// As of [`build`].
pub fn build_with(folder: &Path, edit: &mut dyn FnMut(&mut Value)) -> anyhow::Result<Vec<Value>> {
    let mut documents = Vec::new();
    accumulate(folder, "Kustomization", &mut documents, edit)?;
    documents.retain(|document| document.pointer(LOCAL).is_none());
    Ok(documents)
}

/// Every file that a folder's kustomization reads, directly or through others, itself included.
///
/// # Errors
/// As of [`build`].
#[cfg(test)]
pub fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (path, kustomization) = read(folder)?;
    let mut found = vec![path];
    for name in kustomization
        .resources
        .iter()
        .chain(&kustomization.components)
    {
        let path = within(folder, name)?;
        match path.is_dir() {
            true => found.extend(files(&path)?),
            false => found.push(path),
        }
    }
    Ok(found)
}

/// The documents of a YAML text.
///
/// # Errors
/// It is no YAML.
pub fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    let read = serde_yaml_ng::Deserializer::from_str(text).map(Value::deserialize);
    let read: Result<Vec<_>, _> = read.collect();
    Ok(read?.into_iter().filter(|it| !it.is_null()).collect())
}

fn accumulate(
    folder: &Path,
    kind: &str,
    all: &mut Vec<Value>,
    edit: &mut dyn FnMut(&mut Value),
) -> anyhow::Result<()> {
    let (path, kustomization) = read(folder)?;
    let said = || format!("in {}", path.display());
    ensure!(
        kustomization.kind == kind,
        "{} {}",
        kustomization.kind,
        said()
    );
    let group = "kustomize.config.k8s.io/";
    ensure!(kustomization.api_version.starts_with(group), "{}", said());
    for name in &kustomization.resources {
        let path = within(folder, name)?;
        if path.is_dir() {
            accumulate(&path, "Kustomization", all, edit)?;
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let read = documents(&text).with_context(|| path.display().to_string())?;
        for mut document in read {
            edit(&mut document);
            all.push(document);
        }
    }
    for name in &kustomization.components {
        accumulate(&within(folder, name)?, "Component", all, edit)?;
    }
    for patch in &kustomization.patches {
        apply(patch, all).with_context(said)?;
    }
    for replacement in &kustomization.replacements {
        replace(replacement, all).with_context(said)?;
    }
    Ok(())
}

fn apply(patch: &Patch, all: &mut [Value]) -> anyhow::Result<()> {
    let operations: json_patch::Patch = serde_yaml_ng::from_str(&patch.patch)?;
    let mut applied = false;
    for document in all.iter_mut().filter(|it| patch.target.selects(it)) {
        json_patch::patch(document, &operations)?;
        applied = true;
    }
    ensure!(applied, "nothing is a {:?}", patch.target);
    Ok(())
}

fn read(folder: &Path) -> anyhow::Result<(PathBuf, Kustomization)> {
    let path = folder.join("kustomization.yaml");
    let text = std::fs::read_to_string(&path);
    let text = text.with_context(|| format!("reading {}", path.display()))?;
    let parsed = serde_yaml_ng::from_str(&text);
    let parsed = parsed.with_context(|| format!("parsing {}", path.display()))?;
    Ok((path, parsed))
}

fn within(folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let path = folder.join(name);
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(_) => bail!("{} names {name}, which is not there", folder.display()),
    }
}
