//! Many runs at once: every candidate of every cell's policy, with every seed.
//!
//! Runs are independent. Threads take the next one from a shared counter, and the figures are put
//! together in the order of the runs, so that results do not depend on the number of threads.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::ensure;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::policy::Spec;
use super::report::Cell;
use super::statistics::Summary;
use super::workload::Workload;
use super::world::{self, Scenario};

/// One run of one policy: where it belongs, and how.
struct Job {
    cell: usize,
    spec: Spec,
    /// Index of the workload, one per seed.
    workload: usize,
    scenario: Scenario,
}

/// What came of a job.
struct Outcome {
    summary: Summary,
    run_s: f64,
}

/// Gives every cell its figures. `workloads` has one entry per seed; `base` is the scenario up to
/// seed and speed; without `threads` as many runs go on at a time as the machine has cores.
///
/// # Errors
/// A run did not end.
pub fn run(
    cells: &mut [(Cell, Spec)],
    seeds: &[u64],
    workloads: &[Workload],
    base: &Scenario,
    threads: Option<usize>,
) -> anyhow::Result<()> {
    let jobs = jobs(cells, seeds, workloads, base);
    let outcomes = run_all(&jobs, workloads, threads)?;
    fill(cells, &jobs, &outcomes);
    Ok(())
}

/// Every candidate of every cell's policy with every seed.
fn jobs(
    cells: &[(Cell, Spec)],
    seeds: &[u64],
    workloads: &[Workload],
    base: &Scenario,
) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (number, (cell, spec)) in cells.iter().enumerate() {
        for spec in spec.candidates() {
            for (workload, (&seed, requests)) in seeds.iter().zip(workloads).enumerate() {
                jobs.push(Job {
                    cell: number,
                    spec: spec.clone(),
                    workload,
                    scenario: Scenario {
                        seed,
                        time_scale: requests.rate_per_s() / cell.rate_per_s,
                        ..base.clone()
                    },
                });
            }
        }
    }
    jobs
}

/// Runs the jobs on several threads; outcomes are in the order of the jobs.
fn run_all(
    jobs: &[Job],
    workloads: &[Workload],
    threads: Option<usize>,
) -> anyhow::Result<Vec<Outcome>> {
    let requests = |job: &Job| workloads.get(job.workload).map_or(0, |w| w.requests.len());
    let bar = progress_bar(jobs.iter().map(requests).sum::<usize>() as u64)?;
    let next = AtomicUsize::new(0);
    let outcomes: Mutex<Vec<(usize, Outcome)>> = Mutex::new(Vec::with_capacity(jobs.len()));
    let threads = match threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism()?.get(),
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| {
                while let Some((at, job)) = take(jobs, &next) {
                    let outcome = run_one(job, workloads, &bar);
                    if let (Some(outcome), Ok(mut outcomes)) = (outcome, outcomes.lock()) {
                        outcomes.push((at, outcome));
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut outcomes = outcomes
        .into_inner()
        .map_err(|_| anyhow::anyhow!("a run ended in a panic"))?;
    outcomes.sort_by_key(|(at, _)| *at);
    ensure!(outcomes.len() == jobs.len(), "a run did not end");
    Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
}

fn take<'a>(jobs: &'a [Job], next: &AtomicUsize) -> Option<(usize, &'a Job)> {
    let at = next.fetch_add(1, Ordering::Relaxed);
    Some((at, jobs.get(at)?))
}

/// One run; `None` when the job names no workload.
fn run_one(job: &Job, workloads: &[Workload], bar: &ProgressBar) -> Option<Outcome> {
    let workload = workloads.get(job.workload)?;
    let start = Instant::now();
    let mut told = 0;
    let samples = world::run(workload, &job.spec, &job.scenario, |ended| {
        bar.inc((ended - told) as u64);
        told = ended;
    });
    Some(Outcome {
        summary: samples.summary(),
        run_s: start.elapsed().as_secs_f64(),
    })
}

/// Drawn on a terminal only.
fn progress_bar(requests: u64) -> anyhow::Result<ProgressBar> {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template(
        "{elapsed_precise} {wide_bar} {human_pos}/{human_len} requests, {eta} left",
    )?;
    Ok(ProgressBar::with_draw_target(Some(requests), target).with_style(style))
}

/// Gives each cell the figures of its best candidate.
fn fill(cells: &mut [(Cell, Spec)], jobs: &[Job], outcomes: &[Outcome]) {
    for (number, (cell, _)) in cells.iter_mut().enumerate() {
        let mut candidates: Vec<(&Spec, Vec<Summary>)> = Vec::new();
        for (job, outcome) in jobs
            .iter()
            .zip(outcomes)
            .filter(|(job, _)| job.cell == number)
        {
            cell.run_s += outcome.run_s;
            match candidates.iter_mut().find(|(spec, _)| **spec == job.spec) {
                Some((_, runs)) => runs.push(outcome.summary),
                None => candidates.push((&job.spec, vec![outcome.summary])),
            }
        }
        let several = candidates.len() > 1;
        let best = candidates
            .into_iter()
            .map(|(spec, runs)| (spec, Summary::mean(&runs)))
            .min_by(|a, b| a.1.ttft_mean_s.total_cmp(&b.1.ttft_mean_s));
        if let Some((spec, summary)) = best {
            cell.summary = summary;
            cell.chosen = several.then(|| spec.to_string());
        }
    }
}
