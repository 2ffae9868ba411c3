//! What the pages say of the policies that look at prompts: which bodies have the same prompt, the size
//! of the table, and defaults.

use serde_json::json;
use warmpath_core::config::PolicyConfig;
use warmpath_core::scan::{Api, RequestScan, ScanPlan};

use crate::pages::page;
use crate::tables::number;
use crate::{DEFAULT, parsed, smallest};

/// Name and length of the prompt of a body that is shorter than 4,096 bytes and ends with its first
/// user message, so that the mark of the conversation covers all of it.
fn prompt(body: &str) -> (u64, usize) {
    let api = if body.contains("\"messages\"") {
        Api::ChatCompletions
    } else {
        Api::Completions
    };
    let plan = ScanPlan::new(&[], true).expect("a plan");
    let mut scan = RequestScan::new(api);
    scan.feed(&plan, body.as_bytes()).expect(body);
    scan.finish().expect(body);
    let prompt = scan.prompt();
    assert!((1..4096).contains(&prompt.bytes()), "{body}");
    (prompt.conversation(0), prompt.bytes())
}

#[test]
fn prompts_are_the_same_where_the_page_says_so() {
    let table = page("docs/policies.md").tables("The canonical form");
    let table = table.last().expect("a table");
    for row in &table.rows {
        let body = |column| prompt(table.cell(row, column).trim_matches('`'));
        let same = match table.cell(row, "Their prompts") {
            "same" => true,
            "different" => false,
            other => panic!("{other:?}"),
        };
        assert_eq!(body("A body") == body("Another body"), same, "{row:?}");
    }
    assert!(table.rows.len() >= 8);
}

#[test]
fn the_size_of_the_prefix_table_is_that_of_the_page() {
    let table = page("docs/configuration.md").table("Size of the prefix table");
    for row in &table.rows {
        let cell = |column| number(table.cell(row, column)) as usize;
        let address = |n: usize| json!({"address": format!("10.0.{}.{}:80", n / 250, n % 250)});
        let endpoints: Vec<_> = (0..cell("Endpoints")).map(address).collect();
        let config = parsed(json!({"pools": [{
            "name": "p",
            "endpoints": {"static": endpoints},
            "policy": {"prefix": {"kv_tokens": cell("KV capacity of each")}},
        }]}));
        assert_eq!(config.prefix_table_bytes(), cell("Bytes"), "{row:?}");
    }
    assert!(table.rows.len() >= 3);
}

#[test]
fn defaults_of_the_prompt_policies_are_those_of_the_code() {
    let rows = page("docs/configuration.md").option_rows();
    let default = |option: &str| rows[&format!("pools[].policy.{option}")][DEFAULT].clone();
    let policy = |name: &str| {
        let pool = json!({"name": "p", "endpoints": {"static": []}, "policy": name});
        parsed(json!({"pools": [pool]})).pools.remove(0).policy
    };
    let PolicyConfig::Prefix(prefix) = policy("prefix") else {
        panic!("another policy");
    };
    let PolicyConfig::CacheAware(aware) = policy("cache_aware") else {
        panic!("another policy");
    };
    let numbers = [
        ("prefix.stickiness", prefix.stickiness),
        ("prefix.home_affinity", prefix.home_affinity),
        ("prefix.request_tokens", prefix.request_tokens),
        ("prefix.context_weight", prefix.context_weight),
        ("prefix.lora_tokens", prefix.lora_tokens),
        ("cache_aware.cache_threshold", aware.cache_threshold),
        (
            "cache_aware.balance_rel_threshold",
            aware.balance_rel_threshold,
        ),
    ];
    for (option, number) in numbers {
        assert_eq!(default(option), format!("`{number}`"), "{option}");
    }
    assert_eq!(default("prefix.imbalance_threshold"), "none: off");
    assert_eq!(prefix.imbalance_threshold, None);
    assert_eq!(smallest().limits.prefix_table_bytes, None);
}
