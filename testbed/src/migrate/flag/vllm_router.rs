//! The flags of vllm-project/router: those of its Python launcher, release 0.1.17, and those that only
//! its Rust binary has.

use super::Fate::{ByHand, Kept, NotOffered};
use super::Flag;
use super::Takes::{Nothing, Number, OneOf, Text, Texts, UrlAndPort, Whole};

const POLICIES: &[&str] = &[
    "random",
    "round_robin",
    "cache_aware",
    "kv_aware",
    "power_of_two",
    "consistent_hash",
    "sticky_least_loaded",
    "rendezvous_hash",
];
const KUBERNETES: &str =
    "Envoy finds engines, not the filter: [by DNS, or from Istio or Envoy Gateway](#kubernetes).";
const RETRIES: &str = "See [retries and circuit breakers](operations.md#retries-and-circuit-breakers-of-vllm-projectrouter). `retry_policy` of the virtual host, if one of `--retry-max-retries`, `--retry-initial-backoff-ms` and `--retry-max-backoff-ms` is given.";
const BREAKER: &str = "See [retries and circuit breakers](operations.md#retries-and-circuit-breakers-of-vllm-projectrouter). `health.failures` and `health.cool_down_ms`, and `outlier_detection` of the clusters.";
const NO_BREAKER: &str = "See [retries and circuit breakers](operations.md#retries-and-circuit-breakers-of-vllm-projectrouter): there is no such field.";
const HEALTH: &str = "`health_checks` of the clusters, if it is given.";
const STARTUP: &str = "Envoy serves at once. An engine is used when its health check passes.";
const EVENTS: &str = "No socket is opened for engines' events. Dynamo's indexer, which reads them, can be asked over HTTP: `--index`.";
const TIERS: &str = "A cached token is worth the same wherever the engine keeps it.";
const PROGRAMS: &str =
    "There are no programs of requests; conversations keep their engine by policy.";
const MIDDLEWARE: &str =
    "Envoy's own wasm filter, before this one. Components of the component model do not run there.";
const RATE: &str = "`pools[].admission` bounds requests by what engines have to do; Envoy's `local_ratelimit` bounds them by time.";
const TRACES: &str = "`tracing` of Envoy's connection manager.";
const TREE: &str = "`limits.prefix_table_bytes` bounds the table of prompts; it needs no sweeps.";

/// All of them, in the order of docs/migrate.md.
#[rustfmt::skip] // A table: a line for each row.
pub const FLAGS: &[Flag] = &[
    Flag::new("host", Text, "127.0.0.1", Kept("Address of the listener.")),
    Flag::new("port", Whole, "30000", Kept("Port of the listener.")),
    Flag::new("worker-urls", Texts, "", Kept("Engines of the pool and its cluster. IP addresses stand in `pools[].endpoints.static`; with a host name Envoy resolves it (`STRICT_DNS`) and the pool has `pools[].endpoints.envoy`. `grpc://` is refused.")),
    Flag::new("policy", OneOf(POLICIES), "cache_aware", Kept("`pools[].policy`: [which is which](#policy).")),
    Flag::new("prefill-policy", OneOf(POLICIES), "", Kept("`pools[].policy` of the prefill pool; `--policy` if it is not given.")),
    Flag::new("decode-policy", OneOf(POLICIES), "", Kept("`pools[].policy` of the decode pool; `--policy` if it is not given.")),
    Flag::new("cache-threshold", Number, "0.3", Kept("`pools[].policy.cache_aware.cache_threshold`.")),
    Flag::new("balance-abs-threshold", Whole, "64", Kept("`pools[].policy.cache_aware.balance_abs_threshold`.")),
    Flag::new("balance-rel-threshold", Number, "1.5", Kept("`pools[].policy.cache_aware.balance_rel_threshold`.")),
    Flag::new("eviction-interval-secs", Whole, "120", NotOffered(TREE)),
    Flag::new("eviction-interval", Whole, "120", NotOffered(TREE)),
    Flag::new("max-tree-size", Whole, "33554432", NotOffered(TREE)),
    Flag::new("router-temperature", Number, "0.0", NotOffered("The cheapest engine is asked. Workers share what they know, so chance has nothing to spread.")),
    Flag::new("kv-penalty-host", Number, "0.8", NotOffered(TIERS)),
    Flag::new("kv-penalty-external", Number, "0.6", NotOffered(TIERS)),
    Flag::new("kv-penalty-disk", Number, "0.3", NotOffered(TIERS)),
    Flag::new("kv-aware-session-affinity-ttl-secs", Whole, "", NotOffered("What an engine holds of a conversation is its affinity; nothing expires by time.")),
    Flag::new("kv-event-source", Texts, "", NotOffered(EVENTS)),
    Flag::new("kv-event-replay-source", Texts, "", NotOffered(EVENTS)),
    Flag::new("kv-event-block-size", Whole, "16", NotOffered(EVENTS)),
    Flag::new("kv-event-model", Text, "", Kept("The model's name at the index, with `--index`.")),
    Flag::new("pd-kv-events", Texts, "", NotOffered(EVENTS)),
    Flag::new("enable-program-scheduling", Nothing, "", NotOffered(PROGRAMS)),
    Flag::new("program-scheduling-config-json", Text, "", NotOffered(PROGRAMS)),
    Flag::new("mini-lb", Nothing, "", NotOffered("It is a balancer for tests there.")),
    Flag::new("vllm-pd-disaggregation", Nothing, "", Kept("A prefill pool, and `disaggregation` of the decode pool.")),
    Flag::new("prefill", UrlAndPort, "", Kept("Engines of the prefill pool. The port is their label `bootstrap_port`.")),
    Flag::new("decode", Texts, "", Kept("Engines of the decode pool.")),
    Flag::new("vllm-discovery-address", Text, "", Kept("The connector `p2p_nccl`. No socket is opened for engines to register at: `--prefill` and `--decode` must name them.")),
    Flag::new("kv-connector", OneOf(&["nixl", "mooncake", "moriio"]), "nixl", Kept("The connector of `disaggregation`. `moriio` is refused: there is none.")),
    Flag::new("intra-node-data-parallel-size", Whole, "1", Kept("`data_parallel_size` of the pools, if it is above 1. Engines get the rank in `x-data-parallel-rank`, as there.")),
    Flag::new("worker-startup-timeout-secs", Whole, "600", NotOffered(STARTUP)),
    Flag::new("worker-startup-check-interval", Whole, "30", NotOffered(STARTUP)),
    Flag::new("max-payload-size", Whole, "536870912", Kept("`per_connection_buffer_limit_bytes` and `request_body_buffer_limit`, if it is given, and `limits.hold_bytes` below. They bound what is held: a larger body that need not be held passes. Envoy's `buffer` filter refuses by size alone.")),
    Flag::new("request-timeout-secs", Whole, "1800", Kept("`timeout` of the routes, if it is given. Without it only silence ends a request: `stream_idle_timeout`.")),
    Flag::new("max-concurrent-requests", Whole, "32768", ByHand(RATE)),
    Flag::new("queue-size", Whole, "100", NotOffered("The filter holds no requests back: it sends them or refuses them.")),
    Flag::new("queue-timeout-secs", Whole, "60", NotOffered("The filter holds no requests back: it sends them or refuses them.")),
    Flag::new("rate-limit-tokens-per-second", Whole, "", ByHand(RATE)),
    Flag::new("cors-allowed-origins", Texts, "", ByHand("Envoy's `cors` filter, before this one. Without it no origin is allowed, while that router allows all.")),
    Flag::new("api-key", Text, "", ByHand("`request_headers_to_add` of the route, or the `credential_injector` filter with a secret. A key does not belong into a printed file.")),
    Flag::new("api-key-validation-urls", Texts, "", ByHand("Envoy's `ext_authz` filter, or `jwt_authn`, before this one.")),
    Flag::new("enable-igw", Nothing, "", Kept("`pools[].discover_models`: engines are asked for their models. Workers cannot be added by calls.")),
    Flag::new("backend", OneOf(&["vllm", "trtllm", "openai", "anthropic"]), "vllm", Kept("`vllm`, and `trtllm` and `anthropic`, which are the same there. `openai` is refused: the filter chooses among engines, not among providers.")).also("runtime"),
    Flag::new("history-backend", OneOf(&["memory", "none"]), "memory", NotOffered("Nothing is kept of conversations. vLLM keeps responses itself.")),
    Flag::new("profile", Nothing, "", NotOffered("Engines' profiling is asked for at the engines.")),
    Flag::new("service-discovery", Nothing, "", Kept("[A hint](#kubernetes) and no configuration, unless the engines are named.")),
    Flag::new("selector", Texts, "", NotOffered(KUBERNETES)),
    Flag::new("service-discovery-port", Whole, "80", NotOffered(KUBERNETES)),
    Flag::new("service-discovery-namespace", Text, "", NotOffered(KUBERNETES)),
    Flag::new("prefill-selector", Texts, "", NotOffered(KUBERNETES)),
    Flag::new("decode-selector", Texts, "", NotOffered(KUBERNETES)),
    Flag::new("retry-max-retries", Whole, "5", Kept(RETRIES)),
    Flag::new("retry-initial-backoff-ms", Whole, "50", Kept(RETRIES)),
    Flag::new("retry-max-backoff-ms", Whole, "30000", Kept(RETRIES)),
    Flag::new("retry-backoff-multiplier", Number, "1.5", NotOffered("It is always 2.")),
    Flag::new("retry-jitter-factor", Number, "0.2", NotOffered("A wait is always anything from 0 up.")),
    Flag::new("disable-retries", Nothing, "", Kept("`num_retries: 0`, and one of `pools[].candidates`.")),
    Flag::new("cb-failure-threshold", Whole, "10", Kept(BREAKER)),
    Flag::new("cb-success-threshold", Whole, "3", NotOffered(NO_BREAKER)),
    Flag::new("cb-timeout-duration-secs", Whole, "60", Kept(BREAKER)),
    Flag::new("cb-window-duration-secs", Whole, "120", NotOffered(NO_BREAKER)),
    Flag::new("disable-circuit-breaker", Nothing, "", Kept("`health.failures` at its highest, `health.stall_ms` 0, and no `outlier_detection`.")),
    Flag::new("health-failure-threshold", Whole, "3", Kept(HEALTH)),
    Flag::new("health-success-threshold", Whole, "2", Kept(HEALTH)),
    Flag::new("health-check-timeout-secs", Whole, "5", Kept(HEALTH)),
    Flag::new("health-check-interval-secs", Whole, "60", Kept(HEALTH)),
    Flag::new("health-check-endpoint", Text, "/health", Kept(HEALTH)),
    Flag::new("prometheus-port", Whole, "29000", Kept("A listener that answers `/metrics` with Envoy's `/stats/prometheus`, if it or `--prometheus-host` is given. Otherwise the admin interface has it.")),
    Flag::new("prometheus-host", Text, "127.0.0.1", Kept("Its address.")),
    Flag::new("request-id-headers", Texts, "", Kept("`headers.request_id`.")),
    Flag::new("log-dir", Text, "", ByHand("Envoy's `--log-path`.")),
    Flag::new("log-level", OneOf(&["debug", "info", "warn", "warning", "error", "critical"]), "info", ByHand("Envoy's `--log-level`, and `--component-log-level wasm:debug` for a line for each decision.")),
    Flag::new("enable-trace", Nothing, "", ByHand(TRACES)),
    Flag::new("otlp-traces-endpoint", Text, "", ByHand(TRACES)),
    Flag::new("otel-sampling-ratio", Number, "1.0", ByHand(TRACES)),
    Flag::new("otel-excluded-paths", Texts, "", ByHand(TRACES)),
    Flag::new("wasm-middleware", Text, "", ByHand(MIDDLEWARE)),
    Flag::new("wasm-middleware-sha256", Text, "", ByHand(MIDDLEWARE)),
    Flag::new("wasm-middleware-route", Texts, "", ByHand(MIDDLEWARE)),
    Flag::new("version", Nothing, "", NotOffered("Nothing would be started.")),
];
