//! The discrete-event loop: one workload, one policy, one fleet, from the first arrival to the last
//! token.
//!
//! Events are arrivals, ends of engine steps, scrapes and ticks, in order of time and then of creation, so
//! that equal inputs give equal results. A step's tokens take effect at its end; an idle engine
//! starts a step when a request arrives. O(log(engines + requests)) an event.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::fleet::{Engine, FleetView};
use super::policy::{Policy, Setup, Spec};
use super::statistics::{Sample, Samples};
use super::workload::Workload;
use crate::model::{ModelParams, Submission, TokenEvent};

/// Everything that is fixed before the first arrival.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Engines in the fleet.
    pub engines: usize,
    /// Each engine's size and speed.
    pub params: ModelParams,
    /// Routers, each of which gets a random part of the requests.
    pub routers: usize,
    /// Whether all routers act on one state.
    pub shared: bool,
    /// How routers of the `prefix` policy tell each other what they learn; `None`: they do not.
    pub sync: Option<Sync>,
    /// Seed of all random choices.
    pub seed: u64,
    /// Arrival times are multiplied by this.
    pub time_scale: f64,
    /// How often routers of the `prefix` policy scrape the engines; `None`: never.
    pub scrape_interval_ms: Option<u64>,
}

/// How routers tell each other what they learn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sync {
    /// Time between two batches of a router.
    pub interval_ms: u64,
    /// Batches that nobody gets, in percent.
    pub loss_percent: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival { request: usize },
    StepEnd { engine: usize },
    Scrape,
    Tick { router: usize },
    Exchange { router: usize },
}

/// Where and when a request was sent.
#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    at_us: u64,
    engine: usize,
    router: usize,
    first_token_us: u64,
    order: usize,
}

struct World<'a> {
    workload: &'a Workload,
    engines: Vec<Engine>,
    routers: Vec<Box<dyn Policy>>,
    scrape_period_us: Option<u64>,
    spray: SmallRng,
    sync: Option<Sync>,
    /// Batches on their way, by the router that they are for.
    mail: Vec<Vec<Rc<[u8]>>>,
    /// Decides which are lost.
    fate: SmallRng,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    events_made: u64,
    sent: Vec<Sent>,
    dispatched: usize,
    ended: usize,
    samples: Samples,
}

/// Runs the workload to its end. `progress` is told, now and then, how many requests have ended.
pub fn run(
    workload: &Workload,
    spec: &Spec,
    scenario: &Scenario,
    mut progress: impl FnMut(usize),
) -> Samples {
    let mut world = World::new(workload, spec, scenario);
    let mut reported = 0;
    while let Some(Reverse((now_us, _, event))) = world.events.pop() {
        match event {
            Event::Arrival { request } => world.arrive(request, now_us),
            Event::StepEnd { engine } => world.end_step(engine, now_us),
            Event::Scrape => world.scrape(now_us),
            Event::Tick { router } => world.tick(router, now_us),
            Event::Exchange { router } => world.exchange(router, now_us),
        }
        if world.ended >= reported + 256 {
            reported = world.ended;
            progress(reported);
        }
    }
    progress(world.ended);
    world.samples
}

impl<'a> World<'a> {
    fn new(workload: &'a Workload, spec: &Spec, scenario: &Scenario) -> Self {
        let setup = Setup {
            engines: scenario.engines,
            kv_tokens: scenario.params.kv_tokens(),
            seed: scenario.seed,
            scrape_interval_ms: scenario.scrape_interval_ms,
            sync_interval_ms: scenario.sync.map(|sync| sync.interval_ms),
        };
        let routers = spec.routers(&setup, scenario.routers, scenario.shared);
        let mut world = Self {
            workload,
            engines: (0..scenario.engines)
                .map(|_| Engine::new(scenario.params.clone()))
                .collect(),
            scrape_period_us: routers.first().and_then(|policy| policy.scrape_period_us()),
            routers,
            spray: SmallRng::seed_from_u64(scenario.seed),
            sync: scenario.sync,
            mail: Vec::new(),
            fate: SmallRng::seed_from_u64(!scenario.seed),
            events: BinaryHeap::new(),
            events_made: 0,
            sent: vec![Sent::default(); workload.requests.len()],
            dispatched: 0,
            ended: 0,
            samples: Samples::new(scenario.engines),
        };
        let start_us = workload.arrivals.first().map_or(0, |(at_us, _)| *at_us);
        for &(at_us, request) in &workload.arrivals {
            let at_us = ((at_us - start_us) as f64 * scenario.time_scale) as u64;
            world.schedule(at_us, Event::Arrival { request });
        }
        if world.scrape_period_us.is_some() {
            world.schedule(0, Event::Scrape);
        }
        // Routers have started at different moments.
        let routers = world.routers.len() as u64;
        for router in 0..world.routers.len() {
            let period_us = world
                .routers
                .get(router)
                .and_then(|one| one.tick_period_us());
            if let Some(period_us) = period_us {
                world.schedule(period_us * router as u64 / routers, Event::Tick { router });
            }
            if let Some(sync) = world.sync {
                let phase_us = sync.interval_ms * 1000 * router as u64 / routers;
                world.schedule(phase_us, Event::Exchange { router });
            }
        }
        world.mail.resize_with(world.routers.len(), Vec::new);
        world
    }

    fn schedule(&mut self, at_us: u64, event: Event) {
        self.events.push(Reverse((at_us, self.events_made, event)));
        self.events_made += 1;
    }

    /// Routes a request and hands it to the engine.
    fn arrive(&mut self, request: usize, now_us: u64) {
        let Some(req) = self.workload.requests.get(request) else {
            return;
        };
        let router = self.spray.random_range(0..self.routers.len());
        let view = FleetView::new(&self.engines, now_us);
        let choice = self
            .routers
            .get_mut(router)
            .map(|policy| policy.route(req, &view, now_us));
        let engine = choice
            .unwrap_or(0)
            .min(self.engines.len().saturating_sub(1));
        if let Some(sent) = self.sent.get_mut(request) {
            *sent = Sent {
                at_us: now_us,
                engine,
                router,
                first_token_us: 0,
                order: self.dispatched,
            };
        }
        self.dispatched += 1;
        let Some(target) = self.engines.get_mut(engine) else {
            return;
        };
        let taken = target.model.submit(Submission {
            id: req.id,
            blocks: req.blocks.to_vec(),
            prompt_tokens: req.prompt_tokens,
            output_tokens: req.output_tokens,
            ..Submission::default()
        });
        target.awaiting_first += 1;
        if taken.is_err() {
            self.samples.refused += 1;
            self.first_token(request, now_us);
            self.end_request(request, now_us);
        } else if target.step.is_none() {
            self.start_step(engine, now_us);
        }
    }

    fn start_step(&mut self, engine: usize, now_us: u64) {
        let Some(target) = self.engines.get_mut(engine) else {
            return;
        };
        target.step = target.model.step();
        if let Some(step) = &target.step {
            let end_us = now_us + step.duration_us;
            target.step_end_us = end_us;
            self.schedule(end_us, Event::StepEnd { engine });
        }
    }

    /// Delivers a step's tokens and starts the next step.
    fn end_step(&mut self, engine: usize, now_us: u64) {
        let step = self
            .engines
            .get_mut(engine)
            .and_then(|target| target.step.take());
        for token in step.into_iter().flat_map(|step| step.tokens) {
            let request = token.id as usize;
            if token.index == 0 {
                self.first_token(request, now_us);
            }
            if token.finished {
                self.sample(request, token);
                self.end_request(request, now_us);
            }
        }
        self.start_step(engine, now_us);
    }

    fn first_token(&mut self, request: usize, now_us: u64) {
        let (Some(req), Some(sent)) = (
            self.workload.requests.get(request),
            self.sent.get_mut(request),
        ) else {
            return;
        };
        sent.first_token_us = now_us;
        if let Some(engine) = self.engines.get_mut(sent.engine) {
            engine.awaiting_first -= 1;
        }
        if let Some(policy) = self.routers.get_mut(sent.router) {
            policy.first_token(req, sent.engine, now_us);
        }
    }

    /// Tells the router, and sends the turn that waited for this one.
    fn end_request(&mut self, request: usize, now_us: u64) {
        self.ended += 1;
        if let (Some(req), Some(sent)) =
            (self.workload.requests.get(request), self.sent.get(request))
            && let Some(policy) = self.routers.get_mut(sent.router)
        {
            policy.done(req, sent.engine, now_us);
        }
        if let Some(Some((next, delay_us))) = self.workload.follow.get(request) {
            self.schedule(now_us + delay_us, Event::Arrival { request: *next });
        }
    }

    /// Records a finished request, unless it belongs to the first tenth that was sent.
    fn sample(&mut self, request: usize, last: TokenEvent) {
        let (Some(req), Some(sent)) = (self.workload.requests.get(request), self.sent.get(request))
        else {
            return;
        };
        self.samples.whole.0 += u64::from(req.prompt_tokens);
        self.samples.whole.1 += u64::from(last.cached_tokens);
        if sent.order >= self.workload.warm_up() {
            self.samples.add(Sample {
                engine: sent.engine,
                ttft_us: sent.first_token_us - sent.at_us,
                prompt_tokens: req.prompt_tokens,
                cached_tokens: last.cached_tokens,
            });
        }
    }

    /// Tells a router that time passes; again in a period, while requests are left.
    fn tick(&mut self, router: usize, now_us: u64) {
        let Some(policy) = self.routers.get_mut(router) else {
            return;
        };
        policy.tick(&FleetView::new(&self.engines, now_us), now_us);
        if let Some(period_us) = policy.tick_period_us()
            && self.ended < self.workload.requests.len()
        {
            self.schedule(now_us + period_us, Event::Tick { router });
        }
    }

    /// A router looks whether it is time to read what the others sent since it last did, and to send what it has.
    fn exchange(&mut self, router: usize, now_us: u64) {
        let (Some(policy), Some(mail)) = (self.routers.get_mut(router), self.mail.get_mut(router))
        else {
            return;
        };
        let Some(sync) = self.sync else { return };
        let batch = policy.exchange(mail, now_us).map(Rc::<[u8]>::from);
        let loss = (sync.loss_percent / 100.0).clamp(0.0, 1.0);
        let batch = batch.filter(|_| !self.fate.random_bool(loss));
        let others = self.mail.iter_mut().enumerate();
        for (_, mail) in others.filter(|(other, _)| *other != router) {
            mail.extend(batch.clone());
        }
        if self.ended < self.workload.requests.len() {
            let tick_us = 1000 * warmpath_core::sync::tick_ms(sync.interval_ms);
            self.schedule(now_us + tick_us, Event::Exchange { router });
        }
    }

    /// Reads every engine's metrics; again in a period, while requests are left.
    fn scrape(&mut self, now_us: u64) {
        for engine in &mut self.engines {
            engine.scraped = engine.model.stats();
        }
        if let Some(period_us) = self.scrape_period_us
            && self.ended < self.workload.requests.len()
        {
            self.schedule(now_us + period_us, Event::Scrape);
        }
    }
}
