//! What to try once the stack runs: lines to copy, and what each of them shows.

use std::fmt::Write as _;

use super::plan::Plan;
use crate::envoy::bootstrap::Addresses;

/// The guide for a stack.
pub fn text(plan: &Plan, addresses: Addresses) -> String {
    let base = format!("http://{}", addresses.listener);
    let mut guide = Guide {
        text: String::new(),
    };
    guide.step(
        "The models of all pools",
        &format!("curl -s {base}/v1/models"),
    );
    if let Some(model) = plan.models.first() {
        guide.step(
            "One session stays on one engine: repeat it, x-warmpath-endpoint does not change",
            &chat(&base, model, "-i -H 'x-session-id: alice' ", ""),
        );
        guide.step(
            "Another session may live on another engine; without a key the least busy one answers",
            &chat(&base, model, "-i -H 'x-session-id: bob' ", ""),
        );
        guide.step(
            "A stream arrives as it is written",
            &chat(&base, model, "-N ", r#""stream": true, "max_tokens": 40, "#),
        );
    }
    if let Some((alias, model)) = &plan.alias {
        guide.step(
            &format!("An alias: clients say {alias}, engines hear {model}"),
            &chat(&base, alias, "", ""),
        );
    }
    if let Some(model) = plan.models.get(1) {
        guide.step(
            "Another model is another cluster",
            &chat(&base, model, "-i ", ""),
        );
    }
    guide.step(
        "A model that no pool has: 404, in OpenAI's format",
        &chat(&base, "no-such-model", "", ""),
    );
    if let Some(status) = addresses.status {
        guide.step(
            &format!(
                "Engines, load and recent decisions: http://{status}/warmpath/ in a browser, or as JSON"
            ),
            &format!("curl -s http://{status}/warmpath/status"),
        );
        if let Some(model) = plan.models.first() {
            guide.step(
                "What would become of a request, and why; it is sent nowhere",
                &format!(
                    "curl -s http://{status}/warmpath/explain -d '{}'",
                    body(model, "")
                ),
            );
        }
    }
    guide.step(
        "Envoy's own view of the engines; warmpath's metrics are under /stats/prometheus",
        &format!("curl -s http://{}/clusters", addresses.admin),
    );
    guide.text.push_str("\nCtrl-C stops everything.");
    guide.text
}

struct Guide {
    text: String,
}

impl Guide {
    fn step(&mut self, what: &str, command: &str) {
        // Writing to a string cannot fail.
        let _written = writeln!(self.text, "\n# {what}\n{command}");
    }
}

fn chat(base: &str, model: &str, flags: &str, fields: &str) -> String {
    format!(
        "curl -s {flags}{base}/v1/chat/completions -H 'content-type: application/json' -d '{}'",
        body(model, fields)
    )
}

fn body(model: &str, fields: &str) -> String {
    format!(
        "{{\"model\": \"{model}\", {fields}\"messages\": [{{\"role\": \"user\", \"content\": \
         \"Hello!\"}}]}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn every_body_is_json_and_names_its_model() {
        let plan = Plan::of(&json!({"pools": [
            {"name": "a", "models": ["m"], "aliases": {"x": "m"}, "endpoints": {"static": []}},
            {"name": "b", "models": ["o"], "endpoints": {"static": []}},
        ]}))
        .unwrap();
        let addresses = Addresses {
            listener: "127.0.0.1:10000".parse().unwrap(),
            admin: "127.0.0.1:9901".parse().unwrap(),
            status: Some("127.0.0.1:9902".parse().unwrap()),
        };
        let text = text(&plan, addresses);
        let models: Vec<Value> = text
            .lines()
            .filter_map(|line| line.split_once(" -d '"))
            .map(|(_, body)| serde_json::from_str::<Value>(body.trim_end_matches('\'')).unwrap())
            .map(|body| body["model"].clone())
            .collect();
        assert_eq!(models, ["m", "m", "m", "x", "o", "no-such-model", "m"]);
    }
}
