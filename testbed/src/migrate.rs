//! The `migrate` verb: from the command line of another router to a whole Envoy configuration.
//!
//! ```text
//! testbed migrate -- vllm-router --worker-urls http://10.0.0.11:8000 http://10.0.0.12:8000 > envoy.yaml
//! ```
//!
//! A command line is read with the flags of its router ([`flag`], [`read`]) into a [`plan::Plan`], and the
//! plan is written into envoy/static.yaml ([`render`]). A flag that is not given leaves what is shipped.
//! What the configuration does not have is said, on the error output and in its first lines.

pub mod commands;
mod dialect;
mod draft;
pub mod flag;
mod plan;
mod plugin;
mod read;
mod render;
#[cfg(test)]
mod tests;
mod url;

use anyhow::{anyhow, ensure};

use dialect::{Dialect, Words};
use flag::Given;
use read::Named;
use url::Engine;

/// Flags whose values are not repeated.
const SECRETS: [&str; 2] = ["--api-key", "--sentry-dsn"];

/// Arguments of the `migrate` verb.
#[derive(clap::Args)]
pub struct Args {
    /// Whose command line it is, where its flags do not tell.
    #[arg(long)]
    from: Option<Dialect>,
    /// An engine, `http://HOST:PORT`, where the command line leaves it to others to find the engines.
    /// Can be given several times.
    #[arg(long)]
    engine: Vec<String>,
    /// The HTTP address of a service that knows what engines hold: LMCache's controller, or Dynamo's
    /// indexer. Without it kv-aware policies become `prefix`.
    #[arg(long)]
    index: Option<String>,
    /// The path of the module, as Envoy shall find it.
    #[arg(long)]
    module: Option<String>,
    /// The other router's command line, program and flags.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Prints the configuration; what it does not have goes to the error output.
///
/// # Errors
/// Why no configuration could be made.
pub fn run(args: Args) -> anyhow::Result<()> {
    let made = Migrated::of(
        args.from,
        &args.engine,
        args.index.as_deref(),
        &args.command,
    )?;
    made.check()?;
    for note in &made.notes {
        eprintln!("{note}");
    }
    let shipped = "target/wasm32-unknown-unknown/release/warmpath.wasm";
    let module = args.module.as_deref().map(|path| match is_plain(path) {
        true => path.to_owned(),
        false => quoted(path),
    });
    print!(
        "{}",
        made.envoy
            .replace(shipped, module.as_deref().unwrap_or(shipped))
    );
    Ok(())
}

/// What became of a command line.
pub struct Migrated {
    /// The Envoy configuration.
    pub envoy: String,
    /// The filter's part of it.
    pub plugin: String,
    /// What it does not have, a line for each.
    pub notes: Vec<String>,
}

impl Migrated {
    /// Makes a configuration of a command line.
    ///
    /// # Errors
    /// It is not clear whose it is, or has flags that its router does not know, or asks for what cannot be
    /// had.
    pub fn of(
        from: Option<Dialect>,
        engines: &[String],
        index: Option<&str>,
        command: &[String],
    ) -> anyhow::Result<Self> {
        let words = Words::of(command);
        let dialect = match from {
            Some(dialect) => dialect,
            None => words.dialect()?,
        };
        let given = Given::read(dialect.flags(), words.flags)?;
        let engines: anyhow::Result<Vec<Engine>> =
            engines.iter().map(|url| Engine::read(url)).collect();
        let named = Named {
            engines: engines?,
            index: index.map(Engine::read).transpose()?,
        };
        let plan = read::plan(dialect, &given, named)?;
        let mut notes = given.left_out();
        notes.extend(plan.notes.iter().cloned());
        let head = head(dialect, command, &notes);
        Ok(Self {
            envoy: render::render(&plan, &head)?,
            plugin: plugin::text(&plan)?,
            notes,
        })
    }

    /// Lets the filter's own reader check its part.
    ///
    /// # Errors
    /// What it would say, in Envoy's log.
    pub fn check(&self) -> anyhow::Result<()> {
        let Err(errors) = warmpath_core::Config::parse(self.plugin.as_bytes()) else {
            return Ok(());
        };
        let lines: Vec<_> = errors.iter().map(|error| format!("  {error}")).collect();
        ensure!(!lines.is_empty(), "the filter refuses what was made");
        Err(anyhow!(
            "the filter would refuse what these flags ask for:\n{}",
            lines.join("\n")
        ))
    }
}

/// The first lines of a configuration: where it comes from, and what it does not have.
fn head(dialect: Dialect, command: &[String], notes: &[String]) -> String {
    let mut lines = vec![
        format!(
            "Made by `testbed migrate` from a command line of {}:",
            dialect.project()
        ),
        String::new(),
        format!("  {}", shown(command)),
        String::new(),
    ];
    if !notes.is_empty() {
        lines.push("Not in here:".to_owned());
        lines.extend(notes.iter().map(|note| format!("- {note}")));
        lines.push(String::new());
    }
    lines.push(
        "docs/migrate.md tells of every flag. The path of the module is that in a checkout."
            .to_owned(),
    );
    let lines = lines.iter().flat_map(|line| line.split('\n'));
    let comment = |line: &str| format!("# {line}").trim_end().to_owned() + "\n";
    lines.map(comment).collect::<String>() + "\n"
}

/// A command line as one would type it.
fn shown(command: &[String]) -> String {
    let mut is_secret = false;
    let words = command.iter().map(|word| {
        let (name, value) = match word.split_once('=') {
            Some((name, _)) => (name, true),
            None => (word.as_str(), false),
        };
        let hidden = SECRETS.contains(&name);
        let shown = match (is_secret, hidden && value) {
            (true, _) => "...".to_owned(),
            (false, true) => format!("{name}=..."),
            _ if is_plain(word) => word.clone(),
            _ => quoted(word),
        };
        is_secret = hidden && !value;
        shown
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Whether a text needs no quotes, in a shell and as a path in YAML.
fn is_plain(text: &str) -> bool {
    let plain = |char: char| char.is_ascii_alphanumeric() || "-_./:,=@%+".contains(char);
    !text.is_empty() && text.chars().all(plain)
}

/// A text in quotes, as JSON and YAML have it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
