//! The `manifests` verb: what a cluster would be given, held against the schemas of its kinds.
//!
//! Every overlay is put together as kustomize does it. Kinds that a CRD describes are checked with that,
//! all others with [`fields`]; a kind that neither knows is an error. The CRDs are Istio's and Envoy
//! Gateway's own files and no part of this repository: without them it is said aloud what was not
//! checked.

mod assemble;
mod fields;
mod replace;
mod strict;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::Value;

pub use assemble::build;
use strict::Schemas;

/// The folders of `envoy` with overlays.
const TREES: [&str; 2] = ["istio", "envoy-gateway"];

/// Arguments of the `manifests` verb.
#[derive(clap::Args)]
pub struct Args {
    /// Folder with the CRDs of Istio and Envoy Gateway, as YAML. Their kinds are not checked without it.
    #[arg(long)]
    crds: Option<PathBuf>,
    /// The folder with the manifests.
    #[arg(long, default_value = "envoy")]
    folder: PathBuf,
}

/// Checks every overlay; prints a line for each, and the mistakes.
///
/// # Errors
/// There is a mistake, or an overlay cannot be put together.
pub fn run(args: Args) -> anyhow::Result<()> {
    let schemas = args.crds.as_deref().map(Schemas::load).transpose()?;
    let mut mistakes = Vec::new();
    let mut unchecked = BTreeSet::new();
    for overlay in overlays(&args.folder)? {
        let documents = build(&overlay)?;
        println!("{}: {} objects", overlay.display(), documents.len());
        for document in &documents {
            match check(document, schemas.as_ref()) {
                Some(found) => mistakes.extend(found),
                None => {
                    unchecked.insert(strict::kind(document).1);
                }
            }
        }
    }
    for mistake in &mistakes {
        println!("{mistake}");
    }
    if !unchecked.is_empty() {
        let kinds = unchecked.into_iter().collect::<Vec<_>>().join(", ");
        ensure!(schemas.is_none(), "no CRD describes {kinds}");
        println!("NOT CHECKED, for want of CRDs: {kinds}");
    }
    ensure!(mistakes.is_empty(), "{} mistakes", mistakes.len());
    Ok(())
}

/// The mistakes of a document, each with its kind and name; nothing if its kind is not known.
fn check(document: &Value, schemas: Option<&Schemas>) -> Option<Vec<String>> {
    let found = schemas
        .and_then(|schemas| schemas.mistakes(document))
        .or_else(|| fields::mistakes(document))?;
    let name = document.pointer("/metadata/name").and_then(Value::as_str);
    let (_, kind) = strict::kind(document);
    let name = name.unwrap_or("without a name");
    Some(
        found
            .iter()
            .map(|it| format!("{kind} {name}: {it}"))
            .collect(),
    )
}

/// The overlays of all trees, by name.
///
/// # Errors
/// A tree has no folder of overlays.
pub fn overlays(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for tree in TREES {
        let tree = folder.join(tree).join("overlays");
        let entries = std::fs::read_dir(&tree);
        for entry in entries.with_context(|| format!("reading {}", tree.display()))? {
            found.push(entry?.path());
        }
    }
    found.sort();
    Ok(found)
}
