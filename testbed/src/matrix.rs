//! The `matrix` verb: the end-to-end tests in several Envoys, in each of the wasm runtimes that they
//! have, and one table of what came of it.
//!
//! Which runtimes a build of Envoy has, only the build knows: each is asked to load the shipped
//! configuration with each runtime. One run of the suite for each pair that loads.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use crate::e2e::Suite;
use crate::envoy;
use crate::envoy::bootstrap::Bootstrap;

/// What Envoy says of a runtime that it was built without.
const NOT_BUILT_IN: &str = "compiled without support";

/// Arguments of the `matrix` verb.
#[derive(clap::Args)]
pub struct Args {
    /// The Envoy binaries.
    #[arg(long, value_delimiter = ',', required = true)]
    envoys: Vec<PathBuf>,
    /// The runtimes to try in each.
    #[arg(long, value_delimiter = ',', default_value = "v8,wasmtime,wamr")]
    runtimes: Vec<String>,
    #[command(flatten)]
    suite: Suite,
}

/// What came of one runtime in one Envoy.
enum Cell {
    /// Envoy was built without it, in Envoy's words.
    Absent(String),
    /// Envoy has it and refuses the configuration, in Envoy's words.
    Refused(String),
    /// The tests ran.
    Ran { tests: u64, failed: Vec<String> },
}

/// One Envoy.
struct Row {
    version: String,
    cells: Vec<Cell>,
}

/// Runs the tests everywhere and prints the table. Fails if a test does, if a configuration is refused,
/// or if nothing ran.
pub fn run(args: Args) -> anyhow::Result<()> {
    envoy::stop_all_on_signal()?;
    let mut rows = Vec::new();
    for binary in &args.envoys {
        let version = version(binary)?;
        let mut cells = Vec::new();
        for runtime in &args.runtimes {
            println!("== Envoy {version}, {runtime}");
            cells.push(cell(&args.suite, binary, runtime)?);
        }
        rows.push(Row { version, cells });
    }
    print!("{}", report(&args.runtimes, &rows));
    let cells = || rows.iter().flat_map(|row| &row.cells);
    ensure!(
        cells().any(|cell| matches!(cell, Cell::Ran { tests: 1.., .. })),
        "no test ran in any of these Envoys"
    );
    ensure!(!cells().any(Cell::is_bad), "not everything passed");
    Ok(())
}

impl Cell {
    fn is_bad(&self) -> bool {
        match self {
            Self::Absent(_) => false,
            Self::Refused(_) => true,
            Self::Ran { failed, .. } => !failed.is_empty(),
        }
    }

    /// As in the table.
    fn text(&self) -> String {
        match self {
            Self::Absent(_) => "not in this build".to_owned(),
            Self::Refused(_) => "refused".to_owned(),
            Self::Ran { tests, failed } if failed.is_empty() => format!("all {tests}"),
            Self::Ran { tests, failed } => {
                format!("{} of {tests}", tests.saturating_sub(failed.len() as u64))
            }
        }
    }

    /// What the table has no room for.
    fn notes(&self) -> Vec<String> {
        match self {
            Self::Absent(words) | Self::Refused(words) => vec![words.clone()],
            Self::Ran { failed, .. } => failed.iter().map(|it| format!("failed: {it}")).collect(),
        }
    }
}

/// The table, and below it what it has no room for.
fn report(runtimes: &[String], rows: &[Row]) -> String {
    let mut text = format!("\n| Envoy | {} |\n|---|", runtimes.join(" | "));
    text.push_str(&"---|".repeat(runtimes.len()));
    let mut notes = String::new();
    for row in rows {
        let cells: Vec<_> = row.cells.iter().map(Cell::text).collect();
        text.push_str(&format!("\n| {} | {} |", row.version, cells.join(" | ")));
        for (runtime, cell) in runtimes.iter().zip(&row.cells) {
            for note in cell.notes() {
                notes.push_str(&format!("{}, {runtime}: {note}\n", row.version));
            }
        }
    }
    format!("{text}\n\n{notes}")
}

fn cell(suite: &Suite, binary: &Path, runtime: &str) -> anyhow::Result<Cell> {
    if let Some(words) = objection(suite, binary, runtime)? {
        println!("{words}\n");
        return Ok(match words.contains(NOT_BUILT_IN) {
            true => Cell::Absent(words),
            false => Cell::Refused(words),
        });
    }
    let (conclusion, failed) = suite.run(binary, runtime)?;
    let tests = conclusion.num_passed + conclusion.num_failed;
    Ok(Cell::Ran { tests, failed })
}

/// What an Envoy has against the shipped configuration with this runtime, if anything: its first line
/// that says so.
fn objection(suite: &Suite, binary: &Path, runtime: &str) -> anyhow::Result<Option<String>> {
    let mut bootstrap = Bootstrap::load(&suite.config)?;
    bootstrap.set_module(&suite.module);
    bootstrap.set_runtime(runtime);
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("envoy.yaml");
    std::fs::write(&config, bootstrap.text())?;
    let mut command = Command::new(binary);
    command.args(["--mode", "validate", "--log-level", "warn"]);
    let output = command.arg("--config-path").arg(config).output();
    let output = output.with_context(|| format!("starting {}", binary.display()))?;
    if output.status.success() {
        return Ok(None);
    }
    let log = String::from_utf8_lossy(&output.stderr);
    let said = log.lines().find(|line| line.contains(NOT_BUILT_IN));
    let Some(line) = said.or_else(|| log.lines().next()) else {
        bail!("{} says nothing: {}", binary.display(), output.status);
    };
    Ok(Some(words(line).to_owned()))
}

/// A line of Envoy's log without time, thread, level and place.
fn words(line: &str) -> &str {
    line.rsplit_once("] ").map_or(line, |(_, words)| words)
}

/// The version that an Envoy says it has.
fn version(binary: &Path) -> anyhow::Result<String> {
    let output = Command::new(binary).arg("--version").output();
    let output = output.with_context(|| format!("starting {}", binary.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL
    let version = text.split('/').rev().nth(3);
    let version = version.with_context(|| format!("{}: no version in {text:?}", binary.display()));
    Ok(version?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_envoy_and_words_below() {
        let runtimes = ["v8".to_owned(), "wamr".to_owned()];
        let absent = || Cell::Absent("Envoy was compiled without support for it".to_owned());
        let ran = |failed: &[&str]| Cell::Ran {
            tests: 7,
            failed: failed.iter().map(|&name| name.to_owned()).collect(),
        };
        let row = |version: &str, cells| Row {
            version: version.to_owned(),
            cells,
        };
        let rows = [
            row("1.36.4", vec![ran(&["a::b [workers=2]"]), absent()]),
            row("1.40.0", vec![ran(&[]), absent()]),
        ];
        assert!(rows[0].cells[0].is_bad() && !rows[1].cells.iter().any(Cell::is_bad));
        assert_eq!(
            report(&runtimes, &rows),
            "\n| Envoy | v8 | wamr |\n|---|---|---|\n\
             | 1.36.4 | 6 of 7 | not in this build |\n\
             | 1.40.0 | all 7 | not in this build |\n\n\
             1.36.4, v8: failed: a::b [workers=2]\n\
             1.36.4, wamr: Envoy was compiled without support for it\n\
             1.40.0, wamr: Envoy was compiled without support for it\n"
        );
    }

    #[test]
    fn words_stand_behind_the_place() {
        let line =
            "[2026-01-01 00:00:00.000][7][warning][wasm] [source/wasm_vm.cc:102] No such thing";
        assert_eq!(words(line), "No such thing");
        assert_eq!(words("No such thing"), "No such thing");
    }
}
