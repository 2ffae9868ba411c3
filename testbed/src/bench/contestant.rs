//! What is compared: Envoys with one configuration in variants, and other routers that already run.
//!
//! Every Envoy starts from the shipped configuration, made lean: one pool and cluster, no active
//! health checks, no debug headers. [`Variant::Bare`] differs from warmpath's cases in the filter
//! alone, and in that its cluster balances by itself.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use super::corpus::MODEL;
use super::process::{Process, children, pin_this_thread};
use crate::envoy::bootstrap::{Addresses, Bootstrap};
use crate::envoy::{Envoy, Launch};

/// The pool, and its cluster.
const POOL: &str = "llama";
/// Where the connection manager of the first listener stands in a configuration.
const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
/// How long another router may take to listen: it may wait for our engines first.
const PEER_DEADLINE: Duration = Duration::from_secs(60);
/// How often that is tried.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// One way to set up an Envoy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Variant {
    /// The same configuration without the filter; the cluster's own `least_request` decides.
    Bare,
    /// `Bare` without retries and header mutations: the least that an Envoy does.
    Minimal,
    /// `Bare` with Envoy's native buffer filter: what holding whole bodies costs by itself.
    Buffer,
    /// warmpath's configuration with a native filter that sets the same headers, always to the same
    /// engines: what it costs Envoy to be told where to send a request.
    Steered,
    /// warmpath.
    Warmpath {
        /// Its policy, as in the configuration.
        policy: Value,
        /// The wasm module.
        module: PathBuf,
    },
}

/// How the Envoys are set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The Envoy binary.
    pub binary: PathBuf,
    /// The configuration that all start from.
    pub config: PathBuf,
    /// Worker threads of each.
    pub concurrency: u32,
    /// Which CPU routers run on, and which this process.
    pub cpus: Option<(usize, usize)>,
}

/// A router that is measured.
pub struct Contestant {
    /// Its name in reports.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its process, if it is known.
    pub process: Option<Process>,
    /// Kept for its end.
    _envoy: Option<Envoy>,
}

impl Contestant {
    /// Starts an Envoy in front of `engines`.
    pub async fn start(
        name: &str,
        variant: &Variant,
        setup: &Setup,
        engines: &[SocketAddr],
    ) -> anyhow::Result<Self> {
        let bootstrap = configure(variant, setup, engines)?;
        let address = bootstrap.addresses()?.listener;
        let launch = Launch {
            binary: setup.binary.clone(),
            bootstrap,
            concurrency: setup.concurrency,
            component_log_level: String::new(),
        };
        let before = children()?;
        // Envoy inherits the CPU of the thread that starts it, for all its threads.
        if let Some((router_cpu, _)) = setup.cpus {
            pin_this_thread(router_cpu)?;
        }
        let envoy = Envoy::start(launch).await;
        if let Some((_, load_cpu)) = setup.cpus {
            pin_this_thread(load_cpu)?;
        }
        let envoy = envoy.with_context(|| format!("starting {name}"))?;
        let pid = children()?.into_iter().find(|pid| !before.contains(pid));
        Ok(Self {
            name: name.to_owned(),
            address,
            process: Some(Process::new(pid.context("Envoy has no process")?)),
            _envoy: Some(envoy),
        })
    }

    /// A router that listens at `address`, for tests.
    #[cfg(test)]
    pub fn of(address: SocketAddr) -> Self {
        Self {
            name: "test".to_owned(),
            address,
            process: None,
            _envoy: None,
        }
    }

    /// Waits for another router to listen, and moves its process to the routers' CPU.
    pub async fn meet(peer: &Peer, setup: &Setup) -> anyhow::Result<Self> {
        let deadline = Instant::now() + PEER_DEADLINE;
        while let Err(error) = tokio::net::TcpStream::connect(peer.address).await {
            if Instant::now() > deadline {
                return Err(error).with_context(|| format!("connecting to {}", peer.name));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        let process = peer.pid.map(Process::new);
        if let (Some(process), Some((router_cpu, _))) = (process, setup.cpus) {
            process.pin(router_cpu)?;
        }
        Ok(Self {
            name: peer.name.clone(),
            address: peer.address,
            process,
            _envoy: None,
        })
    }
}

/// Another router, as named on the command line: `NAME=http://IP:PORT[,pid=N]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    name: String,
    address: SocketAddr,
    pid: Option<u32>,
}

impl FromStr for Peer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, rest) = text.split_once('=').context("want NAME=URL[,pid=N]")?;
        let (url, pid) = match rest.split_once(",pid=") {
            Some((url, pid)) => (url, Some(pid.parse().context("not a process id")?)),
            None => (rest, None),
        };
        let place = url.strip_prefix("http://").unwrap_or(url);
        let place = place.strip_suffix('/').unwrap_or(place);
        let place = place.replace("localhost", &Ipv4Addr::LOCALHOST.to_string());
        let address = place.parse().context("want http://IP:PORT")?;
        Ok(Self {
            name: name.to_owned(),
            address,
            pid,
        })
    }
}

/// The configuration of a variant: one pool in front of `engines`, on ports of its own.
pub fn configure(
    variant: &Variant,
    setup: &Setup,
    engines: &[SocketAddr],
) -> anyhow::Result<Bootstrap> {
    let mut bootstrap = Bootstrap::load(&setup.config)?;
    bootstrap.set_addresses(Addresses::free()?)?;
    bootstrap.stop_health_checks()?;
    bootstrap.set_endpoints(POOL, engines)?;
    match variant {
        Variant::Warmpath { policy, module } => {
            bootstrap.set_module(module);
            bootstrap.set_plugin_text(&plugin(policy, engines).to_string());
        }
        Variant::Steered => {
            bootstrap = edit(&bootstrap, |tree| replace_plugin(tree, steering(engines)))?;
        }
        Variant::Buffer => {
            balance_by_itself(bootstrap.cluster_mut(POOL)?)?;
            bootstrap = edit(&bootstrap, |tree| replace_plugin(tree, buffering()))?;
        }
        Variant::Bare => {
            balance_by_itself(bootstrap.cluster_mut(POOL)?)?;
            bootstrap.remove_plugin()?;
        }
        Variant::Minimal => {
            balance_by_itself(bootstrap.cluster_mut(POOL)?)?;
            bootstrap.remove_plugin()?;
            bootstrap = edit(&bootstrap, remove_extras)?;
        }
    }
    Ok(bootstrap)
}

/// The plugin's configuration: the model must be read from the body to find the pool.
fn plugin(policy: &Value, engines: &[SocketAddr]) -> Value {
    let endpoints: Vec<_> = engines
        .iter()
        .map(|address| json!({"address": address.to_string()}))
        .collect();
    json!({
        "pools": [{
            "name": POOL,
            "cluster": POOL,
            "models": [MODEL],
            "endpoints": {"static": endpoints},
            "policy": policy,
        }],
        "limits": {"hold_bytes": 8 << 20},
    })
}

/// Replaces `override_host` by what it falls back to.
fn balance_by_itself(cluster: &mut Value) -> anyhow::Result<()> {
    let policy = cluster
        .pointer_mut("/load_balancing_policy")
        .context("the cluster has no load balancing policy")?;
    let fallback = policy
        .pointer("/policies/0/typed_extension_config/typed_config/fallback_policy")
        .context("the cluster's policy has no fallback")?
        .clone();
    *policy = fallback;
    Ok(())
}

fn replace_plugin(tree: &mut Value, filter: Value) -> anyhow::Result<()> {
    let place = tree
        .pointer_mut(&format!("{MANAGER}/http_filters/0"))
        .context("no HTTP filters")?;
    *place = filter;
    Ok(())
}

/// Envoy's native filter that holds a request until its body is complete.
fn buffering() -> Value {
    json!({
        "name": "buffer",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer",
            "max_request_bytes": 32 << 20,
        },
    })
}

/// A native filter that sets the headers which warmpath sets.
fn steering(engines: &[SocketAddr]) -> Value {
    let ranked: Vec<_> = engines.iter().take(3).map(SocketAddr::to_string).collect();
    let set = |name: &str, value: &str| {
        json!({"append": {
            "header": {"key": name, "value": value},
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        }})
    };
    json!({
        "name": "steering",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
            "mutations": {"request_mutations": [
                set("x-gateway-destination-endpoint", &ranked.join(",")),
                set("x-warmpath-cluster", POOL),
            ]},
        },
    })
}

fn remove_extras(tree: &mut Value) -> anyhow::Result<()> {
    let manager = tree.pointer_mut(MANAGER).and_then(Value::as_object_mut);
    let manager = manager.context("no connection manager")?;
    manager.remove("early_header_mutation_extensions");
    let host = manager
        .get_mut("route_config")
        .and_then(|routes| routes.pointer_mut("/virtual_hosts/0"));
    if let Some(host) = host.and_then(Value::as_object_mut) {
        host.remove("retry_policy");
    }
    let clusters = tree
        .pointer_mut("/static_resources/clusters")
        .and_then(Value::as_array_mut);
    for cluster in clusters.into_iter().flatten() {
        let options = cluster.pointer_mut("/typed_extension_protocol_options");
        let options = options.and_then(Value::as_object_mut);
        for protocol in options.into_iter().flat_map(|options| options.values_mut()) {
            if let Some(protocol) = protocol.as_object_mut() {
                protocol.remove("http_filters");
            }
        }
    }
    Ok(())
}

/// A configuration with its tree changed.
fn edit(
    bootstrap: &Bootstrap,
    change: impl FnOnce(&mut Value) -> anyhow::Result<()>,
) -> anyhow::Result<Bootstrap> {
    let mut tree = serde_json::from_str(&bootstrap.text())?;
    change(&mut tree)?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), tree.to_string())?;
    Bootstrap::load(file.path())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config(variant: &Variant) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let setup = Setup {
            binary: PathBuf::new(),
            config: root.join("envoy/static.yaml"),
            concurrency: 1,
            cpus: None,
        };
        let engines = ["127.0.0.1:7001".parse().unwrap()];
        configure(variant, &setup, &engines).unwrap().text()
    }

    #[test]
    fn variants_differ_in_what_their_names_say() {
        let with = config(&Variant::Warmpath {
            policy: json!("prefix"),
            module: "/opt/warmpath.wasm".into(),
        });
        assert!(with.contains("/opt/warmpath.wasm") && with.contains("7001"));
        for variant in [Variant::Bare, Variant::Minimal, Variant::Buffer] {
            let text = config(&variant);
            assert!(!text.contains("filters.http.wasm") && text.contains("7001"));
            assert!(!text.contains("health_checks"));
        }
        assert!(config(&Variant::Bare).contains("retry_policy"));
        assert!(!config(&Variant::Minimal).contains("retry_policy"));
        assert!(!config(&Variant::Minimal).contains("header_mutation"));
        assert!(config(&Variant::Buffer).contains("filters.http.buffer"));
        let steered = config(&Variant::Steered);
        assert!(steered.contains(r#""value":"127.0.0.1:7001""#));
        assert!(!steered.contains("filters.http.wasm"));
    }

    #[test]
    fn peers_are_read_from_the_command_line() {
        let peer: Peer = "other=http://127.0.0.1:9000/,pid=12".parse().unwrap();
        assert_eq!((peer.name.as_str(), peer.pid), ("other", Some(12)));
        assert_eq!(peer.address.port(), 9000);
        let peer: Peer = "other=http://localhost:9000".parse().unwrap();
        assert_eq!((peer.address.port(), peer.pid), (9000, None));
        assert!("http://127.0.0.1:9000".parse::<Peer>().is_err());
        assert!("other=http://127.0.0.1".parse::<Peer>().is_err());
    }
}
