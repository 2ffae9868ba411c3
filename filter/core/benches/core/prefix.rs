//! The prefix index alone, and decisions by it, for prompts of 1 KB to 1 MB among 8 engines, and of
//! 32 KB among more.

use criterion::{BatchSize, BenchmarkId, Criterion};
use warmpath_core::ids::EndpointId;
use warmpath_core::prefix::{Event, Index, Kind as EventKind, marks};
use warmpath_core::scan::{Link, RequestScan, ScanPlan};

use super::bodies::{Kind, facts, read};
use super::decision::{ENDPOINTS, Traffic};

const KILOBYTES: [usize; 6] = [1, 8, 32, 128, 512, 1024];
const ENGINES: u16 = 8;
/// KV capacity of an engine.
const KV_TOKENS: u64 = 400_000;
/// Different prompts; no more than all engines hold, for the largest.
const PROMPTS: u64 = 8;
/// The default for 8 engines of that capacity.
const TABLE_BYTES: usize = 512 * 1024;
const POLICY: &str = r#"{"prefix": {"kv_tokens": 400000}}"#;

/// Time of a lookup, an insertion, and a whole decision.
pub fn bench(criterion: &mut Criterion) {
    let Ok(plan) = ScanPlan::new(&[], true) else {
        unreachable!("there is no pointer");
    };
    let scans: Vec<(usize, RequestScan)> = KILOBYTES
        .iter()
        .map(|&kilobytes| {
            let body = Kind::Escaped.body(kilobytes * 1024);
            (kilobytes, read(&plan, Kind::Escaped.api(), &body))
        })
        .collect();
    for (kilobytes, scan) in &scans {
        lookup(criterion, *kilobytes, scan);
        insertion(criterion, *kilobytes, scan);
        let group = "prefix_decide_and_end";
        decision(
            criterion,
            group,
            &format!("{kilobytes} KB"),
            scan,
            ENGINES.into(),
        );
        if *kilobytes == 32 {
            for endpoints in ENDPOINTS {
                decision(
                    criterion,
                    "prefix_by_endpoints",
                    &endpoints.to_string(),
                    scan,
                    endpoints,
                );
            }
        }
    }
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

fn lookup(criterion: &mut Criterion, kilobytes: usize, scan: &RequestScan) {
    let mut index = index();
    let held = facts(scan, 1).chain;
    index.apply(&hold(&held, 3));
    let unknown = facts(scan, 2).chain;
    let mut group = criterion.benchmark_group("prefix_lookup");
    for (name, chain) in [("held", &held), ("unknown", &unknown)] {
        group.bench_function(
            BenchmarkId::new(name, format!("{kilobytes} KB")),
            |bencher| {
                bencher.iter(|| {
                    let mut deepest = 0;
                    index.lookup(chain, |_, link| deepest = link.end);
                    deepest
                });
            },
        );
    }
    group.finish();
}

fn insertion(criterion: &mut Criterion, kilobytes: usize, scan: &RequestScan) {
    let mut index = index();
    let mut seed = 0;
    let mut next = || {
        seed += 1;
        facts(scan, seed).chain
    };
    let mut group = criterion.benchmark_group("prefix_insertion");
    group.bench_function(
        BenchmarkId::new("new", format!("{kilobytes} KB")),
        |bencher| {
            bencher.iter_batched(
                &mut next,
                |chain| index.apply(&hold(&chain, (chain.len() % usize::from(ENGINES)) as u16)),
                BatchSize::SmallInput,
            );
        },
    );
    group.finish();
}

fn decision(
    criterion: &mut Criterion,
    group: &str,
    parameter: &str,
    scan: &RequestScan,
    endpoints: usize,
) {
    let mut group = criterion.benchmark_group(group);
    for (name, prompts) in [("held", PROMPTS), ("new", u64::MAX)] {
        let mut traffic = Traffic::new(endpoints, POLICY, 1);
        let mut turn = 0;
        let mut next = || {
            turn += 1;
            (turn % prompts, facts(scan, turn % prompts))
        };
        for _ in 0..PROMPTS {
            let (key, prompt) = next();
            traffic.step(key, Some(prompt));
        }
        traffic.settle();
        group.bench_function(BenchmarkId::new(name, parameter), |bencher| {
            bencher.iter_batched(
                &mut next,
                |(key, prompt)| traffic.step(key, Some(prompt)),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}
