//! A flag of another router: its name, its values, and what becomes of it here.
//!
//! The tables in [`production_stack`], [`vllm_router`] and [`dynamo`] are the one place that knows flags.
//! The parser is made of them, the notes beside a printed configuration, and the tables of
//! docs/migrate.md, which a test holds against them.

pub mod dynamo;
pub mod production_stack;
pub mod vllm_router;

use anyhow::anyhow;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

/// What follows a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Nothing.
    Nothing,
    /// Nothing; the other name, which is given here, turns it off.
    NothingOr(&'static str),
    /// One text.
    Text,
    /// One whole number, 0 at least.
    Whole,
    /// One number.
    Number,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// Any number of texts; the flag may come again and adds to them.
    Texts,
    /// A URL and perhaps a port or `none`; the flag may come again.
    UrlAndPort,
}

/// What becomes of a flag. The text is Markdown.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    /// The printed configuration has it, in the way that the text tells.
    Kept(&'static str),
    /// There is a counterpart, which the printed configuration does not have.
    ByHand(&'static str),
    /// There is none, and the text tells why.
    NotOffered(&'static str),
}

/// A flag of another router.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// What follows it.
    pub takes: Takes,
    /// Its value when it is not given; empty for none, words about it in parentheses.
    pub default: &'static str,
    /// What becomes of it.
    pub fate: Fate,
    /// Another name for it; empty for none.
    pub also: &'static str,
}

impl Flag {
    /// A line of a table of flags.
    pub const fn new(name: &'static str, takes: Takes, default: &'static str, fate: Fate) -> Self {
        Self {
            name,
            takes,
            default,
            fate,
            also: "",
        }
    }

    /// The same flag, which has another name, too.
    pub const fn also(mut self, name: &'static str) -> Self {
        self.also = name;
        self
    }

    /// Its names, without dashes.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let off = match self.takes {
            Takes::NothingOr(off) => off,
            _ => "",
        };
        let names = [self.name, self.also, off];
        names.into_iter().filter(|name| !name.is_empty())
    }

    /// What becomes of it, in a sentence.
    pub fn here(&self) -> String {
        match self.fate {
            Fate::Kept(text) => text.to_owned(),
            Fate::ByHand(text) => format!("By hand: {text}"),
            Fate::NotOffered(text) => format!("Not offered: {text}"),
        }
    }

    fn arg(&self) -> Arg {
        let arg = Arg::new(self.name).long(self.name);
        let arg = match self.also {
            "" => arg,
            also => arg.alias(also),
        };
        match self.takes {
            Takes::Nothing | Takes::NothingOr(_) => arg.action(ArgAction::SetTrue),
            Takes::Text => arg.action(ArgAction::Set),
            Takes::Whole => arg.value_parser(value_parser!(u64)),
            Takes::Number => arg
                .value_parser(value_parser!(f64))
                .allow_negative_numbers(true),
            Takes::OneOf(choices) => arg.value_parser(choices.to_vec()),
            Takes::Texts => arg.action(ArgAction::Append).num_args(0..),
            Takes::UrlAndPort => arg.action(ArgAction::Append).num_args(1..=2),
        }
    }
}

/// A command line, read.
pub struct Given {
    flags: &'static [Flag],
    matches: ArgMatches,
}

impl Given {
    /// Reads the words of a command line that follow the program's name. As in these programs a name
    /// may be cut short, and of a flag that is given twice the last counts.
    ///
    /// # Errors
    /// A flag that is not known, with the nearest that is; a value that it does not take.
    pub fn read(flags: &'static [Flag], words: &[String]) -> anyhow::Result<Self> {
        let mut command = Command::new("migrate")
            .no_binary_name(true)
            .disable_help_flag(true)
            .disable_version_flag(true)
            .infer_long_args(true)
            .args_override_self(true);
        for flag in flags {
            command = command.arg(flag.arg());
            if let Takes::NothingOr(off) = flag.takes {
                let off = Arg::new(off).long(off).action(ArgAction::SetTrue);
                command = command.arg(off.overrides_with(flag.name));
            }
        }
        let matches = command.try_get_matches_from(words);
        let matches = matches.map_err(|error| anyhow!("{}", error.render()))?;
        Ok(Self { flags, matches })
    }

    /// Whether the command line has the flag.
    pub fn has(&self, name: &str) -> bool {
        self.matches.value_source(name) == Some(ValueSource::CommandLine)
    }

    /// Its text, if the command line has it.
    pub fn text(&self, name: &str) -> Option<&str> {
        let text = self.matches.try_get_one::<String>(name).ok().flatten()?;
        Some(text.as_str())
    }

    /// Its text, or that which it has when it is not given.
    pub fn text_or_default(&self, name: &str) -> &str {
        let default = self.flags.iter().find(|flag| flag.name == name);
        let default = default.map_or("", |flag| flag.default);
        self.text(name).unwrap_or(default)
    }

    /// Its number, if the command line has it.
    pub fn whole(&self, name: &str) -> Option<u64> {
        self.matches
            .try_get_one::<u64>(name)
            .ok()
            .flatten()
            .copied()
    }

    /// Its number, if the command line has it.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.matches
            .try_get_one::<f64>(name)
            .ok()
            .flatten()
            .copied()
    }

    /// All its texts.
    pub fn texts(&self, name: &str) -> Vec<String> {
        let texts = self.matches.try_get_many::<String>(name).ok().flatten();
        texts.into_iter().flatten().cloned().collect()
    }

    /// Its texts, those of each time that it is given.
    pub fn each_time(&self, name: &str) -> Vec<Vec<String>> {
        let times = self.matches.try_get_occurrences::<String>(name);
        let times = times.ok().flatten().into_iter().flatten();
        times.map(|texts| texts.cloned().collect()).collect()
    }

    /// What the command line has and the printed configuration has not, each with the reason.
    pub fn left_out(&self) -> Vec<String> {
        let given = |flag: &&Flag| {
            let off = match flag.takes {
                Takes::NothingOr(off) => self.has(off),
                _ => false,
            };
            off || self.has(flag.name)
        };
        let left_out = |flag: &&Flag| !matches!(flag.fate, Fate::Kept(_));
        let flags = self.flags.iter().filter(left_out).filter(given);
        flags
            .map(|flag| format!("--{}: {}", flag.name, plain(&flag.here())))
            .collect()
    }
}

/// Markdown without its links and code marks.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once('[') {
        plain.push_str(before);
        // A path such as `pools[].name` is no link.
        match link.split_once("](") {
            Some((name, target)) if !name.contains(']') => {
                plain.push_str(name);
                rest = target.split_once(')').map_or("", |(_, rest)| rest);
            }
            _ => {
                plain.push('[');
                rest = link;
            }
        }
    }
    plain.push_str(rest);
    plain.replace('`', "")
}
