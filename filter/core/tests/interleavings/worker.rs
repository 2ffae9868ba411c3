//! One worker thread of an Envoy: a VM with a router for each config generation, and requests at
//! every stage. All it does is drawn.

use crate::inspector::Door;
use crate::prompts::prompt;
use crate::turnstile::Draw;
use std::iter::repeat_n;
use warmpath_core::call::Reply;
use warmpath_core::router::{Ask, Charge, Outcome, PromptFacts, Router};
use warmpath_core::store::UPDATE_TRIES;
use warmpath_core::{Config, Decision, hash};

/// Microseconds between two ticks of a worker that is not held up.
pub const TICK_US: u64 = 500_000;
/// A worker that did not tick for so long misses events, or others miss its own.
const CALM_US: u64 = 1_500_000;
/// Longest pause between two actions; the clock is everybody's.
const PAUSE_US: usize = 150_000;
/// Engines of one config.
pub const ENGINES: usize = 4;
/// Prompts that all workers use.
const SHARED_PROMPTS: usize = 3;
/// Pages of a log's ring.
const PAGES: u64 = 32;
/// Pieces of the snapshot of a table as small as ours.
const PIECES: u64 = 16;

/// What became of a request with a prompt.
#[derive(Clone, Debug)]
pub struct Record {
    /// The prompt's name and its length in chunks.
    pub prompt: (u64, usize),
    /// The engine that ended it.
    pub address: String,
    /// Whether it was served.
    pub served: bool,
    /// The life that recorded it, and when.
    pub life: u64,
    pub at_us: u64,
    /// Whether the others must learn of it.
    pub told: bool,
}

struct Request {
    charge: Charge,
    prompt: Option<(u64, usize)>,
}

/// One router: a VM and a config generation.
pub struct Life<'a> {
    /// Its name.
    pub name: u64,
    /// The router.
    pub router: Router<&'a Door<'a>>,
    /// When its first decision was complete.
    pub joined_us: Option<u64>,
    /// Whether it never missed a beat.
    pub calm: bool,
    /// Whether it takes new requests.
    current: bool,
    ticked_us: u64,
    open: Vec<Request>,
    prompts: u64,
}

/// A worker thread.
pub struct Worker<'a> {
    door: &'a Door<'a>,
    draw: Draw,
    generations: [Config; 2],
    /// The routers of its VM.
    pub lives: Vec<Life<'a>>,
    /// What it knows for sure.
    pub records: Vec<Record>,
    /// What was under way when its VM vanished: prompts of which nothing is sure.
    pub unsure: Vec<(u64, usize)>,
    generation: usize,
    names: u64,
}

/// A config of the generation: four engines, of which the other generation has two as well.
pub fn config(generation: usize, max_workers: usize) -> Config {
    let engines: Vec<String> = (0..ENGINES)
        .map(|at| format!(r#"{{"address": "10.3.0.{}:80"}}"#, 1 + at + 2 * generation))
        .collect();
    let engines = engines.join(",");
    let pool = |name: &str, policy: &str| {
        format!(
            r#"{{"name": "{name}", "models": ["{name}"], "policy": {policy},
                "endpoints": {{"static": [{engines}]}}}}"#
        )
    };
    let json = format!(
        r#"{{"pools": [{}, {}, {}], "limits": {{"worker_expiry_ms": 3000,
            "workers": {max_workers}, "prefix_table_bytes": 262144}}}}"#,
        pool("prefix", r#"{"prefix": {"kv_tokens": 4000000}}"#),
        pool("turn", r#""round_robin""#),
        pool("rate", r#""lowest_qps""#),
    );
    Config::parse(json.as_bytes()).expect("a valid config")
}

/// What a decision is told of a prompt; longer ones of a name are later turns of a conversation.
pub fn facts(name: u64, chunks: usize) -> PromptFacts {
    PromptFacts {
        streamed: !name.is_multiple_of(3),
        ..prompt(name, repeat_n(name, chunks))
    }
}

impl<'a> Worker<'a> {
    /// Worker `number` of a test.
    pub fn new(door: &'a Door<'a>, number: u64, seed: u64, generations: [Config; 2]) -> Self {
        let mut draw = Draw(hash::mix(seed, number));
        Worker {
            door,
            generation: draw.below(4) / 3,
            draw,
            generations,
            lives: Vec::new(),
            records: Vec::new(),
            unsure: Vec::new(),
            names: number * 100,
        }
    }

    /// Does one thing.
    pub fn step(&mut self) {
        if self.lives.is_empty() {
            self.start();
        }
        self.tick_if_due();
        match self.draw.below(24) {
            0..10 => self.decide(),
            10..13 => self.first_token(),
            13..15 => self.served_by(),
            15..22 => self.end(),
            22 if self.lives.len() == 1 && self.draw.once_in(4) => self.reconfigure(),
            22 => self.retire(),
            _ => {}
        }
        let pause_us = self.draw.below(PAUSE_US) as u64;
        self.door.inspector.clock.pass(pause_us);
    }

    /// All that was under way ends, and the old generation goes.
    pub fn finish(&mut self) {
        while self.lives.iter().any(|life| !life.open.is_empty()) {
            self.end();
        }
        self.retire();
    }

    /// Its VM is gone, with all that it knew.
    pub fn vanish(&mut self) {
        self.door.set_leaving(false);
        for life in self.lives.drain(..) {
            let open = life.open.iter().filter_map(|request| request.prompt);
            self.unsure.extend(open);
            for record in &mut self.records {
                // A worker that is alone writes with its ticks only.
                if record.life == life.name && record.at_us >= life.ticked_us {
                    record.told = false;
                }
            }
        }
    }

    /// Ticks whatever is due.
    pub fn tick_if_due(&mut self) {
        let now_us = self.door.now_us();
        for life in &mut self.lives {
            let since_us = now_us - life.ticked_us;
            if since_us >= TICK_US {
                life.calm &= since_us < CALM_US;
                // The fleet, a beat, the logs, the snapshot, the columns, the ids.
                let most = tries(1) + PIECES + 6 + tries(1);
                self.door
                    .within(most, 3 * PAGES, || life.router.tick(now_us));
                // The lease, what was learned, and the fleet of the holder before.
                let calls = self
                    .door
                    .within(tries(1) + 2, 1, || life.router.calls(now_us));
                for (call, _) in calls {
                    self.door.within(0, PAGES, || {
                        life.router.call_ended(&call, Reply::Failed, now_us)
                    });
                }
                life.ticked_us = now_us;
            }
        }
    }

    fn start(&mut self) {
        self.names += 1;
        let now_us = self.door.now_us();
        let config = self.generations[self.generation].clone();
        let router = Router::new(config, self.door, now_us);
        self.lives.push(Life {
            name: self.names,
            router,
            joined_us: None,
            calm: true,
            current: true,
            ticked_us: now_us,
            open: Vec::new(),
            prompts: 0,
        });
    }

    /// The other generation takes over; requests of this one go on.
    fn reconfigure(&mut self) {
        self.lives.iter_mut().for_each(|life| life.current = false);
        self.generation = 1 - self.generation;
        self.start();
    }

    /// An old generation without requests gives its slot back, if everybody has seen it by now.
    fn retire(&mut self) {
        let now_us = self.door.now_us();
        self.door.set_leaving(true);
        self.lives.retain_mut(|life| {
            let seen = life.joined_us.is_none_or(|at_us| now_us - at_us >= CALM_US);
            let leaves = !life.current && life.open.is_empty() && seen;
            if leaves {
                self.door.within(tries(2) + 1, 0, || life.router.leave());
            }
            !leaves
        });
        self.door.set_leaving(false);
    }

    fn decide(&mut self) {
        let Some(at) = self.lives.iter().position(|life| life.current) else {
            return;
        };
        let model = ["prefix", "prefix", "prefix", "turn", "rate"][self.draw.below(5)];
        let prompt = (model == "prefix").then(|| self.prompt(at)).flatten();
        let life = &mut self.lives[at];
        let now_us = self.door.now_us();
        // Of the first decision also the snapshot and a beat; else columns, logs, a turn, writes.
        let most = PIECES + tries(1) + tries(1) + 6;
        let ask = prompt.map(|(name, chunks)| facts(name, chunks));
        let (_, charge) = self.door.within(most, 2 + 3 * PAGES, || {
            decide(&mut life.router, model, ask, now_us)
        });
        life.joined_us = life.joined_us.or(Some(self.door.now_us()));
        life.open.push(Request { charge, prompt });
    }

    /// A prompt that everybody uses, or one of a conversation of our own with no request under way.
    fn prompt(&mut self, at: usize) -> Option<(u64, usize)> {
        if self.draw.once_in(4) {
            return Some((self.draw.below(SHARED_PROMPTS) as u64, 24));
        }
        let life = &mut self.lives[at];
        if life.prompts == 0 || self.draw.once_in(3) {
            life.prompts += 1;
        }
        let name = life.name * 1000 + self.draw.below(life.prompts as usize) as u64;
        let mut open = life.open.iter().filter_map(|request| request.prompt);
        if open.any(|prompt| prompt.0 == name) {
            return None;
        }
        Some((name, [9, 18, 33][self.draw.below(3)]))
    }

    fn request(&mut self) -> Option<(usize, usize)> {
        let busy = |life: &Life| !life.open.is_empty();
        let at = self.lives.iter().position(busy)?;
        Some((at, self.draw.below(self.lives[at].open.len())))
    }

    fn first_token(&mut self) {
        if let Some((at, which)) = self.request() {
            let life = &mut self.lives[at];
            let (charge, now_us) = (&mut life.open[which].charge, self.door.now_us());
            self.door
                .within(3, 0, || life.router.first_token(charge, now_us));
        }
    }

    fn served_by(&mut self) {
        if let Some((at, which)) = self.request() {
            let other = self.draw.below(ENGINES);
            let life = &mut self.lives[at];
            // What one worker takes back another may have entered meanwhile: of a prompt that all use
            // nothing could be said.
            if life.open[which].prompt.is_some_and(is_shared) {
                return;
            }
            let address = life.router.address(other).to_owned();
            let (charge, now_us) = (&mut life.open[which].charge, self.door.now_us());
            self.door.within(6, 0, || {
                life.router.served_by(charge, address.as_bytes(), now_us)
            });
        }
    }

    fn end(&mut self) {
        let Some((at, which)) = self.request() else {
            return;
        };
        let life = &mut self.lives[at];
        let Request { charge, prompt } = life.open.remove(which);
        let served = prompt.is_some_and(is_shared) || !self.draw.once_in(4);
        let outcome = match served {
            true => Outcome::Served { output_tokens: 0 },
            false => Outcome::Failed,
        };
        let address = life.router.address(charge.position()).to_owned();
        let (door, now_us) = (self.door, self.door.now_us());
        // Nothing is sure of it before it is written.
        self.unsure.extend(prompt);
        door.within(5, 0, || life.router.end(charge, outcome, now_us));
        if let Some(prompt) = prompt {
            self.unsure.pop();
            self.records.push(Record {
                prompt,
                address,
                served,
                life: life.name,
                at_us: now_us,
                told: life.calm && now_us - life.ticked_us < CALM_US,
            });
        }
    }
}

fn is_shared(prompt: (u64, usize)) -> bool {
    prompt.0 < SHARED_PROMPTS as u64
}

/// Operations of so many read-modify-writes.
fn tries(updates: u64) -> u64 {
    updates * 2 * u64::from(UPDATE_TRIES)
}

/// Asks a router about a request.
pub fn decide(
    router: &mut Router<&Door>,
    model: &str,
    prompt: Option<PromptFacts>,
    now_us: u64,
) -> (Decision, Charge) {
    let target = router.target(model.as_bytes()).cloned().expect("a pool");
    let ask = Ask {
        target: &target,
        key: None,
        prompt,
        priority: Default::default(),
    };
    router.decide(ask, now_us).expect("endpoints")
}
