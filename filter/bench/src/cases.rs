//! What is measured. A case is prepared once and then run for some iterations at a time.
//!
//! Time is taken around a whole run, so an iteration contains as little as possible besides what it
//! is named for. Every run returns a number that depends on all its results: nothing can be left out
//! by a compiler.

use std::collections::VecDeque;
use std::fmt;

use warmpath_core::ids::EndpointId;
use warmpath_core::prefix::{Event, Index, Kind as EventKind, marks};
use warmpath_core::router::{Ask, Outcome, PromptFacts};
use warmpath_core::scan::{Link, RequestScan, ScanPlan};

use crate::bodies::{Kind, facts, read, router};

/// A prepared case: takes a number of iterations.
pub type Work = Box<dyn FnMut(u64) -> u64>;

/// Endpoints to decide among.
const ENDPOINTS: [usize; 4] = [8, 64, 256, 1024];
/// Policies that decide by different means.
const POLICIES: [(&str, &str); 4] = [
    ("round_robin", r#""round_robin""#),
    ("least_request", r#""least_request""#),
    ("consistent_hash", r#""consistent_hash""#),
    ("prefix", r#"{"prefix": {"kv_tokens": 400000}}"#),
];
/// Bodies to read, in KB.
const BODY_KILOBYTES: [usize; 4] = [1, 32, 128, 1024];
/// Prompts to look up and to enter, in KB.
const PROMPT_KILOBYTES: [usize; 6] = [1, 8, 32, 128, 512, 1024];
/// Size of the prompts that are decided about, in KB.
const DECIDED_KILOBYTES: usize = 4;
/// Different prompts that are decided about, in turn.
const CONVERSATIONS: usize = 200;
/// Requests under way while deciding.
const IN_FLIGHT: usize = 64;
/// Microseconds between two requests.
const GAP_US: u64 = 50;
/// When the first request comes.
const START_US: u64 = 2_000_000;
/// A worker that saw no other for so long takes itself for alone, and writes with its ticks only.
const SETTLED_US: u64 = 11_000_000;
/// Engines of the index.
const ENGINES: u16 = 8;
/// KV capacity of each, in tokens.
const KV_TOKENS: u64 = 400_000;
/// The default size of the table for as many.
const TABLE_BYTES: usize = 512 * 1024;

/// One case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// Reading a body with its prompt hashed.
    Scan(Kind, usize),
    /// A decision and the end of an earlier request: policy, endpoints.
    Decide(usize, usize),
    /// Looking up a prompt of so many KB, that an engine holds or that none does.
    Lookup(bool, usize),
    /// Entering a new prompt of so many KB.
    Insert(usize),
}

/// Every case, in the order of reports.
pub fn all() -> Vec<Case> {
    let kinds = [Kind::Plain, Kind::Escaped, Kind::Tokens];
    let scans = kinds
        .into_iter()
        .flat_map(|kind| BODY_KILOBYTES.map(|size| Case::Scan(kind, size)));
    let decisions =
        (0..POLICIES.len()).flat_map(|policy| ENDPOINTS.map(|count| Case::Decide(policy, count)));
    let lookups = [true, false]
        .into_iter()
        .flat_map(|held| PROMPT_KILOBYTES.map(|size| Case::Lookup(held, size)));
    let insertions = PROMPT_KILOBYTES.map(Case::Insert);
    scans
        .chain(decisions)
        .chain(lookups)
        .chain(insertions)
        .collect()
}

/// The case of this name.
pub fn find(name: &str) -> Option<Case> {
    all().into_iter().find(|case| case.to_string() == name)
}

/// Its name: what is measured, and of what size.
impl fmt::Display for Case {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Case::Scan(kind, size) => write!(out, "scan_prompt/{}/{size}KB", kind.name()),
            Case::Decide(policy, endpoints) => {
                let name = POLICIES.get(*policy).map_or("", |(name, _)| *name);
                write!(out, "decide_and_end/{name}/{endpoints}")
            }
            Case::Lookup(true, size) => write!(out, "prefix_lookup/held/{size}KB"),
            Case::Lookup(false, size) => write!(out, "prefix_lookup/unknown/{size}KB"),
            Case::Insert(size) => write!(out, "prefix_insertion/new/{size}KB"),
        }
    }
}

impl Case {
    /// KB that one iteration reads, if its cost is to be told per KB.
    pub fn kilobytes(self) -> Option<usize> {
        match self {
            Case::Scan(_, size) | Case::Lookup(_, size) | Case::Insert(size) => Some(size),
            Case::Decide(..) => None,
        }
    }

    /// Everything that is not measured.
    pub fn prepare(self) -> Work {
        match self {
            Case::Scan(kind, size) => scan(kind, size),
            Case::Decide(policy, endpoints) => decide(policy, endpoints),
            Case::Lookup(held, size) => lookup(held, size),
            Case::Insert(size) => insert(size),
        }
    }
}

fn plan() -> ScanPlan {
    ScanPlan::new(&["/user".to_owned()], true).unwrap_or_default()
}

fn prompt(kilobytes: usize) -> RequestScan {
    let body = Kind::Escaped.body(kilobytes * 1024);
    read(&plan(), Kind::Escaped.api(), &body)
}

fn scan(kind: Kind, kilobytes: usize) -> Work {
    let (plan, body) = (plan(), kind.body(kilobytes * 1024));
    Box::new(move |iterations| {
        let once = |_| {
            let scan = read(&plan, kind.api(), &body);
            // What a decision takes of it: the chain of the prompt.
            let last = scan.prompt().chain(1).last();
            last.map_or(0, |link| link.hash)
        };
        (0..iterations).map(once).fold(0, u64::wrapping_add)
    })
}

fn decide(policy: usize, endpoints: usize) -> Work {
    let policy = POLICIES.get(policy).map_or("", |(_, json)| *json);
    let mut router = router(endpoints, policy);
    let Some(target) = router.target(b"m").cloned() else {
        unreachable!("the pool serves the model");
    };
    let scan = prompt(DECIDED_KILOBYTES);
    let prompts: Vec<PromptFacts> = (0..CONVERSATIONS as u64)
        .map(|conversation| facts(&scan, conversation))
        .collect();
    let mut under_way = VecDeque::new();
    let mut now_us = START_US;
    let mut next = 0;
    let mut run = move |iterations| {
        let mut ranked = 0_u64;
        for _ in 0..iterations {
            now_us += GAP_US;
            next = (next + 1) % CONVERSATIONS;
            let ask = Ask {
                target: &target,
                key: Some(next as u64),
                prompt: prompts.get(next).cloned(),
                priority: Default::default(),
            };
            let Ok((decision, charge)) = router.decide(ask, now_us) else {
                unreachable!("there are endpoints");
            };
            ranked = decision
                .ranked
                .first()
                .map_or(ranked, |first| ranked.wrapping_add(*first as u64));
            under_way.push_back(charge);
            if under_way.len() > IN_FLIGHT
                && let Some(charge) = under_way.pop_front()
            {
                let served = Outcome::Served { output_tokens: 10 };
                router.end(charge, served, now_us);
            }
            if now_us < START_US + SETTLED_US {
                now_us += SETTLED_US;
            }
        }
        ranked
    };
    run(CONVERSATIONS as u64);
    Box::new(run)
}

fn index() -> Index {
    let mut index = Index::new(TABLE_BYTES);
    let engines: Vec<_> = (0..ENGINES)
        .map(|engine| (EndpointId(engine), KV_TOKENS))
        .collect();
    index.set_engines(&engines);
    index
}

fn hold(chain: &[Link], engine: u16) -> Event {
    Event {
        kind: EventKind::Hold,
        engine: EndpointId(engine),
        extra_chunks: 1,
        marks: marks(chain),
    }
}

fn lookup(held: bool, kilobytes: usize) -> Work {
    let scan = prompt(kilobytes);
    let mut index = index();
    index.apply(&hold(&facts(&scan, 1).chain, 3));
    let chain = facts(&scan, if held { 1 } else { 2 }).chain;
    Box::new(move |iterations| {
        let once = |_| {
            let mut deepest = 0;
            index.lookup(std::hint::black_box(&chain), |_, link| deepest = link.end);
            deepest as u64
        };
        (0..iterations).map(once).fold(0, u64::wrapping_add)
    })
}

fn insert(kilobytes: usize) -> Work {
    let chain = facts(&prompt(kilobytes), 1).chain;
    let mut index = index();
    let mut salt = 0_u64;
    Box::new(move |iterations| {
        for _ in 0..iterations {
            salt = salt.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut event = hold(&chain, (salt >> 32) as u16 % ENGINES);
            // A new prompt for the price of a few words, where a new chain would cost more than it.
            event.marks.iter_mut().for_each(|mark| mark.link ^= salt);
            index.apply(&event);
        }
        let mut holders = 0;
        index.lookup(&chain, |engine, _| holders += u64::from(engine.0));
        holders
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own_and_works() {
        let cases = all();
        for case in &cases {
            assert_eq!(find(&case.to_string()), Some(*case));
        }
        assert_eq!(find("prefix_lookup/held/3KB"), None);
        for case in cases.into_iter().filter(|case| case.is_small()) {
            let once = case.prepare()(1);
            // Only an unknown prompt and a new one are found nowhere.
            let nothing = matches!(case, Case::Lookup(false, _) | Case::Insert(_));
            let may_be_zero = nothing || matches!(case, Case::Decide(..));
            assert!(may_be_zero || once > 0, "{case}");
            assert!(!nothing || once == 0, "{case}");
        }
    }

    impl Case {
        fn is_small(self) -> bool {
            self.kilobytes().is_none_or(|size| size <= 32)
        }
    }
}
