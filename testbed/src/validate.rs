//! The `validate` verb: plugin configurations, wherever they stand, checked before anything runs.
//!
//! ```text
//! testbed validate plugin.json envoy.yaml manifests.yaml
//! ```
//!
//! A file is read as documents ([`document`]), in which plugin configurations are found ([`find`]). Each is
//! given to the filter's own reader, so what is said of it is what the filter would say; [`suggest`] adds
//! what may have been meant, by the schema, and [`advice`] what is accepted and probably not wanted. What
//! Envoy starts with can be loaded by Envoy, too ([`envoy`]).

mod advice;
mod document;
mod envoy;
mod find;
mod lines;
mod report;
mod schema;
mod suggest;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use warmpath_core::Config;
use warmpath_core::config::ConfigError;

use document::Document;
use find::Plugin;
use lines::escaped;
use report::{Finding, Level, Report};

/// Arguments of the `validate` verb.
#[derive(clap::Args)]
pub struct Args {
    /// Plugin configurations, Envoy configurations or Kubernetes manifests, YAML or JSON; `-` is the
    /// standard input.
    #[arg(required = true)]
    file: Vec<PathBuf>,
    /// Warnings count as errors.
    #[arg(long)]
    strict: bool,
    /// Print what was found as JSON.
    #[arg(long)]
    json: bool,
    /// Let this Envoy load what it can start with.
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// The module that Envoy loads, whatever path the configuration names.
    #[arg(long, requires = "envoy")]
    module: Option<PathBuf>,
}

/// Prints what is wrong, and ends the process with 0 if nothing is, 1 after errors, and 2 if a file cannot be
/// read or none has a plugin configuration.
///
/// # Errors
/// The output cannot be written.
pub fn run(args: Args) -> anyhow::Result<()> {
    let module = args.module;
    let loader = args.envoy.map(|envoy| envoy::Loader { envoy, module });
    let mut reports = check(&args.file, loader.as_ref());
    if args.strict {
        reports.iter_mut().for_each(Report::tighten);
    }
    match args.json {
        true => println!(
            "{}",
            serde_json::to_string_pretty(&BTreeMap::from([("files", &reports)]))?
        ),
        false => reports
            .iter()
            .for_each(|report| print!("{}", report.shown())),
    }
    let status = status(&reports);
    if status != 0 {
        std::process::exit(status);
    }
    Ok(())
}

/// Checks files. What one says of another counts: a patch may set what a plugin's own resource cannot.
fn check(files: &[PathBuf], loader: Option<&envoy::Loader>) -> Vec<Report> {
    let texts = files.iter().map(|file| (file, document::text(file)));
    let read: Vec<_> = texts
        .map(|(file, text)| {
            let documents = text.and_then(|text| {
                let documents = document::documents(&text)?;
                Ok((text, documents))
            });
            (file, documents)
        })
        .collect();
    let all = read
        .iter()
        .filter_map(|(_, documents)| documents.as_ref().ok());
    let patched = all.flat_map(|(_, documents)| documents).any(patches);
    let reports = read.iter().map(|(file, documents)| match documents {
        Ok((text, documents)) => {
            let mut report = checked(file, documents, patched);
            let is_bootstrap = documents.iter().any(|it| find::is_bootstrap(&it.value));
            if let Some(loader) = loader.filter(|_| is_bootstrap && report.count(Level::Error) == 0)
            {
                ask_envoy(loader, text, &mut report);
            }
            report
        }
        Err(error) => Report {
            file: file.display().to_string(),
            unreadable: Some(format!("{error:#}")),
            ..Report::default()
        },
    });
    reports.collect()
}

/// Whether a document is a patch that makes Envoy show bodies.
fn patches(document: &Document) -> bool {
    let kind = document.value.get("kind").and_then(Value::as_str);
    kind == Some("EnvoyPatchPolicy")
        && document
            .value
            .to_string()
            .contains("allow_on_headers_stop_iteration")
}

fn checked(file: &Path, documents: &[Document], patched: bool) -> Report {
    let mut report = Report {
        file: file.display().to_string(),
        ..Report::default()
    };
    for (index, document) in documents.iter().enumerate() {
        find::plugins(&document.value, &document.lines, &mut |plugin| {
            report.plugins += 1;
            let found = findings(&report.file, index + 1, &plugin, patched);
            for finding in found {
                // The same text can be read twice, by an alias.
                let same = |other: &Finding| Finding {
                    at: String::new(),
                    ..other.clone()
                };
                if !report
                    .findings
                    .iter()
                    .any(|other| same(other) == same(&finding))
                {
                    report.findings.push(finding);
                }
            }
        });
    }
    report
        .findings
        .sort_by_key(|finding| (finding.document, finding.line));
    report
}

/// What is wrong with a plugin configuration and around it.
fn findings(file: &str, document: usize, plugin: &Plugin, patched: bool) -> Vec<Finding> {
    let finding = |level, rule, line, path: &str, message, suggestion| Finding {
        file: file.to_owned(),
        document,
        line,
        at: plugin.at.clone(),
        path: path.to_owned(),
        level,
        rule,
        message,
        suggestion,
    };
    let parsed = Config::parse(plugin.text.as_bytes());
    let value: Value = serde_json::from_str(&plugin.text).unwrap_or_default();
    let mut found = Vec::new();
    for error in parsed.as_ref().err().into_iter().flatten() {
        let path = error.path.strip_prefix("config").unwrap_or(&error.path);
        let path = path.strip_prefix('.').unwrap_or(path);
        let line = syntax_line(plugin, error);
        let line = line.or_else(|| plugin.lines.line(&pointer(&value, path)));
        let line = line.or(plugin.line);
        let message = format!("got {}, want {}", error.got, error.want);
        let suggestion = suggest::suggestion(error);
        found.push(finding(
            Level::Error,
            "refused",
            line,
            path,
            message,
            suggestion,
        ));
    }
    for advice in advice::advice(plugin, parsed.as_ref().ok(), patched) {
        let line = match advice.path.as_str() {
            "" => plugin.line,
            path => plugin.lines.line(&pointer(&value, path)),
        };
        let (rule, text) = (advice.rule, advice.text);
        found.push(finding(
            Level::Warning,
            rule,
            line,
            &advice.path,
            text,
            advice.suggestion,
        ));
    }
    found
}

/// The line of an error of syntax.
fn syntax_line(plugin: &Plugin, error: &ConfigError) -> Option<usize> {
    let (_, place) = error
        .got
        .rsplit_once(" at line ")
        .filter(|_| error.want == "JSON")?;
    let line: usize = place.split(' ').next()?.parse().ok()?;
    // Of a text within one line no more can be told.
    Some(
        plugin.lines.first_line()?
            + if plugin.lines.is_spread() {
                line.max(1) - 1
            } else {
                0
            },
    )
}

/// The JSON pointer of a path such as `pools[0].name`, as far as there is something.
fn pointer(value: &Value, path: &str) -> String {
    let (mut at, mut pointer, mut rest) = (value, String::new(), path);
    while !rest.is_empty() {
        let found = match at {
            Value::Array(items) => rest.strip_prefix('[').and_then(|inner| {
                let (index, after) = inner.split_once(']')?;
                let item = items.get(index.parse::<usize>().ok()?)?;
                Some((item, index.to_owned(), after))
            }),
            Value::Object(map) => {
                let rest = rest.strip_prefix('.').unwrap_or(rest);
                // Names may have dots in them.
                let fits = |name: &&String| {
                    let after = rest.strip_prefix(name.as_str());
                    after.is_some_and(|after| after.is_empty() || after.starts_with(['.', '[']))
                };
                let name = map.keys().filter(fits).max_by_key(|name| name.len());
                name.and_then(|name| Some((map.get(name)?, escaped(name), rest.get(name.len()..)?)))
            }
            _ => None,
        };
        let Some((inner, name, after)) = found else {
            break;
        };
        pointer.push_str(&format!("/{name}"));
        (at, rest) = (inner, after);
    }
    pointer
}

fn ask_envoy(loader: &envoy::Loader, text: &str, report: &mut Report) {
    report.envoy = true;
    if let Err(error) = loader.load(text) {
        report.findings.push(Finding {
            file: report.file.clone(),
            document: 1,
            line: None,
            at: String::new(),
            path: String::new(),
            level: Level::Error,
            rule: "envoy",
            message: format!("Envoy refuses it:\n{error:#}"),
            suggestion: None,
        });
    }
}

/// The status that the process ends with.
fn status(reports: &[Report]) -> i32 {
    let errors = reports.iter().any(|report| report.count(Level::Error) > 0);
    let unreadable = reports.iter().any(|report| report.unreadable.is_some());
    let plugins: usize = reports.iter().map(|report| report.plugins).sum();
    let envoy = reports.iter().any(|report| report.envoy);
    match () {
        () if unreadable || (plugins == 0 && !envoy) => 2,
        () if errors => 1,
        () => 0,
    }
}
