//! From the flags of Dynamo's frontend, or of its router as a service, to a [`Plan`].
//!
//! There workers register; here `--engine` names them.

use anyhow::{bail, ensure};
use serde_json::json;

use super::{host, port};
use crate::migrate::flag::Given;
use crate::migrate::plan::{INDEX, Plan, Pool};
use crate::migrate::url::Engine;

/// The header that names a session there.
const SESSION: &str = "x-dynamo-session-id";

/// Reads the flags into `plan`; `engines` are those that `--engine` names.
///
/// # Errors
/// There are no engines, or requests name their engine.
pub fn plan(given: &Given, engines: Vec<Engine>, plan: Plan) -> anyhow::Result<Plan> {
    ensure!(
        !engines.is_empty(),
        "Dynamo's workers register by themselves, and speak no HTTP. Start the engines as HTTP servers, \
         such as `vllm serve`, and name each by --engine http://HOST:PORT before the `--`"
    );
    let mut plan = Plan {
        host: host(given, "http-host")?,
        port: port(given, "http-port")?,
        alive_paths: vec!["/live"],
        ready_paths: vec!["/health"],
        ..plan
    };
    // Without credit for what engines hold, their load is all that counts.
    let no_credit = given.number("router-kv-overlap-score-credit") == Some(0.0);
    let mode = match given.text_or_default("router-mode") {
        _ if given.has("load-aware") => "least-loaded",
        "kv" if no_credit => "least-loaded",
        mode => mode,
    };
    let mut policy = match mode {
        "kv" if plan.index.is_some() => {
            json!({"kv_aware": {"index": {"dynamo": {"cluster": INDEX}}}})
        }
        "kv" => {
            plan.notes.push(
                "--router-mode kv: the policy is prefix, which predicts what engines hold. To ask Dynamo's \
                 indexer, which reads their events, name its HTTP address by --index"
                    .to_owned(),
            );
            json!("prefix")
        }
        "random" => json!("random"),
        "power-of-two" => json!("power_of_two"),
        "least-loaded" | "device-aware-weighted" => json!("least_request"),
        "round-robin" => json!("round_robin"),
        _ => bail!("--router-mode {mode}: a request cannot name its engine"),
    };
    if given.has("router-session-affinity-ttl-secs") {
        plan.session_key = vec![json!({ "header": SESSION })];
        if given.text_or_default("router-session-affinity-mode") == "hard" {
            policy = json!({"consistent_hash": {"without_key": policy}});
        }
    }
    if mode == "device-aware-weighted" {
        plan.notes.push(
            "--router-mode device-aware-weighted: the policy is least_request; give endpoints a weight for \
             their speed"
                .to_owned(),
        );
    }
    let mut pool = Pool::new("dynamo", engines, policy);
    pool.models = given
        .text("model-name")
        .map(str::to_owned)
        .into_iter()
        .collect();
    plan.pools.push(pool);
    Ok(plan)
}
