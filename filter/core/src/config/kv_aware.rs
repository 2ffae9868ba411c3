//! The policy `kv_aware`: which index service is asked, for how long, and what happens without it.

use super::PolicyConfig;
use super::endpoints::address;
use super::policy::{policy, prefix};
use super::reader::{Fields, Reader, text};
use crate::json::Value;
use crate::wire::MAX_NAME_BYTES;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

/// An engine tokenizes 10,000 tokens in some milliseconds, and an index answers in one.
const BUDGET_MS: u64 = 20;
const BUDGET_RANGE: RangeInclusive<u64> = 1..=1000;
/// As long as events of an engine under load have been seen to take, and then as long again.
const PREDICTION_MS: u64 = 3000;
/// A tool call or a retry comes back within that time; an eviction rarely does.
const ANSWER_TTL_MS: u64 = 3000;
/// An index that is back is found soon, and one that is not costs one request in a second its budget.
const COOL_DOWN_MS: u64 = 1000;
/// Shorter prompts are prefilled sooner than they are looked up.
const LEAST_TOKENS: u64 = 256;
/// Twice what 2,500 requests a second at 50 ms would have under way in one worker.
const MAX_PENDING: u64 = 256;
/// Most instances that are named in a configuration.
const MAX_INSTANCES: usize = super::MAX_ENDPOINTS;

/// The options of the policy.
#[derive(Clone, Debug, PartialEq)]
pub struct KvAwareOptions {
    /// Who is asked.
    pub index: IndexOptions,
    /// How long a request may wait for all of it.
    pub budget_us: u64,
    /// Most tokens that may be left to prefill for a match to count; `None`: any match counts.
    pub threshold_tokens: Option<u64>,
    /// Shortest prompt that is looked up.
    pub least_tokens: u64,
    /// How long what was routed counts beside what the index says.
    pub prediction_us: u64,
    /// How long an answer is used for the next turns of its conversation.
    pub answer_ttl_us: u64,
    /// How long nobody asks after several failures.
    pub cool_down_us: u64,
    /// Most requests of a worker that wait for it.
    pub max_pending: usize,
    /// Always [`PolicyConfig::Prefix`]: the cost, and who decides when the index does not answer.
    pub prefix: Box<PolicyConfig>,
    /// Who decides when the index knows of no match; never `KvAware`. `None`: the same cost.
    pub fallback: Option<Box<PolicyConfig>>,
}

/// The index service.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexOptions {
    /// What it speaks.
    pub kind: IndexKind,
    /// Envoy's cluster that it is reached by.
    pub cluster: String,
    /// Endpoints by the names that the service has for their instances.
    pub instances: Vec<(String, SocketAddr)>,
}

/// What an index service speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexKind {
    /// LMCache's controller.
    Lmcache,
    /// Dynamo's standalone KV indexer.
    Dynamo {
        /// The model's name there; `None`: as the engines have it.
        model: Option<String>,
    },
}

pub(super) fn kv_aware(reader: &mut Reader, fields: &mut Fields) -> Option<KvAwareOptions> {
    let index = fields.required(reader, "index", index);
    let mut ms = |reader: &mut Reader, name, range, default| {
        fields.count(reader, name, range, default) * 1000
    };
    let budget_us = ms(reader, "budget_ms", BUDGET_RANGE, BUDGET_MS);
    let prediction_us = ms(reader, "prediction_ms", 0..=60_000, PREDICTION_MS);
    let answer_ttl_us = ms(reader, "answer_ttl_ms", 0..=60_000, ANSWER_TTL_MS);
    let cool_down_us = ms(reader, "cool_down_ms", 100..=60_000, COOL_DOWN_MS);
    let threshold_tokens =
        fields.optional_count(reader, "threshold_tokens", 0..=1_000_000_000, "off");
    let least_tokens = fields.count(reader, "least_tokens", 1..=1_000_000, LEAST_TOKENS);
    let max_pending = fields.count(reader, "max_pending", 1..=100_000, MAX_PENDING);
    let fallback = fields.optional(reader, "fallback", |reader, path, value| {
        // Its options are this policy's own.
        match value.as_str() {
            Some("prefix") => Some(None),
            _ => Some(Some(Box::new(fallback(reader, path, value)?))),
        }
    });
    let prefix = prefix(reader, fields);
    Some(KvAwareOptions {
        index: index?,
        budget_us,
        threshold_tokens,
        least_tokens,
        prediction_us,
        answer_ttl_us,
        cool_down_us,
        max_pending: max_pending as usize,
        prefix: Box::new(PolicyConfig::Prefix(prefix)),
        fallback: fallback.flatten(),
    })
}

/// A policy that weighs nothing that this one weighs otherwise.
fn fallback(reader: &mut Reader, path: &str, value: &Value) -> Option<PolicyConfig> {
    let found = policy(reader, path, value)?;
    let inner = match &found {
        PolicyConfig::ConsistentHash { without_key, .. } => without_key,
        found => found,
    };
    if matches!(inner, PolicyConfig::Prefix(_) | PolicyConfig::KvAware(_)) {
        reader.error(
            path,
            value,
            "`\"prefix\"`, or a policy without options of `prefix`",
        );
        return None;
    }
    Some(found)
}

fn index(reader: &mut Reader, path: &str, value: &Value) -> Option<IndexOptions> {
    let (kind, value) = reader.tagged(path, value, &["lmcache", "dynamo"])?;
    let mut fields = reader.object(&format!("{path}.{kind}"), value)?;
    let cluster = fields.required(reader, "cluster", text);
    let instances = fields.optional(reader, "instances", instances);
    let kind = match kind {
        "dynamo" => IndexKind::Dynamo {
            model: fields.optional(reader, "model", text),
        },
        _ => IndexKind::Lmcache,
    };
    fields.finish(reader);
    Some(IndexOptions {
        kind,
        cluster: cluster?,
        instances: instances.unwrap_or_default(),
    })
}

fn instances(reader: &mut Reader, path: &str, value: &Value) -> Option<Vec<(String, SocketAddr)>> {
    let legal = |name: &String| (1..=MAX_NAME_BYTES).contains(&name.len());
    let map = value
        .as_object()
        .filter(|map| map.len() <= MAX_INSTANCES && map.iter().all(|(name, _)| legal(name)));
    let Some(map) = map else {
        reader.error(path, value, "an object of instance: `ip:port`");
        return None;
    };
    let pairs = map.iter().filter_map(|(name, value)| {
        let address = address(reader, &format!("{path}.{name}"), value)?;
        Some((name.clone(), address))
    });
    Some(pairs.collect())
}
