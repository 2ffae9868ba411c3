//! Reading a body: its fields only, and with the prompt hashed.

use criterion::{BenchmarkId, Criterion, Throughput};
use warmpath_core::scan::ScanPlan;

use super::bodies::{Kind, read};

/// Bytes per second for every kind and size of body.
pub fn bench(criterion: &mut Criterion) {
    for (name, prompt) in [("scan_fields", false), ("scan_prompt", true)] {
        let Ok(plan) = ScanPlan::new(&["/user".to_owned()], prompt) else {
            unreachable!("the pointer is valid");
        };
        let mut group = criterion.benchmark_group(name);
        for kind in Kind::ALL {
            for kilobytes in [1, 32, 128, 1024] {
                let body = kind.body(kilobytes * 1024);
                group.throughput(Throughput::Bytes(body.len() as u64));
                let id = BenchmarkId::new(kind.name(), format!("{kilobytes} KB"));
                group.bench_function(id, |bencher| {
                    bencher.iter(|| read(&plan, kind.api(), &body).scanned());
                });
            }
        }
        group.finish();
    }
}
