//! The pages as text: code blocks, prose, tables of options, headings, links.
//!
//! Knows as much of Markdown as these pages use.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A page of README and docs.
pub struct Page {
    pub path: PathBuf,
    pub text: String,
}

/// A fenced block of a page.
pub struct Block {
    pub language: String,
    pub text: String,
    /// The line before it.
    pub before: String,
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// One page, by its path from the root.
pub fn page(path: &str) -> Page {
    let path = root().join(path);
    let text = std::fs::read_to_string(&path).expect("a page");
    Page { path, text }
}

/// Every page.
pub fn pages() -> Vec<Page> {
    let mut names = vec!["README.md".to_owned(), "CHANGELOG.md".to_owned()];
    for entry in std::fs::read_dir(root().join("docs")).expect("a folder") {
        let name = entry.expect("an entry").file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".md") {
            names.push(format!("docs/{name}"));
        }
    }
    names.iter().map(|name| page(name)).collect()
}

impl Page {
    /// Code blocks, in order.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut open = false;
        let mut before = "";
        for line in self.text.lines() {
            let last = std::mem::replace(&mut before, line);
            if let Some(language) = line.trim_start().strip_prefix("```") {
                open = !open;
                if open {
                    blocks.push(Block {
                        language: language.to_owned(),
                        text: String::new(),
                        before: last.to_owned(),
                    });
                }
            } else if let Some(block) = blocks.last_mut().filter(|_| open) {
                block.text.push_str(line);
                block.text.push('\n');
            }
        }
        assert!(!open, "{}: a code block is not closed", self.path.display());
        blocks
    }

    /// Texts of the code blocks of a language.
    pub fn code(&self, language: &str) -> Vec<String> {
        let mut blocks = self.blocks();
        blocks.retain(|block| block.language == language);
        blocks.into_iter().map(|block| block.text).collect()
    }

    /// Every `json` block, parsed.
    pub fn json(&self) -> Vec<Value> {
        let parse = |text: String| {
            let parsed = serde_json::from_str(&text);
            parsed.unwrap_or_else(|error| panic!("{}: {error} in {text}", self.path.display()))
        };
        self.code("json").into_iter().map(parse).collect()
    }

    /// The text without code blocks.
    pub fn prose(&self) -> String {
        let mut open = false;
        let lines = self.text.lines().filter(|line| {
            let fence = line.trim_start().starts_with("```");
            open ^= fence;
            !open && !fence
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// What stands between backticks in the prose.
    pub fn names(&self) -> Vec<String> {
        let prose = self.prose();
        let names = prose
            .lines()
            .flat_map(|line| line.split('`').skip(1).step_by(2));
        names.map(str::to_owned).collect()
    }

    /// Rows of the tables headed `Option`: path to cells.
    pub fn option_rows(&self) -> BTreeMap<String, Vec<String>> {
        let mut rows = BTreeMap::new();
        let mut in_options = false;
        for line in self.text.lines() {
            let cells: Vec<String> = line.split('|').map(|cell| cell.trim().to_owned()).collect();
            match cells.get(1).map(String::as_str) {
                None => in_options = false,
                Some("Option") => in_options = true,
                Some(first) if in_options && first.starts_with('`') => {
                    let again = rows.insert(first.trim_matches('`').to_owned(), cells);
                    assert!(again.is_none(), "an option is documented twice: {line}");
                }
                Some(_) => {}
            }
        }
        rows
    }

    /// The names that links may use for places in this page.
    pub fn anchors(&self) -> BTreeSet<String> {
        let prose = self.prose();
        let titles = prose.lines().filter(|line| line.starts_with('#'));
        let anchor = |title: &str| {
            let title = title.trim_start_matches('#').trim().to_lowercase();
            let kept = title
                .chars()
                .filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_'));
            kept.map(|char| if char == ' ' { '-' } else { char })
                .collect()
        };
        titles.map(anchor).collect()
    }

    /// Targets of the links.
    pub fn links(&self) -> Vec<String> {
        let prose = self.prose();
        let starts = prose.split("](").skip(1);
        starts
            .filter_map(|rest| rest.split(')').next())
            .map(str::to_owned)
            .collect()
    }
}
