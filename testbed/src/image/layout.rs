//! An OCI image layout in memory: contents by their digest, and tags that name some of them.
//!
//! A content is added once and never changed, so a descriptor is right from the moment it exists. Linear
//! in the size of the contents.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::digest::sha256;

/// Media type of a manifest of one image.
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// By which tools find an image in a layout.
const TAG: &str = "org.opencontainers.image.ref.name";

/// See the module documentation.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// By digest, `sha256:` and hexadecimal digits.
    blobs: BTreeMap<String, Vec<u8>>,
    /// Digest of a manifest by its tag.
    tags: BTreeMap<String, String>,
}

impl Layout {
    /// Adds a content and describes it.
    pub(super) fn add(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let digest = format!("sha256:{}", sha256(&content));
        let descriptor = json!({
            "mediaType": media_type, "digest": digest, "size": content.len(),
        });
        self.blobs.insert(digest, content);
        descriptor
    }

    /// Adds the manifest of an image under a tag.
    pub(super) fn add_manifest(&mut self, tag: &str, manifest: &Value) {
        let content = manifest.to_string().into_bytes();
        let digest = format!("sha256:{}", sha256(&content));
        self.blobs.insert(digest.clone(), content);
        self.tags.insert(tag.to_owned(), digest);
    }

    /// Tags and the digests of their manifests, in the order of the tags.
    pub fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        let tags = self.tags.iter();
        tags.map(|(tag, digest)| (tag.as_str(), digest.as_str()))
    }

    /// A content, by its digest.
    pub(super) fn blob(&self, digest: &str) -> anyhow::Result<&[u8]> {
        let blob = self.blobs.get(digest).map(Vec::as_slice);
        blob.with_context(|| format!("no content {digest} in the layout"))
    }

    /// The files of the layout, named from its folder, in the order of the names.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = self
            .blobs
            .iter()
            .map(|(digest, content)| (blob_name(digest), content.clone()))
            .collect();
        let manifests: Vec<_> = self.tags().map(|it| self.entry(it)).collect();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        files.push(("index.json".to_owned(), index.to_string().into_bytes()));
        let version = json!({"imageLayoutVersion": "1.0.0"});
        files.push(("oci-layout".to_owned(), version.to_string().into_bytes()));
        files
    }

    fn entry(&self, (tag, digest): (&str, &str)) -> Value {
        json!({
            "mediaType": MANIFEST,
            "digest": digest,
            "size": self.blobs.get(digest).map_or(0, Vec::len),
            "annotations": {TAG: tag},
        })
    }

    /// Writes the layout, in the place of what is in this folder.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        if folder.exists() {
            // Not whatever a slip of the pen names.
            ensure!(
                folder.join("oci-layout").exists(),
                "{} is there and is no image layout",
                folder.display()
            );
            std::fs::remove_dir_all(folder)?;
        }
        for (name, content) in self.files() {
            let path = folder.join(name);
            let parent = path.parent().unwrap_or(folder);
            std::fs::create_dir_all(parent)
                .and_then(|()| std::fs::write(&path, content))
                .with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }

    /// Reads a layout.
    ///
    /// # Errors
    /// A file is missing or is not what its name says.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
        };
        let mut layout = Self::default();
        let index: Value = serde_json::from_slice(&read("index.json")?)?;
        for entry in list(&index, "manifests")? {
            let digest = text(entry, "/digest")?.to_owned();
            let manifest = read(&blob_name(&digest))?;
            for descriptor in described(&serde_json::from_slice(&manifest)?) {
                let digest = text(&descriptor, "/digest")?.to_owned();
                let content = read(&blob_name(&digest))?;
                layout.blobs.insert(digest, content);
            }
            layout.blobs.insert(digest.clone(), manifest);
            let tag = entry
                .get("annotations")
                .and_then(|it| it.get(TAG)?.as_str());
            layout
                .tags
                .insert(tag.context("no tag")?.to_owned(), digest);
        }
        for (digest, content) in &layout.blobs {
            let sum = format!("sha256:{}", sha256(content));
            ensure!(sum == *digest, "{digest} has the digest {sum}");
        }
        Ok(layout)
    }
}

/// What a manifest describes: the configuration, and the layers in their order.
pub(super) fn described(manifest: &Value) -> Vec<Value> {
    let config = manifest.get("config").into_iter();
    let layers = list(manifest, "layers").into_iter().flatten();
    config.chain(layers).cloned().collect()
}

/// A list of a JSON document.
pub(super) fn list<'a>(value: &'a Value, field: &str) -> anyhow::Result<&'a Vec<Value>> {
    let found = value.get(field).and_then(Value::as_array);
    found.with_context(|| format!("no {field}"))
}

/// A text within a JSON document.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> anyhow::Result<&'a str> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.with_context(|| format!("no text at {pointer}"))
}

fn blob_name(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}
