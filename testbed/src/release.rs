//! The `release` verb: everything that is published of a version, in one folder.
//!
//! One idea: what is published is a list of files in memory, made of the module and of the sources, and the
//! sums are those of that list. It has no date and nothing of the machine, so the same sources give the
//! same bytes. Nothing is left out silently: a file that is missing is an error.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::archive::{self, File};
use crate::digest::sha256;
use crate::image::{self, VERSION};
use crate::module::Built;
use crate::sbom;

/// Sources that are published as they are, and their names there.
const AS_THEY_ARE: [(&str, &str); 4] = [
    ("filter/config.schema.json", "config.schema.json"),
    ("envoy/dashboards/warmpath.json", "warmpath-dashboard.json"),
    ("envoy/dashboards/alerts.yaml", "warmpath-alerts.yaml"),
    ("LICENSE", "LICENSE"),
];
/// The folder of configurations and manifests.
const MANIFESTS: &str = "envoy";
/// The file of sums, which names all others.
const SUMS: &str = "SHA256SUMS";

/// Arguments of the `release` verb.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    module: Built,
    /// The folder to fill. It must be empty or missing.
    #[arg(long)]
    out: PathBuf,
}

/// Fills the folder from the sources in the current folder, and prints what is in it.
pub fn run(args: Args) -> anyhow::Result<()> {
    let module = args.module.read()?;
    let files = files(Path::new("."), &module)?;
    write(&files, &args.out)?;
    for (name, content) in files.iter().filter(|(name, _)| !name.contains('/')) {
        println!("{:>9} {}/{name}", content.len(), args.out.display());
    }
    for (tag, digest) in image::of_release(&module)?.tags() {
        println!("image {tag:<10} {digest}");
    }
    Ok(())
}

/// What is published of this module and of the sources below `root`, in the order of the names.
fn files(root: &Path, module: &[u8]) -> anyhow::Result<Vec<File>> {
    let read = |path: &str| {
        let path = root.join(path);
        std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    let mut files = Vec::new();
    for (path, name) in AS_THEY_ARE {
        files.push((name.to_owned(), read(path)?));
    }
    files.push((format!("warmpath-{VERSION}.wasm"), module.to_vec()));
    let (bill, _) = sbom::of_module(root, module)?;
    files.push(("warmpath.cdx.json".to_owned(), bill.into_bytes()));

    let layout = image::of_release(module)?;
    let image = format!("warmpath-{VERSION}-image.tar");
    files.push((image, archive::tar(&layout.files())?));
    let tags = layout.tags();
    let digests: String = tags.map(|(tag, it)| format!("{tag} {it}\n")).collect();
    files.push(("image-digests.txt".to_owned(), digests.into_bytes()));
    let layout = layout.files().into_iter();
    files.extend(layout.map(|(name, content)| (format!("image/{name}"), content)));

    let manifests = archive::files_below(&root.join(MANIFESTS))?.into_iter();
    let manifests: Vec<_> = manifests
        .map(|(name, content)| (format!("warmpath-{VERSION}/{MANIFESTS}/{name}"), content))
        .collect();
    let packed = archive::gzip(&archive::tar(&manifests)?)?;
    files.push((format!("warmpath-{VERSION}-manifests.tar.gz"), packed));

    let changelog = String::from_utf8(read("CHANGELOG.md")?)?;
    let changes = changes(&changelog, VERSION)
        .with_context(|| format!("CHANGELOG.md has no section [{VERSION}]"))?;
    files.push(("RELEASE_NOTES.md".to_owned(), changes.into_bytes()));

    files.sort_unstable();
    let sums = files.iter();
    let sums: String = sums
        .map(|(name, content)| format!("{}  {name}\n", sha256(content)))
        .collect();
    files.push((SUMS.to_owned(), sums.into_bytes()));
    Ok(files)
}

/// The section of a version, with its heading.
fn changes(changelog: &str, version: &str) -> Option<String> {
    let heading = format!("## [{version}]");
    let start = changelog.find(&format!("\n{heading}"))? + 1;
    let section = changelog.get(start..)?;
    let end = section.get(heading.len()..)?.find("\n## [");
    let end = end.map_or(section.len(), |end| heading.len() + end);
    Some(format!("{}\n", section.get(..end)?.trim_end()))
}

fn write(files: &[File], folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        let empty = std::fs::read_dir(folder)?.next().is_none();
        ensure!(empty, "{} is not empty", folder.display());
    }
    for (name, content) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(folder))
            .and_then(|()| std::fs::write(&path, content))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MODULE: &[u8] = b"\0asm\x01\0\0\0, and what follows";

    fn release() -> Vec<File> {
        files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), MODULE).unwrap()
    }

    #[test]
    fn the_same_sources_give_the_same_bytes_and_the_sums_are_theirs() {
        let files = release();
        let folder = tempfile::tempdir().unwrap();
        write(&files, folder.path()).unwrap();
        assert!(write(&files, folder.path()).is_err(), "over another one");
        let written = archive::files_below(folder.path()).unwrap();
        let again: BTreeSet<_> = release().into_iter().collect();
        assert_eq!(written.iter().cloned().collect::<BTreeSet<_>>(), again);

        let (_, sums) = files.last().unwrap();
        let sums = std::str::from_utf8(sums).unwrap();
        let mut summed = BTreeSet::new();
        for line in sums.lines() {
            let (sum, name) = line.split_once("  ").unwrap();
            let (_, content) = written.iter().find(|(it, _)| it == name).unwrap();
            assert_eq!(sha256(content), sum, "{name}");
            summed.insert(name.to_owned());
        }
        let names: BTreeSet<_> = written.into_iter().map(|(name, _)| name).collect();
        let others: BTreeSet<_> = names.difference(&summed).collect();
        assert_eq!(others, BTreeSet::from([&SUMS.to_owned()]));
        for name in [
            format!("warmpath-{VERSION}.wasm"),
            format!("warmpath-{VERSION}-image.tar"),
            format!("warmpath-{VERSION}-manifests.tar.gz"),
            "image/index.json".to_owned(),
            "RELEASE_NOTES.md".to_owned(),
        ] {
            assert!(names.contains(&name), "no {name}");
        }
    }

    #[test]
    fn the_section_of_a_version_ends_at_the_next() {
        let changelog =
            "# Changelog\n\n## [1.1.0] - 2027-01-01\n\n### Added\n\n- A.\n\n## [1.0.0]\n\n- B.\n";
        let newest = "## [1.1.0] - 2027-01-01\n\n### Added\n\n- A.\n";
        assert_eq!(changes(changelog, "1.1.0").unwrap(), newest);
        assert_eq!(changes(changelog, "1.0.0").unwrap(), "## [1.0.0]\n\n- B.\n");
        assert_eq!(changes(changelog, "1.0"), None);
        assert_eq!(changes(changelog, "2.0.0"), None);
    }
}
