//! Calls on a request's way: the request is held until the reply is there, or the call is made beside it.
//!
//! A reply comes in the context of its stream. When the stream is gone, the SDK drops the reply; the call
//! itself ends in Envoy when the engine has answered or the time is over.

use crate::host;
use crate::worker::{Phase, Request, Worker};
use log::info;
use proxy_wasm::types::Action;
use std::borrow::Cow;
use warmpath_core::call::{CallBody, HttpCall, Reply, RequestCall};
use warmpath_core::{Answer, Step, splice};

/// A call of which the reply is awaited.
#[derive(Debug)]
pub struct Outstanding {
    token: u32,
    most_bytes: usize,
}

impl Worker {
    /// Holds a request for a call's reply. If the call cannot be made, that is the reply.
    pub fn hold_for(&mut self, request: &mut Request, call: RequestCall) -> Action {
        match self.start(request, &call) {
            Ok(()) => {
                request.phase = Phase::Calling;
                Action::Pause
            }
            Err(reply) => {
                let now_us = host::now_us();
                let step = request.exchange.on_reply(&mut self.router, reply, now_us);
                self.apply(request, step)
            }
        }
    }

    /// Makes a call for a request that is about to be sent on; what to answer instead if that fails.
    pub fn call_beside(&mut self, request: &mut Request, call: RequestCall) -> Option<Answer> {
        let reply = self.start(request, &call).err()?;
        let now_us = host::now_us();
        match request.exchange.on_reply(&mut self.router, reply, now_us) {
            Step::Answer(answer) => Some(answer),
            _ => None,
        }
    }

    /// The call of a request ended.
    pub fn request_call_answered(&mut self, context: u32, token: u32, headers: usize, size: usize) {
        let Some(mut request) = self.requests.remove(&context) else {
            return;
        };
        let is_awaited = |call: &mut Outstanding| call.token == token;
        if let Some(call) = request.call.take_if(is_awaited) {
            let mut body = Vec::new();
            let reply = host::call_reply(headers, size, call.most_bytes, &mut body);
            let now_us = host::now_us();
            let step = request.exchange.on_reply(&mut self.router, reply, now_us);
            self.replied(&mut request, step);
        }
        self.requests.insert(context, request);
    }

    /// Does what a reply leads to.
    fn replied(&mut self, request: &mut Request, step: Step) {
        self.take_notes(request);
        if request.phase == Phase::Calling {
            let goes_on = self.apply(request, step) == Action::Continue;
            if goes_on && request.arrived {
                self.sent(request);
            }
            if goes_on {
                host::resume_request();
            }
        } else if let (Phase::Sent, Step::Answer(answer)) = (request.phase, step)
            && !request.responded
        {
            self.answer(request, &answer);
        }
    }

    fn start(&mut self, request: &mut Request, call: &RequestCall) -> Result<(), Reply<'static>> {
        let body = body(&call.http, request.held_bytes).ok_or(Reply::Failed)?;
        let body = (call.http.body != CallBody::Empty).then_some(body.as_ref());
        let started = host::call(&call.http, body);
        if matches!(started, Err(Reply::NoCluster)) && !self.warned_of_cluster {
            self.warned_of_cluster = true;
            let (cluster, purpose) = (&call.http.cluster, call.purpose.name());
            info!("Envoy has no cluster `{cluster}`, which calls for {purpose} need");
        }
        request.call = Some(Outstanding {
            token: started?,
            most_bytes: call.http.max_bytes,
        });
        Ok(())
    }
}

/// The body of a call for a request of which so many bytes are held; `None` if it cannot be made.
fn body(http: &HttpCall, held_bytes: usize) -> Option<Cow<'_, [u8]>> {
    match &http.body {
        CallBody::Empty => Some(Cow::Borrowed(&[])),
        CallBody::Bytes(bytes) => Some(Cow::Borrowed(bytes)),
        CallBody::Request(changes) => {
            let held = host::request_body(0, held_bytes)?;
            Some(Cow::Owned(splice::rewrite(&held, changes)?))
        }
    }
}
