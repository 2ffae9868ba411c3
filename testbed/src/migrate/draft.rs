//! The shipped configuration as text that is changed in places, so that its comments stay.
//!
//! A change names what it takes the place of, and how often that is there: if the shipped file has
//! become another, it fails instead of leaving something as it was.

use std::ops::Range;

use anyhow::{Context, ensure};

/// A text to be changed.
#[derive(Debug)]
pub struct Draft {
    text: String,
}

impl Draft {
    /// Of this text.
    pub fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
        }
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Puts `new` in the place of `old`, which must be there so many times.
    ///
    /// # Errors
    /// It is there more or less often.
    pub fn replace(&mut self, old: &str, new: &str, times: usize) -> anyhow::Result<()> {
        let found = self.text.matches(old).count();
        ensure!(
            found == times,
            "envoy/static.yaml has {old:?} {found} times instead of {times}"
        );
        self.text = self.text.replace(old, new);
        Ok(())
    }

    /// What stands from `start`, which is there once, up to the next `end`.
    ///
    /// # Errors
    /// There is no such part, or several.
    pub fn part(&self, start: &str, end: &str) -> anyhow::Result<&str> {
        let range = self.range(start, end)?;
        self.text.get(range).context("a part of a text")
    }

    /// Puts `new` in the place of such a part.
    ///
    /// # Errors
    /// There is no such part, or several.
    pub fn replace_part(&mut self, start: &str, end: &str, new: &str) -> anyhow::Result<()> {
        let range = self.range(start, end)?;
        self.text.replace_range(range, new);
        Ok(())
    }

    fn range(&self, start: &str, end: &str) -> anyhow::Result<Range<usize>> {
        let mut starts = self.text.match_indices(start);
        let (Some((begin, _)), None) = (starts.next(), starts.next()) else {
            anyhow::bail!("envoy/static.yaml does not have {start:?} once");
        };
        let after = self.text.get(begin + start.len()..).unwrap_or_default();
        let length = after
            .find(end)
            .with_context(|| format!("envoy/static.yaml has no {end:?} after {start:?}"))?;
        Ok(begin..begin + start.len() + length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_needs_what_it_changes() {
        let mut draft = Draft::new("a: 1\nb: 1\nc: 2\n");
        assert!(draft.replace(": 1", ": 3", 1).is_err());
        draft.replace(": 1", ": 3", 2).unwrap();
        assert_eq!(draft.part("b", "c").unwrap(), "b: 3\n");
        draft.replace_part("b", "c", "").unwrap();
        assert_eq!(draft.text(), "a: 3\nc: 2\n");
        assert!(draft.part(":", "c").is_err());
        assert!(draft.part("c", "d").is_err());
    }
}
