//! One real Envoy as a child process: started from a [`Bootstrap`], awaited until it serves, asked
//! over its admin interface, and stopped through its own handle, at the latest when dropped.
//!
//! Its configuration and its log live in a folder of its own that goes with it.

pub mod bootstrap;
mod discovery;
pub mod files;
pub mod port;
pub mod shipped;
pub mod stats;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use crate::server::Server;
pub use crate::server::{end_signal, stop_all_on_signal};
use bootstrap::Bootstrap;

/// How long Envoy may take to serve. It compiles the module first, on a machine that may be busy.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// How to start an Envoy.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The Envoy binary.
    pub binary: PathBuf,
    /// The configuration. Its addresses must be free.
    pub bootstrap: Bootstrap,
    /// Worker threads; each runs the module in a VM of its own.
    pub concurrency: u32,
    /// Envoy's `--component-log-level`, such as `wasm:info`. The rest logs warnings.
    pub component_log_level: String,
}

/// A running Envoy.
pub struct Envoy {
    server: Server,
    admin: SocketAddr,
    client: reqwest::Client,
}

impl Envoy {
    /// Starts Envoy and waits until it serves.
    ///
    /// Fails if an address is in use, if Envoy refuses the configuration (the error quotes its log)
    /// or is not ready within a minute.
    pub async fn start(launch: Launch) -> anyhow::Result<Self> {
        let addresses = launch.bootstrap.addresses()?;
        port::check_free("Envoy's listener", addresses.listener)?;
        port::check_free("Envoy's admin interface", addresses.admin)?;
        if let Some(status) = addresses.status {
            port::check_free("the status page", status)?;
        }
        let mut server = spawn(&launch)?;
        let admin = addresses.admin;
        let client = reqwest::Client::builder().no_proxy().build()?;
        let ready = async || admin_get(&client, admin, "/ready").await.is_ok();
        server.wait_until(START_DEADLINE, ready).await?;
        Ok(Self {
            server,
            admin,
            client,
        })
    }

    /// The answer of the admin interface to a GET of `path`. An error status is an error.
    pub async fn admin_get(&self, path: &str) -> anyhow::Result<String> {
        admin_get(&self.client, self.admin, path).await
    }

    /// The filter's metrics, as Prometheus reads them.
    pub async fn filter_stats(&self) -> anyhow::Result<String> {
        self.admin_get("/stats/prometheus?filter=wasmcustom").await
    }

    /// A counter or gauge of Envoy itself; 0 if there is none.
    pub async fn stat(&self, name: &str) -> anyhow::Result<u64> {
        let path = format!("/stats?filter=^{}$", name.replace('.', "\\."));
        let page = self.admin_get(&path).await?;
        let values = page.lines().filter_map(|line| line.split_once(": "));
        Ok(values.filter_map(|(_, it)| it.parse::<u64>().ok()).sum())
    }

    /// Everything Envoy and the module have logged so far.
    pub fn log(&self) -> anyhow::Result<String> {
        self.server.log()
    }

    /// Its process id.
    pub fn process_id(&self) -> u32 {
        self.server.process_id()
    }

    /// Halts it.
    pub fn stall(&self) -> anyhow::Result<()> {
        self.server.stall()
    }

    /// Lets it go on.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.server.resume()
    }

    /// Kills it, as a lost machine would be gone, and waits for its end.
    pub fn kill(&mut self) -> std::io::Result<()> {
        self.server.kill()
    }

    /// Whether the process has ended, and how.
    pub fn exit_status(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.server.exit_status()
    }

    /// The last lines of the log, for an error message.
    pub fn log_tail(&self) -> String {
        self.server.log_tail()
    }
}

async fn admin_get(
    client: &reqwest::Client,
    admin: SocketAddr,
    path: &str,
) -> anyhow::Result<String> {
    let url = format!("http://{admin}{path}");
    let answer = client.get(&url).send().await?.error_for_status()?;
    Ok(answer.text().await?)
}

fn spawn(launch: &Launch) -> anyhow::Result<Server> {
    let folder = Server::folder("envoy")?;
    let config = folder.path().join("envoy.yaml");
    std::fs::write(&config, launch.bootstrap.text())?;
    let mut command = Command::new(&launch.binary);
    command
        .arg("--config-path")
        .arg(config)
        .args(["--concurrency", &launch.concurrency.to_string()])
        .args(["--log-level", "warn"])
        // Its shared memory would let only one Envoy per machine run.
        .arg("--disable-hot-restart");
    if !launch.component_log_level.is_empty() {
        command.args(["--component-log-level", &launch.component_log_level]);
    }
    Server::start("envoy", command, folder)
}
