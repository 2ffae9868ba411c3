//! The shipped configuration over engines of a run: all that it sets stays, but for addresses, the
//! pools' engines and what a run changes of the pools.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};

use super::bootstrap::{Addresses, Bootstrap};

/// A pool of the shipped configuration, as a run wants it.
#[derive(Clone, Debug)]
pub struct Pool<'a> {
    /// Its name, and that of its cluster.
    pub name: &'a str,
    /// Its engines.
    pub engines: &'a [SocketAddr],
    /// Options of the pool, in place of the shipped ones.
    pub options: Value,
}

/// Reads `config` and gives it free ports, the module and the engines. Pools that are not named are
/// taken out, and their clusters stay empty; there is no status page.
///
/// # Errors
/// The file cannot be read, or has no such pool or cluster.
pub fn over(config: &Path, module: &Path, pools: &[Pool<'_>]) -> anyhow::Result<Bootstrap> {
    let mut bootstrap = Bootstrap::load(config)?;
    bootstrap.set_module(module);
    bootstrap.set_addresses(Addresses::free()?)?;
    let mut plugin = bootstrap.plugin()?;
    let entries = plugin.get_mut("pools").and_then(Value::as_array_mut);
    let entries = entries.context("no pools in the plugin configuration")?;
    let mut wanted = Vec::new();
    for mut entry in std::mem::take(entries) {
        let fields = entry.as_object_mut().context("a pool is an object")?;
        let name = fields.get("name").and_then(Value::as_str);
        let name = name.context("a pool has a name")?.to_owned();
        match pools.iter().find(|pool| pool.name == name) {
            Some(pool) => {
                bootstrap.set_endpoints(&name, pool.engines)?;
                apply(fields, pool);
                wanted.push(entry);
            }
            None => bootstrap.set_endpoints(&name, &[])?,
        }
    }
    ensure!(
        wanted.len() == pools.len(),
        "{}: not all of the pools are there",
        config.display()
    );
    *entries = wanted;
    bootstrap.set_plugin_text(&plugin.to_string());
    Ok(bootstrap)
}

fn apply(fields: &mut Map<String, Value>, pool: &Pool<'_>) {
    let engines = pool.engines.iter();
    let engines = engines.map(|address| json!({"address": address.to_string()}));
    let engines: Vec<Value> = engines.collect();
    fields.insert("endpoints".to_owned(), json!({ "static": engines }));
    for (name, value) in pool.options.as_object().into_iter().flatten() {
        fields.insert(name.clone(), value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pools: &[Pool<'_>]) -> anyhow::Result<Bootstrap> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        over(
            &root.join("envoy/static.yaml"),
            Path::new("/opt/w.wasm"),
            pools,
        )
    }

    #[test]
    fn a_pool_gets_its_engines_and_options_and_others_go() {
        let engines = ["127.0.0.1:7001".parse().unwrap()];
        let pool = Pool {
            name: "llama",
            engines: &engines,
            options: json!({"policy": "prefix", "admission": {"max_requests": 4}}),
        };
        let bootstrap = config(std::slice::from_ref(&pool)).unwrap();
        let plugin = bootstrap.plugin().unwrap();
        let pools = plugin["pools"].as_array().unwrap();
        assert_eq!(pools.len(), 1);
        assert_eq!(pools[0]["policy"], "prefix");
        assert_eq!(pools[0]["admission"]["max_requests"], 4);
        assert_eq!(pools[0]["models"], json!(["llama-3-8b"]));
        let text = bootstrap.text();
        assert!(text.contains("7001") && !text.contains("8004"));
        assert!(text.contains("outlier_detection") && text.contains("health_checks"));
        let stranger = Pool {
            name: "stranger",
            ..pool
        };
        assert!(config(&[stranger]).is_err());
    }
}
