//! The Envoy configuration for a [`Plan`]: envoy/static.yaml, changed where the plan asks for it.
//!
//! What the plan does not speak of (retries on lost connections, outlier detection, limits, the cluster
//! for the filter's own calls, the status page) stays as shipped, with its comments.

use anyhow::{Context, ensure};
use serde_json::Value;

use super::draft::Draft;
use super::plan::{INDEX, Plan, Pool, PoolEngine};
use super::{plugin, quoted};

/// The shipped configuration, as it was when this program was built.
const SHIPPED: &str = include_str!("../../../envoy/static.yaml");

/// How deep the filter's configuration stands.
const PLUGIN_INDENT: &str = "                    ";
/// Where it begins.
const PLUGIN_START: &str = "                  value: |\n";
/// What follows it.
const PLUGIN_END: &str = "          - name: envoy.filters.http.router\n";

/// The configuration, `head` before it, each line a comment.
///
/// # Errors
/// The shipped configuration is not what this code was written for, or nothing valid came out.
pub fn render(plan: &Plan, head: &str) -> anyhow::Result<String> {
    let mut draft = Draft::new(SHIPPED);
    draft.replace_part("# warmpath in a plain Envoy", "admin:", head)?;
    set_listener(&mut draft, plan)?;
    let plugin = plugin::text(plan)?;
    let lines = plugin
        .lines()
        .map(|line| format!("{PLUGIN_INDENT}{line}\n"));
    let plugin: String = lines.collect();
    draft.replace_part(PLUGIN_START, PLUGIN_END, &format!("{PLUGIN_START}{plugin}"))?;
    set_clusters(&mut draft, plan)?;
    set_retries(&mut draft, plan)?;
    set_checks(&mut draft, plan)?;
    set_ejection(&mut draft, plan)?;
    set_limits(&mut draft, plan)?;
    add_own_paths(&mut draft, plan)?;
    add_metrics(&mut draft, plan)?;
    let text = draft.text().to_owned();
    let _tree: Value = serde_yaml_ng::from_str(&text).context("what was made is not YAML")?;
    Ok(text)
}

fn set_listener(draft: &mut Draft, plan: &Plan) -> anyhow::Result<()> {
    draft.replace(
        "address: {socket_address: {address: 127.0.0.1, port_value: 10000}}",
        &socket_address(&plan.host, plan.port),
        1,
    )
}

fn socket_address(host: &str, port: u16) -> String {
    let host = quoted(host);
    format!("address: {{socket_address: {{address: {host}, port_value: {port}}}}}")
}

/// The first pool takes the place of the shipped cluster whose settings the others repeat.
fn set_clusters(draft: &mut Draft, plan: &Plan) -> anyhow::Result<()> {
    let (first, others) = plan.pools.split_first().context("no pool")?;
    draft.replace(
        "route: {cluster: llama, timeout: 0s}",
        &format!("route: {{cluster: {}, timeout: 0s}}", quoted(&first.name)),
        1,
    )?;
    draft.replace_part(
        "  - name: llama\n    type: STATIC\n",
        "    # The settings below are shared",
        &cluster(first),
    )?;
    draft.replace(
        "shared by both clusters",
        "shared by all clusters of engines",
        1,
    )?;
    let start = "\n  - name: qwen\n    type: STATIC\n";
    let end = "\n  # Envoy's own admin interface";
    let (_, settings) = draft
        .part(start, end)?
        .split_once("    load_balancing_policy: ")
        .context("no policy in the second cluster")?;
    let more = others.iter().map(|pool| {
        let head = cluster(pool);
        format!("\n{head}    load_balancing_policy: {settings}")
    });
    let more: String = more.collect();
    draft.replace_part(start, end, &more)?;
    if let Some(index) = &plan.index {
        let pool = Pool::new(INDEX, vec![index.clone()], Value::Null);
        let cluster = cluster(&pool);
        let comment = "# Who knows what engines hold: the policy kv_aware asks here.";
        draft.replace(end, &format!("\n  {comment}\n{cluster}{end}"), 1)?;
    }
    Ok(())
}

/// A cluster, as far as its pool makes it.
fn cluster(pool: &Pool) -> String {
    let name = quoted(&pool.name);
    let kind = match pool.is_resolved() {
        // A name may stand for many engines, which come and go.
        true => "STRICT_DNS\n    dns_refresh_rate: 2s",
        false => "STATIC",
    };
    let engines = pool.engines.iter().map(|one| endpoint(pool, one));
    let engines: String = engines.collect();
    format!(
        "  - name: {name}\n    type: {kind}\n    connect_timeout: 1s\n    load_assignment:\n      \
         cluster_name: {name}\n      endpoints:\n      - lb_endpoints:\n{engines}"
    )
}

fn endpoint(pool: &Pool, one: &PoolEngine) -> String {
    let engine = &one.engine;
    let address = socket_address(&engine.host, engine.port);
    let mut text = format!("        - endpoint: {{{address}}}\n");
    // Listed engines have their labels in the filter's configuration.
    if pool.is_resolved() && !one.labels.is_empty() {
        let labels = one.labels.iter();
        let labels: Vec<_> = labels
            .map(|(name, value)| format!("{}: {}", quoted(name), quoted(value)))
            .collect();
        let labels = labels.join(", ");
        text.push_str(&format!(
            "          metadata: {{filter_metadata: {{warmpath: {{labels: {{{labels}}}}}}}}}\n"
        ));
    }
    text
}

fn set_retries(draft: &mut Draft, plan: &Plan) -> anyhow::Result<()> {
    if let Some(attempts) = plan.attempts {
        let retries = attempts.saturating_sub(1);
        draft.replace("num_retries: 2", &format!("num_retries: {retries}"), 1)?;
    }
    if let Some(back_off) = plan.back_off {
        draft.replace(
            "{base_interval: 0.005s, max_interval: 0.1s}",
            &format!(
                "{{base_interval: {}, max_interval: {}}}",
                seconds(back_off.base_ms),
                seconds(back_off.max_ms)
            ),
            1,
        )?;
    }
    if let Some(statuses) = &plan.retried_statuses {
        draft.replace(
            "retriable_status_codes: [500, 502, 503, 504]",
            &format!("retriable_status_codes: {statuses:?}"),
            1,
        )?;
    }
    Ok(())
}

/// A duration as Envoy writes it.
fn seconds(milliseconds: u64) -> String {
    format!("{}.{:03}s", milliseconds / 1000, milliseconds % 1000)
}

fn set_checks(draft: &mut Draft, plan: &Plan) -> anyhow::Result<()> {
    let checks = &plan.checks;
    if let Some(path) = &checks.path {
        ensure!(
            path.starts_with('/'),
            "{path:?} is no path of a health check"
        );
        draft.replace("{path: /health}", &format!("{{path: {}}}", quoted(path)), 1)?;
    }
    if let Some(interval) = checks.interval_s {
        draft.replace(
            "\n      interval: 1s\n",
            &format!("\n      interval: {interval}s\n"),
            1,
        )?;
        let old = "no_traffic_interval: 1s";
        draft.replace(old, &format!("no_traffic_interval: {interval}s"), 1)?;
    }
    if let Some(timeout) = checks.timeout_s {
        draft.replace(
            "\n      timeout: 2s\n",
            &format!("\n      timeout: {timeout}s\n"),
            1,
        )?;
    }
    if let Some(failures) = checks.failures {
        draft.replace(
            "unhealthy_threshold: 2",
            &format!("unhealthy_threshold: {failures}"),
            1,
        )?;
    }
    if let Some(successes) = checks.successes {
        let new = format!("\n      healthy_threshold: {successes}\n");
        draft.replace("\n      healthy_threshold: 1\n", &new, 1)?;
    }
    Ok(())
}

fn set_ejection(draft: &mut Draft, plan: &Plan) -> anyhow::Result<()> {
    let breaker = plan.breaker;
    if breaker.off {
        let others = plan.pools.len().saturating_sub(1);
        draft.replace("    outlier_detection: *ejection\n", "", others)?;
        return draft.replace_part(
            "    outlier_detection: &ejection\n",
            "    circuit_breakers:",
            "",
        );
    }
    if let Some(failures) = breaker.failures {
        draft.replace(
            "consecutive_5xx: 5",
            &format!("consecutive_5xx: {failures}"),
            1,
        )?;
    }
    if let Some(pause) = breaker.pause_s {
        draft.replace(
            "base_ejection_time: 10s",
            &format!("base_ejection_time: {pause}s"),
            1,
        )?;
    }
    Ok(())
}

fn set_limits(draft: &mut Draft, plan: &Plan) -> anyhow::Result<()> {
    if let Some(timeout) = plan.request_timeout_s {
        draft.replace("timeout: 0s", &format!("timeout: {timeout}s"), 2)?;
        draft.replace(
            "                  # A long answer is not an error; silence is, see stream_idle_timeout.\n",
            "",
            1,
        )?;
    }
    if let Some(most) = plan.max_payload_bytes {
        // Envoy's fields have 32 bits.
        let most = most.min(u64::from(u32::MAX));
        let old = "per_connection_buffer_limit_bytes: 33554432";
        draft.replace(
            old,
            &format!("per_connection_buffer_limit_bytes: {most}"),
            2,
        )?;
        let old = "request_body_buffer_limit: 33554432";
        draft.replace(old, &format!("request_body_buffer_limit: {most}"), 1)?;
    }
    Ok(())
}

/// Paths by which the other router was asked how it is.
fn add_own_paths(draft: &mut Draft, plan: &Plan) -> anyhow::Result<()> {
    let alive = plan.alive_paths.iter().map(|path| (path, None));
    let default_pool = plan.pools.first();
    let ready = plan.ready_paths.iter().map(|path| (path, default_pool));
    let mut filters = String::new();
    for (path, pool) in alive.chain(ready) {
        filters.push_str(&format!(
            "          - name: envoy.filters.http.health_check\n            typed_config:\n              \
             \"@type\": type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck\n              \
             pass_through_mode: false\n              \
             headers: [{{name: \":path\", string_match: {{exact: {}}}}}]\n",
            quoted(path)
        ));
        if let Some(pool) = pool {
            filters.push_str(&format!(
                "              # 503 while no engine of the pool is healthy.\n              \
                 cluster_min_healthy_percentages: {{{}: {{value: 1}}}}\n",
                quoted(&pool.name)
            ));
        }
    }
    draft.replace(
        "          - &warmpath\n",
        &format!(
            "          # What the other router answered about itself, so that probes need no change.\n\
             {filters}          - &warmpath\n"
        ),
        1,
    )
}

/// A listener for metrics alone, if one is asked for.
fn add_metrics(draft: &mut Draft, plan: &Plan) -> anyhow::Result<()> {
    let Some(place) = &plan.prometheus else {
        return Ok(());
    };
    let address = socket_address(&place.host, place.port);
    let listener = format!(
        r#"
  # Envoy's metrics, the filter's among them, where Prometheus looked for those of the other router.
  - name: metrics
    {address}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: metrics
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            name: metrics
            virtual_hosts:
            - name: metrics
              domains: ["*"]
              routes:
              # Nothing else of the admin interface can be reached from here.
              - match: {{path: /metrics}}
                route: {{cluster: prometheus_stats, prefix_rewrite: /stats/prometheus}}

  clusters:
"#
    );
    draft.replace("\n  clusters:\n", &listener, 1)
}
