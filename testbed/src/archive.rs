//! Archives that are the same bytes wherever and whenever they are made.
//!
//! One idea: an archive holds names and contents, and nothing of the machine: no time, no user, no
//! umask, no order of a folder. Compression is that of a crate in a version that `Cargo.lock` pins, not of
//! a library of the system. In memory; linear in the size of the contents.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header, HeaderMode};

/// What is written for every file: readable by all, written by its owner.
const FILE_MODE: u32 = 0o644;
/// What the header of gzip says of the system: that it is not known.
const UNKNOWN_SYSTEM: u8 = 255;

/// A file of an archive: its name, with `/` between folders, and its content.
pub type File = (String, Vec<u8>);

/// A tar archive of these files, in this order.
///
/// # Errors
/// A name does not fit into an archive.
pub fn tar(files: &[File]) -> anyhow::Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    archive.mode(HeaderMode::Deterministic);
    for (name, content) in files {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(FILE_MODE);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        let added = archive.append_data(&mut header, name, content.as_slice());
        added.with_context(|| format!("{name} does not fit into an archive"))?;
    }
    Ok(archive.into_inner()?)
}

/// The same bytes, compressed by gzip, without a time or a name in the header.
pub fn gzip(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let header = GzBuilder::new().mtime(0).operating_system(UNKNOWN_SYSTEM);
    let mut encoder = header.write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// Every file below a folder, named from there, in the order of the names. Names that begin with a dot
/// are left out.
///
/// # Errors
/// Something cannot be read, or is neither a file nor a folder.
pub fn files_below(folder: &Path) -> anyhow::Result<Vec<File>> {
    let mut found = Vec::new();
    collect(folder, "", &mut found)?;
    found.sort_unstable();
    Ok(found)
}

fn collect(folder: &Path, prefix: &str, found: &mut Vec<File>) -> anyhow::Result<()> {
    let shown = || format!("reading {}", folder.display());
    for entry in std::fs::read_dir(folder).with_context(shown)? {
        let entry = entry.with_context(shown)?;
        let name = entry.file_name();
        let name = name.to_str().context("a name that is not UTF-8")?;
        if name.starts_with('.') {
            continue;
        }
        let (path, name) = (entry.path(), format!("{prefix}{name}"));
        if entry.file_type()?.is_dir() {
            collect(&path, &format!("{name}/"), found)?;
            continue;
        }
        let content = std::fs::read(&path);
        found.push((
            name,
            content.with_context(|| format!("reading {}", path.display()))?,
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn an_archive_has_nothing_of_the_machine() {
        let files = [
            ("a/b.txt".to_owned(), b"one".to_vec()),
            ("c".to_owned(), vec![]),
        ];
        let archive = tar(&files).unwrap();
        let mut read = tar::Archive::new(archive.as_slice());
        let mut names = Vec::new();
        for entry in read.entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!(header.mtime().unwrap(), 0);
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            assert_eq!(header.mode().unwrap(), 0o644);
            assert!(matches!(header.username(), Ok(None | Some(""))));
            names.push(entry.path().unwrap().display().to_string());
        }
        assert_eq!(names, ["a/b.txt", "c"]);
        assert!(tar(&[("../above".to_owned(), vec![])]).is_err());
    }

    /// With another compressor every digest that was ever published would change: a decision.
    #[test]
    fn compression_is_the_same_everywhere() {
        let content: Vec<u8> = (0..100_000_u32)
            .flat_map(|it| (it / 7).to_le_bytes())
            .collect();
        let packed = gzip(&content).unwrap();
        assert_eq!(packed[3..10], [0, 0, 0, 0, 0, 2, 255], "no name, no time");
        let mut unpacked = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(packed.as_slice());
        decoder.read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, content);
        assert_eq!(
            crate::digest::sha256(&packed),
            "7d33b78b8381a1950e6aa8d6496c8ab9ed52ecf3c2a83483698c87fc8257fa15"
        );
    }

    #[test]
    fn files_are_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["z", "b/y", "b/a", ".hidden"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        let files = files_below(folder.path()).unwrap();
        let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["b/a", "b/y", "z"]);
        assert_eq!(files[0].1, b"b/a");
    }
}
