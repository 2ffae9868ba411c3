//! Command lines and what becomes of them.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::Migrated;
use super::commands;
use super::dialect::{Dialect, Words};
use super::flag::Flag;

fn words(line: &str) -> Vec<String> {
    shlex::split(line).unwrap()
}

fn made(line: &str) -> Migrated {
    Migrated::of(None, &[], None, &words(line)).unwrap()
}

fn error(line: &str) -> String {
    let made = Migrated::of(None, &[], None, &words(line));
    made.err().unwrap().to_string()
}

fn plugin(made: &Migrated) -> Value {
    serde_json::from_str(&made.plugin).unwrap()
}

fn envoy(made: &Migrated) -> Value {
    serde_yaml_ng::from_str(&made.envoy).unwrap()
}

fn cluster(made: &Migrated, name: &str) -> Value {
    let tree = envoy(made);
    let mut clusters = tree["static_resources"]["clusters"]
        .as_array()
        .unwrap()
        .iter();
    clusters
        .find(|cluster| cluster["name"] == name)
        .unwrap()
        .clone()
}

fn manager(made: &Migrated) -> Value {
    let listeners = &envoy(made)["static_resources"]["listeners"];
    listeners[0]["filter_chains"][0]["filters"][0]["typed_config"].clone()
}

/// Engines of a cluster, as `host:port`.
fn members(cluster: &Value) -> Vec<String> {
    let members = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"];
    let members = members.as_array().unwrap().iter();
    let address = |member: &Value| {
        let at = &member["endpoint"]["address"]["socket_address"];
        format!("{}:{}", at["address"].as_str().unwrap(), at["port_value"])
    };
    members.map(address).collect()
}

fn of(file: &str) -> Migrated {
    let engines: &[String] = match file {
        "dynamo.sh" | "dynamo-decode.sh" => &["http://127.0.0.1:8081".to_owned()],
        _ => &[],
    };
    Migrated::of(None, engines, None, &commands::words(file).unwrap()).unwrap()
}

const WORKERS: &str = "vllm-router --worker-urls http://10.0.0.1:8000 http://10.0.0.2:8000";

#[test]
fn every_printed_command_line_is_made() {
    for (file, _) in commands::PRINTED {
        let made = of(file);
        let tree = envoy(&made);
        let pools = plugin(&made)["pools"].as_array().unwrap().clone();
        for pool in &pools {
            let cluster = cluster(&made, pool["cluster"].as_str().unwrap());
            assert!(cluster["outlier_detection"].is_object(), "{file}");
            assert!(cluster["health_checks"].is_array() && cluster["circuit_breakers"].is_object());
            let kind = cluster["load_balancing_policy"].to_string();
            assert!(kind.contains("override_host"), "{file}");
            if let Some(listed) = pool["endpoints"]["static"].as_array() {
                let listed = listed.iter().map(|one| one["address"].as_str().unwrap());
                assert_eq!(members(&cluster), listed.collect::<Vec<_>>(), "{file}");
            }
        }
        // Both copies of the filter, in requests' listener and the page's, have the same.
        let text = tree.to_string();
        assert_eq!(text.matches("FAIL_RELOAD").count(), 2);
        assert!(
            !text.contains("llama-3-8b") && !text.contains("qwen"),
            "{}",
            file
        );
        assert!(cluster(&made, "warmpath_scrape")["original_dst_lb_config"].is_object());
        assert_eq!(
            tree["static_resources"]["clusters"]
                .as_array()
                .unwrap()
                .len(),
            pools.len() + 2
        );
    }
}

#[test]
fn what_the_filter_knows_it_accepts() {
    for file in [
        "production-stack.sh",
        "production-stack-module.sh",
        "vllm-router-retries.sh",
        "vllm-router-breaker.sh",
        "vllm-router-dp.sh",
        "vllm-router-mooncake.sh",
        "vllm-router-pd.sh",
        "production-stack-pd.sh",
        "dynamo.sh",
    ] {
        of(file).check().unwrap();
    }
    let refused = made(&format!("{WORKERS} --cb-failure-threshold 100000"));
    let refused = refused.check().unwrap_err().to_string();
    assert!(refused.contains("config.health.failures"), "{refused}");
}

#[test]
fn production_stack_has_a_pool_for_each_model() {
    let made = of("production-stack.sh");
    let plugin = plugin(&made);
    let pools = plugin["pools"].as_array().unwrap();
    assert_eq!(pools.len(), 2);
    assert_eq!(pools[0]["name"], "facebook-opt-125m");
    assert_eq!(pools[0]["models"], json!(["facebook/opt-125m"]));
    assert_eq!(pools[0]["policy"], "round_robin");
    assert_eq!(
        pools[1]["aliases"],
        json!({"gpt4": "meta-llama/Llama-3.1-8B-Instruct"})
    );
    assert_eq!(
        members(&cluster(&made, "facebook-opt-125m")),
        ["127.0.0.1:9001", "127.0.0.1:9003"]
    );
    assert_eq!(plugin["default_pool"], "facebook-opt-125m");
    assert_eq!(plugin["scrape"]["metrics"]["interval_ms"], 10_000);
    let listener = &envoy(&made)["static_resources"]["listeners"][0];
    assert_eq!(
        listener["address"]["socket_address"],
        json!({"address": "0.0.0.0", "port_value": 8000})
    );
    let notes = made.notes.join("\n");
    for left_out in [
        "--log-stats: Not offered",
        "--static-backend-health-checks",
        "--static-model-types",
    ] {
        assert!(notes.contains(left_out), "{notes}");
        assert!(made.envoy.contains(&format!("# - {left_out}")));
    }
    assert!(
        !notes.contains("--port") && !notes.contains("]("),
        "{notes}"
    );
}

#[test]
fn a_session_is_looked_for_in_header_and_body() {
    let made = made(
        "vllm-router --service-discovery static --static-backends http://10.0.0.1:1 --static-models m \
         --routing-logic session --session-key x-user/id --request-stats-window 10",
    );
    let plugin = plugin(&made);
    assert_eq!(
        plugin["session_key"],
        json!([{"header": "x-user/id"}, {"body": "/x-user~1id"}])
    );
    assert_eq!(
        plugin["pools"][0]["policy"],
        json!({"consistent_hash": {"without_key": {"lowest_qps": {"window_s": 10}}}})
    );
    made.check().unwrap();
}

#[test]
fn prefill_and_decode_are_two_pools() {
    let made = of("vllm-router-pd.sh");
    let plugin = plugin(&made);
    let pools = plugin["pools"].as_array().unwrap();
    assert_eq!(
        pools[0]["disaggregation"],
        json!({"prefill_pool": "vllm-prefill", "connector": "nixl"})
    );
    assert_eq!(pools[1]["name"], "vllm-prefill");
    assert!(pools[1].get("models").is_none() && pools[1].get("disaggregation").is_none());
    assert_eq!(
        members(&cluster(&made, "vllm-prefill")),
        ["127.0.0.1:8081", "127.0.0.1:8082"]
    );
    assert_eq!(members(&cluster(&made, "vllm")).len(), 4);
    assert!(pools[0].get("data_parallel_size").is_none());

    let pools = plugin_of(
        "--kv-connector mooncake --prefill http://10.0.0.1:1 9000 --prefill http://10.0.0.2:1 none",
    );
    assert_eq!(
        pools[1]["endpoints"]["static"],
        json!([
            {"address": "10.0.0.1:1", "labels": {"bootstrap_port": "9000"}},
            {"address": "10.0.0.2:1"},
        ])
    );
    assert_eq!(
        pools[0]["disaggregation"]["connector"],
        json!({"mooncake": {"bootstrap_port": 8998}})
    );
    let pools = plugin_of(
        "--vllm-discovery-address 0.0.0.0:30001 --prefill http://10.0.0.1:1 --prefill-policy random",
    );
    assert_eq!(
        pools[0]["disaggregation"]["connector"],
        json!({"p2p_nccl": {"port": 21001}})
    );
    assert_eq!(
        (&pools[0]["policy"], &pools[1]["policy"]),
        (&json!("cache_aware"), &json!("random"))
    );
}

fn plugin_of(prefill: &str) -> Value {
    let line = format!("vllm-router --vllm-pd-disaggregation {prefill} --decode http://10.0.0.9:1");
    plugin(&made(&line))["pools"].clone()
}

#[test]
fn labels_tell_prefill_from_decode() {
    let pools = plugin(&of("production-stack-pd.sh"))["pools"].clone();
    let (decode, prefill) = (&pools[0], &pools[1]);
    assert_eq!(
        decode["endpoints"]["static"],
        json!([{"address": "127.0.0.1:8200"}])
    );
    assert_eq!(
        prefill["endpoints"]["static"],
        json!([{"address": "127.0.0.1:8100"}])
    );
    assert_eq!(decode["disaggregation"]["prefill_pool"], prefill["name"]);
    assert_eq!(
        decode["models"],
        json!(["meta-llama/Llama-3.1-8B-Instruct"])
    );
}

#[test]
fn engines_with_names_are_resolved_by_envoy() {
    let made = of("vllm-router-dp.sh");
    let pool = plugin(&made)["pools"][0].clone();
    assert_eq!(
        (&pool["endpoints"], &pool["data_parallel_size"]),
        (&json!("envoy"), &json!(8))
    );
    let cluster = cluster(&made, "vllm");
    assert_eq!(cluster["type"], "STRICT_DNS");
    assert_eq!(members(&cluster), ["worker1:8000", "worker2:8000"]);
    let keys = plugin(&made)["session_key"].to_string();
    assert!(
        keys.contains("x-session-id") && !keys.contains("x-request-id"),
        "{keys}"
    );
}

#[test]
fn retries_and_breakers_are_those_that_are_asked_for() {
    let retries = of("vllm-router-retries.sh");
    let host = &manager(&retries)["route_config"]["virtual_hosts"][0];
    let policy = &host["retry_policy"];
    assert_eq!(policy["num_retries"], 2);
    assert_eq!(
        policy["retry_back_off"],
        json!({"base_interval": "0.100s", "max_interval": "10.000s"})
    );
    assert_eq!(
        policy["retriable_status_codes"],
        json!([408, 429, 500, 502, 503, 504])
    );
    assert_eq!(plugin(&retries)["pools"][0]["candidates"], 3);

    let breaker = of("vllm-router-breaker.sh");
    assert_eq!(
        plugin(&breaker)["health"],
        json!({"failures": 5, "cool_down_ms": 30_000, "max_cool_down_ms": 30_000})
    );
    let ejection = &cluster(&breaker, "vllm")["outlier_detection"];
    assert_eq!(
        (
            &ejection["consecutive_5xx"],
            &ejection["base_ejection_time"]
        ),
        (&json!(5), &json!("30s"))
    );
    // What was not asked for is as shipped.
    let policy = &manager(&breaker)["route_config"]["virtual_hosts"][0]["retry_policy"];
    assert_eq!(
        policy["retriable_status_codes"],
        json!([500, 502, 503, 504])
    );

    let off = made(&format!(
        "{WORKERS} --disable-retries --disable-circuit-breaker"
    ));
    assert!(cluster(&off, "vllm").get("outlier_detection").is_none());
    assert_eq!(
        plugin(&off)["health"],
        json!({"failures": 1000, "stall_ms": 0})
    );
    let policy = &manager(&off)["route_config"]["virtual_hosts"][0]["retry_policy"];
    assert_eq!(policy["num_retries"], 0);
    off.check().unwrap();
}

#[test]
fn the_rest_of_the_flags_reaches_its_field() {
    let made = made(&format!(
        "{WORKERS} --policy=cache_aware --cache-threshold 0.5 --balance-abs-threshold 32 \
         --health-check-endpoint /ping --health-check-interval-secs 7 --health-check-timeout-secs 3 \
         --health-failure-threshold 4 --health-success-threshold 5 --request-timeout-secs 600 \
         --max-payload-size 4194304 --request-id-headers x-trace-id x-request-id \
         --prometheus-port 9000 --host ::1 --port 8090"
    ));
    let plugin = plugin(&made);
    assert_eq!(
        plugin["pools"][0]["policy"],
        json!({"cache_aware": {"cache_threshold": 0.5, "balance_abs_threshold": 32}})
    );
    assert_eq!(
        plugin["headers"],
        json!({"request_id": ["x-trace-id", "x-request-id"]})
    );
    assert_eq!(plugin["limits"]["hold_bytes"], 3 << 20);
    let check = &cluster(&made, "vllm")["health_checks"][0];
    assert_eq!(check["http_health_check"]["path"], "/ping");
    assert_eq!(
        (&check["interval"], &check["timeout"]),
        (&json!("7s"), &json!("3s"))
    );
    assert_eq!(
        (&check["unhealthy_threshold"], &check["healthy_threshold"]),
        (&json!(4), &json!(5))
    );
    let host = &manager(&made)["route_config"]["virtual_hosts"][0];
    assert_eq!(host["request_body_buffer_limit"], 4 << 20);
    assert_eq!(host["routes"][0]["route"]["timeout"], "600s");
    assert_eq!(
        host["routes"][1]["route"],
        json!({"cluster": "vllm", "timeout": "600s"})
    );
    let listeners = &envoy(&made)["static_resources"]["listeners"];
    assert_eq!(listeners[0]["address"]["socket_address"]["address"], "::1");
    assert_eq!(
        listeners[2]["address"]["socket_address"],
        json!({"address": "127.0.0.1", "port_value": 9000})
    );
    made.check().unwrap();
}

#[test]
fn the_dialect_is_told_by_flags() {
    let dialect = |line: &str| Words::of(&words(line)).dialect();
    let told = |line: &str| dialect(line).unwrap();
    assert_eq!(
        told("vllm-router --static-backends http://a:1"),
        Dialect::ProductionStack
    );
    assert_eq!(
        told("vllm-router --worker-url http://a:1"),
        Dialect::VllmRouter
    );
    assert_eq!(
        told("vllm-router --service-discovery k8s"),
        Dialect::ProductionStack
    );
    assert_eq!(
        told("vllm-router --service-discovery --selector a=b"),
        Dialect::VllmRouter
    );
    assert_eq!(
        told("python3 -m vllm_router.app --port 1"),
        Dialect::ProductionStack
    );
    assert_eq!(
        told("python -m vllm_router.launch_router"),
        Dialect::VllmRouter
    );
    assert_eq!(
        told("./target/release/vllm-router --policy random"),
        Dialect::VllmRouter
    );
    assert_eq!(
        told("cargo run --release -- --host 0.0.0.0"),
        Dialect::VllmRouter
    );
    assert_eq!(told("python -m dynamo.frontend"), Dialect::Dynamo);
    let unclear = dialect("vllm-router --host 0.0.0.0 --port 80")
        .unwrap_err()
        .to_string();
    assert!(unclear.contains("--from production-stack"), "{unclear}");
    let both = dialect("vllm-router --worker-urls http://a:1 --routing-logic session");
    let both = both.unwrap_err().to_string();
    assert!(
        both.contains("--worker-urls") && both.contains("--routing-logic"),
        "{both}"
    );
    let strange = dialect("vllm-router --worker-ulrs http://a:1")
        .unwrap_err()
        .to_string();
    assert!(
        strange.contains("--worker-urls of vllm-project/router"),
        "{strange}"
    );
}

#[test]
fn a_flag_that_nobody_knows_is_an_error() {
    let error = error(&format!("{WORKERS} --polciy random"));
    assert!(
        error.contains("--polciy") && error.contains("--policy"),
        "{error}"
    );
    let unknown = Migrated::of(
        Some(Dialect::VllmRouter),
        &[],
        None,
        &words("vllm-router --static-backends a"),
    );
    let unknown = unknown.err().unwrap().to_string();
    assert!(unknown.contains("--static-backends"), "{unknown}");
}

#[test]
fn what_nothing_could_be_made_of_is_an_error_that_tells_what_to_do() {
    let cases = [
        ("vllm-router --policy random", "--engine"),
        (
            "vllm-router --worker-urls http://a:1 --host router.local",
            "no IP address",
        ),
        (
            "vllm-router --worker-urls grpc://a:1",
            "grpc:// is not offered",
        ),
        (
            "vllm-router --worker-urls http://a:1 --backend openai",
            "providers",
        ),
        (
            "vllm-router --vllm-pd-disaggregation --vllm-discovery-address 0.0.0.0:1",
            "--prefill URL",
        ),
        (
            "vllm-router --vllm-pd-disaggregation --kv-connector moriio --prefill http://a:1 --decode http://b:1",
            "moriio",
        ),
        (
            "vllm-router --routing-logic session --service-discovery static --static-backends http://a:1 --static-models m",
            "--session-key",
        ),
        (
            "vllm-router --routing-logic roundrobin --service-discovery static --static-backends http://a:1,http://b:1 --static-models m",
            "2 engines",
        ),
        (
            "vllm-router --dynamic-config-yaml f.yaml",
            "--routing-logic is missing",
        ),
        ("python -m dynamo.frontend --router-mode kv", "--engine"),
    ];
    for (line, want) in cases {
        let error = error(line);
        assert!(error.contains(want), "{line}: {error}");
    }
}

#[test]
fn kubernetes_gets_a_hint_and_with_a_name_a_configuration() {
    let line = "vllm-router --service-discovery k8s --k8s-namespace prod --k8s-label-selector app=vllm,tier=gpu \
                --k8s-port 8000 --routing-logic prefixaware";
    let hint = error(line);
    let name = "http://vllm-engines.prod.svc.cluster.local:8000";
    assert!(
        hint.contains(name) && hint.contains(r#"app: "vllm", tier: "gpu""#),
        "{hint}"
    );
    let made = Migrated::of(None, &[name.to_owned()], None, &words(line)).unwrap();
    made.check().unwrap();
    assert_eq!(plugin(&made)["pools"][0]["discover_models"], true);
    assert_eq!(cluster(&made, "vllm")["type"], "STRICT_DNS");
    let hint = error(
        "vllm-router --service-discovery --selector app=vllm role=x --service-discovery-port 8000",
    );
    assert!(hint.contains(r#"app: "vllm", role: "x""#), "{hint}");
}

#[test]
fn dynamo_s_modes_are_policies() {
    let policy = |line: &str| {
        let engines = ["http://10.0.0.1:1".to_owned()];
        let made = Migrated::of(None, &engines, None, &words(line)).unwrap();
        made.check().unwrap();
        plugin(&made)["pools"][0]["policy"].clone()
    };
    assert_eq!(plugin(&of("dynamo.sh"))["pools"][0]["policy"], "prefix");
    let decode = plugin(&of("dynamo-decode.sh"))["pools"][0]["policy"].clone();
    assert_eq!(decode, "least_request");
    assert_eq!(policy("python -m dynamo.frontend"), "round_robin");
    assert_eq!(
        policy("python -m dynamo.frontend --load-aware"),
        "least_request"
    );
    assert_eq!(
        policy(
            "python -m dynamo.frontend --router-mode random --router-session-affinity-ttl-secs 60"
        ),
        json!({"consistent_hash": {"without_key": "random"}})
    );
}

#[test]
fn an_index_is_asked_if_it_is_named() {
    let index = |line: &str, engines: &[String]| {
        Migrated::of(None, engines, Some("http://10.0.0.9:9001"), &words(line))
    };
    let of_policy = |made: &Migrated| {
        let index = cluster(made, "kv_index");
        assert_eq!(members(&index), ["10.0.0.9:9001"]);
        plugin(made)["pools"][0]["policy"]["kv_aware"].clone()
    };
    let line = "vllm-router --service-discovery static --static-backends http://10.0.0.1:1 --static-models m \
                --routing-logic kvaware --session-key x-user-id";
    assert_eq!(
        of_policy(&index(line, &[]).unwrap()),
        json!({
            "index": {"lmcache": {"cluster": "kv_index"}}, "threshold_tokens": 2000,
            "fallback": {"consistent_hash": {"without_key": "lowest_qps"}},
        })
    );
    let line = format!("{WORKERS} --policy kv_aware --kv-event-model m");
    let dynamo = json!({"index": {"dynamo": {"cluster": "kv_index", "model": "m"}}});
    assert_eq!(of_policy(&index(&line, &[]).unwrap()), dynamo);
    let engines = ["http://10.0.0.1:1".to_owned()];
    let line = "python -m dynamo.frontend --router-mode kv";
    let dynamo = json!({"index": {"dynamo": {"cluster": "kv_index"}}});
    assert_eq!(of_policy(&index(line, &engines).unwrap()), dynamo);
    assert!(index(&format!("{WORKERS} --policy random"), &[]).is_err());

    let predicted = made(&format!("{WORKERS} --policy kv_aware"));
    assert_eq!(plugin(&predicted)["pools"][0]["policy"], "prefix");
    assert!(predicted.notes.join("\n").contains("--index"));
}

#[test]
fn labels_of_resolved_engines_are_in_the_cluster() {
    let made = made(
        "vllm-router --vllm-pd-disaggregation --kv-connector mooncake --prefill http://p1:1 9000 \
         --prefill http://p2:1 --decode http://d:1",
    );
    let pools = plugin(&made)["pools"].clone();
    assert_eq!(pools[0]["endpoints"], "envoy");
    assert_eq!(pools[1]["endpoints"], json!({"envoy": {"metadata": true}}));
    let cluster = cluster(&made, "vllm-prefill");
    let members = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"];
    let labels = &members[0]["metadata"]["filter_metadata"]["warmpath"]["labels"];
    assert_eq!(labels, &json!({"bootstrap_port": "9000"}));
    assert!(members[1].get("metadata").is_none());
}

#[test]
fn secrets_and_line_breaks_stay_out_of_comments() {
    let mut line = words(&format!("{WORKERS} --api-key secret-1 --log-dir"));
    line.push("a\nadmin: b".to_owned());
    let made = Migrated::of(None, &[], None, &line).unwrap();
    assert!(!made.envoy.contains("secret-1"));
    assert!(envoy(&made)["admin"]["address"].is_object());
    let made = self::made(&format!("{WORKERS} --api-key=secret-1"));
    assert!(!made.envoy.contains("secret-1") && made.notes.join("").contains("--api-key"));
}

#[test]
fn pools_have_names_of_their_own() {
    let made = made(
        "vllm-router --service-discovery static --routing-logic roundrobin \
         --static-backends http://10.0.0.1:1,http://10.0.0.2:1,http://10.0.0.3:1 \
         --static-models org/m,org-m,405",
    );
    let plugin = plugin(&made);
    let pools = plugin["pools"].as_array().unwrap().iter();
    let names: Vec<_> = pools.map(|pool| pool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["org-m", "org-m-2", "405"]);
    assert_eq!(cluster(&made, "405")["name"], json!("405"));
    made.check().unwrap();
}

/// The rows of a table of flags, as docs/migrate.md has them.
fn rows(flags: &[Flag]) -> String {
    let mut rows = String::new();
    for flag in flags {
        let names: Vec<_> = flag.names().map(|name| format!("`--{name}`")).collect();
        let default = match flag.default {
            "" => "none".to_owned(),
            words if words.starts_with('(') => words.trim_matches(['(', ')']).to_owned(),
            default => format!("`{default}`"),
        };
        writeln!(
            rows,
            "| {} | {default} | {} |",
            names.join(", "),
            flag.here()
        )
        .unwrap();
    }
    rows
}

#[test]
fn the_page_has_every_flag_and_no_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/migrate.md")).unwrap();
    let mut known = 0;
    for dialect in Dialect::ALL {
        let table = rows(dialect.flags());
        for row in table.lines() {
            assert!(
                page.contains(row),
                "docs/migrate.md lacks, or has otherwise:\n{row}"
            );
        }
        assert!(
            page.contains(&table),
            "other rows among those of {}",
            dialect.name()
        );
        known += table.lines().count();
    }
    let flags = page.lines().filter(|line| line.starts_with("| `--"));
    assert_eq!(flags.count(), known, "rows of flags that no router has");
}
