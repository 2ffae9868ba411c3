//! What was found, for people and for programs.

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The filter, or Envoy, refuses it.
    Error,
    /// It works, and not as wanted.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file.
    pub file: String,
    /// Its document, from 1.
    pub document: usize,
    /// The line, if it is known.
    pub line: Option<usize>,
    /// Path of the plugin configuration in the document; empty if it is the document.
    pub at: String,
    /// Path in the plugin configuration; empty if it is about what surrounds it.
    pub path: String,
    /// How bad.
    pub level: Level,
    /// Name of the rule.
    pub rule: &'static str,
    /// What is wrong.
    pub message: String,
    /// What may have been meant.
    pub suggestion: Option<String>,
}

impl Finding {
    /// Some lines of text.
    pub fn shown(&self) -> String {
        let line = self.line.map(|line| format!(":{line}")).unwrap_or_default();
        let level = match self.level {
            Level::Error => "error",
            Level::Warning => "warning",
        };
        let path = match self.path.as_str() {
            "" => String::new(),
            path => format!("{path}: "),
        };
        let mut text = format!("{}{line}: {level}: {path}{}\n", self.file, self.message);
        if let Some(suggestion) = &self.suggestion {
            text.push_str(&format!("    {suggestion}\n"));
        }
        if !self.at.is_empty() {
            text.push_str(&format!("    in document {}: {}\n", self.document, self.at));
        }
        text
    }
}

/// What became of a file.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The file.
    pub file: String,
    /// How many plugin configurations there are.
    pub plugins: usize,
    /// Why it could not be read, if it could not.
    pub unreadable: Option<String>,
    /// What is wrong, in the order of the file.
    pub findings: Vec<Finding>,
    /// Whether Envoy was asked, too.
    pub envoy: bool,
}

impl Report {
    /// How many findings are of a level.
    pub fn count(&self, level: Level) -> usize {
        let of_level = self.findings.iter().filter(|it| it.level == level);
        of_level.count()
    }

    /// Makes errors of warnings.
    pub fn tighten(&mut self) {
        for finding in &mut self.findings {
            finding.level = Level::Error;
        }
    }

    /// What there is to say, the last line being the verdict.
    pub fn shown(&self) -> String {
        let file = &self.file;
        if let Some(why) = &self.unreadable {
            return format!("{file}: unreadable: {why}\n");
        }
        let mut text: String = self.findings.iter().map(Finding::shown).collect();
        let (errors, warnings) = (self.count(Level::Error), self.count(Level::Warning));
        let verdict = match (errors, warnings, self.plugins) {
            (0, 0, 0) if !self.envoy => "no plugin configuration".to_owned(),
            (0, 0, _) => "OK".to_owned(),
            (0, warnings, _) => format!("OK, with {}", counted(warnings, "warning")),
            (errors, 0, _) => counted(errors, "error"),
            (errors, warnings, _) => {
                format!(
                    "{}, {}",
                    counted(errors, "error"),
                    counted(warnings, "warning")
                )
            }
        };
        text.push_str(&format!("{file}: {verdict}\n"));
        text
    }
}

fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}
