//! The status page: requests that come by the filter chain it is bound to are answered here, and none
//! of them is routed.
//!
//! What is said is core's [`warmpath_core::status`]. The page itself is part of the module.

use crate::host;
use crate::packed::unpack;
use crate::worker::Worker;
use proxy_wasm::types::Action;
use warmpath_core::Exchange;
use warmpath_core::config::SteerBy;
use warmpath_core::scan::Api;
use warmpath_core::session::header;
use warmpath_core::status::{Question, Reply, explanation};

/// `status.html`, packed.
const HTML: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/status.packed"));
const POLICY: &str = include_str!("status.csp");
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A request of the status page's, from its headers on.
pub enum Desk {
    /// Its body is awaited, to be explained.
    Reading {
        /// The API that the body speaks.
        api: Api,
        /// The request's headers, among which may be a session key.
        headers: Vec<(String, Vec<u8>)>,
        /// What has arrived of the body.
        size: usize,
    },
    /// It was answered.
    Done,
}

impl Desk {
    /// Takes a request if the page is served where it came by.
    pub fn open(worker: &mut Worker, end_of_stream: bool) -> Option<Desk> {
        let options = worker.router().config().status.as_ref()?;
        if host::filter_chain()?.as_slice() != options.filter_chain.as_bytes() {
            return None;
        }
        let headers = host::RequestHeaders::held().all();
        let find = |name| header(&headers, name).unwrap_or_default();
        let question = Question::read(find(":method"), find(":path"), &options.path);
        let reply = match question {
            Question::Page => Reply::page(page(), POLICY),
            Question::Status => worker.report(VERSION),
            Question::Explain(api) if end_of_stream => explain(worker, api, &headers, &[]),
            Question::Explain(api) => {
                let size = 0;
                return Some(Desk::Reading { api, headers, size });
            }
            Question::Answered(reply) => reply,
        };
        respond(&reply);
        Some(Desk::Done)
    }

    /// What becomes of the headers: those of a request that is answered go nowhere.
    pub fn headers(&self, worker: &mut Worker) -> Action {
        match (self, worker.router().config().steer_by) {
            (Desk::Reading { .. }, SteerBy::FilterState) => Action::Continue,
            _ => Action::Pause,
        }
    }

    /// More of the body came; `size` is all that is held by now.
    pub fn body(&mut self, worker: &mut Worker, size: usize, ended: bool) -> Action {
        let limit = worker.router().config().limits.hold_bytes;
        if let Desk::Reading { size: seen, .. } = self {
            *seen = size;
        }
        if size > limit && matches!(self, Desk::Reading { .. }) {
            *self = Desk::Done;
            respond(&Reply::too_long(limit));
        } else if ended {
            self.end(worker);
        }
        Action::Pause
    }

    /// The body is there.
    pub fn end(&mut self, worker: &mut Worker) -> Action {
        if let Desk::Reading { api, headers, size } = std::mem::replace(self, Desk::Done) {
            let body = host::request_body(0, size).unwrap_or_default();
            respond(&explain(worker, api, &headers, &body));
        }
        Action::Pause
    }
}

fn page() -> String {
    String::from_utf8(unpack(HTML)).unwrap_or_default()
}

fn explain(worker: &mut Worker, api: Api, headers: &[(String, Vec<u8>)], body: &[u8]) -> Reply {
    let now_us = host::now_us();
    let router = worker.router();
    router.attend(now_us);
    match Exchange::explain(router, api, headers, body, now_us) {
        Ok(explained) => Reply::json(explanation(router, &explained)),
        Err(answer) => Reply::answer(answer),
    }
}

fn respond(reply: &Reply) {
    let headers = reply.headers.iter();
    let headers = headers.map(|(name, value)| (*name, value.as_str()));
    host::respond_with(reply.status, headers.collect(), reply.body.as_bytes());
}
