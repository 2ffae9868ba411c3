//! A request whose prompt one engine computes for another: who is asked when, and what follows a reply.
//!
//! ```text
//! nixl               prefill call -> decision -> sent on with what the reply says
//! p2p_nccl           decision -> prefill call -> sent on
//! mooncake, sglang   decision -> [call for the engine's name] -> sent on, the prefill call beside it
//! ```
//!
//! A prefill engine that fails is followed by the next of its ranking; when none is left, the engine that
//! decodes does it all, where the connector allows that. There is one call at most under way for a
//! request, so memory and time are bounded by the ranking and by `timeout_ms`.

mod asking;
mod replies;

use super::{Exchange, Step, Wait};
use crate::answer::Answer;
use crate::config::{Connector, Disaggregation};
use crate::decision::{Decision, Fallback};
use crate::disaggregation::{CallEnd, Note, Outcome, Skip};
use crate::router::{self, Ask, Charge, Mark, PromptFacts, Router, State, Target};
use crate::scan::Api;
use crate::splice::Change;
use crate::store::Store;

/// A request between two engines.
#[derive(Debug)]
pub(super) struct Handoff {
    target: Target,
    key: Option<u64>,
    options: Disaggregation,
    stage: Stage,
    /// What was decided before the prefill.
    decision: Option<Decision>,
    /// What is different in both bodies.
    changes: Vec<Change>,
    /// Engines that may prefill, best first.
    engines: Vec<usize>,
    /// Which of them is asked.
    asked: usize,
    /// How the prefill is counted there.
    charge: Option<Charge>,
    started_us: u64,
    unique: [u64; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The name of the engine is awaited.
    Names,
    /// The prefill is awaited.
    Prefill,
    /// The request was sent on; the prefill is under way.
    Beside,
}

impl Handoff {
    fn engine(&self) -> usize {
        self.engines.get(self.asked).copied().unwrap_or_default()
    }
}

impl Exchange {
    /// Lets another engine compute the prompt, if that is worth it.
    pub(super) fn disaggregate<S: Store>(
        &mut self,
        router: &mut Router<S>,
        (target, key): (&Target, Option<u64>),
        options: Disaggregation,
        now_us: u64,
    ) -> Step {
        let ask = self.ask(router, target, key);
        let uncached_tokens = match router.preview(&ask, now_us) {
            Ok(tokens) => tokens,
            Err(answer) => return Step::Answer(answer),
        };
        if let Some(skip) = self.reason_to_skip(&options, uncached_tokens) {
            return self.skip(router, (target, key), options.connector, skip, now_us);
        }
        let facts = PromptFacts {
            streamed: true,
            output_tokens: Some(1),
            ..ask.prompt.unwrap_or_default()
        };
        let Some((engines, charge)) = self.prefill_engines(router, (target, key), facts, now_us)
        else {
            let skip = Skip::NoPrefillEngine;
            return self.skip(router, (target, key), options.connector, skip, now_us);
        };
        if !router.begin_call(options.max_pending) {
            router.not_prefilled(charge, Mark::Nothing, now_us);
            let skip = Skip::TooManyPending;
            return self.skip(router, (target, key), options.connector, skip, now_us);
        }
        let mut handoff = Box::new(Handoff {
            target: target.clone(),
            key,
            stage: Stage::Prefill,
            decision: None,
            changes: self.changes(target),
            engines,
            asked: 0,
            charge: Some(charge),
            started_us: now_us,
            unique: [router.draw(), router.draw()],
            options,
        });
        if handoff.options.connector != Connector::Nixl {
            match self.decide_now(router, (target, key), true, now_us) {
                Ok(decision) => handoff.decision = Some(decision),
                Err(answer) => {
                    self.give_back(router, *handoff, CallEnd::Abandoned, now_us);
                    return Step::Answer(answer);
                }
            }
        }
        self.ask_engine(router, handoff, now_us)
    }

    /// What happened since this was last asked.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// Position of the engine that computed the prompt for the one that decodes.
    pub fn prefill_engine(&self) -> Option<usize> {
        self.prefill_engine
    }

    /// Whatever is under way is of no use any more.
    pub(super) fn abandon<S: Store>(&mut self, router: &mut Router<S>, now_us: u64) {
        let Wait::Handoff(mut handoff) = std::mem::take(&mut self.wait) else {
            return;
        };
        if handoff.stage == Stage::Beside
            && self.begun
            && let Some(charge) = handoff.charge.take()
        {
            // Who decodes has begun to answer, so the prompt was handed over; when, nobody has seen.
            self.note(&handoff, Outcome::Transferred);
            self.notes.push(Note::Prefilled {
                pool: handoff.options.prefill,
                position: handoff.engine(),
                end: CallEnd::Ok,
                took_us: None,
            });
            router.end(charge, router::Outcome::Served { output_tokens: 1 }, now_us);
        }
        self.give_back(router, *handoff, CallEnd::Abandoned, now_us);
    }

    /// Why a request is not worth two engines, or not fit for it.
    fn reason_to_skip(&self, options: &Disaggregation, uncached_tokens: u64) -> Option<Skip> {
        let connector = options.connector;
        let served = match self.api? {
            Api::ChatCompletions | Api::Completions => true,
            Api::Generate => matches!(connector, Connector::Sglang { .. }),
            _ => false,
        };
        if !served {
            return Some(Skip::Api);
        }
        if !connector.decodes_alone() {
            return None;
        }
        let shape = self.scan.as_ref()?.shape();
        if shape.prompt_back {
            Some(Skip::PromptBack)
        } else if shape.prompts > 1 {
            Some(Skip::Batch)
        } else if shape.several_choices {
            Some(Skip::SeveralChoices)
        } else {
            (uncached_tokens < options.min_uncached_tokens).then_some(Skip::TooShort)
        }
    }

    /// Lets the engine that decodes do it all, where it can.
    fn skip<S: Store>(
        &mut self,
        router: &mut Router<S>,
        at: (&Target, Option<u64>),
        connector: Connector,
        skip: Skip,
        now_us: u64,
    ) -> Step {
        let pool = at.0.pool;
        self.notes.push(Note::Skipped { pool, skip });
        let generates = matches!(
            self.api,
            Some(
                Api::ChatCompletions
                    | Api::Completions
                    | Api::Generate
                    | Api::Responses
                    | Api::Messages
            )
        );
        if connector.decodes_alone() || !generates {
            return self.decide_alone(router, at, None, now_us);
        }
        let name = router.pool_name(pool);
        Step::Answer(match skip {
            Skip::Api => Answer::not_disaggregated(name),
            _ => Answer::not_prefilled(name),
        })
    }

    /// Engines that may prefill, and the charge at the first; none where all are a last resort and to try
    /// them would do harm.
    fn prefill_engines<S: Store>(
        &self,
        router: &mut Router<S>,
        (target, key): (&Target, Option<u64>),
        facts: PromptFacts,
        now_us: u64,
    ) -> Option<(Vec<usize>, Charge)> {
        let prefill = router.prefill_target(target)?;
        let ask = Ask {
            target: &prefill,
            key,
            prompt: Some(facts),
            priority: self.priority,
        };
        let connector = router.disaggregation(target.pool)?.connector;
        let (decision, charge) = router.decide(ask, now_us).ok()?;
        if decision.fallback == Some(Fallback::LastResort) {
            // Envoy's word alone may be wrong; who failed requests would let a decode engine wait.
            let state = router.state(prefill.pool, charge.position(), now_us);
            let failed = matches!(
                state,
                State::CoolingDown | State::Backpressure | State::Stalled | State::Sleeping
            );
            if connector.decodes_alone() || failed && connector.is_concurrent() {
                router.not_prefilled(charge, Mark::Nothing, now_us);
                return None;
            }
        }
        Some((decision.ranked, charge))
    }

    /// Nobody computed the prompt: who decodes does it, or nobody can.
    fn without<S: Store>(
        &mut self,
        router: &mut Router<S>,
        handoff: Box<Handoff>,
        end: CallEnd,
        now_us: u64,
    ) -> Step {
        if let Some(charge) = self.charge.take() {
            router.end(charge, router::Outcome::Failed, now_us);
        }
        let (target, key) = (handoff.target.clone(), handoff.key);
        let alone = handoff.options.connector.decodes_alone();
        let outcome = match alone {
            true => Outcome::DecodedAlone,
            false => Outcome::Refused,
        };
        self.note(&handoff, outcome);
        self.give_back(router, *handoff, end, now_us);
        match alone {
            true => self.decide_alone(router, (&target, key), None, now_us),
            false => Step::Answer(Answer::not_prefilled(router.pool_name(target.pool))),
        }
    }

    /// The handoff is over: what was counted for it is given back.
    fn give_back<S: Store>(
        &mut self,
        router: &mut Router<S>,
        mut handoff: Handoff,
        end: CallEnd,
        now_us: u64,
    ) {
        router.end_call();
        if let Some(charge) = handoff.charge.take() {
            self.note_call(&handoff, end, now_us);
            match end {
                CallEnd::Ok | CallEnd::NoHandle => router.prefilled(charge, now_us),
                CallEnd::Failed | CallEnd::TimedOut => {
                    router.not_prefilled(charge, Mark::Failed, now_us);
                }
                _ => router.not_prefilled(charge, Mark::Nothing, now_us),
            }
        }
    }

    fn note(&mut self, handoff: &Handoff, outcome: Outcome) {
        let pool = handoff.target.pool;
        self.notes.push(Note::Disaggregated { pool, outcome });
    }

    fn note_call(&mut self, handoff: &Handoff, end: CallEnd, now_us: u64) {
        self.notes.push(Note::Prefilled {
            pool: handoff.options.prefill,
            position: handoff.engine(),
            end,
            took_us: Some(now_us.saturating_sub(handoff.started_us)),
        });
    }
}
