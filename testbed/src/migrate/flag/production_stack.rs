//! The flags of production-stack's router: its argument parser at commit a6c01db.

use super::Fate::{ByHand, Kept, NotOffered};
use super::Flag;
use super::Takes::{Nothing, Number, OneOf, Text, Whole};

const LOGS: &str = "Envoy's metrics, its admin interface and the status page tell it at any time.";
const KUBERNETES: &str =
    "Envoy finds engines, not the filter: [by DNS, or from Istio or Envoy Gateway](#kubernetes).";
const CONTROLLER: &str = "The filter asks a controller that runs by itself over HTTP, and is none.";
const CACHE: &str = "There is no cache of answers by likeness of questions.";
const BATCHES: &str = "There are no files and no batches; the filter keeps nothing on disk.";
const SENTRY: &str = "Errors are in Envoy's log and metrics.";
const TRACES: &str = "`tracing` of Envoy's connection manager.";
const RELOAD: &str =
    "Envoy reads listeners, clusters and the filter's configuration again by xDS, from files too.";

/// All of them, in the order of docs/migrate.md.
#[rustfmt::skip] // A table: a line for each row.
pub const FLAGS: &[Flag] = &[
    Flag::new("host", Text, "0.0.0.0", Kept("Address of the listener.")),
    Flag::new("port", Whole, "8001", Kept("Port of the listener.")),
    Flag::new("root-path", Text, "", ByHand("`prefix_rewrite` of the route. The filter itself knows APIs by the end of the path.")),
    Flag::new("service-discovery", OneOf(&["static", "k8s", "external-only"]), "", Kept("`static`: pools and clusters with these engines. `k8s`: [a hint](#kubernetes) and no configuration, unless `--engine` names the engines. `external-only` is refused.")),
    Flag::new("k8s-service-discovery-type", OneOf(&["pod-ip", "service-name"]), "", NotOffered(KUBERNETES)),
    Flag::new("static-backends", Text, "", Kept("Engines of pools and clusters. IP addresses stand in `pools[].endpoints.static`; with a host name Envoy resolves it (`STRICT_DNS`) and the pool has `pools[].endpoints.envoy`.")),
    Flag::new("static-models", Text, "", Kept("A pool for each model, `pools[].models`.")),
    Flag::new("static-aliases", Text, "", Kept("`pools[].aliases`.")),
    Flag::new("static-model-types", Text, "", NotOffered("Health is not probed with requests of a model's type, so the type does not matter.")),
    Flag::new("static-model-labels", Text, "", Kept("Tells prefill from decode engines where the routing is disaggregated; not used otherwise.")),
    Flag::new("static-backend-health-checks", Nothing, "", NotOffered("Envoy asks every engine for `/health` once a second, and the filter watches what requests come to. No requests are made up for it.")),
    Flag::new("static-backend-health-check-interval", Whole, "60", NotOffered("See `--static-backend-health-checks`; a minute between two checks would find a dead engine sixty times later.")),
    Flag::new("static-backend-health-check-timeout-seconds", Whole, "10", NotOffered("See `--static-backend-health-checks`.")),
    Flag::new("k8s-port", Whole, "8000", NotOffered(KUBERNETES)),
    Flag::new("k8s-namespace", Text, "default", NotOffered(KUBERNETES)),
    Flag::new("k8s-label-selector", Text, "", NotOffered(KUBERNETES)),
    Flag::new("k8s-watcher-timeout-seconds", Whole, "0", NotOffered(KUBERNETES)),
    Flag::new("backend-health-check-timeout-seconds", Whole, "10", NotOffered(KUBERNETES)),
    Flag::new("routing-logic", OneOf(&["roundrobin", "session", "kvaware", "prefixaware", "disaggregated_prefill", "disaggregated_prefill_orchestrated"]), "", Kept("`pools[].policy`: [which is which](#routing-logic).")),
    Flag::new("lmcache-controller-port", Whole, "9000", NotOffered(CONTROLLER)),
    Flag::new("lmcache-controller-reply-port", Whole, "", NotOffered(CONTROLLER)),
    Flag::new("lmcache-controller-heartbeat-port", Whole, "", NotOffered(CONTROLLER)),
    Flag::new("session-key", Text, "", Kept("`session_key`: the header, then the field of the body of this name.")),
    Flag::new("callbacks", Text, "", NotOffered("No Python runs in Envoy. Its Lua, `ext_proc` and wasm filters before this one can change, answer or log requests.")),
    Flag::new("request-rewriter", OneOf(&["noop"]), "noop", NotOffered("`noop` is all there is, there too.")),
    Flag::new("enable-batch-api", Nothing, "", NotOffered(BATCHES)),
    Flag::new("file-storage-class", OneOf(&["local_file"]), "local_file", NotOffered(BATCHES)),
    Flag::new("file-storage-path", Text, "(a folder of its own)", NotOffered(BATCHES)),
    Flag::new("batch-processor", OneOf(&["local"]), "local", NotOffered(BATCHES)),
    Flag::new("engine-stats-interval", Whole, "30", Kept("`scrape.metrics.interval_ms`, if it is given; a second otherwise.")),
    Flag::new("request-stats-window", Whole, "60", Kept("`pools[].policy.lowest_qps.window_s`, where requests without a session go by it.")),
    Flag::new("log-stats", Nothing, "", NotOffered(LOGS)),
    Flag::new("log-stats-interval", Whole, "10", NotOffered(LOGS)),
    Flag::new("dynamic-config-yaml", Text, "", ByHand(RELOAD)),
    Flag::new("dynamic-config-json", Text, "", ByHand(RELOAD)),
    Flag::new("version", Nothing, "", NotOffered("Nothing would be started.")),
    Flag::new("semantic-cache-model", Text, "all-MiniLM-L6-v2", NotOffered(CACHE)),
    Flag::new("semantic-cache-dir", Text, "semantic_cache", NotOffered(CACHE)),
    Flag::new("semantic-cache-threshold", Number, "0.95", NotOffered(CACHE)),
    Flag::new("feature-gates", Text, "", NotOffered("The gates are `SemanticCache` and `PIIDetection`. The filter neither caches answers nor judges prompts.")),
    Flag::new("log-level", OneOf(&["critical", "error", "warning", "info", "debug", "trace"]), "info", ByHand("Envoy's `--log-level`, and `--component-log-level wasm:debug` for a line for each decision.")),
    Flag::new("log-format", OneOf(&["text", "json"]), "text", ByHand("`application_log_config` of Envoy's bootstrap.")),
    Flag::new("sentry-dsn", Text, "", NotOffered(SENTRY)),
    Flag::new("sentry-traces-sample-rate", Number, "0.1", NotOffered(SENTRY)),
    Flag::new("sentry-profile-session-sample-rate", Number, "1.0", NotOffered(SENTRY)),
    Flag::new("otel-endpoint", Text, "", ByHand(TRACES)),
    Flag::new("otel-service-name", Text, "vllm-router", ByHand(TRACES)),
    Flag::new("otel-secure", Nothing, "", ByHand(TRACES)),
    Flag::new("prefill-model-labels", Text, "", Kept("Engines with these labels are the prefill pool.")),
    Flag::new("decode-model-labels", Text, "", Kept("Engines with these labels are the pool of the model.")),
    Flag::new("kv-aware-threshold", Whole, "2000", Kept("`threshold_tokens` of the policy `kv_aware`, with `--index`.")),
    Flag::new("prefix-min-match-length", Whole, "0", NotOffered("A short match weighs little against load: no bound is needed.")),
    Flag::new("max-instance-failover-reroute-attempts", Whole, "0", Kept("`num_retries` of the route's `retry_policy`, and `pools[].candidates` one more, if it is given; two otherwise.")),
    Flag::new("lmcache-health-check-interval", Whole, "5", NotOffered(CONTROLLER)),
    Flag::new("lmcache-worker-timeout", Whole, "30", NotOffered(CONTROLLER)),
    Flag::new("external-providers-config", Text, "", NotOffered("The filter chooses among engines. A route of Envoy's can lead a model's requests to a provider.")),
];
