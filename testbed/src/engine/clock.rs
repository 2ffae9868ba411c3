//! The step driver: runs the engine model in scaled real time and hands its tokens to requests.
//!
//! One idea: one task takes a step from the model, lets the step's duration pass, and only then
//! delivers its tokens; requests are submitted and aborted at any moment in between. At time scale
//! 0 nothing is waited for. A [`Flight`] that is dropped aborts what is left of it.
//! A delivery is O(tokens of the step); the lock is never held across a wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use super::fault::Faults;
use super::kv_events::{KvEvents, Source};
use super::metrics::{Ending, Meters, Snapshot};
use crate::model::{EngineModel, ModelParams, Refusal, Step, Submission};

/// How much lateness is made up for, so that the timer's grain does not slow short steps down.
const CATCH_UP: Duration = Duration::from_millis(20);

/// One sequence to generate.
#[derive(Debug, Clone)]
pub(super) struct Job {
    /// Chained hash of each prompt block.
    pub(super) blocks: Vec<u64>,
    /// Length of the prompt.
    pub(super) prompt_tokens: u32,
    /// Tokens to generate.
    pub(super) output_tokens: u32,
    /// What KV events tell of the prompt; `None` if nobody is told.
    pub(super) source: Option<Arc<Source>>,
    /// Leading prompt tokens of which another engine has sent the KV.
    pub(super) external_tokens: u32,
    /// Whether its blocks stay taken until [`Clock::let_go`].
    pub(super) keep: bool,
}

/// An output token as its request gets it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    /// Position of its job in the submission.
    pub(super) job: usize,
    /// Position in the output, from 0.
    pub(super) index: u32,
    /// Whether it is the job's last.
    pub(super) finished: bool,
    /// Prompt tokens of the job that were served from the prefix cache.
    pub(super) cached_tokens: u32,
}

/// Why a submission was not taken.
#[derive(Debug)]
pub(super) enum Rejection {
    /// As many requests as allowed are in the engine.
    Busy,
    /// It could never run.
    Refused(Refusal),
}

/// How deep the engine sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sleep {
    /// Not at all.
    Awake,
    /// Level 1: the weights are in host memory.
    Offloaded,
    /// Level 2: the weights are gone.
    Discarded,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Clock {
    state: Mutex<State>,
    wake: Notify,
    faults: Arc<Faults>,
    time_scale: f64,
    max_queued: Option<u32>,
    kv_events: Option<KvEvents>,
}

#[derive(Debug)]
struct State {
    model: EngineModel,
    live: HashMap<u64, Live>,
    next_id: u64,
    sleep: Sleep,
    /// Requests that the model retired with the step whose time is passing.
    finishing: u32,
    meters: Meters,
}

/// A job in the engine.
#[derive(Debug)]
struct Live {
    job: usize,
    tokens: mpsc::UnboundedSender<Token>,
    every_token: bool,
    ending: Ending,
    prompt_tokens: u32,
    source: Option<Arc<Source>>,
    submitted: Instant,
    first: Instant,
    last: Instant,
}

impl Clock {
    /// A stopped clock over an idle engine; [`Clock::run`] drives it.
    pub(super) fn new(
        params: ModelParams,
        time_scale: f64,
        max_queued: Option<u32>,
        faults: Arc<Faults>,
        kv_events: Option<KvEvents>,
    ) -> Arc<Self> {
        let mut model = EngineModel::new(params);
        if kv_events.is_some() {
            model.note_cache_changes();
        }
        Arc::new(Self {
            state: Mutex::new(State {
                model,
                live: HashMap::new(),
                next_id: 0,
                sleep: Sleep::Awake,
                finishing: 0,
                meters: Meters::default(),
            }),
            wake: Notify::new(),
            faults,
            time_scale,
            max_queued,
            kv_events,
        })
    }

    /// What is told of the prefix cache, if it is.
    pub(super) fn kv_events(&self) -> Option<&KvEvents> {
        self.kv_events.as_ref()
    }

    /// Drives the model for ever.
    pub(super) async fn run(self: Arc<Self>) {
        let mut due = Instant::now();
        loop {
            let Some(step) = self.begin() else {
                self.wake.notified().await;
                due = Instant::now();
                continue;
            };
            let scale = self.time_scale * self.faults.slowdown();
            if scale > 0.0 {
                let now = Instant::now();
                let took = Duration::from_micros(step.duration_us).mul_f64(scale);
                due = due.max(now.checked_sub(CATCH_UP).unwrap_or(now)) + took;
                sleep_until(due).await;
            } else {
                // Lets requests that are ready to submit join the next step.
                tokio::task::yield_now().await;
            }
            self.deliver(&step);
        }
    }

    /// Submits all jobs of a request, or none. `every_token` false delivers only the last token
    /// of each job. `ending` is what the metrics page will say about them.
    pub(super) fn submit(
        self: &Arc<Self>,
        jobs: Vec<Job>,
        every_token: bool,
        ending: Ending,
    ) -> Result<Flight, Rejection> {
        let (sender, tokens) = mpsc::unbounded_channel();
        let mut flight = Flight {
            clock: Arc::clone(self),
            unfinished: Vec::with_capacity(jobs.len()),
            keeping: Vec::new(),
            tokens,
        };
        let mut state = self.state.lock();
        if self
            .max_queued
            .is_some_and(|most| state.in_engine() >= most)
        {
            state.meters.rejected += 1;
            return Err(Rejection::Busy);
        }
        let now = Instant::now();
        let mut refused = None;
        for (
            job,
            Job {
                blocks,
                prompt_tokens,
                output_tokens,
                source,
                external_tokens,
                keep,
            },
        ) in jobs.into_iter().enumerate()
        {
            let id = state.next_id;
            state.next_id += 1;
            let submission = Submission {
                id,
                blocks,
                prompt_tokens,
                output_tokens,
                external_tokens,
                keep,
            };
            if let Err(refusal) = state.model.submit(submission) {
                refused = Some(refusal);
                break;
            }
            let tokens = sender.clone();
            let (submitted, first, last) = (now, now, now);
            let live = Live {
                job,
                tokens,
                every_token,
                ending,
                prompt_tokens,
                source,
                submitted,
                first,
                last,
            };
            state.live.insert(id, live);
            flight.unfinished.push((job, id));
            if keep {
                flight.keeping.push(id);
            }
        }
        drop(state);
        if let Some(refusal) = refused {
            return Err(Rejection::Refused(refusal));
        }
        self.wake.notify_one();
        Ok(flight)
    }

    /// Takes the next step; `None` when there is nothing to do.
    fn begin(&self) -> Option<Step> {
        let mut state = self.state.lock();
        if state.sleep != Sleep::Awake {
            return None;
        }
        let step = state.model.step()?;
        if let Some(kv_events) = &self.kv_events {
            let changes = state.model.take_cache_changes();
            kv_events.publish(&changes, |request| state.live.get(&request)?.source.clone());
        }
        let finished = step.tokens.iter().filter(|token| token.finished).count();
        state.finishing = u32::try_from(finished).unwrap_or(u32::MAX);
        Some(step)
    }

    /// Hands out the tokens of a step that has passed.
    fn deliver(&self, step: &Step) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let State {
            live,
            meters,
            finishing,
            ..
        } = &mut *state;
        *finishing = 0;
        meters.step(step.prefill_tokens as usize + step.decode_seqs as usize);
        for event in &step.tokens {
            // A job that was aborted while the step ran is no longer here.
            let Some(job) = live.get_mut(&event.id) else {
                continue;
            };
            if event.index == 0 {
                job.first = now;
                meters.first_token(now - job.submitted);
            } else {
                meters.next_token(now - job.last);
            }
            job.last = now;
            if event.finished || job.every_token {
                // The receiver may just be going away; its flight then aborts the rest.
                let _ = job.tokens.send(Token {
                    job: job.job,
                    index: event.index,
                    finished: event.finished,
                    cached_tokens: event.cached_tokens,
                });
            }
            if event.finished {
                let output_tokens = event.index + 1;
                let prompt = (job.prompt_tokens, event.cached_tokens);
                meters.finished(
                    job.ending,
                    prompt,
                    output_tokens,
                    now - job.submitted,
                    now - job.first,
                );
                live.remove(&event.id);
            }
        }
    }

    /// Puts the engine to sleep, or wakes it. Falling asleep drops the prefix cache; requests in
    /// the engine wait.
    pub(super) fn set_sleep(&self, sleep: Sleep) {
        let mut state = self.state.lock();
        state.sleep = sleep;
        if sleep != Sleep::Awake {
            state.model.flush_cache();
        }
        drop(state);
        self.wake.notify_one();
    }

    /// How deep the engine sleeps.
    pub(super) fn sleep(&self) -> Sleep {
        self.state.lock().sleep
    }

    /// Drops every cached block that no request uses.
    pub(super) fn reset_prefix_cache(&self) {
        self.state.lock().model.flush_cache();
    }

    /// Gives back what finished jobs kept, by their ids in the model.
    pub(super) fn let_go(&self, ids: &[u64]) {
        let mut state = self.state.lock();
        for &id in ids {
            state.model.let_go(id);
        }
    }

    /// Counts an HTTP answer.
    pub(super) fn count_http(&self, handler: &'static str, method: &str, status: u16) {
        self.state.lock().meters.http(handler, method, status);
    }

    /// Gauges of this moment.
    pub(super) fn snapshot(&self) -> Snapshot {
        self.state.lock().snapshot()
    }

    /// Calls `read` with the gauges and all that was counted.
    pub(super) fn with_meters<T>(&self, read: impl FnOnce(&Snapshot, &Meters) -> T) -> T {
        let state = self.state.lock();
        read(&state.snapshot(), &state.meters)
    }

    fn abort(&self, ids: impl Iterator<Item = u64>) {
        let mut state = self.state.lock();
        for id in ids {
            state.live.remove(&id);
            state.model.abort(id);
        }
    }
}

impl State {
    /// Requests that are in the engine, those of the passing step included.
    fn in_engine(&self) -> u32 {
        let stats = self.model.stats();
        stats.running + stats.waiting + self.finishing
    }

    fn snapshot(&self) -> Snapshot {
        let mut stats = self.model.stats();
        stats.running += self.finishing;
        Snapshot {
            stats,
            sleep: self.sleep,
            params: self.model.params().clone(),
        }
    }
}

/// The jobs of one request in the engine. Dropping it aborts those that are not finished, and lets go
/// what the others keep.
#[derive(Debug)]
pub(super) struct Flight {
    clock: Arc<Clock>,
    /// Job and model id of those not finished.
    unfinished: Vec<(usize, u64)>,
    /// Model ids of those whose blocks stay taken.
    keeping: Vec<u64>,
    tokens: mpsc::UnboundedReceiver<Token>,
}

impl Flight {
    /// Ids in the model of the jobs whose blocks stay taken: it is on the caller to let them go.
    pub(super) fn take_keeping(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.keeping)
    }

    /// The next token of any job; `None` when all are finished.
    pub(super) async fn next(&mut self) -> Option<Token> {
        let token = self.tokens.recv().await?;
        if token.finished {
            self.unfinished.retain(|(job, _)| *job != token.job);
        }
        Some(token)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.unfinished.is_empty() {
            self.clock.abort(self.unfinished.iter().map(|&(_, id)| id));
        }
        if !self.keeping.is_empty() {
            self.clock.let_go(&self.keeping);
        }
    }
}
