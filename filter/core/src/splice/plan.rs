//! Changes of members, turned into edits by one walk over each object that they speak of.

use super::members::{Member, members};
use super::{Change, Edit, MOST_MEMBERS};
use std::ops::Range;

/// What becomes of the members of a key.
#[derive(Debug)]
enum Fate<'a> {
    Gone,
    Value(&'a str),
}

/// What the changes come to.
#[derive(Debug, Default)]
pub(super) struct Plan<'a> {
    /// By path; the last one of a path counts.
    fates: Vec<(&'a [&'static str], Fate<'a>)>,
    /// Members to add at the end of the body's object.
    added: Vec<(&'static str, &'a str)>,
}

impl<'a> Plan<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.fates.is_empty() && self.added.is_empty()
    }

    /// Adds a change of members.
    pub(super) fn add(&mut self, change: &'a Change) {
        let (path, fate): (&[&'static str], _) = match change {
            Change::At(_) => return,
            Change::Remove(path) => (path, Fate::Gone),
            Change::Set(name, _) => (std::slice::from_ref(name), Fate::Gone),
            Change::Replace(name, json) => (std::slice::from_ref(name), Fate::Value(json)),
        };
        if let [name] = path {
            match &fate {
                Fate::Gone => self.added.retain(|(added, _)| added != name),
                Fate::Value(json) => {
                    for (added, value) in &mut self.added {
                        if added == name {
                            *value = json;
                        }
                    }
                }
            }
        }
        let gone = |known: &Fate| matches!(known, Fate::Gone);
        match self.fates.iter_mut().find(|(known, _)| *known == path) {
            // What is gone has no value to replace.
            Some((_, known)) if gone(known) => {}
            Some((_, known)) => *known = fate,
            None => self.fates.push((path, fate)),
        }
        if let Change::Set(name, json) = change {
            self.added.push((name, json));
        }
    }

    /// The edits of a body; `None` if it is no object.
    pub(super) fn edits(&self, body: &[u8], edits: &mut Vec<Edit>) -> Option<()> {
        self.walk(body, 0..body.len(), &mut Vec::new(), edits)
    }

    fn walk(
        &self,
        body: &[u8],
        span: Range<usize>,
        path: &mut Vec<&'static str>,
        edits: &mut Vec<Edit>,
    ) -> Option<()> {
        let mut walk = members(body, span)?;
        let opened = walk.at();
        // Where the member before ends, and whether any that stays came before.
        let (mut before, mut stays) = (opened, false);
        // A first member that goes takes along what is between it and the next.
        let mut leading: Option<usize> = None;
        while let Some(member) = walk.step()? {
            if edits.len() > MOST_MEMBERS {
                return None;
            }
            if let Some(start) = leading.take() {
                edits.push(remove(start..member.key.start));
            }
            let fate = self.fate(body, &member, path, edits)?;
            match fate {
                Some(Fate::Gone) if stays => edits.push(remove(before..member.value.end)),
                Some(Fate::Gone) => leading = Some(member.key.start),
                Some(Fate::Value(json)) => {
                    edits.push(Edit {
                        span: member.value.clone(),
                        bytes: json.as_bytes().to_vec(),
                    });
                    stays = true;
                }
                None => stays = true,
            }
            before = member.value.end;
        }
        if let Some(start) = leading {
            edits.push(remove(start..before));
        }
        if path.is_empty() {
            self.put_in(before, stays, edits);
        }
        Some(())
    }

    /// What becomes of a member; what is changed within it is done.
    fn fate(
        &self,
        body: &[u8],
        member: &Member,
        path: &mut Vec<&'static str>,
        edits: &mut Vec<Edit>,
    ) -> Option<Option<&Fate<'a>>> {
        let depth = path.len();
        let concerns = |known: &[&'static str]| known.len() > depth && known.starts_with(path);
        let mut known = self.fates.iter().filter(|(known, _)| concerns(known));
        // Most members are of no concern, and most keys are told apart by their length.
        let name = member.name(body);
        let mut found = None;
        let mut inner = None;
        for (known, fate) in &mut known {
            if known.get(depth).copied() == Some(name.as_ref()) {
                match known.len() == depth + 1 {
                    true => found = Some(fate),
                    false => inner = known.get(depth).copied(),
                }
            }
        }
        if let (None, Some(key)) = (&found, inner)
            && body.get(member.value.start) == Some(&b'{')
        {
            path.push(key);
            self.walk(body, member.value.clone(), path, edits)?;
            path.pop();
        }
        Some(found)
    }

    /// Adds what is to be added at the end of the object, which is at `at`.
    fn put_in(&self, at: usize, stays: bool, edits: &mut Vec<Edit>) {
        let mut bytes = Vec::new();
        for (name, json) in &self.added {
            if stays || !bytes.is_empty() {
                bytes.push(b',');
            }
            bytes.extend_from_slice(crate::json::string(name).as_bytes());
            bytes.push(b':');
            bytes.extend_from_slice(json.as_bytes());
        }
        if !bytes.is_empty() {
            edits.push(Edit {
                span: at..at,
                bytes,
            });
        }
    }
}

fn remove(span: Range<usize>) -> Edit {
    Edit {
        span,
        bytes: Vec::new(),
    }
}
