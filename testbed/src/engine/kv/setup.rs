//! What an engine is set up for, and what its log says of each request.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// How KV travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Connector {
    /// vLLM's NixlConnector: the decode engine pulls what the answer of the prefill engine names.
    Nixl,
    /// vLLM's P2pNcclConnector: the prefill engine pushes to the address in the request's id.
    P2pNccl,
    /// vLLM's MooncakeConnector: both meet by a transfer id, found through a bootstrap server.
    Mooncake,
    /// SGLang: both meet in a room of the prefill engine's bootstrap server.
    Sglang,
}

/// What an engine is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Computes prompts for others.
    Prefill,
    /// Generates from what others computed.
    Decode,
}

/// An engine's side of disaggregation.
#[derive(Debug, Clone, Copy)]
pub struct Disaggregation {
    /// How KV travels.
    pub connector: Connector,
    /// What the engine is there for.
    pub role: Role,
    /// Where other engines fetch from or push to; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How long KV that nobody fetches is kept.
    pub lease: Duration,
    /// How long one side waits for the other.
    pub patience: Duration,
}

impl Disaggregation {
    /// With the real engines' lease, and less patience than theirs: tests wait for it.
    pub fn new(connector: Connector, role: Role) -> Self {
        Self {
            connector,
            role,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            lease: Duration::from_secs(30),
            patience: Duration::from_secs(10),
        }
    }
}

/// What a request came to in terms of KV, for the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KvSeen {
    /// The part that the engine did; `None`: it did all by itself.
    pub part: Option<Role>,
    /// Name of the engine that computed the prompts.
    pub source: Option<String>,
    /// Prompt tokens that it computed.
    pub tokens: u32,
    /// What was wrong with the request, or with what it led to.
    pub errors: Vec<String>,
}
