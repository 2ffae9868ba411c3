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

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bootstrap::Bootstrap;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

/// How long Envoy may take to serve. It compiles the module first, on a machine that may be busy.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long Envoy may take to go after SIGTERM before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// How often a state is asked for while waiting for it.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How many lines of Envoy's log an error message quotes.
const QUOTED_LINES: usize = 30;

/// The Envoys of this process and their folders, so that a signal, which skips all destructors, can
/// end and remove them.
static RUNNING: Mutex<Vec<(Pid, PathBuf)>> = Mutex::new(Vec::new());

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
    child: Child,
    admin: SocketAddr,
    client: reqwest::Client,
    folder: TempDir,
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
        let folder = tempfile::Builder::new()
            .prefix("warmpath-envoy-")
            .tempdir()?;
        let mut envoy = Self {
            child: spawn(&launch, &folder)?,
            admin: addresses.admin,
            client: reqwest::Client::builder().no_proxy().build()?,
            folder,
        };
        envoy.wait_until_ready().await?;
        Ok(envoy)
    }

    /// The answer of the admin interface to a GET of `path`. An error status is an error.
    pub async fn admin_get(&self, path: &str) -> anyhow::Result<String> {
        let url = format!("http://{}{path}", self.admin);
        let answer = self.client.get(&url).send().await?.error_for_status()?;
        Ok(answer.text().await?)
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
        let bytes = std::fs::read(self.folder.path().join("envoy.log"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Its process id.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process has ended, and how.
    pub fn exit_status(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// The last lines of the log, for an error message.
    pub fn log_tail(&self) -> String {
        let log = self.log().unwrap_or_else(|error| error.to_string());
        let lines: Vec<_> = log.lines().collect();
        let skipped = lines.len().saturating_sub(QUOTED_LINES);
        lines
            .into_iter()
            .skip(skipped)
            .collect::<Vec<_>>()
            .join("\n")
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        while self.admin_get("/ready").await.is_err() {
            if let Some(status) = self.exit_status()? {
                bail!("Envoy ended at once ({status}):\n{}", self.log_tail());
            }
            if Instant::now() > deadline {
                bail!(
                    "Envoy is not ready after {START_DEADLINE:?}:\n{}",
                    self.log_tail()
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Asks the process to end, insists after a while, and waits for it.
    fn stop(&mut self) -> std::io::Result<()> {
        let deadline = Instant::now() + STOP_DEADLINE;
        if self.child.try_wait()?.is_none() {
            kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        }
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                self.child.kill()?;
                self.child.wait()?;
                break;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let own = Pid::from_child(&self.child);
        running().retain(|(pid, _)| *pid != own);
        if let Err(error) = self.stop() {
            eprintln!("Envoy (process {}) did not stop: {error}", self.child.id());
        }
    }
}

fn spawn(launch: &Launch, folder: &TempDir) -> anyhow::Result<Child> {
    let config = folder.path().join("envoy.yaml");
    std::fs::write(&config, launch.bootstrap.text())?;
    let log = File::create(folder.path().join("envoy.log"))?;
    let mut command = Command::new(&launch.binary);
    command
        .arg("--config-path")
        .arg(config)
        .args(["--concurrency", &launch.concurrency.to_string()])
        .args(["--log-level", "warn"])
        // Its shared memory would let only one Envoy per machine run.
        .arg("--disable-hot-restart")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    if !launch.component_log_level.is_empty() {
        command.args(["--component-log-level", &launch.component_log_level]);
    }
    let child = command
        .spawn()
        .with_context(|| format!("starting {}", launch.binary.display()))?;
    running().push((Pid::from_child(&child), folder.path().to_owned()));
    Ok(child)
}

/// From now on the signals that end this process end its Envoys with it.
pub fn stop_all_on_signal() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::spawn(move || {
        let ended = runtime.block_on(end_signal());
        for (pid, folder) in running().iter() {
            // One that has ended by itself is no concern here.
            let _gone = kill_process(*pid, Signal::TERM);
            let _removed = std::fs::remove_dir_all(folder);
        }
        std::process::exit(if ended.is_ok() { 130 } else { 1 });
    });
    Ok(())
}

/// Waits for a signal that asks this process to end: Ctrl-C, SIGTERM or a closed terminal.
pub async fn end_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn running() -> std::sync::MutexGuard<'static, Vec<(Pid, PathBuf)>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}
