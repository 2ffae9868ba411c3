//! One HTTP stream: hands each callback to the worker, and goes on without it if it must.

use crate::root::Shared;
use crate::status::Desk;
use crate::worker::Worker;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

/// The stream context.
pub struct Stream {
    context: u32,
    worker: Shared,
    /// For a request of the status page's, which the worker never sees.
    desk: Option<Desk>,
}

impl Stream {
    /// A stream with this context id.
    pub fn new(context: u32, worker: Shared) -> Self {
        Stream {
            context,
            worker,
            desk: None,
        }
    }

    /// Calls the worker. If it is busy, which only a callback within a callback could cause, the
    /// request goes on as if the filter were not there.
    fn with(&self, call: impl FnOnce(&mut Worker) -> Action) -> Action {
        with(&self.worker, call)
    }
}

fn with(worker: &Shared, call: impl FnOnce(&mut Worker) -> Action) -> Action {
    match worker.try_borrow_mut() {
        Ok(mut worker) => worker.as_mut().map_or(Action::Continue, call),
        Err(_) => Action::Continue,
    }
}

impl Context for Stream {
    fn on_http_call_response(&mut self, token: u32, headers: usize, size: usize, _: usize) {
        self.with(|worker| {
            worker.request_call_answered(self.context, token, headers, size);
            Action::Continue
        });
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        #[cfg(feature = "trap")]
        crate::trap::set();
        let (context, desk) = (self.context, &mut self.desk);
        with(&self.worker, |worker| {
            *desk = Desk::open(worker, end_of_stream);
            match desk {
                Some(desk) => desk.headers(worker),
                None => worker.request_headers(context, end_of_stream),
            }
        })
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        let (context, desk) = (self.context, &mut self.desk);
        with(&self.worker, |worker| match desk {
            Some(desk) => desk.body(worker, size, end_of_stream),
            None => worker.request_body(context, size, end_of_stream),
        })
    }

    fn on_http_request_trailers(&mut self, _count: usize) -> Action {
        let (context, desk) = (self.context, &mut self.desk);
        with(&self.worker, |worker| match desk {
            Some(desk) => desk.end(worker),
            None => worker.request_trailers(context),
        })
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
