//! A server that runs as a child process: in a folder of its own, which holds its configuration and its log
//! and goes with it; stopped through its own handle, at the latest when dropped.
//!
//! All of them are known by their ids, so that a signal, which skips all destructors, can end them too.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

/// How long it may take to go after SIGTERM before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// How often a state is asked for while waiting for it.
pub const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How many lines of the log an error message quotes.
const QUOTED_LINES: usize = 30;

/// The servers of this process and their folders.
static RUNNING: Mutex<Vec<(Pid, PathBuf)>> = Mutex::new(Vec::new());

/// A running server.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    child: Child,
    folder: TempDir,
}

impl Server {
    /// Starts `command` with `folder` as its own. `name` is for messages and the log's file.
    ///
    /// # Errors
    /// The binary cannot be run.
    pub fn start(
        name: &'static str,
        mut command: Command,
        folder: TempDir,
    ) -> anyhow::Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log_file(name, &folder))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", Path::new(command.get_program()).display()))?;
        running().push((Pid::from_child(&child), folder.path().to_owned()));
        Ok(Self {
            name,
            child,
            folder,
        })
    }

    /// An empty folder for a server called `name`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn folder(name: &str) -> anyhow::Result<TempDir> {
        let prefix = format!("warmpath-{name}-");
        Ok(tempfile::Builder::new().prefix(&prefix).tempdir()?)
    }

    /// Its process id.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process has ended, and how.
    pub fn exit_status(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Everything it has logged so far.
    pub fn log(&self) -> anyhow::Result<String> {
        let bytes = std::fs::read(log_file(self.name, &self.folder))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
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

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// It ends before, or is not ready in time; the error quotes its log.
    pub async fn wait_until(
        &mut self,
        deadline: Duration,
        ready: impl AsyncFn() -> bool,
    ) -> anyhow::Result<()> {
        let name = self.name;
        let end = Instant::now() + deadline;
        while !ready().await {
            if let Some(status) = self.exit_status()? {
                bail!("{name} ended at once ({status}):\n{}", self.log_tail());
            }
            if Instant::now() > end {
                bail!(
                    "{name} is not ready after {deadline:?}:\n{}",
                    self.log_tail()
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Halts it, as a machine without CPU time to give would: connections stay open, nothing is answered.
    ///
    /// # Errors
    /// It has ended.
    pub fn stall(&self) -> anyhow::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::STOP)?)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It has ended.
    pub fn resume(&self) -> anyhow::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::CONT)?)
    }

    /// Kills it, as a lost machine would be gone, and waits for its end.
    ///
    /// # Errors
    /// None is known.
    pub fn kill(&mut self) -> std::io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Asks the process to end, insists after a while, and waits for it.
    fn stop(&mut self) -> std::io::Result<()> {
        let deadline = Instant::now() + STOP_DEADLINE;
        if self.child.try_wait()?.is_none() {
            ask_to_end(Pid::from_child(&self.child))?;
        }
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                return self.kill();
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let own = Pid::from_child(&self.child);
        running().retain(|(pid, _)| *pid != own);
        if let Err(error) = self.stop() {
            let (name, id) = (self.name, self.child.id());
            eprintln!("{name} (process {id}) did not stop: {error}");
        }
    }
}

/// From now on the signals that end this process end its servers with it.
pub fn stop_all_on_signal() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::spawn(move || {
        let ended = runtime.block_on(end_signal());
        for (pid, folder) in running().iter() {
            // One that has ended by itself is no concern here.
            let _gone = ask_to_end(*pid);
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

/// A process that is halted sees SIGTERM only once it goes on.
fn ask_to_end(pid: Pid) -> rustix::io::Result<()> {
    kill_process(pid, Signal::TERM)?;
    kill_process(pid, Signal::CONT)
}

fn log_file(name: &str, folder: &TempDir) -> PathBuf {
    folder.path().join(format!("{name}.log"))
}

fn running() -> MutexGuard<'static, Vec<(Pid, PathBuf)>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Server {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Server::start("shell", command, Server::folder("shell").unwrap()).unwrap()
    }

    #[tokio::test]
    async fn one_that_ends_at_once_is_quoted() {
        let mut server = shell("echo no such thing; exit 3");
        let refused = server.wait_until(Duration::from_secs(60), async || false);
        let refused = refused.await.unwrap_err().to_string();
        assert!(refused.contains("no such thing"), "{refused}");
    }

    #[test]
    fn a_stalled_one_still_stops_and_takes_its_folder_with_it() {
        let server = shell("exec sleep 1000");
        let (id, folder) = (server.process_id(), server.folder.path().to_owned());
        server.stall().unwrap();
        let began = Instant::now();
        drop(server);
        assert!(began.elapsed() < STOP_DEADLINE);
        assert!(!folder.exists() && !Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn a_killed_one_is_gone_at_once() {
        let mut server = shell("exec sleep 1000");
        server.kill().unwrap();
        assert!(server.exit_status().unwrap().is_some());
        assert!(server.stall().is_err());
    }
}
