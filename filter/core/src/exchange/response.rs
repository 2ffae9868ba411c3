//! A request after its decision: it was sent, an engine answers, it ends. The router and the reading of the
//! answer are told of each; a request that was not decided has nothing to tell. O(1), but for the end of an
//! answer that is read.

use super::{Exchange, Wait};
use crate::feedback::{Feedback, Finding, LoadReport};
use crate::router::{Charge, Outcome, Response, Router};
use crate::store::Store;

impl Exchange {
    /// The response's head came: it says who answered, which after retries is another than the first,
    /// and how fit the endpoints are that the request met.
    pub fn responded<S: Store>(&mut self, router: &mut Router<S>, response: Response, now_us: u64) {
        self.begun = true;
        if let Some(charge) = self.charge.as_mut() {
            router.served_by(charge, response.address, now_us);
            router.responded(charge, response, now_us);
        }
    }

    /// What is read of the answer.
    pub fn feedback(&mut self) -> &mut Feedback {
        &mut self.feedback
    }

    /// Looks at the answer's headers, names in lower case, after [`Exchange::responded`].
    pub fn on_answer_headers<S: Store>(
        &mut self,
        router: &mut Router<S>,
        status: u16,
        headers: &[(String, Vec<u8>)],
        now_us: u64,
    ) -> LoadReport {
        let report = self.feedback.on_headers(status, headers);
        if let (Some(load), Some(charge)) = (&report.load, &self.charge) {
            router.load_told(charge, load, now_us);
        }
        report
    }

    /// What the engine reported in its answer, which is over; `complete` says that it came to its end.
    pub fn reported<S: Store>(&mut self, router: &mut Router<S>, complete: bool) -> Finding {
        let predicted = self.charge.as_ref().map_or((0, 0), |charge| {
            (charge.cached_tokens(), charge.prompt_tokens())
        });
        let finding = self.feedback.reading().finish(complete, predicted);
        if let (Some(charge), Finding::Report(report)) = (&self.charge, finding) {
            router.recall_report(charge, &report);
        }
        finding
    }

    /// The endpoint broke off its answer.
    pub fn broke_off<S: Store>(&mut self, router: &mut Router<S>, now_us: u64) {
        if let Some(charge) = self.charge.as_ref() {
            router.broke_off(charge, now_us);
        }
    }

    /// The endpoint's answer, which was no error, came to its end.
    pub fn answered<S: Store>(&mut self, router: &mut Router<S>, now_us: u64) {
        if let Some(charge) = self.charge.as_ref() {
            router.answered(charge, now_us);
        }
    }

    /// The whole request was sent, with a body of this many bytes if that is known.
    pub fn sent<S: Store>(
        &mut self,
        router: &mut Router<S>,
        body_bytes: Option<usize>,
        now_us: u64,
    ) {
        if let Some(charge) = self.charge.as_mut() {
            router.sent(charge, body_bytes, now_us);
        }
    }

    /// A part of the response body passes.
    pub fn heard<S: Store>(&self, router: &mut Router<S>) {
        if let Some(charge) = &self.charge {
            router.heard(charge);
        }
    }

    /// The first byte of the response body came.
    pub fn first_token<S: Store>(&mut self, router: &mut Router<S>, now_us: u64) {
        if let Some(charge) = self.charge.as_mut() {
            router.first_token(charge, now_us);
        }
    }

    /// The request is over. Later calls do nothing.
    pub fn end<S: Store>(&mut self, router: &mut Router<S>, outcome: Outcome, now_us: u64) {
        if let Wait::Lookup(lookup) = &self.wait {
            router.kv_abandoned(lookup.pool());
            self.wait = Wait::Nothing;
        }
        self.abandon(router, now_us);
        if let Some(charge) = self.charge.take() {
            router.end(charge, outcome, now_us);
        }
    }

    /// Whether its prompt was entered as held, so that its outcome matters.
    pub fn holds_prompt(&self) -> bool {
        self.charge.as_ref().is_some_and(Charge::holds_prompt)
    }

    /// How the request is counted, from its decision to its end.
    pub fn charge(&self) -> Option<&Charge> {
        self.charge.as_ref()
    }

    /// Whether the request is counted as in flight.
    pub fn is_charged(&self) -> bool {
        self.charge.is_some()
    }
}
