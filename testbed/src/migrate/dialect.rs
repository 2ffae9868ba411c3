//! Whose command line it is.
//!
//! Two routers are called `vllm-router`, so the program's name tells only where Python names a module.
//! Otherwise the flags do: one that a single router knows settles it.

use anyhow::{anyhow, bail};

use super::flag::{Flag, dynamo, production_stack, vllm_router};
use crate::nearest::nearest;

/// A router that one may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Dialect {
    /// vllm-project/production-stack, `python -m vllm_router.app`.
    ProductionStack,
    /// vllm-project/router, its Rust binary or Python launcher.
    VllmRouter,
    /// ai-dynamo/dynamo, `python -m dynamo.frontend` or `dynamo.router`.
    Dynamo,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ProductionStack, Self::VllmRouter, Self::Dynamo];

    /// Its name as a value of `--from`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ProductionStack => "production-stack",
            Self::VllmRouter => "vllm-router",
            Self::Dynamo => "dynamo",
        }
    }

    /// Its project.
    pub fn project(self) -> &'static str {
        match self {
            Self::ProductionStack => "vllm-project/production-stack",
            Self::VllmRouter => "vllm-project/router",
            Self::Dynamo => "ai-dynamo/dynamo",
        }
    }

    /// Its flags.
    pub fn flags(self) -> &'static [Flag] {
        match self {
            Self::ProductionStack => production_stack::FLAGS,
            Self::VllmRouter => vllm_router::FLAGS,
            Self::Dynamo => dynamo::FLAGS,
        }
    }

    /// Names of all flags, without dashes.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.flags().iter().flat_map(Flag::names)
    }

    /// Whether it knows a flag of this name, perhaps cut short, with this word after it.
    fn knows(self, name: &str, next: Option<&str>) -> bool {
        // The one flag that tells by its value: a choice here, a switch there.
        if name == "service-discovery" {
            let kind = matches!(next, Some("static" | "k8s" | "external-only"));
            return match self {
                Self::ProductionStack => kind,
                Self::VllmRouter => !kind,
                Self::Dynamo => false,
            };
        }
        self.names().any(|known| known.starts_with(name))
    }
}

/// The words of a command line, taken apart.
#[derive(Debug)]
pub struct Words<'a> {
    /// What starts the program.
    pub program: &'a [String],
    /// What follows.
    pub flags: &'a [String],
}

impl<'a> Words<'a> {
    /// Takes a command line apart: flags begin with the first word that looks like one, or, where
    /// `cargo run` starts the program, after its `--`.
    pub fn of(words: &'a [String]) -> Self {
        let cargo = words.first().is_some_and(|word| word == "cargo");
        let bare = words.iter().position(|word| word == "--");
        let at = match bare.filter(|_| cargo) {
            Some(bare) => bare + 1,
            None => {
                let first = words.iter().position(|word| word.starts_with("--"));
                first.unwrap_or(words.len())
            }
        };
        let (program, flags) = words.split_at(at);
        Self { program, flags }
    }

    /// Whose they are.
    ///
    /// # Errors
    /// They could be of several routers, or are of none.
    pub fn dialect(&self) -> anyhow::Result<Dialect> {
        for word in self.program {
            match word.as_str() {
                "vllm_router.app" => return Ok(Dialect::ProductionStack),
                "vllm_router.launch_router" | "cargo" => return Ok(Dialect::VllmRouter),
                "dynamo.frontend" | "dynamo.router" => return Ok(Dialect::Dynamo),
                _ => {}
            }
        }
        let mut telling: Vec<(Dialect, &str)> = Vec::new();
        let mut strange = None;
        for (word, value, next) in self.named() {
            let next = value.or(next);
            let mut knowing = Dialect::ALL
                .into_iter()
                .filter(|dialect| dialect.knows(word, next));
            match (knowing.next(), knowing.next()) {
                (Some(only), None) => telling.push((only, word)),
                (None, _) => strange = strange.or(Some(word)),
                _ => {}
            }
        }
        let Some(&(dialect, first)) = telling.first() else {
            return Err(nobodys(strange));
        };
        if let Some((other, second)) = telling.iter().find(|(other, _)| *other != dialect) {
            bail!(
                "--{first} is a flag of {}, --{second} one of {}: say whose the command line is with \
                 --from {} or --from {}, before the `--`",
                dialect.project(),
                other.project(),
                dialect.name(),
                other.name(),
            );
        }
        Ok(dialect)
    }

    /// Names of the flags, each with its value after `=`, and the word after it.
    fn named(&self) -> impl Iterator<Item = (&str, Option<&str>, Option<&str>)> {
        let next = self.flags.iter().skip(1).map(|word| Some(word.as_str()));
        let words = self.flags.iter().zip(next.chain([None]));
        words.filter_map(|(word, next)| {
            let name = word.strip_prefix("--").filter(|name| !name.is_empty())?;
            Some(match name.split_once('=') {
                Some((name, value)) => (name, Some(value), next),
                None => (name, None, next),
            })
        })
    }
}

/// Why no flag tells.
fn nobodys(strange: Option<&str>) -> anyhow::Error {
    let names = Dialect::ALL.map(|dialect| format!("--from {}", dialect.name()));
    let names = names.join(", ");
    let Some(strange) = strange else {
        return anyhow!(
            "several routers have these flags: say whose the command line is with one of {names}, \
             before the `--`"
        );
    };
    let known = Dialect::ALL.into_iter().flat_map(|dialect| {
        let names = dialect.names();
        names.map(move |name| (name, dialect))
    });
    let nearest = nearest(strange, known).map_or(String::new(), |(_, name, dialect)| {
        format!("; the nearest is --{name} of {}", dialect.project())
    });
    anyhow!("no router has a flag --{strange}{nearest}")
}
