//! From the flags of each router to a [`Plan`].

pub mod dynamo;
mod hint;
pub mod production_stack;
pub mod vllm_router;

use std::net::IpAddr;

use anyhow::{Context, ensure};

use super::dialect::Dialect;
use super::flag::Given;
use super::plan::{Plan, Pool};
use super::url::Engine;

/// What is named beside the command line, by the options of `migrate`.
#[derive(Debug, Default)]
pub struct Named {
    /// Engines, where the command line leaves it to others to find them.
    pub engines: Vec<Engine>,
    /// A service that knows what engines hold.
    pub index: Option<Engine>,
}

/// What the flags of a dialect ask for.
///
/// # Errors
/// Why nothing that works could be made of them.
pub fn plan(dialect: Dialect, given: &Given, named: Named) -> anyhow::Result<Plan> {
    let Named { engines, index } = named;
    let empty = Plan {
        index,
        ..Plan::default()
    };
    let plan = match dialect {
        Dialect::ProductionStack => production_stack::plan(given, engines, empty)?,
        Dialect::VllmRouter => vllm_router::plan(given, engines, empty)?,
        Dialect::Dynamo => dynamo::plan(given, engines, empty)?,
    };
    let asks = |pool: &Pool| pool.policy.get("kv_aware").is_some();
    ensure!(
        plan.index.is_none() || plan.pools.iter().any(asks),
        "--index: no policy of this command line asks an index"
    );
    Ok(plan)
}

/// A port, or its default.
fn port(given: &Given, name: &str) -> anyhow::Result<u16> {
    let default = given.text_or_default(name);
    let port = match given.whole(name) {
        Some(port) => u16::try_from(port).ok(),
        None => default.parse().ok(),
    };
    let port = port.filter(|&port| port != 0);
    port.with_context(|| format!("--{name} is no port"))
}

/// An address to listen on, or its default.
fn host(given: &Given, name: &str) -> anyhow::Result<String> {
    let host = match given.text_or_default(name) {
        "localhost" => "127.0.0.1",
        host => host,
    };
    let address: Result<IpAddr, _> = host.trim_matches(['[', ']']).parse();
    let address = address.with_context(|| format!("--{name} {host} is no IP address to listen on"));
    Ok(address?.to_string())
}

/// The JSON pointer to a field of a body.
fn body_pointer(field: &str) -> String {
    format!("/{}", field.replace('~', "~0").replace('/', "~1"))
}
