//! Reading a metrics page of an engine: a real one, one with many ranks, and long ones.

use criterion::{Criterion, Throughput};
use warmpath_core::stats::{EngineStats, Names};

const REAL: &[u8] = include_bytes!("../../tests/fixtures/metrics/vllm-0.32.txt");

/// Bytes per second for every page.
pub fn bench(criterion: &mut Criterion) {
    let ranks: Vec<u8> = (0..64).flat_map(of_rank).collect();
    let pages = [
        ("vllm 0.32", REAL.to_vec()),
        ("vllm 0.32, 64 ranks", ranks),
        ("vllm 0.32, 5 MB", REAL.repeat(5_000_000 / REAL.len())),
        (
            "a million series of interest",
            b"vllm:num_requests_running 1\n".repeat(1_000_000),
        ),
        ("5 MB without line end", vec![b'v'; 5_000_000]),
    ];
    let names = Names::default();
    let configured = Names {
        running: Some("vendor_running".to_owned()),
        ..Names::default()
    };
    let mut group = criterion.benchmark_group("metrics_page");
    for (name, page) in &pages {
        group.throughput(Throughput::Bytes(page.len() as u64));
        group.bench_function(*name, |bencher| {
            bencher.iter(|| EngineStats::read(page, &names));
        });
    }
    group.throughput(Throughput::Bytes(REAL.len() as u64));
    group.bench_function("vllm 0.32, a name configured", |bencher| {
        bencher.iter(|| EngineStats::read(REAL, &configured));
    });
    group.finish();
}

/// The lines of the real page that name a rank, for another rank.
fn of_rank(rank: u32) -> Vec<u8> {
    let page = String::from_utf8_lossy(REAL);
    let lines = page.lines().filter(|line| line.contains("engine=\"0\""));
    let rank = format!("engine=\"{rank}\"");
    let lines = lines.map(|line| format!("{}\n", line.replace("engine=\"0\"", &rank)));
    lines.collect::<String>().into_bytes()
}
