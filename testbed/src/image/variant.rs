//! The two forms in which a wasm module travels as an image.
//!
//! They are those of the Wasm image specification. Which one it is, a fetcher finds out from the media
//! types of the layers; people, from the tag.

use serde_json::{Value, json};

use super::VERSION;
use super::layout::{Layout, MANIFEST};
use crate::archive;
use crate::digest::sha256;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a compressed layer of files.
pub(super) const FILES_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Media type of a layer that is the module itself.
pub(super) const MODULE_LAYER: &str = "application/vnd.module.wasm.content.layer.v1+wasm";
const RUNTIME_LAYER: &str = "application/vnd.module.wasm.config.v1+json";
/// Name of the module in a layer of files.
pub(super) const MODULE_FILE: &str = "plugin.wasm";
/// The version of the ABI between Envoy and the module.
const ABI: &str = "0.2.1";

/// A form of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Variant {
    /// A layer as container engines know it, with the one file `plugin.wasm`: every tool can copy it.
    Compat,
    /// The module as a layer of its own media type, and one that says what runs it.
    Oci,
}

impl Variant {
    /// Every form.
    pub(super) const ALL: [Self; 2] = [Self::Compat, Self::Oci];

    fn name(self) -> &'static str {
        match self {
            Self::Compat => "compat",
            Self::Oci => "oci",
        }
    }

    /// The form that most tools read has the bare version.
    pub(super) fn tag(self) -> String {
        match self {
            Self::Compat => VERSION.to_owned(),
            Self::Oci => format!("{VERSION}-oci"),
        }
    }

    /// Adds the image of a module in this form.
    pub(super) fn add(self, module: &[u8], layout: &mut Layout) -> anyhow::Result<()> {
        let (layers, unpacked) = match self {
            Self::Compat => {
                let files = archive::tar(&[(MODULE_FILE.to_owned(), module.to_vec())])?;
                let layer = layout.add(FILES_LAYER, archive::gzip(&files)?);
                (vec![layer], vec![files])
            }
            Self::Oci => {
                let runtime = runtime().to_string().into_bytes();
                let mut layers = vec![layout.add(RUNTIME_LAYER, runtime.clone())];
                layers.push(layout.add(MODULE_LAYER, module.to_vec()));
                (layers, vec![runtime, module.to_vec()])
            }
        };
        let config = layout.add(CONFIG, config(&unpacked).to_string().into_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": layers,
            "annotations": {
                "module.wasm.image/variant": self.name(),
                "org.opencontainers.image.title": "warmpath",
                "org.opencontainers.image.description": "LLM inference router for Envoy",
                "org.opencontainers.image.version": VERSION,
                "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            },
        });
        layout.add_manifest(&self.tag(), &manifest);
        Ok(())
    }
}

/// The fetchers of modules read nothing of it. Tools that unpack images ask for a platform of their own;
/// a module has none, so it is the one that most have. There is no time in it: it would be another image.
fn config(layers: &[Vec<u8>]) -> Value {
    let layers = layers.iter();
    let layers: Vec<_> = layers.map(|it| format!("sha256:{}", sha256(it))).collect();
    json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": layers},
    })
}

/// What the specification has for whoever chooses a runtime by it.
fn runtime() -> Value {
    json!({
        "type": "envoy_proxy",
        "abiVersions": [ABI],
        "config": {"root_ids": ["warmpath"]},
    })
}
