//! The `image` verb: the module as an OCI image, without Docker and without a registry.
//!
//! Written is an OCI image layout, a folder that every registry tool can push from, with the module in the
//! two forms that the fetchers of Istio and Envoy Gateway read: `compat`, a layer with one file, and `oci`,
//! the bare module as a layer. Both lie in one layout and differ in their tag. The same module gives the
//! same digests on every machine: nothing in an image tells when, where or by whom it was made.

mod fetch;
mod layout;
mod push;
#[cfg(test)]
mod registry;
mod trial;
mod variant;

use std::path::PathBuf;

use crate::module::Built;
pub use layout::Layout;
pub use trial::{Args as TrialArgs, run as run_trial};
use variant::Variant;

/// The version of the image is that of the workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Arguments of the `image` verb.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    module: Built,
    /// The folder to write. What is there is replaced.
    #[arg(long)]
    out: PathBuf,
    /// The forms to write; both unless named.
    #[arg(long, value_enum, value_delimiter = ',')]
    variant: Vec<Variant>,
    /// Where the image will be pushed to, as printed in references.
    #[arg(long, default_value = "registry.example/warmpath")]
    repository: String,
}

/// Writes the layout and prints the references to what is in it.
pub fn run(args: Args) -> anyhow::Result<()> {
    let module = args.module.read()?;
    let variants = match args.variant.is_empty() {
        true => Variant::ALL.to_vec(),
        false => args.variant,
    };
    let layout = of_module(&module, &variants)?;
    layout.write(&args.out)?;
    println!("{}: {} bytes of wasm", args.out.display(), module.len());
    for (tag, digest) in layout.tags() {
        println!("{tag:<10} oci://{}@{digest}", args.repository);
    }
    Ok(())
}

/// The images of a module.
///
/// # Errors
/// It is no wasm module.
pub fn of_module(module: &[u8], variants: &[Variant]) -> anyhow::Result<Layout> {
    fetch::check_module(module)?;
    let mut layout = Layout::default();
    for variant in variants {
        variant.add(module, &mut layout)?;
    }
    Ok(layout)
}

/// Every form of the image, as it is released.
pub fn of_release(module: &[u8]) -> anyhow::Result<Layout> {
    of_module(module, &Variant::ALL)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::archive::files_below;
    use crate::digest::sha256;

    /// A module without any section, and a few kilobytes that it does not name.
    fn module() -> Vec<u8> {
        let mut module = b"\0asm\x01\0\0\0".to_vec();
        module.extend((0..4000_u32).flat_map(u32::to_le_bytes));
        module
    }

    fn written() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("module.wasm"), module()).unwrap();
        run(Args {
            module: Built {
                module: folder.path().join("module.wasm"),
            },
            out: folder.path().join("image"),
            variant: Vec::new(),
            repository: "registry.example/warmpath".to_owned(),
        })
        .unwrap();
        folder
    }

    fn json(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn the_same_module_gives_the_same_bytes() {
        let (one, other) = (written(), written());
        let files = files_below(&one.path().join("image")).unwrap();
        assert!(files.len() >= 9, "{}", files.len());
        assert_eq!(files, files_below(&other.path().join("image")).unwrap());
    }

    #[test]
    fn every_descriptor_tells_the_truth() {
        let folder = written();
        let image = folder.path().join("image");
        let read = |path: String| std::fs::read(image.join(path)).unwrap();
        assert_eq!(
            json(&read("oci-layout".to_owned()))["imageLayoutVersion"],
            "1.0.0"
        );
        let mut named = BTreeSet::new();
        let mut blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let sum = digest.strip_prefix("sha256:").unwrap().to_owned();
            let content = read(format!("blobs/sha256/{sum}"));
            assert_eq!(sha256(&content), sum);
            assert_eq!(descriptor["size"], content.len());
            named.insert(sum);
            content
        };
        let index = json(&read("index.json".to_owned()));
        let mut tags = Vec::new();
        for entry in index["manifests"].as_array().unwrap() {
            let annotations = &entry["annotations"];
            tags.push(annotations["org.opencontainers.image.ref.name"].clone());
            let manifest = json(&blob(entry));
            assert_eq!(manifest["schemaVersion"], 2);
            assert_eq!(manifest["mediaType"], entry["mediaType"]);
            assert_eq!(
                manifest["annotations"]["org.opencontainers.image.version"],
                VERSION
            );
            let config = json(&blob(&manifest["config"]));
            assert_eq!(config["rootfs"]["type"], "layers");
            let layers = manifest["layers"].as_array().unwrap().iter();
            let unpacked = layers.map(|layer| {
                let content = blob(layer);
                let packed = layer["mediaType"].as_str().unwrap().ends_with("+gzip");
                let content = match packed {
                    true => fetch::unzipped(&content).unwrap(),
                    false => content,
                };
                Value::String(format!("sha256:{}", sha256(&content)))
            });
            assert_eq!(
                config["rootfs"]["diff_ids"],
                Value::Array(unpacked.collect())
            );
        }
        assert_eq!(tags, [VERSION.to_owned(), format!("{VERSION}-oci")]);
        let there = files_below(&image.join("blobs/sha256")).unwrap();
        let there: BTreeSet<_> = there.into_iter().map(|(name, _)| name).collect();
        assert_eq!(there, named, "a blob that nothing names");
    }

    #[test]
    fn a_layout_that_was_written_is_read_again() {
        let folder = written();
        let read = Layout::read(&folder.path().join("image")).unwrap();
        assert_eq!(read, of_release(&module()).unwrap());
        let only = of_module(&module(), &[Variant::Oci]).unwrap();
        assert_eq!(only.tags().count(), 1);
    }

    #[test]
    fn what_is_no_module_is_refused() {
        assert!(of_release(b"#!/bin/sh").is_err());
        assert!(of_release(b"\0asm").is_err());
    }
}
