//! The page on retries and circuit breakers: every flag has its row, and the worked configuration is
//! that of the rows. That Envoy takes it, and what it then does, an end-to-end test shows.

use serde_json::{Value, json};

use crate::pages::{Page, page};
use crate::tables::Table;

const HEADING: &str = "Retries and circuit breakers of vllm-project/router";
const FLAGS: [&str; 11] = [
    "--retry-max-retries",
    "--retry-initial-backoff-ms",
    "--retry-max-backoff-ms",
    "--retry-backoff-multiplier",
    "--retry-jitter-factor",
    "--disable-retries",
    "--cb-failure-threshold",
    "--cb-success-threshold",
    "--cb-timeout-duration-secs",
    "--cb-window-duration-secs",
    "--disable-circuit-breaker",
];

fn default_of(table: &Table, name: &str) -> String {
    let row = table
        .rows
        .iter()
        .find(|row| row[0].replace('`', "") == name);
    let row = row.unwrap_or_else(|| panic!("no row {name}"));
    table.cell(row, "Default").to_owned()
}

/// A duration as Envoy writes it, in milliseconds.
fn milliseconds(text: &Value) -> f64 {
    let text = text.as_str().expect("a duration");
    let seconds: f64 = text.strip_suffix('s').unwrap().parse().unwrap();
    seconds * 1000.0
}

#[test]
fn the_worked_configuration_has_the_defaults_of_the_flags() {
    let page = page("docs/operations.md");
    let table = page.table(HEADING);
    let number = |flag: &str| default_of(&table, flag).parse::<f64>().unwrap();
    for flag in FLAGS {
        assert!(!default_of(&table, flag).is_empty(), "{flag}");
    }
    let section = Page {
        path: page.path.clone(),
        text: page.section(HEADING).to_owned(),
    };
    let envoy: Value = serde_yaml_ng::from_str(&section.code("yaml").concat()).unwrap();
    let filter = section.json();
    let [filter] = &filter[..] else {
        panic!("one example of the filter's configuration");
    };
    let retry = &envoy["retry_policy"];
    let attempts = number("--retry-max-retries");
    assert_eq!(retry["num_retries"].as_f64().unwrap() + 1.0, attempts);
    assert_eq!(filter["pools"][0]["candidates"], json!(attempts as u64));
    let wait = |name: &str| milliseconds(&retry["retry_back_off"][name]);
    assert_eq!(wait("base_interval"), number("--retry-initial-backoff-ms"));
    assert_eq!(wait("max_interval"), number("--retry-max-backoff-ms"));
    let codes = retry["retriable_status_codes"].as_array().unwrap();
    let codes: Vec<String> = codes.iter().map(Value::to_string).collect();
    assert_eq!(default_of(&table, "retried statuses"), codes.join(", "));

    let failures = number("--cb-failure-threshold");
    let (ejection, health) = (&envoy["outlier_detection"], &filter["health"]);
    assert_eq!(ejection["consecutive_5xx"].as_f64().unwrap(), failures);
    assert_eq!(health["failures"].as_f64().unwrap(), failures);
    let pause_ms = 1000.0 * number("--cb-timeout-duration-secs");
    assert_eq!(milliseconds(&ejection["base_ejection_time"]), pause_ms);
    assert_eq!(health["cool_down_ms"].as_f64().unwrap(), pause_ms);
}
