//! What follows a reply.

use super::super::{Exchange, Step};
use super::asking::keep_to_one;
use super::{Handoff, Stage};
use crate::answer::Answer;
use crate::call::Reply;
use crate::config::Connector;
use crate::disaggregation::{self as protocol, CallEnd, Outcome};
use crate::router::{Mark, Router};
use crate::store::Store;

impl Exchange {
    /// Takes the reply of the call under way.
    pub(in crate::exchange) fn handoff_reply<S: Store>(
        &mut self,
        router: &mut Router<S>,
        mut handoff: Box<Handoff>,
        reply: Reply,
        now_us: u64,
    ) -> Step {
        match handoff.stage {
            Stage::Names => {
                let names = match reply {
                    Reply::Answer { status: 200, body } => protocol::engine_ids(body),
                    _ => None,
                };
                router.learn_names(handoff.engine(), names.unwrap_or_default(), now_us);
                if router.engine_name(handoff.engine(), now_us).is_some() {
                    return self.ask_engine(router, handoff, now_us);
                }
                let end = end_of(&reply).max_failed();
                self.ask_next(router, handoff, end, mark_of(&reply, end), now_us)
            }
            Stage::Prefill => {
                let end = end_of(&reply);
                match (end, handoff.options.connector, reply) {
                    (CallEnd::Ok, Connector::Nixl, Reply::Answer { body, .. }) => {
                        match protocol::nixl_handle(body) {
                            Some(handle) => {
                                let change = protocol::nixl_decode(handle);
                                handoff.changes.push(change);
                                self.transferred(router, handoff, now_us)
                            }
                            None => self.without(router, handoff, CallEnd::NoHandle, now_us),
                        }
                    }
                    (CallEnd::Ok, Connector::Nixl, _) => {
                        self.without(router, handoff, CallEnd::NoHandle, now_us)
                    }
                    (CallEnd::Ok, ..) => self.transferred(router, handoff, now_us),
                    (
                        CallEnd::Rejected,
                        Connector::P2pNccl { .. },
                        Reply::Answer { status, body },
                    ) => {
                        self.note(&handoff, Outcome::Refused);
                        self.give_back(router, *handoff, end, now_us);
                        Step::Answer(Answer::of_engine(status, body))
                    }
                    (CallEnd::Rejected | CallEnd::NoRoom, ..) => {
                        self.without(router, handoff, end, now_us)
                    }
                    (_, _, reply) => {
                        let mark = mark_of(&reply, end);
                        self.ask_next(router, handoff, end, mark, now_us)
                    }
                }
            }
            Stage::Beside => self.beside_reply(router, handoff, &reply, now_us),
        }
    }

    /// The prefill of a request that was sent on has ended.
    fn beside_reply<S: Store>(
        &mut self,
        router: &mut Router<S>,
        mut handoff: Box<Handoff>,
        reply: &Reply,
        now_us: u64,
    ) -> Step {
        let end = end_of(reply);
        let pool = handoff.target.pool;
        // A client's mistake is one to both engines: the other will say so.
        if self.begun || matches!(end, CallEnd::Ok | CallEnd::Rejected) {
            self.note(&handoff, Outcome::Transferred);
            self.give_back(router, *handoff, end, now_us);
            return Step::Hold;
        }
        // Who decodes would wait for what does not come.
        self.note(&handoff, Outcome::Refused);
        if let Some(charge) = handoff.charge.take() {
            self.note_call(&handoff, end, now_us);
            router.not_prefilled(charge, mark_of(reply, end), now_us);
        }
        router.end_call();
        Step::Answer(Answer::not_prefilled(router.pool_name(pool)))
    }

    /// The engine whose turn it was did not do it.
    fn ask_next<S: Store>(
        &mut self,
        router: &mut Router<S>,
        mut handoff: Box<Handoff>,
        end: CallEnd,
        mark: Mark,
        now_us: u64,
    ) -> Step {
        let Some(next) = handoff.engines.get(handoff.asked + 1).copied() else {
            if let Some(charge) = handoff.charge.take() {
                self.note_call(&handoff, end, now_us);
                router.not_prefilled(charge, mark, now_us);
            }
            return self.without(router, handoff, end, now_us);
        };
        self.note_call(&handoff, end, now_us);
        if let Some(charge) = handoff.charge.as_mut() {
            router.prefill_moves(charge, next, mark, now_us);
        }
        handoff.asked += 1;
        handoff.unique = [router.draw(), router.draw()];
        self.ask_engine(router, handoff, now_us)
    }

    /// The prompt is there: the request goes on to who decodes.
    fn transferred<S: Store>(
        &mut self,
        router: &mut Router<S>,
        mut handoff: Box<Handoff>,
        now_us: u64,
    ) -> Step {
        let at = (&handoff.target, handoff.key);
        let decided = match handoff.decision.take() {
            Some(mut decision) => {
                keep_to_one(&mut decision);
                Ok(decision)
            }
            None => self.decide_now(router, at, true, now_us),
        };
        self.prefill_engine = Some(handoff.engine());
        self.scan = None;
        let changes = std::mem::take(&mut handoff.changes);
        self.note(&handoff, Outcome::Transferred);
        self.give_back(router, *handoff, CallEnd::Ok, now_us);
        match decided {
            Ok(mut decision) => {
                decision.changes = changes;
                Step::Route(decision)
            }
            Err(answer) => Step::Answer(answer),
        }
    }
}

fn end_of(reply: &Reply) -> CallEnd {
    match reply {
        Reply::Answer { status, .. } => match status {
            200..=299 => CallEnd::Ok,
            408 | 429 => CallEnd::Failed,
            400..=499 => CallEnd::Rejected,
            _ => CallEnd::Failed,
        },
        Reply::TooLong => CallEnd::Ok,
        Reply::Failed => CallEnd::Failed,
        Reply::TimedOut => CallEnd::TimedOut,
        Reply::NoRoom | Reply::NoCluster => CallEnd::NoRoom,
    }
}

/// What a reply that brought nothing says of the engine.
fn mark_of(reply: &Reply, end: CallEnd) -> Mark {
    match (reply, end) {
        (
            Reply::Answer {
                status: 429 | 503, ..
            },
            _,
        ) => Mark::Busy,
        (_, CallEnd::Failed | CallEnd::TimedOut) => Mark::Failed,
        _ => Mark::Nothing,
    }
}

impl CallEnd {
    /// The same where a success is of no use.
    fn max_failed(self) -> CallEnd {
        match self {
            CallEnd::Ok | CallEnd::Rejected => CallEnd::Failed,
            other => other,
        }
    }
}
