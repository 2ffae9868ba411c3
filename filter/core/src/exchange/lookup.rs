//! A lookup in a KV index, on a request's way: tokens from an engine, then who holds them, then where an
//! instance is that nobody knew.
//!
//! One budget covers all of it. Whatever happens, the request is decided: with what the service said, or
//! as if it had not been asked.

use super::{Exchange, Step, Wait};
use crate::call::{Reply, RequestCall};
use crate::kv::{Outcome, Told};
use crate::router::{Inquiry, PromptFacts, Router, Sender, Target};
use crate::scan::{Field, RequestScan};
use crate::store::Store;
use crate::wire::kv_index::Overlap;
use std::net::IpAddr;

/// A request that waits for a lookup.
#[derive(Debug)]
pub(super) struct Lookup {
    target: Target,
    key: Option<u64>,
    prompt: PromptFacts,
    started_us: u64,
    stage: Stage,
}

/// What is awaited.
#[derive(Debug)]
enum Stage {
    Tokens,
    Overlaps {
        tokens: u64,
    },
    Names {
        tokens: u64,
        overlaps: Vec<Overlap>,
        asked: Option<IpAddr>,
    },
}

impl Lookup {
    /// Position of the pool.
    pub(super) fn pool(&self) -> usize {
        self.target.pool
    }

    /// How long the next call may take, in whole milliseconds; `None` when the budget is used up.
    fn left_ms<S: Store>(&self, router: &Router<S>, now_us: u64) -> Option<u64> {
        let took_us = now_us.saturating_sub(self.started_us);
        let left_us = router.kv_budget_us(self.pool()).checked_sub(took_us)?;
        Some(left_us / 1000).filter(|left_ms| *left_ms > 0)
    }
}

impl Exchange {
    /// Decides on the whole prompt, after a lookup if one is worth it.
    pub(super) fn decide_told<S: Store>(
        &mut self,
        router: &mut Router<S>,
        target: &Target,
        key: Option<u64>,
        now_us: u64,
    ) -> Step {
        let tokenizable = self
            .scan
            .as_deref()
            .is_some_and(RequestScan::is_tokenizable);
        let prompt = self.prompt(router, target);
        let Some(prompt) = prompt.filter(|_| !router.leaves_to_envoy(target.pool)) else {
            return self.decide(router, target, key, None, now_us);
        };
        match router.kv_inquire(target, &prompt, tokenizable, self.priority, now_us) {
            Inquiry::None => self.decide(router, target, key, None, now_us),
            Inquiry::Told(told) => {
                self.told = Some((target.pool, told));
                self.decide(router, target, key, None, now_us)
            }
            Inquiry::Ask(engine) => {
                let lookup = Lookup {
                    target: target.clone(),
                    key,
                    prompt,
                    started_us: now_us,
                    stage: Stage::Tokens,
                };
                let sender = Sender {
                    changes: self.changes(target),
                    headers: self.head.as_ref().map(|head| head.headers.clone()),
                };
                let timeout_ms = lookup.left_ms(router, now_us).unwrap_or(1);
                let call = router.kv_tokens_call(engine, sender, timeout_ms);
                self.wait_for(router, lookup, call, now_us)
            }
        }
    }

    /// Takes the reply to a lookup's call.
    pub(super) fn on_lookup_reply<S: Store>(
        &mut self,
        router: &mut Router<S>,
        mut lookup: Lookup,
        reply: Reply,
        now_us: u64,
    ) -> Step {
        let pool = lookup.pool();
        match std::mem::replace(&mut lookup.stage, Stage::Tokens) {
            Stage::Tokens => {
                let Some(tokens) = router.kv_tokens(pool, reply, now_us) else {
                    return self.looked_up(router, lookup, Err(Outcome::NoTokens), now_us);
                };
                let Some(left_ms) = lookup.left_ms(router, now_us) else {
                    return self.looked_up(router, lookup, Err(Outcome::Unanswered), now_us);
                };
                let model = match self.scan.as_deref().map(RequestScan::model) {
                    Some(Field::Text(model)) => String::from_utf8_lossy(model),
                    _ => Default::default(),
                };
                let call = router.kv_overlaps_call(&lookup.target, &model, &tokens, left_ms);
                lookup.stage = Stage::Overlaps {
                    tokens: tokens.len() as u64,
                };
                self.wait_for(router, lookup, call, now_us)
            }
            Stage::Overlaps { tokens } => {
                let overlaps = match router.kv_overlaps(pool, reply, now_us) {
                    Ok(overlaps) => overlaps,
                    Err(outcome) => return self.looked_up(router, lookup, Err(outcome), now_us),
                };
                let asking = lookup.left_ms(router, now_us).and_then(|left_ms| {
                    router.kv_names_call(&lookup.target, &overlaps, left_ms, now_us)
                });
                match asking {
                    Some((asked, call)) => {
                        lookup.stage = Stage::Names {
                            tokens,
                            overlaps,
                            asked,
                        };
                        self.wait_for(router, lookup, Some(call), now_us)
                    }
                    None => self.looked_up(router, lookup, Ok((tokens, overlaps)), now_us),
                }
            }
            Stage::Names {
                tokens,
                overlaps,
                asked,
            } => {
                router.kv_names(pool, asked, reply, now_us);
                self.looked_up(router, lookup, Ok((tokens, overlaps)), now_us)
            }
        }
    }

    fn wait_for<S: Store>(
        &mut self,
        router: &mut Router<S>,
        lookup: Lookup,
        call: Option<RequestCall>,
        now_us: u64,
    ) -> Step {
        let Some(call) = call else {
            return self.looked_up(router, lookup, Err(Outcome::Unanswered), now_us);
        };
        self.wait = Wait::Lookup(Box::new(lookup));
        Step::Call(Box::new(call))
    }

    /// The lookup is over: decides with what it gave.
    fn looked_up<S: Store>(
        &mut self,
        router: &mut Router<S>,
        lookup: Lookup,
        found: Result<(u64, Vec<Overlap>), Outcome>,
        now_us: u64,
    ) -> Step {
        let Lookup {
            target,
            key,
            prompt,
            started_us,
            ..
        } = lookup;
        let told: Result<Told, Outcome> = found.map(|(tokens, overlaps)| {
            router.kv_told(target.pool, &prompt, tokens, &overlaps, now_us)
        });
        let outcome = match &told {
            Ok(told) => router.kv_outcome(&target, told),
            Err(outcome) => *outcome,
        };
        router.kv_ended(target.pool, outcome, now_us.saturating_sub(started_us));
        self.told = told.ok().map(|told| (target.pool, told));
        self.decide(router, &target, key, None, now_us)
    }
}
