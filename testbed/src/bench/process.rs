//! What the kernel tells of a process, and on which CPUs it may run.
//!
//! CPU time is the sum over the threads' `schedstat`, which counts nanoseconds; the fields of
//! `stat` count ticks of 10 ms, too coarse for a window of two seconds. Linux only. Each call reads
//! one file per thread.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

/// Which CPUs a measurement uses.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Cpus {
    /// CPU that routers run on.
    #[arg(long, default_value_t = 0)]
    router_cpu: usize,
    /// CPU that everything else runs on: load, engines and, where there is one, the store.
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
    /// Let the system place everything.
    #[arg(long)]
    unpinned: bool,
}

impl Cpus {
    /// The CPU of routers and that of everything else, unless the system places them.
    pub fn pair(&self) -> Option<(usize, usize)> {
        (!self.unpinned).then_some((self.router_cpu, self.load_cpu))
    }
}

/// A process that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    pid: u32,
}

impl Process {
    /// The process with this id. Whether it exists shows at the first question.
    pub fn new(pid: u32) -> Self {
        Self { pid }
    }

    /// CPU time of all its threads so far, user and system, in nanoseconds.
    ///
    /// A running thread is up to one scheduler tick behind. Threads that ended are not counted.
    pub fn cpu_ns(self) -> anyhow::Result<u64> {
        let mut total = 0;
        for thread in self.threads()? {
            // A thread may end between the listing and the reading.
            let Ok(text) = fs::read_to_string(thread.join("schedstat")) else {
                continue;
            };
            let running = text.split_whitespace().next().map(str::parse::<u64>);
            total += running.context("an empty schedstat")??;
        }
        Ok(total)
    }

    /// Resident memory in bytes.
    pub fn rss_bytes(self) -> anyhow::Result<u64> {
        let text = fs::read_to_string(self.folder().join("status"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next());
        let kilobytes: u64 = kilobytes.context("no VmRSS in the status")?.parse()?;
        Ok(kilobytes * 1024)
    }

    /// Lets all its threads run on one CPU only; threads that they start inherit that.
    pub fn pin(self, cpu: usize) -> anyhow::Result<()> {
        for thread in self.threads()? {
            let id = thread.file_name().and_then(|name| name.to_str());
            let id = id.and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
            pin(Some(id.context("a thread without an id")?), cpu)?;
        }
        Ok(())
    }

    fn folder(self) -> PathBuf {
        format!("/proc/{}", self.pid).into()
    }

    fn threads(self) -> anyhow::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.folder().join("task"))
            .with_context(|| format!("process {} is gone", self.pid))?;
        Ok(entries
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<_>>()?)
    }
}

/// Lets the calling thread run on one CPU only.
pub fn pin_this_thread(cpu: usize) -> anyhow::Result<()> {
    pin(None, cpu)
}

fn pin(thread: Option<Pid>, cpu: usize) -> anyhow::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(anyhow!("there is no CPU {cpu}"));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(thread, &set).with_context(|| format!("pinning to CPU {cpu}"))
}

/// The processes that this one has started and that still run.
pub fn children() -> anyhow::Result<Vec<u32>> {
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // The name in parentheses may hold anything; after it come state and parent.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| {
            let parent = rest.split_whitespace().nth(1)?;
            parent.parse::<u32>().ok()
        });
        if parent == Some(own) {
            found.push(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_grows_with_work() {
        let own = Process::new(std::process::id());
        let before = own.cpu_ns().unwrap();
        let mut sum = 0_u64;
        // Until the kernel has booked it.
        while own.cpu_ns().unwrap() == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(own.cpu_ns().unwrap() > before);
    }

    #[test]
    fn memory_in_use_is_resident() {
        let own = Process::new(std::process::id());
        let block = std::hint::black_box(vec![1_u8; 8 << 20]);
        assert!(own.rss_bytes().unwrap() > block.len() as u64);
    }

    #[test]
    fn a_child_is_found_until_it_is_reaped() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        assert!(children().unwrap().contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children().unwrap().contains(&child.id()));
    }
}
