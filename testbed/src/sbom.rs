//! The `sbom` verb: what the wasm module is made of, as a CycloneDX document.
//!
//! Cargo itself says which crates are compiled into the module (for its platform, with its features,
//! without what runs at build time only); `Cargo.lock` has their checksums. The same sources give the
//! same bytes: the document has no date and no random number. Linear in the size of both.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::digest::sha256;
use crate::module::Built;

const PACKAGE: &str = "warmpath";
const PLATFORM: &str = "wasm32-unknown-unknown";

/// Arguments of the `sbom` verb.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    module: Built,
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
}

/// Writes the document of a module that was built from the sources in the current folder.
pub fn run(args: Args) -> anyhow::Result<()> {
    let module = args.module.read()?;
    let (text, crates) = of_module(Path::new("."), &module)?;
    std::fs::write(&args.out, text).with_context(|| format!("writing {}", args.out.display()))?;
    println!("{}: {crates} crates", args.out.display());
    Ok(())
}

/// The document of a module that was built from the sources below `root`, and how many crates it names.
pub fn of_module(root: &Path, module: &[u8]) -> anyhow::Result<(String, usize)> {
    let links = Links::of_module(root)?;
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).context("reading Cargo.lock")?;
    let compiler = output_of(Command::new("rustc").arg("--version").current_dir(root))?;
    let document = document(&links, &checksums(&lock), compiler.trim(), module)?;
    let text = format!("{}\n", serde_json::to_string_pretty(&document)?);
    Ok((text, links.crates.len()))
}

/// A crate in one version, by which all maps here are keyed.
type Id = (String, String);

/// What is linked into the module.
struct Links {
    /// The package itself.
    root: Id,
    /// Each crate, the package included, and its licence.
    crates: BTreeMap<Id, String>,
    /// Whom each crate uses.
    uses: BTreeMap<Id, BTreeSet<Id>>,
}

impl Links {
    /// Asks Cargo, for the workspace in `folder`.
    fn of_module(folder: &Path) -> anyhow::Result<Self> {
        let mut cargo = Command::new("cargo");
        cargo.current_dir(folder);
        cargo.args(["tree", "--locked", "--no-dedupe", "--package", PACKAGE]);
        cargo.args(["--target", PLATFORM, "--edges", "normal,no-proc-macro"]);
        cargo.args(["--prefix", "depth", "--format", " {p} | {l}"]);
        Self::of_tree(&output_of(&mut cargo)?)
    }

    /// Reads lines of `<depth> <name> v<version> … | <licence>`, in which each stands below its user.
    fn of_tree(text: &str) -> anyhow::Result<Self> {
        let mut path: Vec<Id> = Vec::new();
        let mut crates = BTreeMap::new();
        let mut uses: BTreeMap<Id, BTreeSet<Id>> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (id, depth, licence) =
                read_line(line).with_context(|| format!("a line of cargo tree: {line:?}"))?;
            ensure!(!licence.is_empty(), "{} names no licence", id.0);
            path.truncate(depth);
            uses.entry(id.clone()).or_default();
            if let Some(user) = path.last() {
                uses.entry(user.clone()).or_default().insert(id.clone());
            }
            // The slash is how expressions were written once.
            crates.insert(id.clone(), licence.replace('/', " OR "));
            path.push(id);
        }
        let root = path.into_iter().next().context("cargo tree is empty")?;
        Ok(Self { root, crates, uses })
    }
}

/// Crate, depth and licence.
fn read_line(line: &str) -> Option<(Id, usize, &str)> {
    let (package, licence) = line.split_once(" | ")?;
    let mut words = package.split_whitespace();
    let depth = words.next()?.parse().ok()?;
    let name = words.next()?.to_owned();
    let version = words.next()?.strip_prefix('v')?.to_owned();
    Some(((name, version), depth, licence.trim()))
}

/// SHA-256 of what was downloaded, of every crate that has one in this `Cargo.lock`.
fn checksums(lock: &str) -> BTreeMap<Id, String> {
    let found = lock.split("[[package]]").filter_map(|entry| {
        let field = |name: &str| {
            let start = format!("{name} = \"");
            let line = entry.lines().find_map(|line| line.strip_prefix(&start));
            line.and_then(|rest| rest.strip_suffix('"'))
                .map(str::to_owned)
        };
        Some(((field("name")?, field("version")?), field("checksum")?))
    });
    found.collect()
}

fn document(
    links: &Links,
    checksums: &BTreeMap<Id, String>,
    compiler: &str,
    module: &[u8],
) -> anyhow::Result<Value> {
    let sum = sha256(module);
    let own = component("application", &links.root, links, Some(&sum))?;
    let others = links.crates.keys().filter(|&id| *id != links.root);
    let others = others.map(|id| component("library", id, links, checksums.get(id)));
    let others = others.collect::<anyhow::Result<Vec<_>>>()?;
    let uses = links.uses.iter().map(|(id, used)| {
        let used: Vec<_> = used.iter().map(purl).collect();
        json!({"ref": purl(id), "dependsOn": used})
    });
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        // The standard library comes with the compiler.
        "metadata": {
            "component": own,
            "properties": [{"name": "compiler", "value": compiler}],
        },
        "components": others,
        "dependencies": uses.collect::<Vec<_>>(),
    }))
}

fn component(kind: &str, id: &Id, links: &Links, sum: Option<&String>) -> anyhow::Result<Value> {
    let licence = links.crates.get(id).context("an unknown crate")?;
    let hashes = sum.map(|sum| json!({"alg": "SHA-256", "content": sum}));
    Ok(json!({
        "type": kind,
        "bom-ref": purl(id),
        "name": id.0,
        "version": id.1,
        "hashes": hashes.into_iter().collect::<Vec<_>>(),
        "licenses": [{"expression": licence}],
        "purl": purl(id),
    }))
}

fn purl((name, version): &Id) -> String {
    format!("pkg:cargo/{name}@{version}")
}

fn output_of(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output();
    let output = output.with_context(|| format!("starting {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the module links. A crate more is a decision, to be made here too.
    const LINKED: [&str; 9] = [
        "allocator-api2",
        "equivalent",
        "foldhash",
        "hashbrown",
        "log",
        "proxy-wasm",
        "warmpath",
        "warmpath-core",
        "xxhash-rust",
    ];

    fn of_this_workspace() -> Value {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let links = Links::of_module(&root).unwrap();
        let lock = std::fs::read_to_string(root.join("Cargo.lock")).unwrap();
        document(&links, &checksums(&lock), "rustc 1", b"module").unwrap()
    }

    fn name(component: &Value) -> &str {
        component["name"].as_str().unwrap()
    }

    #[test]
    fn the_components_are_the_crates_that_the_module_links() {
        let document = of_this_workspace();
        let own = &document["metadata"]["component"];
        let components = document["components"].as_array().unwrap();
        let mut names: Vec<_> = components.iter().map(name).collect();
        names.push(name(own));
        names.sort_unstable();
        assert_eq!(names, LINKED);
        for component in components {
            let sum = component["hashes"][0]["content"].as_str();
            let downloaded = name(component) != "warmpath-core";
            assert_eq!(sum.map(str::len), downloaded.then_some(64), "{component}");
            assert!(component["licenses"][0]["expression"].is_string());
            let version = component["version"].as_str().unwrap();
            let purl = format!("pkg:cargo/{}@{version}", name(component));
            assert_eq!(component["purl"], purl);
        }
        let users = document["dependencies"].as_array().unwrap();
        assert_eq!(users.len(), LINKED.len());
        let own_uses = users.iter().find(|it| it["ref"] == own["purl"]).unwrap();
        assert_eq!(own_uses["dependsOn"].as_array().unwrap().len(), 3);
        assert_eq!(document, of_this_workspace(), "the same each time");
    }

    #[test]
    fn the_module_is_named_by_its_bytes() {
        let links = Links::of_tree("0 warmpath v1.0.0 (/x) | MIT/Apache-2.0\n").unwrap();
        let document = document(&links, &BTreeMap::new(), "rustc 1", b"abc").unwrap();
        let own = &document["metadata"]["component"];
        let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(own["hashes"][0]["content"], sum);
        assert_eq!(own["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(document["components"], json!([]));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        assert!(Links::of_tree("").is_err());
        assert!(Links::of_tree("warmpath | MIT").is_err());
        assert!(Links::of_tree("0 warmpath v1.0.0 | ").is_err());
    }
}
