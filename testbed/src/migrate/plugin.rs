//! The filter's configuration for a [`Plan`], as JSON in the order in which one reads it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use serde_yaml_ng::Value as Tree;

use super::plan::{Plan, Pool};
use super::quoted;

/// Longest line, without what the file adds before it.
const LINE: usize = 90;
/// What the shipped configuration lets the filter hold.
const HOLD_BYTES: u64 = 8 << 20;
/// By how much bodies may jump from one callback to the next.
const HOLD_SLACK_BYTES: u64 = 1 << 20;
/// Most engines that are named for a request.
const CANDIDATES: u64 = 16;
/// Failures in a row that nothing reaches.
const NEVER: u64 = 1000;
/// The longest cool-down that is so without being asked for.
const COOL_DOWN_MS: u64 = 30_000;

#[derive(Serialize)]
struct Plugin<'a> {
    pools: Vec<PoolOptions<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_pool: Option<&'a str>,
    #[serde(skip_serializing_if = "<[Value]>::is_empty")]
    session_key: &'a [Value],
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scrape: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<Value>,
    status: Value,
    limits: Value,
}

#[derive(Serialize)]
struct PoolOptions<'a> {
    name: &'a str,
    cluster: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    models: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    aliases: &'a BTreeMap<String, String>,
    endpoints: Endpoints<'a>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    discover_models: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_parallel_size: Option<u64>,
    policy: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    candidates: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disaggregation: Option<&'a Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Endpoints<'a> {
    #[serde(rename = "envoy")]
    Resolved,
    #[serde(rename = "envoy")]
    Labelled {
        metadata: bool,
    },
    Static(Vec<Endpoint<'a>>),
}

#[derive(Serialize)]
struct Endpoint<'a> {
    address: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
}

/// The filter's configuration.
pub fn text(plan: &Plan) -> anyhow::Result<String> {
    let ids = &plan.request_id;
    let plugin = Plugin {
        pools: plan.pools.iter().map(|pool| options(plan, pool)).collect(),
        default_pool: default_pool(plan),
        session_key: &plan.session_key,
        headers: (!ids.is_empty()).then(|| json!({ "request_id": ids })),
        scrape: plan
            .scrape_interval_ms
            .map(|interval| json!({"metrics": {"interval_ms": interval}})),
        health: health(plan),
        status: json!({}),
        limits: json!({"hold_bytes": hold_bytes(plan)}),
    };
    // Read as YAML, which JSON is: its maps keep their order.
    let tree = serde_yaml_ng::from_str(&serde_json::to_string(&plugin)?)?;
    Ok(laid_out(&tree, 0))
}

/// JSON with whatever fits on a line on one.
fn laid_out(value: &Tree, indent: usize) -> String {
    let line = on_a_line(value);
    if indent + line.len() <= LINE && indent > 0 {
        return line;
    }
    let pad = " ".repeat(indent + 2);
    let end = " ".repeat(indent);
    let (open, items, close): (_, Vec<String>, _) = match value {
        Tree::Sequence(items) => {
            let items = items.iter().map(|item| laid_out(item, indent + 2));
            ('[', items.collect(), ']')
        }
        Tree::Mapping(fields) => {
            let fields = fields.iter().map(|(name, value)| {
                format!("{}: {}", on_a_line(name), laid_out(value, indent + 2))
            });
            ('{', fields.collect(), '}')
        }
        _ => return line,
    };
    let items = items.join(&format!(",\n{pad}"));
    format!("{open}\n{pad}{items}\n{end}{close}")
}

/// JSON on one line.
fn on_a_line(value: &Tree) -> String {
    match value {
        Tree::Sequence(items) => {
            let items: Vec<_> = items.iter().map(on_a_line).collect();
            format!("[{}]", items.join(", "))
        }
        Tree::Mapping(fields) => {
            let fields = fields.iter();
            let fields: Vec<_> = fields
                .map(|(name, value)| format!("{}: {}", on_a_line(name), on_a_line(value)))
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
        Tree::String(text) => quoted(text),
        Tree::Bool(value) => value.to_string(),
        Tree::Number(value) => value.to_string(),
        Tree::Null | Tree::Tagged(_) => "null".to_owned(),
    }
}

/// Where requests go whose model does not tell. The only pool needs no telling.
fn default_pool(plan: &Plan) -> Option<&str> {
    let first = plan.pools.first().filter(|_| plan.pools.len() > 1)?;
    Some(&first.name)
}

fn options<'a>(plan: &Plan, pool: &'a Pool) -> PoolOptions<'a> {
    let endpoint = |one: &'a super::plan::PoolEngine| Endpoint {
        address: one.engine.authority(),
        labels: &one.labels,
    };
    PoolOptions {
        name: &pool.name,
        cluster: &pool.name,
        models: &pool.models,
        aliases: &pool.aliases,
        endpoints: match pool.is_resolved() {
            // Their labels are in Envoy's cluster, too, which is asked for them only if it must be.
            true if pool.is_labelled() => Endpoints::Labelled { metadata: true },
            true => Endpoints::Resolved,
            false => Endpoints::Static(pool.engines.iter().map(endpoint).collect()),
        },
        discover_models: pool.discover_models,
        data_parallel_size: pool.ranks,
        policy: &pool.policy,
        candidates: plan.attempts.map(|attempts| attempts.clamp(1, CANDIDATES)),
        disaggregation: pool.disaggregation.as_ref(),
    }
}

fn health(plan: &Plan) -> Option<Value> {
    let breaker = plan.breaker;
    if breaker.off {
        return Some(json!({"failures": NEVER, "stall_ms": 0}));
    }
    let mut health = serde_json::Map::new();
    if let Some(failures) = breaker.failures {
        health.insert("failures".to_owned(), failures.into());
    }
    if let Some(pause_s) = breaker.pause_s {
        let pause_ms = pause_s.saturating_mul(1000);
        health.insert("cool_down_ms".to_owned(), pause_ms.into());
        let longest = pause_ms.max(COOL_DOWN_MS);
        health.insert("max_cool_down_ms".to_owned(), longest.into());
    }
    (!health.is_empty()).then(|| health.into())
}

/// What the filter may hold: less than what Envoy may.
fn hold_bytes(plan: &Plan) -> u64 {
    let Some(most) = plan.max_payload_bytes else {
        return HOLD_BYTES;
    };
    let below = match most > 2 * HOLD_SLACK_BYTES {
        true => most - HOLD_SLACK_BYTES,
        false => most / 2,
    };
    below.clamp(1024, HOLD_BYTES)
}
