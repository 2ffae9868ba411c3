//! The plugin's root: configuration, ticks, and the worker that its streams share.

use crate::host;
use crate::stream::Stream;
use crate::worker::Worker;
use log::{error, info};
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::ContextType;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use warmpath_core::call::CallBody;
use warmpath_core::{Config, sync};

/// At least twice a second, so that a request held in vain is answered within two.
const LONGEST_TICK_MS: u64 = 500;
/// More often is of no use to anybody.
const SHORTEST_TICK_MS: u64 = 25;
/// Ticks within the shortest interval of scrapes, which so spread over it.
const TICKS_PER_INTERVAL: u64 = 8;

/// What the streams of one VM and config share; `None` until a config was accepted.
pub type Shared = Rc<RefCell<Option<Worker>>>;

/// The root context.
#[derive(Default)]
pub struct Root {
    worker: Shared,
}

impl Root {
    /// The ticks are the moments at which calls can be made and news be read.
    fn tick_period(config: &Config) -> Duration {
        let discovery = config.discovery.as_ref().map(|it| it.interval_ms);
        let scrape = config.scrape.as_ref().map(|it| it.polling.interval_ms);
        let shortest = discovery.into_iter().chain(scrape).min();
        let sync = config.sync.as_ref().map(|it| sync::tick_ms(it.interval_ms));
        let period_ms = shortest.map_or(LONGEST_TICK_MS, |it| it / TICKS_PER_INTERVAL);
        let period_ms = sync.map_or(period_ms, |it| it.min(period_ms));
        Duration::from_millis(period_ms.clamp(SHORTEST_TICK_MS, LONGEST_TICK_MS))
    }

    fn with<T: Default>(&self, call: impl FnOnce(&mut Worker) -> T) -> T {
        match self.worker.try_borrow_mut() {
            Ok(mut worker) => worker.as_mut().map(call).unwrap_or_default(),
            Err(_) => T::default(),
        }
    }

    /// Makes the calls that are due. Envoy may answer one before it returns, so nothing is borrowed
    /// meanwhile.
    fn make_calls(&self) {
        for (call, http) in self.with(Worker::calls) {
            let body = match &http.body {
                CallBody::Bytes(bytes) => Some(bytes.as_slice()),
                CallBody::Empty | CallBody::Request(_) => None,
            };
            let started = host::call(&http, body);
            self.with(|worker| worker.call_started(call, started));
        }
    }
}

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, headers: usize, size: usize, _: usize) {
        self.with(|worker| worker.call_answered(token, headers, size));
    }

    fn on_done(&mut self) -> bool {
        self.with(Worker::leave);
        true
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        host::follow_log_level();
        let json = self.get_plugin_configuration().unwrap_or_default();
        let config = match Config::parse(&json) {
            Ok(config) => config,
            Err(errors) => {
                for error in errors {
                    error!("refused: {error}");
                }
                return false;
            }
        };
        let endpoints: usize = config.pools.iter().map(|pool| pool.endpoints.len()).sum();
        info!(
            "configured: {} pools, {endpoints} endpoints",
            config.pools.len()
        );
        host::tick_every(Self::tick_period(&config));
        if let Ok(mut worker) = self.worker.try_borrow_mut() {
            *worker = Some(Worker::new(config));
        }
        true
    }

    fn on_tick(&mut self) {
        host::follow_log_level();
        let stranded = self.with(Worker::tick);
        self.make_calls();
        #[cfg(feature = "trap")]
        crate::trap::spring(self.with(|worker| worker.holds_lease()));
        for context in stranded {
            if !host::enter(context) {
                continue;
            }
            self.with(|worker| worker.release(context));
            // The borrow has ended: Envoy may call back into this stream before it returns.
            host::resume_request();
        }
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, context: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream::new(context, Rc::clone(&self.worker))))
    }
}
