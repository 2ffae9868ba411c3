//! What the router does for requests whose prompt one engine computes for another.

use super::account::Charge;
use super::{Ask, Outcome, Router, Target};
use crate::answer::Answer;
use crate::call::{CallBody, HttpCall, Method};
use crate::config::Disaggregation;
use crate::disaggregation::MOST_REPLY_BYTES;
use crate::policy;
use crate::store::Store;
use std::net::SocketAddr;

/// How long the names of an engine's ranks are believed. Most engines choose new ones when they start,
/// which takes longer; what is believed is also forgotten with the first call that fails.
const NAMES_US: u64 = 30_000_000;

/// Pause after an answer that says that the engine is busy.
const BUSY_US: u64 = 1_000_000;

/// What a call that brought nothing says of its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Nothing.
    Nothing,
    /// It has too much to do.
    Busy,
    /// It is not fit.
    Failed,
}

/// Names of an engine's ranks, and when they were told.
pub(super) type Names = (Vec<(u16, String)>, u64);

impl<S: Store> Router<S> {
    /// Who prefills for a pool, if others do.
    pub fn disaggregation(&self, pool: usize) -> Option<&Disaggregation> {
        self.config.pools.get(pool)?.disaggregation.as_ref()
    }

    /// Whether any request may need a call on its way.
    pub fn makes_calls(&self) -> bool {
        let mut pools = self.config.pools.iter();
        pools.any(|pool| pool.disaggregation.is_some())
    }

    /// Where the prompts of a target are computed.
    pub(crate) fn prefill_target(&self, target: &Target) -> Option<Target> {
        let options = self.disaggregation(target.pool)?;
        Some(Target {
            pool: options.prefill,
            group: 0,
            ..target.clone()
        })
    }

    /// Tokens that the best engine of a target would have to compute of a prompt. Decides nothing.
    ///
    /// # Errors
    /// The answer that a decision would give, as far as that is certain.
    pub(crate) fn preview(&mut self, ask: &Ask, now_us: u64) -> Result<u64, Answer> {
        self.join(now_us);
        self.follow(now_us);
        self.drain(now_us);
        self.judge(ask.target.pool, ask.target.group, now_us);
        let members = self.members(ask.target);
        let members = members.map_or(&[][..], |members| members.group.members());
        if let Some(answer) = self.shed(ask.target, members, ask.priority) {
            return Err(answer);
        }
        if members.is_empty() {
            return Err(self.refusal(ask.target, now_us));
        }
        let Some(prompt) = &ask.prompt else {
            return Ok(0);
        };
        let members = members.to_vec();
        let mut holders = std::mem::take(&mut self.holders);
        self.look_up(ask.target.pool, Some(prompt), &mut holders);
        let held = members.iter().map(|position| holders.tokens(*position));
        let held = held.max().unwrap_or_default();
        self.holders = holders;
        Ok(prompt.tokens().saturating_sub(held))
    }

    /// An engine has computed a prompt for another one, which is all that was wanted of it.
    pub(crate) fn prefilled(&mut self, mut charge: Charge, now_us: u64) {
        self.answered(&charge, now_us);
        self.first_token(&mut charge, now_us);
        self.end(charge, Outcome::Served { output_tokens: 1 }, now_us);
    }

    /// An engine did not compute a prompt.
    pub(crate) fn not_prefilled(&mut self, charge: Charge, mark: Mark, now_us: u64) {
        self.mark_engine(charge.position(), mark, now_us);
        self.end(charge, Outcome::Failed, now_us);
    }

    /// An engine did not compute a prompt, and another one is asked.
    pub(crate) fn prefill_moves(
        &mut self,
        charge: &mut Charge,
        position: usize,
        mark: Mark,
        now_us: u64,
    ) {
        self.mark_engine(charge.position(), mark, now_us);
        let address = self.address(position).to_owned();
        self.served_by(charge, address.as_bytes(), now_us);
    }

    fn mark_engine(&mut self, position: usize, mark: Mark, now_us: u64) {
        match mark {
            Mark::Nothing => return,
            Mark::Busy => self.mark(position, now_us, |fitness, _| {
                fitness.backpressure(BUSY_US, now_us);
            }),
            Mark::Failed => self.failed(position, now_us),
        }
        if let Some(at) = self.socket(position) {
            self.names.remove(&at);
        }
    }

    /// Counts a call that a request waits for, unless there are `most` already.
    pub(crate) fn begin_call(&mut self, most: usize) -> bool {
        self.pending.begin(most)
    }

    /// A request waits for its call no more.
    pub(crate) fn end_call(&mut self) {
        self.pending.end();
    }

    /// Calls that requests of this worker wait for.
    pub fn pending_calls(&self) -> usize {
        self.pending.calls()
    }

    /// A random number.
    pub(crate) fn draw(&mut self) -> u64 {
        policy::next_random(&mut self.random)
    }

    /// Where an endpoint listens.
    pub(crate) fn socket(&self, position: usize) -> Option<SocketAddr> {
        self.endpoints
            .get(position)
            .map(|endpoint| endpoint.at.socket)
    }

    /// The name of an endpoint's rank, as far as it is known.
    pub(crate) fn engine_name(&self, position: usize, now_us: u64) -> Option<&str> {
        let (names, told_us) = self.names.get(&self.socket(position)?)?;
        let rank = self.rank(position).unwrap_or_default();
        let fresh = now_us.saturating_sub(*told_us) < NAMES_US;
        let mut names = names.iter().filter(|_| fresh);
        names
            .find(|(of, _)| *of == rank)
            .map(|(_, name)| name.as_str())
    }

    /// Takes over the names of the ranks at an endpoint's address.
    pub(crate) fn learn_names(&mut self, position: usize, names: Vec<(u16, String)>, now_us: u64) {
        let Some(at) = self.socket(position) else {
            return;
        };
        // One entry for each address that is an endpoint's.
        if self.names.len() >= self.endpoints.len() {
            let here: Vec<SocketAddr> = self.endpoints.iter().map(|it| it.at.socket).collect();
            self.names.retain(|at, _| here.contains(at));
        }
        self.names.insert(at, (names, now_us));
    }

    /// A call to exactly this address, by the cluster that scrapes go to.
    pub(crate) fn call_to(&self, at: SocketAddr, path: String, timeout_ms: u64) -> HttpCall {
        let (cluster, header) = self.config.engine_calls();
        HttpCall {
            cluster,
            method: Method::Get,
            path,
            authority: at.to_string(),
            headers: vec![(header, at.to_string())],
            body: CallBody::Empty,
            timeout_ms,
            max_bytes: MOST_REPLY_BYTES,
        }
    }
}
