//! What is done to a stage while clients ask, and what it may cost.
//!
//! One idea: a script returns the excuses that hold for failed requests, and the bounds on how many
//! there may be; whatever fails without an excuse should have been saved.

mod clients;
mod config;
mod crash;
mod engine;
mod outage;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::Plan;
use super::exchange::{Exchange, Excuse};
use super::load::Load;
use super::stage::{Kind, Stage};
use crate::engine::{Fault, FaultPlan, Target};

/// Failures in a row after which the filter leaves an engine out, as shipped.
const FAILURES: usize = 3;

/// One fault.
pub(super) struct Drill {
    /// Its name.
    pub(super) name: &'static str,
    /// Where it is drilled.
    pub(super) kind: Kind,
    script: Script,
}

/// What is done.
enum Script {
    /// One engine goes wrong.
    Engine { fault: FaultPlan, harm: Harm },
    /// One engine is killed, and later started again.
    Killed,
    /// All engines are killed, and later started again.
    AllDown,
    /// Metrics of engines go wrong.
    Scrape { fault: Fault, engines: usize },
    /// Envoy's admin interface cannot be reached.
    Admin,
    /// Clients leave.
    Clients,
    /// The VM of each worker crashes.
    Crash,
    /// The filter's configuration changes.
    Reload,
    /// The filter is given configurations that are none.
    BadReload,
    /// Endpoints come and go.
    Churn,
}

/// What an engine that goes wrong may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Harm {
    /// Nothing, and it stays in use.
    Nothing,
    /// Nothing: all it got goes to another one. It is put aside.
    Retried,
    /// Answers that it has begun, until it is put aside.
    Begun,
    /// What it has when it is put aside, and its probes.
    Hung,
}

/// What came of a script.
pub(super) struct Struck<'a> {
    /// When the fault began; of an outage, when it ended.
    pub(super) at: Instant,
    /// How long it took to put the engine aside.
    pub(super) aside: Option<Duration>,
    /// How long it took, from the end of the fault, until the engine had its share again.
    pub(super) back: Option<Duration>,
    /// Why requests could not be saved.
    pub(super) excuse: Box<Excuse<'a>>,
    /// Requests that will never be answered.
    pub(super) hopeless: HashSet<String>,
    /// Requests that the script sent itself.
    pub(super) own: Vec<Exchange>,
    /// Most requests that may be excused.
    pub(super) most_unsaved: usize,
    /// What else went wrong.
    pub(super) missed: Vec<String>,
    /// What else is to be known.
    pub(super) note: String,
}

impl Struck<'_> {
    /// A fault that began now and has no excuse.
    fn now() -> Self {
        Self {
            at: Instant::now(),
            aside: None,
            back: None,
            excuse: Box::new(|_| None),
            hopeless: HashSet::new(),
            own: Vec::new(),
            most_unsaved: 0,
            missed: Vec::new(),
            note: String::new(),
        }
    }
}

/// What a script works with.
pub(super) struct Scene<'s, 'a> {
    /// Where.
    pub(super) stage: &'s mut Stage<'a>,
    /// The clients, at work.
    pub(super) load: &'s Load,
    /// How much.
    pub(super) plan: &'s Plan,
    /// The engine that is struck, if it is one.
    pub(super) victim: usize,
}

/// Every fault, in the order in which they are drilled.
pub(super) fn all() -> Vec<Drill> {
    let drill = |name, kind, script| Drill { name, kind, script };
    let shipped = |name, script| drill(name, Kind::Shipped, script);
    let engine = |name, fault: Fault, harm| {
        let fault = fault.into();
        shipped(name, Script::Engine { fault, harm })
    };
    let status = |code, retry_after_s| Fault::Status {
        code,
        retry_after_s,
    };
    let scrape = |name, fault, engines| shipped(name, Script::Scrape { fault, engines });
    let all = super::stage::ENGINES;
    // Within the first events of a stream, and within a whole answer.
    let body_bytes = 300;
    vec![
        shipped("killed", Script::Killed),
        engine(
            "reset_before_headers",
            Fault::ResetBeforeHeaders,
            Harm::Retried,
        ),
        engine("status_500", status(500, None), Harm::Retried),
        engine(
            "status_503_retry_after",
            status(503, Some(1)),
            Harm::Retried,
        ),
        engine("hung_before_headers", Fault::HangBeforeHeaders, Harm::Hung),
        engine("stalled", Fault::HangAfter { body_bytes: 0 }, Harm::Hung),
        engine(
            "hung_mid_stream",
            Fault::HangAfter { body_bytes },
            Harm::Hung,
        ),
        engine(
            "reset_mid_body",
            Fault::ResetAfter { body_bytes },
            Harm::Begun,
        ),
        engine(
            "wrong_content_length",
            Fault::WrongContentLength,
            Harm::Begun,
        ),
        engine(
            "ten_times_slower",
            Fault::Slow { factor: 10.0 },
            Harm::Nothing,
        ),
        shipped("all_down", Script::AllDown),
        scrape("scrape_dead", Fault::ResetBeforeHeaders, all),
        scrape("scrape_hanging", Fault::HangBeforeHeaders, all),
        scrape("scrape_garbage", Fault::Nonsense { body_bytes: 4096 }, all),
        scrape(
            "scrape_50_mb",
            Fault::Nonsense {
                body_bytes: 50 << 20,
            },
            1,
        ),
        shipped("admin_unreachable", Script::Admin),
        shipped("clients_vanish", Script::Clients),
        drill("vm_trap", Kind::Trap, Script::Crash),
        drill("reload_good", Kind::FilterFile, Script::Reload),
        drill("reload_bad", Kind::FilterFile, Script::BadReload),
        drill("endpoint_churn", Kind::EndpointFile, Script::Churn),
    ]
}

impl Drill {
    /// The engines that it strikes, of which nothing is expected afterwards.
    pub(super) fn victims(&self, victim: usize) -> Vec<usize> {
        match self.script {
            Script::AllDown => (0..super::stage::ENGINES).collect(),
            Script::Engine { .. } | Script::Killed => vec![victim],
            _ => Vec::new(),
        }
    }

    /// Whether each client must stay with one worker.
    pub(super) fn pins_clients(&self) -> bool {
        matches!(self.script, Script::Crash)
    }

    /// Strikes, waits until it is over, and lets the load go on for a while.
    pub(super) async fn play<'a>(&self, scene: Scene<'_, '_>) -> anyhow::Result<Struck<'a>> {
        match &self.script {
            Script::Engine { fault, harm } => engine::goes_wrong(scene, *fault, *harm).await,
            Script::Killed => outage::one(scene).await,
            Script::AllDown => outage::all(scene).await,
            Script::Scrape { fault, engines } => {
                let fault = FaultPlan {
                    on: Target::Metrics,
                    ..(*fault).into()
                };
                engine::scrapes_go_wrong(scene, fault, *engines).await
            }
            Script::Admin => outage::admin(scene).await,
            Script::Clients => clients::vanish(scene).await,
            Script::Crash => crash::each_worker(scene).await,
            Script::Reload => config::reloads(scene).await,
            Script::BadReload => config::bad_reloads(scene).await,
            Script::Churn => config::churn(scene).await,
        }
    }
}
