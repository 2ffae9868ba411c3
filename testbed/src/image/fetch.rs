//! What becomes of an image at whoever fetches modules: the rules of Istio's agent and of Envoy Gateway,
//! which share them, without their retries, caches and credentials.
//!
//! By these rules an image is read in every test, so an image that they would refuse fails here. They also
//! read images in Docker's own format, which we do not make.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use flate2::read::GzDecoder;
use serde_json::Value;

use super::layout::{list, text};
use super::push::Repository;
use super::variant::{FILES_LAYER, MODULE_FILE, MODULE_LAYER};
use crate::digest::sha256;

/// The most that a fetcher unpacks, in bytes.
const MOST: u64 = 256 << 20;
/// With what a module begins; the version follows in four bytes.
const MAGIC: &[u8] = b"\0asm";
const HEAD: usize = 8;

/// What a fetcher found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fetched {
    /// Digest of the manifest, to which a reference is pinned.
    pub(super) digest: String,
    /// The module.
    pub(super) module: Vec<u8>,
}

/// Fetches the module of an image by tag or digest.
///
/// # Errors
/// There is no such image, or it is in none of the two forms.
pub(super) async fn fetch(from: &Repository, reference: &str) -> anyhow::Result<Fetched> {
    let (kind, manifest) = from.manifest(reference).await?;
    ensure!(
        kind == super::layout::MANIFEST,
        "{reference} is no OCI image but {kind:?}"
    );
    let digest = format!("sha256:{}", sha256(&manifest));
    let manifest: Value = serde_json::from_slice(&manifest)?;
    let layers = list(&manifest, "layers")?;
    let module = match compat(from, layers).await {
        Ok(module) => module,
        Err(compat) => match oci(from, layers).await {
            Ok(module) => module,
            Err(oci) => bail!("as compat: {compat:#}; as oci: {oci:#}"),
        },
    };
    check_module(&module)?;
    Ok(Fetched { digest, module })
}

/// The last layer has the module as a file.
async fn compat(from: &Repository, layers: &[Value]) -> anyhow::Result<Vec<u8>> {
    let layer = layers.last().context("no layer")?;
    let kind = text(layer, "/mediaType")?;
    ensure!(kind == FILES_LAYER, "the last layer is {kind}");
    let packed = from.blob(text(layer, "/digest")?).await?;
    let files = unzipped(&packed)?;
    for entry in tar::Archive::new(files.as_slice()).entries()? {
        let mut entry = entry?;
        if entry.path()?.file_name() == Path::new(MODULE_FILE).file_name() {
            let mut module = Vec::new();
            entry.read_to_end(&mut module)?;
            return Ok(module);
        }
    }
    bail!("no {MODULE_FILE} in the layer")
}

/// One of exactly two layers is the module.
async fn oci(from: &Repository, layers: &[Value]) -> anyhow::Result<Vec<u8>> {
    ensure!(layers.len() == 2, "{} layers", layers.len());
    let mut kinds = layers.iter();
    let layer =
        kinds.find(|layer| text(layer, "/mediaType").is_ok_and(|kind| kind == MODULE_LAYER));
    let layer = layer.with_context(|| format!("no layer {MODULE_LAYER}"))?;
    from.blob(text(layer, "/digest")?).await
}

/// What gzip has packed, up to what a fetcher reads.
pub(super) fn unzipped(packed: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    let read = GzDecoder::new(packed)
        .take(MOST)
        .read_to_end(&mut content)?;
    ensure!((read as u64) < MOST, "more than {MOST} bytes");
    Ok(content)
}

/// Whether a fetcher takes this for a module.
pub(super) fn check_module(module: &[u8]) -> anyhow::Result<()> {
    ensure!(
        module.len() >= HEAD && module.starts_with(MAGIC),
        "this is no wasm module"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::archive;
    use crate::image::layout::{Layout, MANIFEST};
    use crate::image::of_release;
    use crate::image::registry::Registry;

    const MODULE: &[u8] = b"\0asm\x01\0\0\0, and what follows";

    /// A layout with one image of these layers, called `odd`.
    fn odd(layers: &[(&str, Vec<u8>)]) -> Layout {
        let mut layout = Layout::default();
        let config = layout.add("application/vnd.oci.image.config.v1+json", b"{}".to_vec());
        let layers = layers.iter();
        let layers: Vec<_> = layers
            .map(|(kind, content)| layout.add(kind, content.clone()))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        layout.add_manifest("odd", &manifest);
        layout
    }

    fn files(name: &str, content: &[u8]) -> (&'static str, Vec<u8>) {
        let tar = archive::tar(&[(name.to_owned(), content.to_vec())]).unwrap();
        (FILES_LAYER, archive::gzip(&tar).unwrap())
    }

    async fn of_odd(layers: &[(&str, Vec<u8>)]) -> anyhow::Result<Fetched> {
        let registry = Registry::start().await?;
        let repository = Repository::new(&registry.origin(), "odd/one")?;
        repository.push(&odd(layers)).await?;
        fetch(&repository, "odd").await
    }

    #[tokio::test]
    async fn both_forms_come_back_from_a_registry_as_the_module() {
        let registry = Registry::start().await.unwrap();
        let repository = Repository::new(&registry.origin(), "team/warmpath").unwrap();
        let layout = of_release(MODULE).unwrap();
        repository.push(&layout).await.unwrap();
        // What is there already is not sent again.
        let sent = registry.received();
        repository.push(&layout).await.unwrap();
        assert_eq!(registry.received(), sent);
        let mut seen = 0;
        for (tag, digest) in layout.tags() {
            seen += 1;
            for reference in [tag, digest] {
                let fetched = fetch(&repository, reference).await.unwrap();
                assert_eq!(fetched.module, MODULE);
                assert_eq!(fetched.digest, digest);
            }
        }
        assert_eq!(seen, 2);
        let nothing = format!("sha256:{}", sha256(b"nothing"));
        for reference in ["0.0.0", &nothing] {
            let refused = fetch(&repository, reference).await.unwrap_err();
            assert!(refused.to_string().contains("404"), "{refused}");
        }
        let other = Repository::new(&registry.origin(), "team/other").unwrap();
        assert!(
            fetch(&other, layout.tags().next().unwrap().0)
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn layers_are_read_by_the_rules_of_the_fetchers() {
        let runtime = ("application/json", b"{}".to_vec());
        let module = (MODULE_LAYER, MODULE.to_vec());
        let folder = files("some/folder/plugin.wasm", MODULE);
        assert_eq!(of_odd(&[folder]).await.unwrap().module, MODULE);
        let two = [module.clone(), runtime.clone()];
        assert_eq!(of_odd(&two).await.unwrap().module, MODULE);

        let named = files("warmpath.wasm", MODULE);
        assert!(of_odd(&[named]).await.is_err(), "another name");
        let early = [files(MODULE_FILE, MODULE), runtime.clone()];
        assert!(of_odd(&early).await.is_err(), "not the last layer");
        assert!(of_odd(std::slice::from_ref(&module)).await.is_err(), "one");
        let three = [module, runtime.clone(), runtime];
        assert!(of_odd(&three).await.is_err(), "three layers");
        let artefact = ("application/wasm", MODULE.to_vec());
        assert!(of_odd(&[artefact]).await.is_err(), "a CNCF artefact");
        let text = files(MODULE_FILE, b"#!/bin/sh");
        assert!(of_odd(&[text]).await.is_err(), "no module");
    }
}
