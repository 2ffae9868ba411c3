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
use warmpath_core::Config;

/// Twice a second, so that a request held in vain is answered within two.
const TICK: Duration = Duration::from_millis(500);

/// What the streams of one VM and config share; `None` until a config was accepted.
pub type Shared = Rc<RefCell<Option<Worker>>>;

/// The root context.
#[derive(Default)]
pub struct Root {
    worker: Shared,
}

impl Context for Root {
    fn on_done(&mut self) -> bool {
        if let Ok(mut worker) = self.worker.try_borrow_mut()
            && let Some(worker) = worker.as_mut()
        {
            worker.leave();
        }
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
        host::tick_every(TICK);
        if let Ok(mut worker) = self.worker.try_borrow_mut() {
            *worker = Some(Worker::new(config));
        }
        true
    }

    fn on_tick(&mut self) {
        host::follow_log_level();
        let stranded = match self.worker.try_borrow_mut() {
            Ok(mut worker) => worker.as_mut().map(Worker::tick).unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        for context in stranded {
            if !host::enter(context) {
                continue;
            }
            if let Ok(mut worker) = self.worker.try_borrow_mut()
                && let Some(worker) = worker.as_mut()
            {
                worker.release(context);
            }
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
