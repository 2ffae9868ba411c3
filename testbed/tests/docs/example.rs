//! The decisions that docs/policies.md works out by hand, made by the router.
//!
//! The tables of the page are the input: what engines hold and what is in flight is brought about by
//! requests through a pool for each engine (load belongs to the engine, whatever the pool), then the
//! page's request is asked. Costs are checked against the router's figures and the options.

use serde_json::{Map, Value, json};
use warmpath_core::config::PolicyConfig;
use warmpath_core::hash;
use warmpath_core::policy::prefix::PrefixOptions;
use warmpath_core::prefix::CHUNK_TOKENS;
use warmpath_core::router::{Ask, Charge, Outcome, PromptFacts};
use warmpath_core::scan::{CHUNK_BYTES, Link};
use warmpath_core::store::MemoryStore;
use warmpath_core::{Config, Decision, Router};

use crate::pages::{Page, page};
use crate::tables::{Table, number};

/// The prompt that is asked for.
const PROMPT_TOKENS: u64 = 10_240;
/// What the page says of requests that do not name a limit of their output.
const OUTPUT_TOKENS: u64 = 300;
/// Name of the prompt's chain; other prompts have other names.
const ASKED: u64 = 1;

/// One of the page's decisions.
struct Case {
    options: Value,
    table: Table,
    /// As the page gives it: the reason, and the first engines in order.
    reason: String,
    first: Vec<String>,
}

impl Case {
    fn read(page: &Page, heading: &str) -> Case {
        let text = page.section(heading);
        let below = Page {
            path: page.path.clone(),
            text: text.to_owned(),
        };
        let options = below.json().first().map(|json| json["prefix"].clone());
        let (_, decision) = text.split_once("Decision: `").expect("a decision");
        let (reason, order) = decision.split_once("`, ").expect("a reason and an order");
        let order = order.split('.').next().unwrap_or_default();
        Case {
            options: options.unwrap_or_else(|| Map::new().into()),
            table: page.table(heading),
            reason: reason.to_owned(),
            first: order.split(" before ").map(str::to_owned).collect(),
        }
    }

    fn cell<'a>(&'a self, engine: usize, column: &str) -> &'a str {
        self.table.cell(&self.table.rows[engine], column)
    }

    fn engines(&self) -> usize {
        self.table.rows.len()
    }

    /// Prompt tokens of the requests in flight at an engine, and whether they wait.
    fn in_flight(&self, engine: usize) -> Vec<(u64, bool)> {
        let requests = self.cell(engine, "In flight").split(", ");
        let requests = requests.filter_map(|request| request.split_once(' '));
        let read = |(tokens, state): (&str, &str)| match state {
            "waiting" => (number(tokens) as u64, true),
            "generating" => (number(tokens) as u64, false),
            other => panic!("{other:?}"),
        };
        requests.map(read).collect()
    }

    /// A pool of all engines, and one for each, with the same options.
    fn config(&self) -> Config {
        let address = |engine: usize| json!({"address": format!("10.0.0.1{engine}:8000")});
        let pool = |name: String, engines: std::ops::Range<usize>| {
            let engines: Vec<Value> = engines.map(address).collect();
            let policy = json!({"prefix": self.options});
            json!({"name": name, "models": [name], "endpoints": {"static": engines},
                "policy": policy, "candidates": 4})
        };
        let all = pool("all".to_owned(), 0..self.engines());
        let each = (0..self.engines()).map(|engine| pool(engine.to_string(), engine..engine + 1));
        let pools: Vec<Value> = std::iter::once(all).chain(each).collect();
        let config = json!({"pools": pools}).to_string();
        Config::parse(config.as_bytes()).expect("a valid config")
    }
}

/// A router, and the requests that are in flight.
struct Fleet {
    router: Router<MemoryStore>,
    charges: Vec<Charge>,
    now_us: u64,
}

impl Fleet {
    fn ask(&mut self, pool: &str, name: u64, tokens: u64, key: Option<u64>) -> (Decision, Charge) {
        self.now_us += 1000;
        let target = self.router.target(pool.as_bytes()).cloned();
        let target = target.expect("a pool");
        let prompt = Some(prompt(name, tokens));
        let ask = Ask {
            target: &target,
            key,
            prompt,
            priority: Default::default(),
        };
        self.router.decide(ask, self.now_us).expect("an engine")
    }

    /// Brings about what a case says of its engines.
    fn set_up(case: &Case) -> Fleet {
        let mut fleet = Fleet {
            router: Router::new(case.config(), MemoryStore::new(), 1_000_000),
            charges: Vec::new(),
            now_us: 2_000_000,
        };
        for engine in 0..case.engines() {
            let held = number(case.cell(engine, "Holds")) as u64;
            if held > 0 {
                let (_, mut charge) = fleet.ask(&engine.to_string(), ASKED, held, None);
                fleet.router.first_token(&mut charge, fleet.now_us + 10);
                let outcome = Outcome::Served { output_tokens: 0 };
                fleet.router.end(charge, outcome, fleet.now_us + 20);
            }
            for (tokens, waits) in case.in_flight(engine) {
                let name = 100 + fleet.charges.len() as u64;
                let (_, mut charge) = fleet.ask(&engine.to_string(), name, tokens, None);
                if !waits {
                    fleet.router.first_token(&mut charge, fleet.now_us + 10);
                }
                fleet.charges.push(charge);
            }
        }
        fleet
    }

    /// A session key whose home is this engine.
    fn key_at_home(&self, engine: usize, engines: usize) -> u64 {
        let identity = |engine| hash::hash(self.router.address(engine).as_bytes());
        let home = |key: &u64| {
            let score = |engine: &usize| hash::mix(*key, identity(*engine));
            (0..engines).max_by_key(score) == Some(engine)
        };
        (1..).find(home).expect("a key")
    }
}

/// A prompt that shares nothing with prompts of other names.
fn prompt(name: u64, tokens: u64) -> PromptFacts {
    assert_eq!(tokens % CHUNK_TOKENS, 0, "whole chunks, to be exact");
    let chunks = tokens / CHUNK_TOKENS;
    let mut link = Link { hash: name, end: 0 };
    let chain = (0..chunks).map(|chunk| {
        link.hash = hash::chain(link.hash, chunk);
        link.end += CHUNK_BYTES;
        link
    });
    PromptFacts {
        chain: chain.collect(),
        bytes: chunks as usize * CHUNK_BYTES,
        conversation: name,
        streamed: true,
        output_tokens: None,
        told: None,
    }
}

/// The cost of an engine, term by term, each held against the page.
fn cost(case: &Case, fleet: &Fleet, options: &PrefixOptions, engine: usize) -> f64 {
    let requests = |engine| case.in_flight(engine);
    let queue = |engine| requests(engine).iter().filter(|(_, waits)| *waits).count();
    let queues: Vec<usize> = (0..case.engines()).map(queue).collect();
    let most = 2 * queues.iter().min().copied().unwrap_or_default() + 2;
    let queued: usize = queues.iter().map(|queue| *queue.min(&most)).sum();
    let alpha = 1.0 + options.stickiness * (queued as f64 / case.engines() as f64).min(8.0);
    let held = number(case.cell(engine, "Holds")) as u64;
    let work = (PROMPT_TOKENS - held).max(16) as f64;
    let home = case.cell(engine, "Engine").ends_with(", the home");
    let discount = if home {
        1.0 - options.home_affinity
    } else {
        1.0
    };
    let context: u64 = requests(engine)
        .iter()
        .map(|(tokens, _)| tokens + OUTPUT_TOKENS)
        .sum();
    let terms = [
        ("`W`", fleet.router.queued_tokens(engine) as f64),
        ("`alpha * u`", alpha * work * discount),
        (
            "`100 * n`",
            options.request_tokens * f64::from(fleet.router.in_flight(engine)),
        ),
        ("`0.03 * c`", options.context_weight * context as f64),
    ];
    let sum = terms.iter().map(|(_, value)| value).sum::<f64>();
    for (column, value) in terms.into_iter().chain([("Cost", sum)]) {
        let printed = number(case.cell(engine, column));
        assert!(
            (value - printed).abs() < 0.5,
            "{column} of engine {engine}: {value}, the page says {printed}"
        );
    }
    sum
}

fn check(case: &Case) {
    let mut fleet = Fleet::set_up(case);
    let PolicyConfig::Prefix(options) = fleet.router.config().pools[0].policy.clone() else {
        panic!("another policy");
    };
    let costs: Vec<f64> = (0..case.engines())
        .map(|engine| cost(case, &fleet, &options, engine))
        .collect();
    let names: Vec<&str> = (0..case.engines())
        .map(|engine| case.cell(engine, "Engine"))
        .collect();
    let home = names.iter().position(|name| name.ends_with(", the home"));
    let key = home.map(|home| fleet.key_at_home(home, case.engines()));
    let (decision, _charge) = fleet.ask("all", ASKED, PROMPT_TOKENS, key);
    assert_eq!(decision.reason.name(), case.reason);
    assert_eq!(decision.ranked.len(), case.engines());
    assert!(
        decision.ranked.is_sorted_by_key(|engine| costs[*engine]),
        "{:?} is not in the order of {costs:?}",
        decision.ranked
    );
    for (name, engine) in case.first.iter().zip(&decision.ranked) {
        assert!(
            names[*engine].starts_with(name.as_str()),
            "{name} is not in its place"
        );
    }
}

#[test]
fn decisions_by_hand_are_those_of_the_router() {
    let page = page("docs/policies.md");
    let (_, cases) = page
        .text
        .split_once("### A decision by hand")
        .expect("a section");
    let cases = cases.split("\n### ").next().unwrap_or_default();
    let headings: Vec<&str> = cases
        .lines()
        .filter_map(|line| line.strip_prefix("#### "))
        .collect();
    assert_eq!(headings.len(), 4);
    for heading in headings {
        check(&Case::read(&page, heading));
    }
}
