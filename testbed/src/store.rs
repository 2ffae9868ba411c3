//! A store that several Envoys share: a real redis-server, and Webdis processes as its HTTP front, all on
//! loopback ports of their own. Tests halt, kill, restart and empty each of them.
//!
//! Redis keeps nothing on disk, so a restarted one is empty. Webdis has the options of the shipped example and
//! may run only `EVAL`; what a test does to the store itself it does over Redis's own protocol, [`commands`].

mod commands;
mod source;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use crate::bench::process::Process;
use crate::envoy::bootstrap::Bootstrap;
use crate::server::Server;
pub use commands::Reply;
use source::Source;

/// Envoy's cluster of the fronts.
pub const CLUSTER: &str = "webdis";
/// The name from which those of the streams are made.
const STREAM: &str = "warmpath";
/// The stream of news about prompts.
pub const NEWS: &str = "{warmpath}:news";
/// What the shipped example gives to Webdis and to Redis.
const SHIPPED_WEBDIS: &str = include_str!("../../envoy/scale/webdis.json");
const SHIPPED_REDIS: &str = include_str!("../../envoy/scale/redis.conf");
/// What Envoys that share must agree on.
pub const KEY: &str = "the same for all Envoys of a fleet";

/// Bytes of the largest value of the first field of an entry.
const LARGEST: &str = "local most=0 \
for _,entry in ipairs(redis.call('XRANGE',KEYS[1],'-','+')) do most=math.max(most,#entry[2][2]) end \
return most";

/// How long a server of the store may take to serve.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// What the store is made of.
#[derive(Clone, Debug, clap::Args)]
pub struct Binaries {
    /// The redis-server or valkey-server binary, or the address of one that runs.
    #[arg(long, default_value = "redis-server")]
    redis: Source,
    /// The webdis binary, or the addresses of some that run, as IP:PORT,IP:PORT.
    #[arg(long, default_value = "webdis")]
    webdis: Source,
}

impl Binaries {
    /// Whether a binary is not there, which is said aloud.
    ///
    /// # Errors
    /// One is not there, and the environment has `CI`.
    pub fn are_missing(&self) -> anyhow::Result<bool> {
        let sources = [&self.redis, &self.webdis];
        let absent: Vec<_> = sources.into_iter().filter_map(Source::absent).collect();
        if absent.is_empty() {
            return Ok(false);
        }
        let absent = absent.join(" and ");
        let missing = format!(
            "Envoys that share were not tested, for there is no {absent}. On Debian: \
             apt-get install redis-server webdis"
        );
        if std::env::var_os("CI").is_some() {
            bail!("{missing}");
        }
        eprintln!("\nSKIPPED: {missing}\n");
        Ok(true)
    }

    /// Whether they run already, so that a test can neither end nor halt them.
    pub fn are_given(&self) -> bool {
        let given = |source: &Source| matches!(source, Source::Given(_));
        given(&self.redis) || given(&self.webdis)
    }
}

/// A running store. All of it stops when it is dropped.
#[derive(Debug)]
pub struct Store {
    /// Redis itself.
    pub redis: Part,
    /// Its HTTP fronts.
    pub fronts: Vec<Part>,
}

/// One server of a store: always at the same address, whether it runs or not.
#[derive(Debug)]
pub struct Part {
    name: &'static str,
    /// Absent if it was given and is not ours.
    binary: Option<PathBuf>,
    /// Where Redis listens, to whom a front talks.
    redis: SocketAddr,
    address: SocketAddr,
    /// `None` while it is dead.
    server: Option<Server>,
}

impl Store {
    /// Starts Redis and so many fronts; returns once each front has got an answer from Redis. Those that were
    /// given are emptied instead.
    ///
    /// # Errors
    /// A binary is not there, or does not serve.
    pub async fn start(binaries: &Binaries, fronts: usize) -> anyhow::Result<Self> {
        let one = |source: &Source| source.places(1)?.pop().context("no address of Redis");
        let (binary, redis) = one(&binaries.redis)?;
        let part = |name, (binary, address)| Part {
            name,
            binary,
            redis,
            address,
            server: None,
        };
        let mut store = Self {
            redis: part("redis", (binary, redis)),
            fronts: Vec::new(),
        };
        store.redis.start().await?;
        for place in binaries.webdis.places(fronts)? {
            let mut front = part("webdis", place);
            front.start().await?;
            store.fronts.push(front);
        }
        store.flush().await?;
        Ok(store)
    }

    /// Where the fronts listen: the endpoints of Envoy's cluster.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.fronts.iter().map(|front| front.address).collect()
    }

    /// CPU time of all that runs of it so far, in nanoseconds.
    ///
    /// # Errors
    /// One of them has just ended.
    pub fn cpu_ns(&self) -> anyhow::Result<u64> {
        self.fronts
            .iter()
            .chain([&self.redis])
            .map(Part::cpu_ns)
            .sum()
    }

    /// Runs a command in Redis, without a front between.
    ///
    /// # Errors
    /// Redis does not answer, or answers with an error.
    pub async fn command(&self, words: &[&[u8]]) -> anyhow::Result<Reply> {
        commands::run(self.redis.address, words).await
    }

    /// Lets whoever comes without a name do what the shipped example allows, and nothing else from now on.
    ///
    /// # Errors
    /// Redis does not answer, or does not know such a rule.
    pub async fn guard(&self) -> anyhow::Result<()> {
        let line = SHIPPED_REDIS
            .lines()
            .find_map(|line| line.strip_prefix("user "));
        let rules = line.context("no user in the shipped configuration")?;
        let words = ["ACL", "SETUSER"].into_iter().chain(rules.split(' '));
        let words: Vec<_> = words.map(str::as_bytes).collect();
        self.command(&words).await.map(drop)
    }

    /// Forgets everything.
    ///
    /// # Errors
    /// Redis does not answer.
    pub async fn flush(&self) -> anyhow::Result<()> {
        self.command(&[b"FLUSHALL"]).await.map(drop)
    }

    /// Appends an entry with one field to a stream, as anybody who reaches Redis could.
    ///
    /// # Errors
    /// Redis does not answer, or refuses.
    pub async fn append(&self, stream: &str, field: &str, value: &[u8]) -> anyhow::Result<()> {
        let words = [b"XADD", stream.as_bytes(), b"*", field.as_bytes(), value];
        self.command(&words).await.map(drop)
    }

    /// Bytes of the largest entry of a stream; 0 if it has none.
    ///
    /// # Errors
    /// Redis does not answer, or the key holds something else.
    pub async fn largest(&self, stream: &str) -> anyhow::Result<u64> {
        let words = [b"EVAL", LARGEST.as_bytes(), b"1", stream.as_bytes()];
        match self.command(&words).await? {
            Reply::Number(bytes) => Ok(u64::try_from(bytes)?),
            other => bail!("EVAL answered {other:?}"),
        }
    }
}

/// Lets an Envoy share through the fronts at `fronts`, and says which key and how often.
///
/// # Errors
/// The configuration has no wasm filter, or no cluster of Envoy's own.
pub fn join(
    bootstrap: &mut Bootstrap,
    fronts: &[SocketAddr],
    key: &str,
    interval_ms: u64,
) -> anyhow::Result<()> {
    bootstrap.add_cluster_like("prometheus_stats", CLUSTER)?;
    bootstrap.set_endpoints(CLUSTER, fronts)?;
    let mut plugin = bootstrap.plugin()?;
    let fields = plugin.as_object_mut().context("not an object")?;
    let redis = json!({
        "cluster": CLUSTER, "stream": STREAM, "key": key, "interval_ms": interval_ms,
    });
    fields.insert("sync".to_owned(), json!({ "redis": redis }));
    bootstrap.set_plugin_text(&plugin.to_string());
    Ok(())
}

impl Part {
    /// Starts it, if it does not run, at the address that it has always had.
    ///
    /// # Errors
    /// It does not serve in time.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        let (Some(binary), None) = (&self.binary, &self.server) else {
            return Ok(());
        };
        let folder = Server::folder(self.name)?;
        let mut command = Command::new(binary);
        if self.is_redis() {
            command.args(redis_options(self.address)).arg(folder.path());
        } else {
            let file = folder.path().join("webdis.json");
            std::fs::write(&file, self.front_options()?.to_string())?;
            command.arg(file).current_dir(folder.path());
        }
        let mut server = Server::start(self.name, command, folder)?;
        let ready = async || match self.is_redis() {
            true => commands::run(self.address, &[b"PING"]).await.is_ok(),
            false => asked_through(self.address).await.is_ok(),
        };
        server.wait_until(START_DEADLINE, ready).await?;
        self.server = Some(server);
        Ok(())
    }

    /// Its CPU time so far, in nanoseconds; none while it does not run, or is not ours.
    ///
    /// # Errors
    /// It has just ended.
    pub fn cpu_ns(&self) -> anyhow::Result<u64> {
        match &self.server {
            Some(server) => Process::new(server.process_id()).cpu_ns(),
            None => Ok(0),
        }
    }

    fn is_redis(&self) -> bool {
        self.redis == self.address
    }

    /// Kills it; whoever is connected learns of it at once.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let name = self.name;
        let server = self.server.take();
        let mut server = server.with_context(|| format!("{name} does not run"))?;
        Ok(server.kill()?)
    }

    /// Halts it; whoever is connected waits.
    ///
    /// # Errors
    /// It does not run.
    pub fn stall(&self) -> anyhow::Result<()> {
        self.server()?.stall()
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.server()?.resume()
    }

    fn server(&self) -> anyhow::Result<&Server> {
        let name = self.name;
        self.server
            .as_ref()
            .with_context(|| format!("{name} does not run"))
    }

    /// The shipped ones, at its own place.
    fn front_options(&self) -> anyhow::Result<Value> {
        let mut options: Map<String, Value> = serde_json::from_str(SHIPPED_WEBDIS)?;
        for (name, value) in [
            ("redis_host", json!(self.redis.ip().to_string())),
            ("redis_port", json!(self.redis.port())),
            ("http_host", json!(self.address.ip().to_string())),
            ("http_port", json!(self.address.port())),
        ] {
            options.insert(name.to_owned(), value);
        }
        Ok(options.into())
    }
}

/// The last is the name of an option; its value follows.
fn redis_options(address: SocketAddr) -> Vec<String> {
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let words = [
        "--bind",
        &host,
        "--port",
        &port,
        "--save",
        "",
        "--appendonly",
        "no",
        "--daemonize",
        "no",
        "--dir",
    ];
    words.map(str::to_owned).to_vec()
}

/// Whether a front gets an answer from Redis.
async fn asked_through(front: SocketAddr) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://{front}/EVAL/return%201/0.raw");
    let answer = client.get(url).send().await?.error_for_status()?;
    let body = answer.text().await?;
    anyhow::ensure!(body == ":1\r\n", "{body}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_front_may_run_scripts_only_and_is_not_reached_from_elsewhere() {
        let front = Part {
            name: "webdis",
            binary: None,
            redis: "127.0.0.1:7001".parse().unwrap(),
            address: "127.0.0.1:7002".parse().unwrap(),
            server: None,
        };
        let options = front.front_options().unwrap();
        assert_eq!(options["http_host"], "127.0.0.1");
        assert_eq!(
            (&options["redis_port"], &options["http_port"]),
            (&json!(7001), &json!(7002))
        );
        // Within one entry what is disabled wins.
        assert_eq!(
            options["acl"],
            json!([{"disabled": ["*"]}, {"enabled": ["EVAL"]}])
        );
        assert!(front.stall().is_err());
    }

    #[test]
    fn an_envoy_that_joins_reaches_every_front() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut bootstrap = Bootstrap::load(&root.join("envoy/static.yaml")).unwrap();
        let fronts = ["127.0.0.1:7001", "127.0.0.1:7002"].map(|it| it.parse().unwrap());
        join(&mut bootstrap, &fronts, "secret", 50).unwrap();
        let redis = bootstrap.plugin().unwrap()["sync"]["redis"].clone();
        assert_eq!(
            (&redis["interval_ms"], &redis["key"]),
            (&json!(50), &json!("secret"))
        );
        let cluster = redis["cluster"].as_str().unwrap();
        let cluster = bootstrap.cluster_mut(cluster).unwrap().to_string();
        assert!(cluster.contains("7001") && cluster.contains("7002"));
    }

    #[test]
    fn redis_keeps_nothing() {
        let options = redis_options("127.0.0.1:7001".parse().unwrap());
        let options = options.join(" ");
        assert!(options.starts_with("--bind 127.0.0.1 --port 7001 --save  --appendonly no"));
        assert!(options.ends_with("--dir"));
    }
}
