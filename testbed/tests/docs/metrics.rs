//! The table of metrics against everything that names one: docs, Envoy's configuration, dashboard,
//! alerts.

use std::collections::BTreeSet;

use promql_parser::parser::{self, Expr};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;
use warmpath_core::router::State;
use warmpath_core::telemetry::name::tag_regex;
use warmpath_core::telemetry::{Kind, Label, MAX_ENDPOINTS, Metric, OTHER, table};

use crate::pages::{page, pages, root};

/// A package and a filter chain.
const NO_METRICS: [&str; 2] = ["warmpath_core", "warmpath_status"];

/// What a scrape adds to every metric.
const OF_THE_SCRAPE: [&str; 2] = ["job", "instance"];
/// Envoy's own metrics that dashboard and alerts look at; `warmpath` is the filter's name.
const OF_ENVOY: [&str; 2] = [
    "envoy_wasm_warmpath_vm_reload_success",
    "envoy_wasm_warmpath_vm_reload_failure",
];

fn yaml(path: &str) -> Value {
    let text = std::fs::read_to_string(root().join(path)).expect(path);
    serde_yaml_ng::from_str(&text).expect(path)
}

fn texts<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get(key).and_then(Value::as_str));
            map.values().for_each(|value| texts(value, key, found));
        }
        Value::Array(items) => items.iter().for_each(|value| texts(value, key, found)),
        _ => {}
    }
}

fn dashboard() -> Value {
    let path = root().join("envoy/dashboards/warmpath.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).expect("a dashboard")
}

fn recorded(alerts: &Value) -> BTreeSet<String> {
    let mut names = Vec::new();
    texts(alerts, "record", &mut names);
    names.into_iter().map(str::to_owned).collect()
}

fn row(metric: &Metric) -> String {
    let labels: Vec<_> = metric
        .labels
        .iter()
        .map(|label| format!("`{}`", label.name()))
        .collect();
    let labels = match labels.is_empty() {
        true => "none".to_owned(),
        false => labels.join(", "),
    };
    let (name, kind, unit) = (metric.name, metric.kind.name(), metric.unit.name());
    format!(
        "| `{name}` | {kind} | {unit} | {labels} | {} |",
        metric.meaning
    )
}

/// The metric behind a name that Prometheus shows, and whether its buckets are meant.
fn metric(name: &str) -> Option<(&'static Metric, bool)> {
    let find = |name: &str| table::ALL.iter().find(|metric| metric.name == name);
    let of_histogram = |end: &str| {
        let found = find(name.strip_suffix(end)?)?;
        (found.kind == Kind::Histogram).then_some((found, end == "_bucket"))
    };
    let plain = find(name).filter(|metric| metric.kind != Kind::Histogram);
    let plain = plain.map(|metric| (metric, false));
    plain.or_else(|| {
        ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| of_histogram(end))
    })
}

/// Checks the selectors and counts them.
struct Selectors<'a> {
    recorded: &'a BTreeSet<String>,
    seen: usize,
}

impl ExprVisitor for Selectors<'_> {
    type Error = String;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, String> {
        let selector = match expr {
            Expr::VectorSelector(selector) => selector,
            Expr::MatrixSelector(matrix) => &matrix.vs,
            _ => return Ok(true),
        };
        let name = selector
            .name
            .as_deref()
            .ok_or("a selector without a name")?;
        self.seen += 1;
        if OF_ENVOY.contains(&name) || self.recorded.contains(name) {
            return Ok(true);
        }
        let (metric, buckets) = metric(name).ok_or_else(|| format!("no metric {name}"))?;
        for matcher in &selector.matchers.matchers {
            let label = matcher.name.as_str();
            let own = metric.labels.iter().any(|known| known.name() == label);
            let added = OF_THE_SCRAPE.contains(&label) || (buckets && label == "le");
            if !own && !added {
                return Err(format!("{name} has no label {label}"));
            }
        }
        let counter = metric.kind == Kind::Counter || metric.kind == Kind::Histogram;
        let over_time = matches!(expr, Expr::MatrixSelector(_));
        if counter != over_time {
            return Err(format!("{name} is a {}", metric.kind.name()));
        }
        Ok(true)
    }
}

/// Fails unless every expression is PromQL about metrics that there are, with their labels.
fn check(expressions: &[&str], recorded: &BTreeSet<String>) {
    for text in expressions {
        let plain = text.replace("$__rate_interval", "5m");
        let parsed = parser::parse(&plain).unwrap_or_else(|error| panic!("{error} in {text}"));
        let mut selectors = Selectors { recorded, seen: 0 };
        let walked = walk_expr(&mut selectors, &parsed);
        walked.unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(selectors.seen > 0, "no metric in {text}");
    }
}

#[test]
fn the_table_of_metrics_is_that_of_the_code() {
    let operations = page("docs/operations.md");
    let mut rows = operations.section("Metrics").lines();
    let mut documented: Vec<&str> = rows
        .by_ref()
        .filter(|line| line.starts_with("| `warmpath_"))
        .collect();
    for metric in table::ALL {
        let want = row(metric);
        let at = documented.iter().position(|line| *line == want);
        let at = at.unwrap_or_else(|| panic!("docs/operations.md: no row\n{want}"));
        documented.remove(at);
    }
    assert!(documented.is_empty(), "unknown to the code: {documented:?}");
    assert!(
        operations
            .text
            .contains(&format!(" {MAX_ENDPOINTS} addresses"))
    );
    assert!(operations.text.contains(&format!("`endpoint=\"{OTHER}\"`")));
}

/// What the metric of the state shows, by its value.
fn states() -> Vec<(String, String)> {
    let known = State::ALL.map(|state| (state.code(), state.name()));
    let states = [(0, "gone")].into_iter().chain(known);
    states
        .map(|(code, name)| (code.to_string(), name.to_owned()))
        .collect()
}

#[test]
fn the_codes_of_states_are_those_of_the_code() {
    let table = page("docs/operations.md").table("States of an endpoint");
    let cell = |row: &Vec<String>, column| table.cell(row, column).trim_matches('`').to_owned();
    let rows = table.rows.iter();
    let documented: Vec<_> = rows
        .map(|row| (cell(row, "Code"), cell(row, "State")))
        .collect();
    assert_eq!(documented, states());
    for (row, state) in table.rows.iter().skip(1).zip(State::ALL) {
        let used = if state.is_usable() { "yes" } else { "no" };
        assert_eq!(cell(row, "Used"), used, "{row:?}");
    }

    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let shows_states = |panel: &&Value| {
        let mut expressions = Vec::new();
        texts(panel, "expr", &mut expressions);
        expressions
            .iter()
            .any(|text| text.starts_with("warmpath_endpoint_state{"))
    };
    let panels: Vec<_> = panels.filter(shows_states).collect();
    assert_eq!(panels.len(), 1);
    for panel in panels {
        let mappings = panel["fieldConfig"]["defaults"]["mappings"].as_array();
        let options = mappings.unwrap()[0]["options"].as_object().unwrap();
        let text = |shown: &Value| shown["text"].as_str().unwrap().to_owned();
        let mut mapped: Vec<_> = options
            .iter()
            .map(|(code, shown)| (code.clone(), text(shown)))
            .collect();
        mapped.sort_by_key(|(code, _)| code.parse::<u64>().unwrap());
        assert_eq!(mapped, states(), "the dashboard's mappings");
    }
}

#[test]
fn the_alert_on_states_names_those_that_nobody_asked_for() {
    let alerts = yaml("envoy/dashboards/alerts.yaml");
    let mut expressions = Vec::new();
    texts(&alerts, "expr", &mut expressions);
    let compare = |text: &&str| text.contains("warmpath_endpoint_state");
    let on_states: Vec<_> = expressions.into_iter().filter(compare).collect();
    let (first, last) = (State::CoolingDown.code(), State::Ejected.code());
    let want = format!("warmpath_endpoint_state >= {first} and warmpath_endpoint_state <= {last}");
    assert_eq!(on_states, [want]);
    let meant = State::ALL
        .into_iter()
        .filter(|state| (first..=last).contains(&state.code()));
    let on_purpose = [State::Draining, State::Sleeping];
    assert!(
        meant
            .into_iter()
            .all(|state| !state.is_usable() && !on_purpose.contains(&state))
    );
}

#[test]
fn every_metric_that_a_page_names_exists() {
    let recorded = recorded(&yaml("envoy/dashboards/alerts.yaml"));
    let mut seen = 0;
    for page in pages() {
        let code = page.code("text").join("\n") + &page.code("bash").join("\n");
        for text in page
            .names()
            .iter()
            .map(String::as_str)
            .chain([code.as_str()])
        {
            let word = |char: char| !(char.is_ascii_alphanumeric() || "_:.".contains(char));
            for name in text.split(word).filter(|name| !name.contains('.')) {
                if name.len() > "warmpath:".len() && name.starts_with("warmpath:") {
                    assert!(recorded.contains(name), "{}: {name}", page.path.display());
                    seen += 1;
                }
                // `warmpath_requests` as the beginning of a name, names without labels as an example.
                let begins = |metric: &Metric| metric.name.starts_with(name);
                if name.starts_with("warmpath_")
                    && !name.contains("___")
                    && !NO_METRICS.contains(&name)
                {
                    let known = metric(name).is_some() || table::ALL.iter().any(begins);
                    assert!(known, "{}: no metric {name}", page.path.display());
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 2 * table::ALL.len(), "only {seen} names found");
}

#[test]
fn envoy_cuts_out_every_label() {
    let config = yaml("envoy/static.yaml");
    let tags = config["stats_config"]["stats_tags"]
        .as_array()
        .expect("tags");
    let shipped: BTreeSet<_> = tags
        .iter()
        .map(|tag| {
            (
                tag["tag_name"].as_str().unwrap().to_owned(),
                tag["regex"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    let want = Label::ALL.map(|label| (label.name().to_owned(), tag_regex(label)));
    assert_eq!(shipped, BTreeSet::from(want));
    let histograms = config["stats_config"]["histogram_bucket_settings"]
        .as_array()
        .expect("buckets");
    for setting in histograms {
        let prefix = setting["match"]["prefix"].as_str().expect("a prefix");
        let stem = prefix
            .strip_prefix("wasmcustom.")
            .unwrap()
            .replace('.', "_");
        let of =
            |metric: &&Metric| metric.kind == Kind::Histogram && metric.name.starts_with(&stem);
        assert_eq!(table::ALL.iter().filter(of).count(), 1, "{prefix}");
    }
    let operations = page("docs/operations.md").text;
    let names = Label::ALL.map(Label::name);
    for name in names {
        assert!(
            operations.contains(name),
            "docs/operations.md: no label {name}"
        );
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let dashboard = dashboard();
    let mut expressions = Vec::new();
    texts(&dashboard, "expr", &mut expressions);
    assert!(
        expressions.len() > 40,
        "only {} expressions",
        expressions.len()
    );
    check(&expressions, &BTreeSet::new());
    let shown = expressions.concat();
    let missing: Vec<_> = table::ALL
        .iter()
        .map(|metric| metric.name)
        .filter(|name| !shown.contains(name))
        .collect();
    let left_out = [
        "warmpath_endpoint_context_tokens",
        "warmpath_engine_finished_requests",
        "warmpath_engine_kv_capacity_tokens",
    ];
    assert_eq!(missing, left_out, "metrics that no panel shows");
    let panels = dashboard["panels"].as_array().unwrap();
    let rows: Vec<_> = panels
        .iter()
        .filter(|panel| panel["type"] == "row")
        .map(|row| row["title"].as_str().unwrap())
        .collect();
    let watch = page("docs/operations.md");
    let questions: Vec<_> = watch
        .table("What to watch")
        .rows
        .iter()
        .map(|row| row[0].clone())
        .collect();
    assert_eq!(
        rows, questions,
        "docs/operations.md follows the rows of the dashboard"
    );
    let mut variables = Vec::new();
    texts(&dashboard["templating"], "definition", &mut variables);
    for variable in &variables {
        let inside = variable
            .strip_prefix("label_values(")
            .and_then(|rest| rest.rsplit_once(", "));
        let (selector, label) = inside.expect(variable);
        parser::parse(selector).unwrap_or_else(|error| panic!("{error} in {variable}"));
        let name = selector.split('{').next().unwrap();
        let (metric, _) = metric(name).expect(variable);
        let label = label.trim_end_matches(')');
        assert!(
            label == "job" || metric.labels.iter().any(|known| known.name() == label),
            "{variable}"
        );
    }
    assert_eq!(variables.len(), 3);
}

#[test]
fn the_alerts_ask_for_metrics_that_there_are() {
    let alerts = yaml("envoy/dashboards/alerts.yaml");
    let mut expressions = Vec::new();
    texts(&alerts, "expr", &mut expressions);
    check(&expressions, &recorded(&alerts));
    let rules = alerts["groups"].as_array().unwrap().iter();
    let rules: Vec<_> = rules
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect();
    assert_eq!(expressions.len(), rules.len());
    let mut names = Vec::new();
    texts(&alerts, "alert", &mut names);
    assert!(names.len() >= 8, "{names:?}");
    for alert in rules.iter().filter(|rule| rule.get("alert").is_some()) {
        for key in ["summary", "description"] {
            assert!(alert["annotations"][key].is_string(), "{alert}: no {key}");
        }
        assert!(
            alert["labels"]["severity"].is_string(),
            "{alert}: no severity"
        );
    }
}
