//! On which line of a YAML or JSON text each of its values stands.
//!
//! A second look at the text, beside the one that reads its values: it only has to find lines, so where
//! the two disagree a line is missing, and that of the surrounding value is told instead. Linear in the
//! text; what aliases repeat is bounded.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

/// Most values whose lines are kept.
const MOST_VALUES: usize = 200_000;
/// Deepest nesting that is followed.
const DEEPEST: usize = 100;

/// Where a value stands.
#[derive(Clone, Copy, Debug)]
struct Spot {
    /// The line of its name, or its own.
    line: usize,
    /// The first line of a text in block style.
    content: Option<usize>,
    /// What YAML 1.1 takes the word for.
    flag: Option<bool>,
}

/// Lines of the values of one document, by JSON pointer.
#[derive(Debug, Default)]
pub struct Lines {
    spots: HashMap<String, Spot>,
    /// The line that it begins on, where it stands in another text.
    first: Option<usize>,
    /// Whether lines of the text are lines of the file.
    spread: bool,
}

impl Lines {
    /// The documents of a text. After a syntax error there are none.
    pub fn of(text: &str) -> Vec<Lines> {
        let mut reader = Reader {
            parser: Parser::new_from_str(text),
            found: Vec::new(),
            anchors: HashMap::new(),
        };
        let mut documents = Vec::new();
        while let Some((event, span)) = reader.next() {
            match event {
                Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd => {}
                Event::StreamEnd => break,
                first => {
                    if reader.value(first, span, String::new(), None, 0).is_none() {
                        break;
                    }
                    let spots = reader.found.drain(..).collect();
                    documents.push(Lines {
                        spots,
                        ..Lines::default()
                    });
                    reader.anchors.clear();
                }
            }
        }
        documents
    }

    /// Lines of a text that stands in another: its first line is that one.
    pub fn inside(text: &str, first_line: usize) -> Lines {
        let mut lines = Lines::of(text).into_iter().next().unwrap_or_default();
        for spot in lines.spots.values_mut() {
            spot.line += first_line - 1;
            spot.content = spot.content.map(|line| line + first_line - 1);
        }
        lines.first = Some(first_line);
        lines.spread = true;
        lines
    }

    /// Lines of a value of this document, by pointers within it.
    pub fn below(&self, pointer: &str) -> Lines {
        let inner = self.spots.iter().filter_map(|(full, spot)| {
            let below = full.strip_prefix(pointer)?;
            let is_inside = below.is_empty() || below.starts_with('/');
            is_inside.then(|| (below.to_owned(), *spot))
        });
        Lines {
            spots: inner.collect(),
            ..Lines::default()
        }
    }

    /// All on one line.
    pub fn on(line: usize) -> Lines {
        let spot = Spot {
            line,
            content: None,
            flag: None,
        };
        Lines {
            spots: HashMap::from([(String::new(), spot)]),
            first: Some(line),
            spread: false,
        }
    }

    /// The line of a value, or of the nearest around it.
    pub fn line(&self, pointer: &str) -> Option<usize> {
        let mut pointer = pointer;
        loop {
            if let Some(spot) = self.spots.get(pointer) {
                return Some(spot.line);
            }
            pointer = pointer.rsplit_once('/')?.0;
        }
    }

    /// Words without quotes that are `true` or `false` to Kubernetes and Envoy, which read YAML 1.1.
    pub fn flags(&self) -> impl Iterator<Item = (&str, bool)> {
        let spots = self.spots.iter();
        spots.filter_map(|(pointer, spot)| Some((pointer.as_str(), spot.flag?)))
    }

    /// The line that it begins on.
    pub fn first_line(&self) -> Option<usize> {
        self.first
    }

    /// Whether lines of the text are lines of the file.
    pub fn is_spread(&self) -> bool {
        self.spread
    }

    /// The first line of what a text in block style says.
    pub fn content(&self, pointer: &str) -> Option<usize> {
        self.spots.get(pointer)?.content
    }
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    /// In the order of the text, so what belongs to a value follows it.
    found: Vec<(String, Spot)>,
    /// What belongs to an anchored value, with pointers from there.
    anchors: HashMap<usize, Vec<(String, Spot)>>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<(Event<'a>, Span)> {
        self.parser.next_event()?.ok()
    }

    /// Reads the rest of a value. `None` if the text ends or makes no sense.
    fn value(
        &mut self,
        event: Event<'a>,
        span: Span,
        pointer: String,
        name_line: Option<usize>,
        depth: usize,
    ) -> Option<()> {
        let own_line = span.start.line();
        let line = name_line.unwrap_or(own_line);
        let start = self.found.len();
        if depth > DEEPEST || start > MOST_VALUES {
            return None;
        }
        // The parser says of a block where its text begins, not its `|`.
        let content = match &event {
            Event::Scalar(_, ScalarStyle::Literal, ..) => Some(own_line),
            _ => None,
        };
        let flag = match &event {
            Event::Scalar(word, ScalarStyle::Plain, _, None) => flag(word),
            _ => None,
        };
        let spot = Spot {
            line,
            content,
            flag,
        };
        self.found.push((pointer.clone(), spot));
        let anchor = match event {
            Event::Alias(anchor) => {
                let known = self.anchors.get(&anchor).cloned().unwrap_or_default();
                let again = known
                    .into_iter()
                    .map(|(below, spot)| (format!("{pointer}{below}"), spot));
                self.found.extend(again.take(MOST_VALUES));
                0
            }
            Event::Scalar(_, _, anchor, _) => anchor,
            Event::SequenceStart(anchor, _) => {
                for index in 0.. {
                    let (event, span) = self.next()?;
                    if event == Event::SequenceEnd {
                        break;
                    }
                    self.value(event, span, format!("{pointer}/{index}"), None, depth + 1)?;
                }
                anchor
            }
            Event::MappingStart(anchor, _) => {
                loop {
                    let (event, span) = self.next()?;
                    let name = match event {
                        Event::MappingEnd => break,
                        Event::Scalar(name, ..) => name.into_owned(),
                        // No name in JSON either: it cannot be asked for.
                        other => {
                            self.value(other, span, format!("{pointer}/"), None, depth + 1)?;
                            String::new()
                        }
                    };
                    let line = span.start.line();
                    let (event, span) = self.next()?;
                    let below = format!("{pointer}/{}", escaped(&name));
                    self.value(event, span, below, Some(line), depth + 1)?;
                }
                anchor
            }
            _ => return None,
        };
        if anchor > 0 {
            let own = self.found.get(start..).unwrap_or_default().iter();
            let own = own.filter_map(|(full, spot)| {
                let below = full.strip_prefix(pointer.as_str())?;
                Some((below.to_owned(), *spot))
            });
            let own = own.collect();
            self.anchors.insert(anchor, own);
        }
        Some(())
    }
}

fn flag(word: &str) -> Option<bool> {
    match word {
        "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
        "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

/// A name as a part of a JSON pointer.
pub fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
