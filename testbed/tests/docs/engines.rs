//! What the configuration page says of discovery, scraping and health: choices and defaults that no
//! error names.

use serde_json::{Value, json};
use warmpath_core::stats::Names;

use crate::options::options;
use crate::pages::page;
use crate::{BOUNDS, DEFAULT, MADE_ONCE, parsed, smallest};

#[test]
fn rows_of_choices_name_them_all() {
    let rows = page("docs/configuration.md").option_rows();
    let options = options();
    let mut checked = 0;
    for choice in MADE_ONCE.iter().chain(&["pools[].endpoints"]) {
        for option in &options {
            let name = option.strip_prefix(choice);
            let name = name.and_then(|rest| rest.strip_prefix('.'));
            if let Some(name) = name.filter(|name| !name.contains(['.', '['])) {
                let bounds = &rows[*choice][BOUNDS];
                assert!(bounds.contains(&format!("`{name}`")), "{choice}: {bounds}");
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 10, "two for each");
}

#[test]
fn defaults_about_engines_are_those_of_the_code() {
    let with = |key: &str, value: Value| {
        let pool = json!({"name": "p", "endpoints": {"static": [{"address": "10.0.0.1:1"}]}});
        let mut config = parsed(json!({"pools": [pool], key: value}));
        // It is of the text, which differs.
        config.hash = 0;
        config
    };
    let rows = page("docs/configuration.md").option_rows();
    let default = |path: &str| rows[path][DEFAULT].as_str();
    let code = |name: &str| format!("`{name}`");
    let mut config = smallest();
    config.hash = 0;
    for (key, choice) in [("discovery", "admin"), ("scrape", "metrics")] {
        assert_eq!(default(key), code(choice));
        assert_eq!(with(key, choice.into()), config);
        assert_eq!(with(key, json!({choice: {}})), config);
    }
    assert_eq!(with("discovery", "off".into()).discovery, None);
    assert_eq!(with("scrape", "off".into()).scrape, None);
    let (discovery, scrape) = (config.discovery.unwrap(), config.scrape.unwrap());
    assert_eq!(default("discovery.admin.cluster"), code(&discovery.cluster));
    assert_eq!(
        default("scrape.metrics.cluster"),
        code(&scrape.polling.cluster)
    );
    assert_eq!(default("scrape.metrics.header"), code(&scrape.header));

    assert_eq!(with("health", json!({})).health, config.health);
    let resort = |choice: &str| {
        with("health", json!({"none_usable": choice}))
            .health
            .last_resort
    };
    assert_eq!(default("health.none_usable"), code("route"));
    assert_eq!(
        (resort("route"), resort("answer"), config.health.last_resort),
        (true, false, true)
    );
    let long = with("health", json!({"cool_down_ms": 60_000})).health;
    assert_eq!(long.max_cool_down_us, long.cool_down_us);

    let pool = &config.pools[0];
    assert!(!pool.discovered && !pool.discover_models);
    assert_eq!(default("pools[].metrics_path"), code(&pool.metrics_path));
    let known = |option: &&String| option.starts_with("pools[].metric_names.");
    let names: Vec<_> = rows.keys().filter(known).collect();
    assert_eq!(names.len(), 7);
    for name in names {
        assert_eq!(default(name), "none: the engine's own", "{name}");
    }
    assert_eq!(pool.metric_names, Names::default());
}
