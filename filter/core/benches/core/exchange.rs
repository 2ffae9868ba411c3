//! All that the core does for one request, from its headers to its end.

use criterion::{BenchmarkId, Criterion};
use std::sync::Arc;

use warmpath_core::router::{Outcome, Response, Router};
use warmpath_core::store::MemoryStore;
use warmpath_core::{Exchange, Head, Step};

use super::bodies::{Kind, SLICE_BYTES, router};

const POLICIES: [(&str, &str); 3] = [
    ("round_robin", r#""round_robin""#),
    ("consistent_hash", r#""consistent_hash""#),
    ("prefix", r#"{"prefix": {"kv_tokens": 400000}}"#),
];
/// Microseconds between two requests.
const GAP_US: u64 = 50;

/// Time of a request by policy and size of its body, with 4 endpoints.
pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("exchange");
    for (name, policy) in POLICIES {
        for kilobytes in [1, 32, 128] {
            let body = Kind::Escaped.body(kilobytes * 1024);
            let headers = headers(body.len());
            let mut router = router(4, policy);
            let mut now_us = 2_000_000;
            let id = BenchmarkId::new(name, format!("{kilobytes} KB"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| {
                    now_us += GAP_US;
                    request(&mut router, &headers, &body, now_us)
                });
            });
        }
    }
    group.finish();
}

/// The headers that Envoy shows of a small client's request.
fn headers(length: usize) -> Vec<(String, Vec<u8>)> {
    let length = length.to_string();
    let list = [
        (":authority", "localhost"),
        (":path", "/v1/chat/completions"),
        (":method", "POST"),
        (":scheme", "http"),
        ("content-type", "application/json"),
        ("x-session-id", "session-1"),
        ("content-length", length.as_str()),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-request-id", "3f1b84fe-640c-40ac-be79-5310b0afc33b"),
    ];
    list.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
        .to_vec()
}

fn request(
    router: &mut Router<Arc<MemoryStore>>,
    headers: &[(String, Vec<u8>)],
    body: &[u8],
    now_us: u64,
) -> usize {
    let mut exchange = Exchange::default();
    let head = Head {
        headers,
        end_of_stream: false,
    };
    let mut step = exchange.on_headers(router, head, now_us);
    for slice in body.chunks(SLICE_BYTES) {
        if step != Step::Hold {
            break;
        }
        step = exchange.on_body(router, slice, false, now_us);
    }
    if step == Step::Hold {
        step = exchange.on_body(router, &[], true, now_us);
    }
    let Step::Route(decision) = step else {
        unreachable!("the request can be routed: {step:?}");
    };
    let destination = router.destination(&decision);
    let response = Response {
        status: 200,
        address: destination.as_bytes(),
        by_engine: true,
        retry_after_s: None,
    };
    exchange.responded(router, response, now_us);
    exchange.first_token(router, now_us);
    exchange.end(router, Outcome::Served { output_tokens: 10 }, now_us);
    destination.len()
}
