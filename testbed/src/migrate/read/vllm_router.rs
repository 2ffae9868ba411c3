//! From the flags of vllm-project/router to a [`Plan`].
//!
//! There one router has one pool, whatever its models; with prefill and decode apart it has two.

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::{hint, host, port};
use crate::migrate::flag::Given;
use crate::migrate::plan::{BackOff, Breaker, Checks, INDEX, Plan, Pool};
use crate::migrate::url::Engine;

/// The statuses that this router retries.
const RETRIED: [u16; 6] = [408, 429, 500, 502, 503, 504];
/// Where this router looks for a key, but for ids of single requests.
const KEY_HEADERS: [&str; 3] = ["x-session-id", "x-user-id", "x-tenant-id"];
const KEY_FIELDS: [&str; 4] = [
    "/session_params/session_id",
    "/user",
    "/session_id",
    "/user_id",
];
/// Where a prefill engine's bootstrap server listens unless it is told.
const BOOTSTRAP_PORT: u16 = 8998;
/// Where vLLM's examples let the NCCL connector listen.
const KV_PORT: u16 = 21001;

/// Reads the flags into `plan`; `engines` are those that `--engine` names.
///
/// # Errors
/// Flags that this router would refuse, too, or that have no counterpart without which anything would work.
pub fn plan(given: &Given, engines: Vec<Engine>, plan: Plan) -> anyhow::Result<Plan> {
    ensure!(
        given.text("backend") != Some("openai"),
        "--backend openai: the filter chooses among engines, not among providers"
    );
    let mut plan = Plan {
        host: host(given, "host")?,
        port: port(given, "port")?,
        breaker: Breaker {
            failures: given.whole("cb-failure-threshold"),
            pause_s: given.whole("cb-timeout-duration-secs"),
            off: given.has("disable-circuit-breaker"),
        },
        checks: Checks {
            path: given.text("health-check-endpoint").map(str::to_owned),
            interval_s: given.whole("health-check-interval-secs"),
            timeout_s: given.whole("health-check-timeout-secs"),
            failures: given.whole("health-failure-threshold"),
            successes: given.whole("health-success-threshold"),
        },
        request_timeout_s: given.whole("request-timeout-secs"),
        max_payload_bytes: given.whole("max-payload-size"),
        request_id: given.texts("request-id-headers"),
        alive_paths: vec!["/liveness"],
        ready_paths: vec!["/health", "/readiness"],
        ..plan
    };
    read_retries(given, &mut plan);
    if given.has("prometheus-port") || given.has("prometheus-host") {
        plan.prometheus = Some(Engine {
            host: host(given, "prometheus-host")?,
            port: port(given, "prometheus-port")?,
        });
    }
    match given.has("vllm-pd-disaggregation") {
        true => add_disaggregated(given, &mut plan, &engines)?,
        false => add_workers(given, &mut plan, engines)?,
    }
    let ranks = given.whole("intra-node-data-parallel-size");
    for pool in &mut plan.pools {
        pool.ranks = ranks.filter(|&ranks| ranks > 1);
        pool.discover_models = given.has("enable-igw") && !pool.name.ends_with("-prefill");
    }
    if plan
        .pools
        .iter()
        .any(|pool| pool.policy.get("consistent_hash").is_some())
    {
        let headers = KEY_HEADERS.map(|name| json!({ "header": name }));
        let fields = KEY_FIELDS.map(|pointer| json!({ "body": pointer }));
        plan.session_key = headers.into_iter().chain(fields).collect();
    }
    Ok(plan)
}

fn read_retries(given: &Given, plan: &mut Plan) {
    let (base, max) = (
        given.whole("retry-initial-backoff-ms"),
        given.whole("retry-max-backoff-ms"),
    );
    plan.attempts = given
        .whole("retry-max-retries")
        .map(|attempts| attempts.max(1));
    if base.or(max).is_some() {
        let base_ms = base.unwrap_or(50).max(1);
        plan.back_off = Some(BackOff {
            base_ms,
            max_ms: max.unwrap_or(30_000).max(base_ms),
        });
    }
    if plan.attempts.is_some() || plan.back_off.is_some() {
        plan.retried_statuses = Some(RETRIED.to_vec());
    }
    if given.has("disable-retries") {
        plan.attempts = Some(1);
    }
}

fn add_workers(given: &Given, plan: &mut Plan, engines: Vec<Engine>) -> anyhow::Result<()> {
    ensure!(
        !given.has("prefill") && !given.has("decode"),
        "--prefill and --decode need --vllm-pd-disaggregation"
    );
    let urls = given.texts("worker-urls");
    ensure!(
        urls.is_empty() || engines.is_empty(),
        "--worker-urls names the engines: leave --engine out"
    );
    let workers: anyhow::Result<Vec<Engine>> = urls.iter().map(|url| Engine::read(url)).collect();
    let mut workers = workers?;
    workers.extend(engines);
    if workers.is_empty() && given.has("service-discovery") {
        bail!("{}", hint::of_vllm_router(given));
    }
    ensure!(
        !workers.is_empty(),
        "no engines: name them by --worker-urls, or by --engine before the `--`"
    );
    let policy = policy(given, given.text_or_default("policy"), plan)?;
    plan.pools.push(Pool::new("vllm", workers, policy));
    Ok(())
}

fn add_disaggregated(given: &Given, plan: &mut Plan, engines: &[Engine]) -> anyhow::Result<()> {
    ensure!(
        engines.is_empty(),
        "which are prefill engines? name all by --prefill and --decode instead of --engine"
    );
    let prefill = given.each_time("prefill");
    let decode = given.texts("decode");
    if prefill.is_empty() || decode.is_empty() {
        match given.has("service-discovery") {
            true => bail!("{}", hint::of_vllm_router(given)),
            false => bail!(
                "no engines to name: prefill and decode engines do not register here. Add --prefill URL \
                 and --decode URL for each to the command line"
            ),
        }
    }
    let connector = connector(given, plan)?;
    let main = given.text_or_default("policy");
    let side = |flag: &str| given.text(flag).unwrap_or(main).to_owned();
    let decode: anyhow::Result<Vec<Engine>> = decode.iter().map(|url| Engine::read(url)).collect();
    let policy_of_decode = policy(given, &side("decode-policy"), plan)?;
    let mut pool = Pool::new("vllm", decode?, policy_of_decode);
    pool.disaggregation = Some(json!({"prefill_pool": "vllm-prefill", "connector": connector}));
    plan.pools.push(pool);
    let policy_of_prefill = policy(given, &side("prefill-policy"), plan)?;
    let mut pool = Pool::new("vllm-prefill", Vec::new(), policy_of_prefill);
    for words in &prefill {
        let mut words = words.iter();
        let url = words.next().context("--prefill without a URL")?;
        let mut one = Pool::new("", vec![Engine::read(url)?], Value::Null).engines;
        if let Some(port) = words
            .next()
            .filter(|word| !word.eq_ignore_ascii_case("none"))
        {
            let port: u16 = port
                .parse()
                .with_context(|| format!("--prefill {url} {port}: no port"))?;
            for engine in &mut one {
                engine
                    .labels
                    .insert("bootstrap_port".to_owned(), port.to_string());
            }
        }
        pool.engines.extend(one);
    }
    plan.pools.push(pool);
    Ok(())
}

/// The `connector` of `disaggregation`.
fn connector(given: &Given, plan: &mut Plan) -> anyhow::Result<Value> {
    if given.has("vllm-discovery-address") {
        plan.notes.push(format!(
            "--vllm-discovery-address: the ZMQ port of the engines' connector is not on the command line; \
             {KV_PORT} is taken for all. Set port of p2p_nccl, or the label kv_addr of each endpoint"
        ));
        return Ok(json!({"p2p_nccl": {"port": KV_PORT}}));
    }
    Ok(match given.text_or_default("kv-connector") {
        "mooncake" => json!({"mooncake": {"bootstrap_port": BOOTSTRAP_PORT}}),
        "moriio" => bail!(
            "--kv-connector moriio is not offered: there are nixl, p2p_nccl, mooncake and sglang"
        ),
        _ => json!("nixl"),
    })
}

/// A policy by its name there.
fn policy(given: &Given, name: &str, plan: &mut Plan) -> anyhow::Result<Value> {
    Ok(match name {
        "cache_aware" => {
            let mut options = serde_json::Map::new();
            for (option, flag) in [
                ("cache_threshold", "cache-threshold"),
                ("balance_rel_threshold", "balance-rel-threshold"),
            ] {
                if let Some(value) = given.number(flag) {
                    options.insert(option.to_owned(), json!(value));
                }
            }
            if let Some(value) = given.whole("balance-abs-threshold") {
                options.insert("balance_abs_threshold".to_owned(), json!(value));
            }
            match options.is_empty() {
                true => json!("cache_aware"),
                false => json!({ "cache_aware": options }),
            }
        }
        "consistent_hash" | "rendezvous_hash" => {
            json!({"consistent_hash": {"without_key": "least_request"}})
        }
        "sticky_least_loaded" => {
            plan.notes.push(
                "sticky_least_loaded: the policy is consistent_hash with bounded_load. Sessions spread by \
                 their hash, and leave an engine with more than 1.25 times the mean of requests in flight; \
                 none has to be ended"
                    .to_owned(),
            );
            json!({"consistent_hash": {"bounded_load": 1.25, "without_key": "least_request"}})
        }
        "kv_aware" if plan.index.is_some() => match given.text("kv-event-model") {
            Some(model) => {
                json!({"kv_aware": {"index": {"dynamo": {"cluster": INDEX, "model": model}}}})
            }
            None => json!({"kv_aware": {"index": {"dynamo": {"cluster": INDEX}}}}),
        },
        "kv_aware" => {
            plan.notes.push(
                "kv_aware: the policy is prefix, which predicts what engines hold. To ask Dynamo's indexer, \
                 which reads their events, name its HTTP address by --index"
                    .to_owned(),
            );
            json!("prefix")
        }
        "random" | "round_robin" | "power_of_two" => json!(name),
        _ => bail!("no policy {name}"),
    })
}
