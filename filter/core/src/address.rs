//! Where a request may go: an engine's address, and one of its data-parallel ranks if it has any.
//!
//! An engine with data parallelism runs several schedulers, each with a cache of its own, behind one
//! port. Each rank is an endpoint of its own to everything that decides, counts or remembers; Envoy
//! knows the port alone, and the engine takes the rank from a header.

use std::fmt;
use std::net::SocketAddr;

/// The header that vLLM and SGLang take the rank from.
pub const RANK_HEADER: &str = "x-data-parallel-rank";
/// Most ranks of one engine.
pub const MAX_RANKS: u16 = 64;

/// An endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EngineAddress {
    /// Where Envoy knows it.
    pub socket: SocketAddr,
    /// Its rank, below [`MAX_RANKS`]; `None` for an engine that is one endpoint.
    pub rank: Option<u16>,
}

impl EngineAddress {
    /// The endpoints of an engine with so many ranks; 1 and 0 stand for no ranks.
    pub fn all(socket: SocketAddr, ranks: u16) -> impl Iterator<Item = EngineAddress> {
        let is_ranked = ranks > 1;
        let numbers = 0..ranks.clamp(1, MAX_RANKS);
        numbers.map(move |rank| EngineAddress {
            socket,
            rank: is_ranked.then_some(rank),
        })
    }
}

impl From<SocketAddr> for EngineAddress {
    fn from(socket: SocketAddr) -> Self {
        EngineAddress { socket, rank: None }
    }
}

/// `ip:port` or `ip:port@rank`: its name in metrics and on the status page, and what its identity is
/// made of.
impl fmt::Display for EngineAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)?;
        match self.rank {
            Some(rank) => write!(f, "@{rank}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rank_has_a_name() {
        let socket: SocketAddr = "[::1]:80".parse().unwrap();
        let names = |ranks| -> Vec<String> {
            let all = EngineAddress::all(socket, ranks);
            all.map(|one| one.to_string()).collect()
        };
        assert_eq!(names(0), ["[::1]:80"]);
        assert_eq!(names(1), ["[::1]:80"]);
        assert_eq!(names(2), ["[::1]:80@0", "[::1]:80@1"]);
        assert_eq!(names(u16::MAX).len(), usize::from(MAX_RANKS));
    }
}
