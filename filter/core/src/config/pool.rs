//! One pool of the configuration: an upstream cluster, what it serves, and who decides within it.

use super::MAX_MODELS;
use super::admission::admission;
use super::disaggregation::{Disaggregation, disaggregation};
use super::endpoints::{EndpointConfig, Listed, endpoints, ranks};
use super::policy::{KV_TOKENS, PolicyConfig, policy};
use super::reader::{Reader, list, text};
use crate::admission::AdmissionOptions;
use crate::json::Value;
use crate::order;
use crate::stats::Names;
use std::collections::HashSet;

/// Enough for two retries, the number of retries of the shipped route.
const CANDIDATES: u64 = 3;
/// A validated pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolConfig {
    /// Unique name; a label of the metrics.
    pub name: String,
    /// Envoy's upstream cluster.
    pub cluster: String,
    /// Models served; empty together with `aliases` and the endpoints' models: every model.
    pub models: Vec<String>,
    /// Other names of models: (alias, model).
    pub aliases: Vec<(String, String)>,
    /// The endpoints of a static list.
    pub endpoints: Vec<EndpointConfig>,
    /// Whether Envoy's cluster tells the endpoints instead.
    pub discovered: bool,
    /// Of the cluster's endpoints only those with this role in their metadata.
    pub role: Option<String>,
    /// Whether the metadata of the cluster's endpoints is read.
    pub reads_metadata: bool,
    /// Data-parallel ranks of endpoints that do not say their own; `None`: what their metrics tell.
    pub data_parallel_size: Option<u16>,
    /// Whether the engines tell which models they serve.
    pub discover_models: bool,
    /// Where its engines show their metrics.
    pub metrics_path: String,
    /// Names of metrics that are not those of a known engine.
    pub metric_names: Names,
    /// Who decides.
    pub policy: PolicyConfig,
    /// Length of the ranked list.
    pub candidates: usize,
    /// When requests are refused, if they ever are.
    pub admission: Option<AdmissionOptions>,
    /// Who prefills for it, if others do.
    pub disaggregation: Option<Disaggregation>,
    /// Whether it prefills for others.
    pub prefills: bool,
}

/// Where vLLM and SGLang show their metrics.
const METRICS_PATH: &str = "/metrics";

impl PoolConfig {
    /// Data-parallel ranks of an endpoint of its list; `None` if the engine is to tell.
    pub fn ranks_of(&self, endpoint: &EndpointConfig) -> Option<u16> {
        endpoint.data_parallel_size.or(self.data_parallel_size)
    }

    /// Whether it says of any endpoint how many ranks that has.
    pub fn gives_ranks(&self) -> bool {
        let listed = |one: &EndpointConfig| one.data_parallel_size.is_some();
        self.data_parallel_size.is_some() || self.endpoints.iter().any(listed)
    }

    /// How many endpoints its list makes, each rank being one.
    pub fn listed_ranks(&self) -> usize {
        let ranks = self.endpoints.iter().map(|one| self.ranks_of(one));
        ranks.map(|ranks| usize::from(ranks.unwrap_or(1))).sum()
    }

    /// Whether prompts are handed over to its engines, or by them.
    pub fn transfers(&self) -> bool {
        self.prefills || self.disaggregation.is_some()
    }

    /// KV capacity of an endpoint in tokens, if it matters which prompts it holds: to the policy, or to
    /// those who hand over prompts.
    pub fn kv_tokens(&self) -> Option<u64> {
        let transfers = self.transfers().then_some(KV_TOKENS);
        self.policy.kv_tokens().or(transfers)
    }

    /// Whether an engine's own word on its KV capacity counts more than [`PoolConfig::kv_tokens`].
    pub fn learns_kv_tokens(&self) -> bool {
        self.policy.kv_tokens().is_none() || self.policy.learns_kv_tokens()
    }

    /// Every model name and alias in the config that selects this pool, each once.
    pub fn served_names(&self) -> Vec<&str> {
        let models = self.models.iter().map(String::as_str);
        let aliases = self.aliases.iter().map(|(alias, _)| alias.as_str());
        let endpoints = self.endpoints.iter().flat_map(|endpoint| &endpoint.models);
        let mut seen = HashSet::new();
        let names = models.chain(aliases).chain(endpoints.map(String::as_str));
        names.filter(|name| seen.insert(*name)).collect()
    }
}

pub(super) fn pool(reader: &mut Reader, path: &str, value: &Value) -> Option<PoolConfig> {
    let mut fields = reader.object(path, value)?;
    let name = fields.required(reader, "name", pool_name);
    let cluster = fields
        .optional(reader, "cluster", text)
        .or_else(|| name.clone());
    let models = fields
        .optional(reader, "models", models)
        .unwrap_or_default();
    let aliases = fields
        .optional(reader, "aliases", aliases)
        .unwrap_or_default();
    let endpoints = fields.required(reader, "endpoints", endpoints);
    let discover_models = fields.flag(reader, "discover_models", false);
    let metrics_path = fields
        .optional(reader, "metrics_path", http_path)
        .unwrap_or_else(|| METRICS_PATH.to_owned());
    let metric_names = fields
        .optional(reader, "metric_names", metric_names)
        .unwrap_or_default();
    let policy = fields
        .optional(reader, "policy", policy)
        .unwrap_or(PolicyConfig::LeastRequest);
    let candidates = fields.count(reader, "candidates", 1..=16, CANDIDATES) as usize;
    let admission = fields.optional(reader, "admission", |reader, path, value| {
        admission(reader, path, value, policy.kv_tokens().is_some())
    });
    let data_parallel_size = ranks(reader, &mut fields);
    let disaggregation = fields.optional(reader, "disaggregation", disaggregation);
    let (aliases_path, models_path) = (fields.path("aliases"), fields.path("models"));
    fields.finish(reader);
    let listed = endpoints?;
    let discovered = matches!(listed, Listed::Cluster { .. });
    let (endpoints, role, reads_metadata) = match listed {
        Listed::Here(endpoints) => (endpoints, None, false),
        Listed::Cluster { role, metadata } => (Vec::new(), role, metadata),
    };
    for (alias, model) in &aliases {
        let listed =
            models.contains(model) || endpoints.iter().any(|one| one.models.contains(model));
        // What engines and metadata will tell cannot be checked here.
        if !listed && !discover_models && !reads_metadata {
            let want = "the name of a model that the pool serves";
            reader.error(
                &format!("{aliases_path}.{alias}"),
                &model.clone().into(),
                want,
            );
        }
        if models.contains(alias) {
            reader.error(
                &models_path,
                &alias.clone().into(),
                "a name that is not an alias too",
            );
        }
    }
    let listing = endpoints
        .iter()
        .filter(|one| !one.models.is_empty())
        .count();
    if models.is_empty() && listing > 0 && listing < endpoints.len() {
        let want = "a list, because only some endpoints have one";
        reader.error(&models_path, &Value::Null, want);
    }
    Some(PoolConfig {
        name: name?,
        cluster: cluster?,
        models,
        aliases,
        endpoints,
        discovered,
        role,
        reads_metadata,
        data_parallel_size,
        discover_models,
        metrics_path,
        metric_names,
        policy,
        candidates,
        admission,
        disaggregation,
        prefills: false,
    })
}

fn http_path(reader: &mut Reader, path: &str, value: &Value) -> Option<String> {
    let text = text(reader, path, value)?;
    if text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some(text);
    }
    reader.error(path, value, "a path such as `/metrics`");
    None
}

fn metric_names(reader: &mut Reader, path: &str, value: &Value) -> Option<Names> {
    let mut fields = reader.object(path, value)?;
    let names = Names {
        running: fields.optional(reader, "running", text),
        waiting: fields.optional(reader, "waiting", text),
        kv_usage: fields.optional(reader, "kv_usage", text),
        prefix_queries_tokens: fields.optional(reader, "prefix_queries_tokens", text),
        prefix_hits_tokens: fields.optional(reader, "prefix_hits_tokens", text),
        kv_capacity_tokens: fields.optional(reader, "kv_capacity_tokens", text),
        finished: fields.optional(reader, "finished", text),
    };
    fields.finish(reader);
    Some(names)
}

/// Pool names become parts of metric names and of a header.
fn pool_name(reader: &mut Reader, path: &str, value: &Value) -> Option<String> {
    let name = text(reader, path, value)?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if name.len() <= 64 && name.bytes().all(legal) {
        return Some(name);
    }
    reader.error(path, value, "up to 64 letters, digits, `_` and `-`");
    None
}

pub(super) fn models(reader: &mut Reader, path: &str, value: &Value) -> Option<Vec<String>> {
    let mut names: Vec<String> = list(reader, path, value, 0..=MAX_MODELS, text)?;
    let length = names.len();
    order::sort(&mut names, |one, other| one.cmp(other));
    names.dedup();
    if names.len() < length {
        reader.error(path, value, "each model once");
    }
    Some(names)
}

fn aliases(reader: &mut Reader, path: &str, value: &Value) -> Option<Vec<(String, String)>> {
    let Some(map) = value.as_object().filter(|map| map.len() <= MAX_MODELS) else {
        reader.error(path, value, "an object of alias: model");
        return None;
    };
    let pairs = map.iter().filter_map(|(alias, model)| {
        let model = text(reader, &format!("{path}.{alias}"), model)?;
        Some((alias.clone(), model))
    });
    Some(pairs.collect())
}
