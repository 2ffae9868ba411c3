//! The policy of a pool, with its options and their defaults.

use super::kv_aware::{KvAwareOptions, kv_aware};
use super::reader::{Fields, Reader};
use crate::json::Value;
use crate::policy::cache_aware::CacheAwareOptions;
use crate::policy::prefix::PrefixOptions;
use crate::rate::BUCKETS;
use std::ops::RangeInclusive;

/// The window of production-stack's router.
const WINDOW_S: u64 = 60;
/// An 8B model on one 80 GB accelerator.
pub(super) const KV_TOKENS: u64 = 400_000;
const KV_RANGE: RangeInclusive<u64> = 1_000..=1_000_000_000;
/// With 2, simulated chat at saturation computes more prompts twice; 6 was no better than 4.
const STICKINESS: f64 = 4.0;
/// Small against a prompt: tells engines apart that have no prefill queued. Not tuned.
const REQUEST_TOKENS: f64 = 100.0;
/// A context slows every decode step a little. Not tuned.
const CONTEXT_WEIGHT: f64 = 0.03;
/// A fifth of a second of prefill, about what it takes to load an adapter from memory. Not tuned.
const LORA_TOKENS: f64 = 2000.0;
/// The defaults of vllm-project/router.
const CACHE_THRESHOLD: f64 = 0.3;
const BALANCE_ABS_THRESHOLD: u64 = 64;
const BALANCE_REL_THRESHOLD: f64 = 1.5;

/// A policy with its options.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicyConfig {
    /// In turn.
    RoundRobin,
    /// By lot.
    Random,
    /// Fewest requests in flight.
    LeastRequest,
    /// Lowest use of KV memory.
    LeastKv,
    /// The less loaded of two drawn by lot.
    PowerOfTwo,
    /// Fewest requests within a window.
    LowestQps {
        /// Length of the window.
        window_us: u64,
    },
    /// By cached prefix and load together.
    Prefix(PrefixOptions),
    /// By cached prefix unless load is imbalanced.
    CacheAware(CacheAwareOptions),
    /// By what an index service says of the engines' caches, and load together.
    KvAware(Box<KvAwareOptions>),
    /// By session key.
    ConsistentHash {
        /// Most in flight of an endpoint as a multiple of the mean; above it the next one serves.
        bounded_load: Option<f64>,
        /// Who decides about requests without a session key; never `ConsistentHash`.
        without_key: Box<PolicyConfig>,
    },
}

impl PolicyConfig {
    /// The name in configs, metrics and debug headers.
    pub fn name(&self) -> &'static str {
        match self {
            PolicyConfig::RoundRobin => "round_robin",
            PolicyConfig::Random => "random",
            PolicyConfig::LeastRequest => "least_request",
            PolicyConfig::LeastKv => "least_kv",
            PolicyConfig::PowerOfTwo => "power_of_two",
            PolicyConfig::LowestQps { .. } => "lowest_qps",
            PolicyConfig::Prefix(_) => "prefix",
            PolicyConfig::CacheAware(_) => "cache_aware",
            PolicyConfig::KvAware(_) => "kv_aware",
            PolicyConfig::ConsistentHash { .. } => "consistent_hash",
        }
    }

    /// Whether the policy looks at request rates.
    pub fn counts_rates(&self) -> bool {
        match self {
            PolicyConfig::LowestQps { .. } => true,
            PolicyConfig::ConsistentHash { without_key, .. } => without_key.counts_rates(),
            PolicyConfig::KvAware(options) => {
                let fallback = options.fallback.as_ref();
                fallback.is_some_and(|fallback| fallback.counts_rates())
            }
            _ => false,
        }
    }

    /// The options of `prefix`, where it may decide.
    pub fn prefix(&self) -> Option<&PrefixOptions> {
        match self {
            PolicyConfig::Prefix(options) => Some(options),
            PolicyConfig::KvAware(options) => options.prefix.prefix(),
            PolicyConfig::ConsistentHash { without_key, .. } => without_key.prefix(),
            _ => None,
        }
    }

    /// The same, to change them.
    pub fn prefix_mut(&mut self) -> Option<&mut PrefixOptions> {
        match self {
            PolicyConfig::Prefix(options) => Some(options),
            PolicyConfig::KvAware(options) => options.prefix.prefix_mut(),
            PolicyConfig::ConsistentHash { without_key, .. } => without_key.prefix_mut(),
            _ => None,
        }
    }

    /// The options of `kv_aware`.
    pub fn kv_aware(&self) -> Option<&KvAwareOptions> {
        match self {
            PolicyConfig::KvAware(options) => Some(options),
            _ => None,
        }
    }

    /// Whether an engine's own word on its KV capacity counts more than [`PolicyConfig::kv_tokens`].
    pub fn learns_kv_tokens(&self) -> bool {
        match self {
            PolicyConfig::Prefix(options) => options.learns_kv_tokens,
            PolicyConfig::CacheAware(options) => options.learns_kv_tokens,
            PolicyConfig::KvAware(options) => options.prefix.learns_kv_tokens(),
            PolicyConfig::ConsistentHash { without_key, .. } => without_key.learns_kv_tokens(),
            _ => false,
        }
    }

    /// KV capacity of an endpoint in tokens, if the policy looks at prompts.
    pub fn kv_tokens(&self) -> Option<u64> {
        match self {
            PolicyConfig::Prefix(options) => Some(options.kv_tokens),
            PolicyConfig::CacheAware(options) => Some(options.kv_tokens),
            PolicyConfig::KvAware(options) => options.prefix.kv_tokens(),
            PolicyConfig::ConsistentHash { without_key, .. } => without_key.kv_tokens(),
            _ => None,
        }
    }
}

const KINDS: [&str; 10] = [
    "round_robin",
    "random",
    "least_request",
    "least_kv",
    "power_of_two",
    "lowest_qps",
    "prefix",
    "cache_aware",
    "kv_aware",
    "consistent_hash",
];

pub(super) fn policy(reader: &mut Reader, path: &str, value: &Value) -> Option<PolicyConfig> {
    let (kind, options) = reader.tagged(path, value, &KINDS)?;
    let empty = Value::Object(Default::default());
    let options = if options.is_null() { &empty } else { options };
    let mut fields = reader.object(&format!("{path}.{kind}"), options)?;
    let policy = match kind {
        "round_robin" => PolicyConfig::RoundRobin,
        "random" => PolicyConfig::Random,
        "least_kv" => PolicyConfig::LeastKv,
        "power_of_two" => PolicyConfig::PowerOfTwo,
        "lowest_qps" => {
            let window_s = fields.count(reader, "window_s", 1..=3600, WINDOW_S);
            PolicyConfig::LowestQps {
                window_us: (window_s * 1_000_000).max(BUCKETS as u64),
            }
        }
        "prefix" => PolicyConfig::Prefix(prefix(reader, &mut fields)),
        "cache_aware" => PolicyConfig::CacheAware(cache_aware(reader, &mut fields)),
        "kv_aware" => {
            let options = kv_aware(reader, &mut fields);
            fields.finish(reader);
            return Some(PolicyConfig::KvAware(Box::new(options?)));
        }
        "consistent_hash" => PolicyConfig::ConsistentHash {
            bounded_load: fields.number(reader, "bounded_load", 1.0..=100.0),
            without_key: Box::new(
                fields
                    .optional(reader, "without_key", keyless)
                    .unwrap_or(PolicyConfig::LeastRequest),
            ),
        },
        _ => PolicyConfig::LeastRequest,
    };
    fields.finish(reader);
    Some(policy)
}

/// The KV capacity, if it is given; engines tell it otherwise.
fn kv_tokens(reader: &mut Reader, fields: &mut Fields) -> Option<u64> {
    let default = format!("what the engine says, else {KV_TOKENS}");
    fields.optional_count(reader, "kv_tokens", KV_RANGE, &default)
}

pub(super) fn prefix(reader: &mut Reader, fields: &mut Fields) -> PrefixOptions {
    let kv_tokens = kv_tokens(reader, fields);
    PrefixOptions {
        kv_tokens: kv_tokens.unwrap_or(KV_TOKENS),
        learns_kv_tokens: kv_tokens.is_none(),
        stickiness: fields
            .number(reader, "stickiness", 0.0..=100.0)
            .unwrap_or(STICKINESS),
        home_affinity: fields
            .number(reader, "home_affinity", 0.0..=1.0)
            .unwrap_or(0.0),
        request_tokens: fields
            .number(reader, "request_tokens", 0.0..=1e6)
            .unwrap_or(REQUEST_TOKENS),
        context_weight: fields
            .number(reader, "context_weight", 0.0..=10.0)
            .unwrap_or(CONTEXT_WEIGHT),
        lora_tokens: fields
            .number(reader, "lora_tokens", 0.0..=1e6)
            .unwrap_or(LORA_TOKENS),
        imbalance_threshold: fields
            .optional_count(reader, "imbalance_threshold", 1..=1_000_000, "off")
            .map(|requests| requests as u32),
    }
}

fn cache_aware(reader: &mut Reader, fields: &mut Fields) -> CacheAwareOptions {
    let kv_tokens = kv_tokens(reader, fields);
    CacheAwareOptions {
        kv_tokens: kv_tokens.unwrap_or(KV_TOKENS),
        learns_kv_tokens: kv_tokens.is_none(),
        cache_threshold: fields
            .number(reader, "cache_threshold", 0.0..=1.0)
            .unwrap_or(CACHE_THRESHOLD),
        balance_abs_threshold: fields.count(
            reader,
            "balance_abs_threshold",
            0..=1_000_000,
            BALANCE_ABS_THRESHOLD,
        ) as u32,
        balance_rel_threshold: fields
            .number(reader, "balance_rel_threshold", 1.0..=1000.0)
            .unwrap_or(BALANCE_REL_THRESHOLD),
    }
}

fn keyless(reader: &mut Reader, path: &str, value: &Value) -> Option<PolicyConfig> {
    let found = policy(reader, path, value)?;
    if matches!(
        found,
        PolicyConfig::ConsistentHash { .. } | PolicyConfig::KvAware(_)
    ) {
        reader.error(path, value, "a policy that needs no session key");
        return None;
    }
    Some(found)
}
