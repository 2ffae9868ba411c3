//! The module as Envoy sees it: a request for `/CASE?ITERATIONS` is answered with a line of three
//! numbers: nanoseconds of the whole run, the least step of the clock in nanoseconds, and what the
//! run returned.
//!
//! The case that was asked for last stays prepared, so that repetitions meet it warm.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::UNIX_EPOCH;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, MapType};

use crate::cases::{Work, find};

/// Looks at the clock while looking for its least step.
const LOOKS: u32 = 1000;

type Prepared = Rc<RefCell<Option<(String, Work)>>>;

#[derive(Default)]
struct Root {
    prepared: Prepared,
}

impl Context for Root {}

impl RootContext for Root {
    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _context: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream {
            prepared: Rc::clone(&self.prepared),
        }))
    }
}

struct Stream {
    prepared: Prepared,
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        let path = hostcalls::get_map_value_bytes(MapType::HttpRequestHeaders, ":path");
        let path = path.ok().flatten().unwrap_or_default();
        let answer = std::str::from_utf8(&path)
            .ok()
            .and_then(|path| self.measure(path));
        let (status, body) = match &answer {
            Some(line) => (200, line.as_str()),
            None => (404, "want /CASE?ITERATIONS\n"),
        };
        hostcalls::send_http_response(status, Vec::new(), Some(body.as_bytes())).ok();
        Action::Pause
    }
}

impl Stream {
    fn measure(&self, path: &str) -> Option<String> {
        let (name, iterations) = path.strip_prefix('/')?.split_once('?')?;
        let iterations = iterations.parse().ok()?;
        let mut prepared = self.prepared.try_borrow_mut().ok()?;
        if prepared.as_ref().is_none_or(|(known, _)| known != name) {
            *prepared = Some((name.to_owned(), find(name)?.prepare()));
        }
        let (_, work) = prepared.as_mut()?;
        let step_ns = clock_step_ns();
        let before = now_ns();
        let result = work(iterations);
        let took_ns = now_ns().saturating_sub(before);
        Some(format!("{took_ns} {step_ns} {result}\n"))
    }
}

fn now_ns() -> u64 {
    let now = hostcalls::get_current_time().ok();
    let since = now.and_then(|now| now.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// The least step seen between two looks at the clock, a look included; 0 if it stood still.
fn clock_step_ns() -> u64 {
    let mut last = now_ns();
    let steps = (0..LOOKS).filter_map(|_| {
        let now = now_ns();
        let step = now.saturating_sub(last);
        last = now;
        (step > 0).then_some(step)
    });
    steps.min().unwrap_or_default()
}

// The macro defines the module's start function, which is nobody's API.
mod start {
    proxy_wasm::main! {{
        proxy_wasm::set_root_context(|_| Box::new(super::Root::default()));
    }}
}
