//! What engines and Envoy's admin tell us, read from their bytes.
//!
//! Each parser takes a whole text, or pieces of one, and gives plain values. None but that of the
//! seldom read metadata keeps a tree of the text, and each has a bound on what it returns. They never panic: what is not understood is
//! left out where a part is useful without it, and an error where it is not.

pub mod clusters;
pub mod endpoint_metadata;
pub mod kv_index;
pub mod models;
pub mod orca;
pub mod resp;
pub mod retry_after;
pub mod tokens;
pub mod usage;

mod admin;
mod scalar;

use crate::json::Flaw;
use std::fmt;

pub(crate) use admin::percent_encode;
pub use admin::{MAX_CLUSTERS, MAX_HOSTS};

/// Longest name that is kept, in bytes. Longer ones count as absent.
pub const MAX_NAME_BYTES: usize = 1024;

/// Why an answer was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// It is not the JSON that was asked for.
    Json {
        /// Line of the first byte that does not fit, from 1.
        line: usize,
        /// Column in that line, from 1.
        column: usize,
    },
    /// There is more in it than we take.
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many we take.
        most: usize,
    },
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json { line, column } => {
                write!(f, "line {line}, column {column}: not the expected JSON")
            }
            Self::TooMany { what, found, most } => {
                write!(f, "{found} {what}, want at most {most}")
            }
        }
    }
}

impl std::error::Error for WireError {}

impl From<Flaw> for WireError {
    fn from(flaw: Flaw) -> WireError {
        WireError::Json {
            line: flaw.line,
            column: flaw.column,
        }
    }
}

fn at_most(what: &'static str, found: usize, most: usize) -> Result<(), WireError> {
    match found > most {
        true => Err(WireError::TooMany { what, found, most }),
        false => Ok(()),
    }
}
