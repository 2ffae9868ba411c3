//! The `module` verb: what a built wasm module weighs and what it asks of its host.
//!
//! Every host of the proxy-wasm ABI offers the functions of `env` and not all offer WASI, so an
//! import from anywhere else is an error. So is a path of the machine that built it: with one, another
//! machine would build other bytes. Linear in the size of the module.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use wasmparser::{Parser, Payload};

/// The only place the module may import from.
const HOST: &str = "env";

/// Parts of paths of those who build, by which Rust's `panic!` would name a file.
const FOREIGN_PATHS: [&str; 5] = [
    "/.cargo/",
    "/.rustup/",
    "/registry/src/",
    "/home/",
    "/Users/",
];

/// Arguments of the `module` verb.
#[derive(clap::Args)]
pub struct Args {
    /// The wasm file.
    file: PathBuf,
}

/// The module that was built, for other verbs.
#[derive(clap::Args)]
pub struct Built {
    /// The wasm module.
    #[arg(long)]
    pub module: PathBuf,
}

impl Built {
    /// The bytes of the file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self) -> anyhow::Result<Vec<u8>> {
        read(&self.module)
    }
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("reading {}", file.display()))
}

/// Prints size and imports of a module. Fails if it is not one, imports from outside `env`, or holds a
/// path of the machine that built it.
pub fn run(args: Args) -> anyhow::Result<()> {
    let bytes = read(&args.file)?;
    let imports = imports(&bytes).with_context(|| format!("parsing {}", args.file.display()))?;
    println!(
        "{}: {} bytes ({:.1} KB)",
        args.file.display(),
        bytes.len(),
        bytes.len() as f64 / 1000.0
    );
    println!("imports: {}", imports.len());
    for (module, name) in &imports {
        println!("  {module} {name}");
    }
    let foreign: Vec<_> = imports
        .iter()
        .filter(|(module, _)| module != HOST)
        .collect();
    if !foreign.is_empty() {
        bail!("imports from outside `{HOST}`, which an Envoy may not offer: {foreign:?}");
    }
    let folders = own_folders()?;
    let paths = foreign_paths(&bytes, &folders);
    if !paths.is_empty() {
        bail!("holds paths of this machine, see `make module`: {paths:?}");
    }
    Ok(())
}

/// The folders from which a build on this machine may take a path: workspace, home, temporary files.
fn own_folders() -> anyhow::Result<Vec<String>> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let folders = [std::env::current_dir()?, std::env::temp_dir()];
    let folders = folders.into_iter().chain(home);
    Ok(folders
        .map(|folder| format!("{}/", folder.display().to_string().trim_end_matches('/')))
        .collect())
}

/// What of the forbidden parts of paths, these folders among them, stands anywhere in the module.
fn foreign_paths<'a>(wasm: &[u8], folders: &'a [String]) -> Vec<&'a str> {
    let folders = folders.iter().map(String::as_str);
    let mut parts: Vec<_> = FOREIGN_PATHS.into_iter().chain(folders).collect();
    // A folder at the root of a file system would be found everywhere.
    parts.retain(|part| part.len() > 1 && holds(wasm, part.as_bytes()));
    parts
}

fn holds(wasm: &[u8], part: &[u8]) -> bool {
    wasm.windows(part.len()).any(|window| window == part)
}

/// Every import as (module, name), in the order of the file.
fn imports(wasm: &[u8]) -> anyhow::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for payload in Parser::new(0).parse_all(wasm) {
        if let Payload::ImportSection(section) = payload? {
            for import in section.into_imports() {
                let import = import?;
                found.push((import.module.to_owned(), import.name.to_owned()));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A module of one function type and one imported function, `module` "f".
    fn module_importing_from(module: &str) -> Vec<u8> {
        let mut wasm = b"\0asm\x01\0\0\0".to_vec();
        wasm.extend(b"\x01\x04\x01\x60\0\0");
        let mut import = vec![1, module.len() as u8];
        import.extend(module.as_bytes());
        import.extend(b"\x01f\0\0");
        wasm.extend([2, import.len() as u8]);
        wasm.extend(import);
        wasm
    }

    fn run_on(wasm: &[u8]) -> anyhow::Result<()> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), wasm).unwrap();
        run(Args {
            file: file.path().to_owned(),
        })
    }

    #[test]
    fn imports_are_listed() {
        assert_eq!(
            imports(&module_importing_from("env")).unwrap(),
            [("env".to_owned(), "f".to_owned())]
        );
    }

    #[test]
    fn only_the_host_may_be_imported_from() {
        run_on(&module_importing_from("env")).unwrap();
        let refused = run_on(&module_importing_from("wasi_snapshot_preview1")).unwrap_err();
        assert!(refused.to_string().contains("wasi_snapshot_preview1"));
    }

    #[test]
    fn paths_of_the_machine_are_refused() {
        // A custom section called "p".
        let with = |path: &str| {
            let mut wasm = module_importing_from("env");
            wasm.extend([0, 2 + path.len() as u8, 1, b'p']);
            wasm.extend(path.as_bytes());
            wasm
        };
        run_on(&with("/rustc/0/library/core/src/fmt.rs")).unwrap();
        run_on(&with("/crates/log-1.0.0/src/lib.rs")).unwrap();
        let refused = run_on(&with("/anywhere/.cargo/registry/src/a/b.rs")).unwrap_err();
        assert!(refused.to_string().contains(".cargo"), "{refused}");
        for folder in own_folders().unwrap() {
            assert!(run_on(&with(&format!("{folder}a.rs"))).is_err(), "{folder}");
        }
    }

    #[test]
    fn other_files_are_refused() {
        assert!(run_on(b"#!/bin/sh").is_err());
    }
}
