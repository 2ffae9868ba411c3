//! What is remembered of a KV index service: its answers, its failures, and its names for engines.
//!
//! A request asks twice, an engine for the tokens of its prompt and then the service who holds them; both
//! within one budget ([`lookup`](crate::exchange) has the course of it). Here is what keeps most requests
//! from asking: a conversation's last answer ([`Answers`]), and the rest after failures ([`Rest`]).
//! [`Directory`] tells which endpoint an instance of the service is, and [`Tally`] what became of it all.

mod answers;
mod directory;
mod rest;
mod tally;

pub use answers::{Answer, Answers};
pub use directory::{Directory, Known, add};
pub use rest::Rest;
pub use tally::{Outcome, Skip, Tally};

/// What an index service says of one prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Tokens of the prompt.
    pub tokens: u64,
    /// What each endpoint holds of it, by position, in tokens from the beginning; none twice.
    pub held: Vec<(usize, u64)>,
}
