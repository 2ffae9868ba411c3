//! From the flags of production-stack's router to a [`Plan`].
//!
//! There each backend serves one model; here the backends of a model are a pool.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::{body_pointer, hint, host, port};
use crate::migrate::flag::Given;
use crate::migrate::plan::{INDEX, Plan, Pool};
use crate::migrate::url::Engine;

/// Tokens that a match may leave to prefill, unless it is told.
const THRESHOLD: u64 = 2000;

/// A backend, its model and its label.
struct Backend<'a> {
    engine: Engine,
    model: &'a str,
    label: Option<&'a str>,
}

/// Reads the flags into `plan`; `engines` are those that `--engine` names.
///
/// # Errors
/// Flags that this router would refuse, too, or that have no counterpart without which anything would work.
pub fn plan(given: &Given, engines: Vec<Engine>, plan: Plan) -> anyhow::Result<Plan> {
    let logic = given.text("routing-logic");
    let logic = logic.context(
        "--routing-logic is missing; what a --dynamic-config file has must be on the command line",
    )?;
    let mut plan = Plan {
        host: host(given, "host")?,
        port: port(given, "port")?,
        scrape_interval_ms: given
            .whole("engine-stats-interval")
            .map(|seconds| seconds.saturating_mul(1000)),
        attempts: given
            .whole("max-instance-failover-reroute-attempts")
            .map(|retries| retries.saturating_add(1)),
        alive_paths: vec!["/health"],
        ..plan
    };
    if let Some(key) = given.text("session-key") {
        plan.session_key = vec![json!({ "header": key }), json!({"body": body_pointer(key)})];
    }
    let policy = policy(given, logic, &mut plan)?;
    match given.text("service-discovery") {
        Some("static") => {
            ensure!(
                engines.is_empty(),
                "--static-backends names the engines: leave --engine out"
            );
            let backends = backends(given)?;
            match logic.starts_with("disaggregated") {
                true => add_disaggregated(given, &mut plan, &backends, &policy)?,
                false => add_pools(&mut plan, &backends, &policy)?,
            }
            add_aliases(given, &mut plan)?;
        }
        Some("k8s") if engines.is_empty() => bail!("{}", hint::of_production_stack(given)),
        Some("k8s") => {
            ensure!(
                !logic.starts_with("disaggregated"),
                "prefill and decode engines must be told apart: name them by --static-backends and \
                 --static-model-labels"
            );
            let mut pool = Pool::new("vllm", engines, policy);
            pool.discover_models = true;
            plan.pools.push(pool);
        }
        Some(_) => bail!(
            "--service-discovery external-only: the filter chooses among engines, not among providers"
        ),
        None => bail!("--service-discovery is missing"),
    }
    Ok(plan)
}

/// The policy of all pools.
fn policy(given: &Given, logic: &str, plan: &mut Plan) -> anyhow::Result<Value> {
    Ok(match logic {
        "session" => {
            ensure!(
                given.has("session-key"),
                "--routing-logic session needs --session-key"
            );
            let window = given.whole("request-stats-window");
            let without_key = match window {
                Some(seconds) => json!({"lowest_qps": {"window_s": seconds}}),
                None => json!("lowest_qps"),
            };
            json!({"consistent_hash": {"without_key": without_key}})
        }
        "prefixaware" => json!("prefix"),
        "kvaware" if plan.index.is_some() => {
            let fallback = match given.has("session-key") {
                true => json!({"consistent_hash": {"without_key": "lowest_qps"}}),
                false => json!("lowest_qps"),
            };
            let threshold = given.whole("kv-aware-threshold").unwrap_or(THRESHOLD);
            json!({"kv_aware": {
                "index": {"lmcache": {"cluster": INDEX}},
                "threshold_tokens": threshold,
                "fallback": fallback,
            }})
        }
        "kvaware" => {
            plan.notes.push(
                "--routing-logic kvaware: the policy is prefix, which predicts what engines hold. To ask an \
                 LMCache controller instead, name its HTTP address by --index"
                    .to_owned(),
            );
            json!("prefix")
        }
        _ => json!("round_robin"),
    })
}

fn backends(given: &Given) -> anyhow::Result<Vec<Backend<'_>>> {
    let list = |name: &str| -> Vec<&str> {
        let text = given.text(name).unwrap_or_default();
        let items = text.split(',').map(str::trim);
        items.filter(|item| !item.is_empty()).collect()
    };
    let (urls, models) = (list("static-backends"), list("static-models"));
    let labels = list("static-model-labels");
    ensure!(!urls.is_empty(), "--static-backends names no engine");
    ensure!(
        urls.len() == models.len(),
        "--static-backends has {} engines, --static-models {} models: one for each",
        urls.len(),
        models.len()
    );
    ensure!(
        labels.is_empty() || labels.len() == urls.len(),
        "--static-model-labels has {} labels for {} engines: one for each",
        labels.len(),
        urls.len()
    );
    let backends = urls
        .iter()
        .zip(models)
        .enumerate()
        .map(|(at, (url, model))| {
            Ok(Backend {
                engine: Engine::read(url)?,
                model,
                label: labels.get(at).copied(),
            })
        });
    backends.collect()
}

/// Models in the order in which they come, each with its backends.
fn by_model<'a, 'b>(backends: &'b [Backend<'a>]) -> Vec<(&'a str, Vec<&'b Backend<'a>>)> {
    let mut models: Vec<(&str, Vec<&Backend<'_>>)> = Vec::new();
    for backend in backends {
        match models.iter_mut().find(|(model, _)| *model == backend.model) {
            Some((_, of_model)) => of_model.push(backend),
            None => models.push((backend.model, vec![backend])),
        }
    }
    models
}

fn add_pools(plan: &mut Plan, backends: &[Backend<'_>], policy: &Value) -> anyhow::Result<()> {
    for (model, backends) in by_model(backends) {
        let engines = backends.iter().map(|backend| backend.engine.clone());
        let name = plan.name(model, "")?;
        let mut pool = Pool::new(&name, engines.collect(), policy.clone());
        pool.models = vec![model.to_owned()];
        plan.pools.push(pool);
    }
    Ok(())
}

/// A decode pool for each model, and its prefill pool.
fn add_disaggregated(
    given: &Given,
    plan: &mut Plan,
    backends: &[Backend<'_>],
    policy: &Value,
) -> anyhow::Result<()> {
    let with = |flag: &str, backend: &&&Backend<'_>| {
        let labels = given.text(flag).unwrap_or_default();
        let mut labels = labels.split(',').map(str::trim);
        backend
            .label
            .is_some_and(|own| labels.any(|label| label == own))
    };
    let mut prefill_pools = Vec::new();
    for (model, backends) in by_model(backends) {
        let engines = |flag: &str| -> Vec<Engine> {
            let backends = backends.iter().filter(|backend| with(flag, backend));
            backends.map(|backend| backend.engine.clone()).collect()
        };
        let (prefill, decode) = (
            engines("prefill-model-labels"),
            engines("decode-model-labels"),
        );
        ensure!(
            !prefill.is_empty() && !decode.is_empty(),
            "{model}: no engine with a label of --prefill-model-labels, or none with one of \
             --decode-model-labels"
        );
        let name = plan.name(model, "")?;
        let prefill_name = plan.name(model, "-prefill")?;
        let mut pool = Pool::new(&name, decode, policy.clone());
        pool.models = vec![model.to_owned()];
        pool.disaggregation = Some(json!({"prefill_pool": prefill_name, "connector": "nixl"}));
        plan.pools.push(pool);
        prefill_pools.push(Pool::new(&prefill_name, prefill, policy.clone()));
    }
    plan.pools.extend(prefill_pools);
    plan.notes.push(
        "--routing-logic disaggregated_...: engines must hand the cache over by kv_transfer_params in \
         answer and request, as vLLM's NIXL connector does"
            .to_owned(),
    );
    Ok(())
}

fn add_aliases(given: &Given, plan: &mut Plan) -> anyhow::Result<()> {
    let Some(text) = given.text("static-aliases") else {
        return Ok(());
    };
    let mut aliases = BTreeMap::new();
    for pair in text.split(',') {
        let (alias, model) = pair
            .split_once(':')
            .with_context(|| format!("--static-aliases: {pair} is not alias:model"))?;
        aliases.insert(alias.trim(), model.trim());
    }
    for (alias, model) in aliases {
        let mut pools = plan.pools.iter_mut();
        let pool = pools.find(|pool| pool.models.iter().any(|name| name == model));
        let pool = pool.with_context(|| {
            format!("--static-aliases: {alias} stands for {model}, which no engine has")
        })?;
        pool.aliases.insert(alias.to_owned(), model.to_owned());
    }
    Ok(())
}
