//! Plausible facts for the status page: three pools on a busy afternoon, two engines unwell.
//!
//! Everything is a function of the step, so a picture of the page is the same each time.

use std::f64::consts::TAU;

use anyhow::Context as _;
use serde_json::{Value, json};

/// What `status` answers at a step, counted from one.
pub(crate) fn status(step: u64) -> Value {
    let requests = 182_340 + step * 41;
    json!({
        "version": "0.1.0",
        "now_ms": 1_790_000_000_000_u64 + step * 1000,
        "uptime_s": 93_784 + step,
        "worker": {"id": 3, "workers": 5, "scraper": step.is_multiple_of(3)},
        "config": {"generation": 2},
        "pools": [
            pool("llama", "prefix", "llama-3-8b", json!({"gpt-4o-mini": "llama-3-8b"}), llama(step)),
            pool("coder", "prefix", "qwen2.5-coder-32b", json!({}), coder(step)),
            pool("embed", "least_request", "bge-m3", json!({"text-embedding-3-small": "bge-m3"}), embed(step)),
        ],
        "recent": recent(step),
        "counters": {
            "requests": requests,
            "fallbacks": {"not_inference": 212, "prompt_beyond_limit": 38, "encoded_body": 3},
            "predicted_cached_tokens": requests * 3120,
            "reported_cached_tokens": requests * 3041,
            "table": {"bytes": 16_777_216, "entries": 412_300 + step * 7, "filled": 0.39, "evictions": 1804},
        },
    })
}

/// What `explain` answers.
pub(crate) fn explain() -> Value {
    let candidates: Vec<Value> = [
        (11, "healthy", 4800, 200, 0, 3, 20_000, 0.0, 300.0, 300.0, 40.5),
        (12, "healthy", 1536, 3464, 0, 2, 14_200, 0.0, 5196.0, 200.0, 28.8),
        (14, "healthy", 512, 4488, 2048, 5, 31_000, 2048.0, 6732.0, 500.0, 62.8),
        (13, "cooling_down", 5000, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0),
    ]
    .into_iter()
    .map(|(host, state, held, work, queued, in_flight, context, q, w, r, c)| {
        json!({
            "address": format!("10.0.0.{host}:8000"), "usable": state == "healthy", "state": state,
            "held_tokens": held, "work_tokens": work, "queued_tokens": queued,
            "in_flight": in_flight, "context_tokens": context, "cost": q + w + r + c,
            "terms": {"queue": q, "work": w, "requests": r, "context": c, "weight": 1},
        })
    })
    .collect();
    json!({
        "pool": "llama", "policy": "prefix", "reason": "longest_prefix",
        "ranked": ["10.0.0.11:8000", "10.0.0.12:8000", "10.0.0.14:8000"],
        "prompt_tokens": 5000, "conversation_home": null, "alpha": 1.5,
        "candidates": candidates, "fallback": null,
    })
}

/// A fleet of this many pools with so many engines each; every seventh engine is unwell.
pub(super) fn fleet(pools: u32, engines: u32, step: u64) -> Value {
    let pools: Vec<Value> = (0..pools)
        .map(|pool_number| {
            let engines = (0..engines)
                .map(|index| {
                    let host = pool_number * engines + index;
                    let state = if host % 7 == 3 {
                        "unhealthy"
                    } else {
                        "healthy"
                    };
                    engine(step, host, state)
                })
                .collect();
            let name = format!("pool-{pool_number}");
            pool(
                &name,
                "prefix",
                &format!("model-{pool_number}"),
                json!({}),
                engines,
            )
        })
        .collect();
    let mut facts = status(step);
    change(&mut facts, "pools", pools.into());
    facts
}

/// Puts a value where a JSON pointer says; its last field need not exist yet.
///
/// # Errors
/// The pointer leads nowhere.
pub(super) fn set(facts: &mut Value, pointer: &str, value: impl Into<Value>) -> anyhow::Result<()> {
    let (parent, field) = pointer.rsplit_once('/').context("an empty pointer")?;
    let parent = facts
        .pointer_mut(parent)
        .with_context(|| pointer.to_owned())?;
    let parent = parent.as_object_mut().with_context(|| pointer.to_owned())?;
    parent.insert(field.to_owned(), value.into());
    Ok(())
}

fn pool(name: &str, policy: &str, model: &str, aliases: Value, endpoints: Vec<Value>) -> Value {
    json!({
        "name": name, "cluster": name, "policy": policy, "models": [model],
        "aliases": aliases, "endpoints": endpoints,
    })
}

fn llama(step: u64) -> Vec<Value> {
    let states = [
        "healthy",
        "healthy",
        "cooling_down",
        "healthy",
        "slow_start",
        "healthy",
    ];
    let mut engines = engines(step, 11, &states);
    if let Some(first) = engines.first_mut() {
        change(first, "loras", json!(["support-v4", "legal-v2"]));
    }
    engines
}

fn coder(step: u64) -> Vec<Value> {
    let mut engines = engines(step, 31, &["healthy", "healthy", "healthy", "unhealthy"]);
    let roles = ["prefill", "decode", "decode", "decode"];
    for (engine, role) in engines.iter_mut().zip(roles) {
        change(engine, "role", role.into());
    }
    engines
}

fn embed(step: u64) -> Vec<Value> {
    let mut engines = engines(step, 51, &["healthy", "healthy"]);
    for engine in &mut engines {
        change(engine, "engine", Value::Null);
        change(engine, "prefill_tokens", 0.into());
    }
    engines
}

fn change(object: &mut Value, field: &str, value: Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(field.to_owned(), value);
    }
}

fn engines(step: u64, first_host: u32, states: &[&str]) -> Vec<Value> {
    (first_host..)
        .zip(states)
        .map(|(host, state)| engine(step, host, state))
        .collect()
}

/// One engine, a little busier and idler as the steps go.
fn engine(step: u64, host: u32, state: &str) -> Value {
    let pace = f64::from(host % 7 + 4) / 90.0;
    let wave = (step as f64 * pace + f64::from(host) * 1.7 * TAU / 7.0).sin();
    let part = match state {
        "healthy" => 1.0,
        "slow_start" => 0.4,
        _ => 0.0,
    };
    let busy = part * (9.0 + 5.0 * wave);
    let (in_flight, waiting) = (busy.round(), (busy / 5.0).floor());
    let kv = 0.48 + 0.02 * f64::from(host % 5) + 0.12 * wave;
    json!({
        "address": format!("10.0.{}.{}:8000", host / 200, host % 200),
        "rank": null, "role": "both", "state": state,
        "state_since_s": if state == "healthy" { 93_700 } else { 6 + u64::from(host) + step },
        "weight": 1, "in_flight": in_flight, "waiting": waiting,
        "prefill_tokens": (waiting * 1740.0 + busy * 31.0).round(),
        "context_tokens": (busy * 5200.0).round(),
        "engine": {
            "running": in_flight - waiting, "queued": (waiting / 2.0).floor(),
            "kv_usage": if state == "unhealthy" { Value::Null } else { kv.into() },
            "kv_capacity_tokens": 400_000, "hit_ratio": 0.58 + 0.05 * f64::from(host % 5),
            "age_ms": if state == "unhealthy" { 41_000 } else { 412 }, "stale": state == "unhealthy",
        },
        "requests": 30_390 + u64::from(host) * 37 + step * 7,
        "failures": if state == "healthy" { u64::from(host % 3) } else { 61 },
        "qps": part * (4.6 + 1.7 * wave),
        "ttft_ms": {"p50": 96 + host % 11 * 4, "p99": 640 + host % 13 * 37},
        "share": part * (0.19 + 0.03 * wave), "models": [], "loras": [],
    })
}

fn recent(step: u64) -> Vec<Value> {
    let reasons = [
        "longest_prefix",
        "longest_prefix",
        "session_owner",
        "longest_prefix",
        "load_over_prefix",
        "longest_prefix",
        "cold_prefix",
    ];
    (0..12_u64)
        .zip(reasons.iter().cycle())
        .map(|(back, reason)| {
            let number = step * 2 - back.min(step * 2);
            let prompt = 1400 + number * 977 % 8200;
            let held = match *reason {
                "cold_prefix" => 0,
                "load_over_prefix" => prompt * 2 / 10,
                _ => prompt * (88 + number % 11) / 100,
            };
            let first_token = back > 1;
            json!({
                "age_ms": 60 + back * 83, "pool": "llama", "policy": "prefix", "reason": reason,
                "endpoint": format!("10.0.0.{}:8000", [11, 12, 14, 16].get(number as usize % 4).unwrap_or(&11)),
                "prompt_tokens": prompt, "predicted_cached_tokens": held,
                "reported_cached_tokens": first_token.then(|| held / 16 * 16),
                "status": if back == 7 { 503 } else { 200 },
                "ttft_ms": first_token.then_some(70 + (prompt - held) / 9),
            })
        })
        .collect()
}
