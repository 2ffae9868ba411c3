//! One HTTP stream: hands each callback to the worker, and goes on without it if it must.

use crate::root::Shared;
use crate::worker::Worker;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

/// The stream context.
pub struct Stream {
    context: u32,
    worker: Shared,
}

impl Stream {
    /// A stream with this context id.
    pub fn new(context: u32, worker: Shared) -> Self {
        Stream { context, worker }
    }

    /// Calls the worker. If it is busy, which only a callback within a callback could cause, the
    /// request goes on as if the filter were not there.
    fn with(&self, call: impl FnOnce(&mut Worker) -> Action) -> Action {
        match self.worker.try_borrow_mut() {
            Ok(mut worker) => worker.as_mut().map_or(Action::Continue, call),
            Err(_) => Action::Continue,
        }
    }
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        self.with(|worker| worker.request_headers(self.context, end_of_stream))
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        self.with(|worker| worker.request_body(self.context, size, end_of_stream))
    }

    fn on_http_request_trailers(&mut self, _count: usize) -> Action {
        self.with(|worker| worker.request_trailers(self.context))
    }

    fn on_http_response_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        self.with(|worker| worker.response_headers(self.context, end_of_stream))
    }

    fn on_http_response_trailers(&mut self, _count: usize) -> Action {
        self.with(|worker| worker.response_trailers(self.context))
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        self.with(|worker| worker.response_body(self.context, size, end_of_stream))
    }

    fn on_log(&mut self) {
        self.with(|worker| worker.ended(self.context));
    }
}
