//! An Envoy configuration as a tree that can be edited, so that every run starts from a file users
//! read.
//!
//! Nothing is looked up by position: the plugin is found by its type, clusters by their name. Each
//! edit walks the tree once.

mod addresses;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::discovery::{self, is_plugin};
use super::files;
pub use addresses::{Addresses, socket_address};

const LISTENER_TYPE: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub(super) const FILTER_TYPE: &str =
    "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
pub(super) const WASM_TYPE: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";

/// A complete Envoy bootstrap configuration.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    tree: Value,
    /// Where Envoy reads the listeners from, if not from here.
    listeners: Option<PathBuf>,
    /// Where Envoy reads the wasm filter from, if not from here.
    filter: Option<PathBuf>,
    /// How the configuration asked for it, if it is not in it.
    discovery: Option<Value>,
}

impl Bootstrap {
    /// Reads a YAML or JSON file, and the filter if that is in a file beside it. Fails if one cannot be
    /// read or parsed.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading the Envoy configuration {}", path.display()))?;
        let mut tree = serde_yaml_ng::from_str(&text)
            .with_context(|| format!("parsing the Envoy configuration {}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let discovery = discovery::put_in(&mut tree, folder)?;
        Ok(Self {
            discovery,
            ..Self::from_tree(tree)
        })
    }

    /// A configuration that was made and not read.
    pub fn from_tree(tree: Value) -> Self {
        Self {
            tree,
            listeners: None,
            filter: None,
            discovery: Default::default(),
        }
    }

    /// The configuration as JSON text, which Envoy reads as YAML.
    pub fn text(&self) -> String {
        let mut tree = self.tree.clone();
        if let Some(file) = &self.filter {
            let words = self.discovery.as_ref();
            for_each_object(&mut tree, &mut |object| {
                discovery::take_out(object, words, file);
            });
        }
        if let (Some(file), Some(tree)) = (&self.listeners, tree.as_object_mut()) {
            if let Some(resources) = tree.get_mut("static_resources") {
                resources["listeners"] = json!([]);
            }
            let dynamic = json!({"lds_config": files::source(file)});
            tree.insert("dynamic_resources".to_owned(), dynamic);
        }
        tree.to_string()
    }

    /// Lets Envoy read the listeners from `file`, and again whenever [`Bootstrap::write_listeners`]
    /// writes it. To everything here they stay part of the configuration.
    pub fn read_listeners_from(&mut self, file: &Path) -> anyhow::Result<()> {
        self.introduce_node();
        self.listeners = Some(file.to_owned());
        self.write_listeners()
    }

    /// Writes the file that was named to [`Bootstrap::read_listeners_from`].
    pub fn write_listeners(&self) -> anyhow::Result<()> {
        let file = self.listeners.as_ref().context("no file of listeners")?;
        let listeners = self.tree.pointer("/static_resources/listeners");
        let listeners = listeners
            .and_then(Value::as_array)
            .context("no listeners")?;
        files::write(file, LISTENER_TYPE, listeners)
    }

    /// Lets Envoy read the wasm filter from `file` (ECDS), and again whenever
    /// [`Bootstrap::write_filter`] writes it. To everything here it stays part of the configuration.
    pub fn read_filter_from(&mut self, file: &Path) -> anyhow::Result<()> {
        self.introduce_node();
        self.filter = Some(file.to_owned());
        self.write_filter()
    }

    /// Writes the file that was named to [`Bootstrap::read_filter_from`].
    pub fn write_filter(&self) -> anyhow::Result<()> {
        let file = self.filter.as_ref().context("no file of the filter")?;
        let mut found = None;
        for_each_object(&mut self.tree.clone(), &mut |object| {
            if is_plugin(object) {
                found = Some(object.clone());
            }
        });
        let mut filter = found.context("the Envoy configuration has no wasm filter")?;
        // What it is there for: a filter is known by its name.
        filter.retain(|field, _| field == "name" || field == "typed_config");
        files::write(file, files::EXTENSION, &[Value::Object(filter)])
    }

    /// Lets Envoy read the endpoints of a cluster from `file`, and again whenever
    /// [`files::write_endpoints`] writes it.
    pub fn read_endpoints_from(&mut self, cluster: &str, file: &Path) -> anyhow::Result<()> {
        self.introduce_node();
        let object = self.cluster_mut(cluster)?.as_object_mut();
        let object = object.context("a cluster is an object")?;
        object.remove("load_assignment");
        object.insert("type".to_owned(), "EDS".into());
        let config = json!({"eds_config": files::source(file)});
        object.insert("eds_cluster_config".to_owned(), config);
        Ok(())
    }

    /// Whoever reads configuration while it runs must have a name.
    fn introduce_node(&mut self) {
        if let Some(tree) = self.tree.as_object_mut() {
            let node = json!({"id": "testbed", "cluster": "testbed"});
            tree.insert("node".to_owned(), node);
        }
    }

    /// The HTTP connection manager of the first listener: filters, routes, timeouts.
    pub fn connection_manager_mut(&mut self) -> anyhow::Result<&mut Value> {
        self.tree
            .pointer_mut("/static_resources/listeners/0/filter_chains/0/filters/0/typed_config")
            .context("no connection manager in the first listener")
    }

    /// The plugin configuration (the JSON text of every wasm filter), parsed.
    pub fn plugin(&self) -> anyhow::Result<Value> {
        let mut text = None;
        for_each_object(&mut self.tree.clone(), &mut |object| {
            if let Some(value) = plugin_text_mut(object) {
                text = value.as_str().map(str::to_owned);
            }
        });
        let text = text.context("the Envoy configuration has no wasm filter")?;
        serde_json::from_str(&text).context("the plugin configuration is not JSON")
    }

    /// Replaces the plugin configuration of every wasm filter by `text`, valid or not.
    pub fn set_plugin_text(&mut self, text: &str) {
        for_each_object(&mut self.tree, &mut |object| {
            if let Some(value) = plugin_text_mut(object) {
                *value = text.into();
            }
        });
    }

    /// Points every wasm filter to the module at `path`.
    pub fn set_module(&mut self, path: &Path) {
        self.set_in_plugins("/vm_config/code/local/filename", &path.to_string_lossy());
    }

    /// Lets every wasm filter run in another of Envoy's runtimes, such as `v8`.
    pub fn set_runtime(&mut self, name: &str) {
        self.set_in_plugins("/vm_config/runtime", &format!("envoy.wasm.runtime.{name}"));
    }

    fn set_in_plugins(&mut self, pointer: &str, text: &str) {
        for_each_object(&mut self.tree, &mut |object| {
            let config = wasm_config_mut(object);
            if let Some(value) = config.and_then(|config| config.pointer_mut(pointer)) {
                *value = text.into();
            }
        });
    }

    /// The `config` object (a `PluginConfig`) of the wasm filter.
    pub fn plugin_config_mut(&mut self) -> anyhow::Result<&mut Value> {
        self.connection_manager_mut()?
            .get_mut("http_filters")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
            .filter_map(|filter| filter.get_mut("typed_config")?.as_object_mut())
            .find_map(wasm_config_mut)
            .context("the Envoy configuration has no wasm filter")
    }

    /// Takes every wasm filter out, and the listener that needs one, leaving plain Envoy.
    pub fn remove_plugin(&mut self) -> anyhow::Result<()> {
        self.listeners_mut()?
            .retain(|listener| !is_named(listener, addresses::STATUS_LISTENER));
        self.connection_manager_mut()?
            .get_mut("http_filters")
            .and_then(Value::as_array_mut)
            .context("no HTTP filters")?
            .retain(|filter| {
                filter
                    .pointer("/typed_config/@type")
                    .and_then(Value::as_str)
                    != Some(WASM_TYPE)
            });
        Ok(())
    }

    /// The cluster called `name`.
    pub fn cluster_mut(&mut self, name: &str) -> anyhow::Result<&mut Value> {
        self.clusters_mut()?
            .iter_mut()
            .find(|cluster| is_named(cluster, name))
            .with_context(|| format!("no cluster {name}"))
    }

    /// Takes active health checks and outlier detection out of every cluster.
    pub fn stop_health_checks(&mut self) -> anyhow::Result<()> {
        self.stop_active_checks()?;
        self.remove_from_clusters("outlier_detection")
    }

    /// Takes active health checks out of every cluster.
    pub fn stop_active_checks(&mut self) -> anyhow::Result<()> {
        self.remove_from_clusters("health_checks")
    }

    fn remove_from_clusters(&mut self, field: &str) -> anyhow::Result<()> {
        for cluster in self.clusters_mut()? {
            if let Some(cluster) = cluster.as_object_mut() {
                cluster.remove(field);
            }
        }
        Ok(())
    }

    /// Gives a cluster other endpoints.
    pub fn set_endpoints(&mut self, cluster: &str, addresses: &[SocketAddr]) -> anyhow::Result<()> {
        let endpoints: Vec<_> = addresses
            .iter()
            .map(|address| json!({"endpoint": {"address": socket_address(*address)}}))
            .collect();
        let list = self
            .cluster_mut(cluster)?
            .pointer_mut("/load_assignment/endpoints")
            .with_context(|| format!("cluster {cluster} has no static endpoints"))?;
        *list = json!([{"lb_endpoints": endpoints}]);
        Ok(())
    }

    /// Adds a cluster `name` that is like the cluster `model` in all but its endpoints.
    pub fn add_cluster_like(&mut self, model: &str, name: &str) -> anyhow::Result<()> {
        let mut cluster = self.cluster_mut(model)?.clone();
        if let Some(own) = cluster.get_mut("name") {
            *own = name.into();
        }
        if let Some(own) = cluster.pointer_mut("/load_assignment/cluster_name") {
            *own = name.into();
        }
        self.clusters_mut()?.push(cluster);
        Ok(())
    }

    fn listeners_mut(&mut self) -> anyhow::Result<&mut Vec<Value>> {
        self.tree
            .pointer_mut("/static_resources/listeners")
            .and_then(Value::as_array_mut)
            .context("no static listeners")
    }

    fn clusters_mut(&mut self) -> anyhow::Result<&mut Vec<Value>> {
        self.tree
            .pointer_mut("/static_resources/clusters")
            .and_then(Value::as_array_mut)
            .context("no static clusters")
    }
}

fn is_named(object: &Value, name: &str) -> bool {
    object.get("name").and_then(Value::as_str) == Some(name)
}

fn wasm_config_mut(object: &mut Map<String, Value>) -> Option<&mut Value> {
    if object.get("@type").and_then(Value::as_str) != Some(WASM_TYPE) {
        return None;
    }
    object.get_mut("config")
}

fn plugin_text_mut(object: &mut Map<String, Value>) -> Option<&mut Value> {
    wasm_config_mut(object)?.pointer_mut("/configuration/value")
}

/// Shows every object of a tree to `visit`, from the outermost inwards.
pub(super) fn for_each_object(tree: &mut Value, visit: &mut dyn FnMut(&mut Map<String, Value>)) {
    match tree {
        Value::Object(object) => {
            visit(object);
            for child in object.values_mut() {
                for_each_object(child, visit);
            }
        }
        Value::Array(children) => {
            for child in children {
                for_each_object(child, visit);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn shipped() -> Bootstrap {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        Bootstrap::load(&root.join("envoy/static.yaml")).unwrap()
    }

    #[test]
    fn plugin_endpoints_are_those_of_the_clusters() {
        let mut bootstrap = shipped();
        let plugin = bootstrap.plugin().unwrap();
        for pool in plugin["pools"].as_array().unwrap() {
            let cluster = bootstrap
                .cluster_mut(pool["cluster"].as_str().unwrap())
                .unwrap();
            let endpoints = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"].clone();
            let addresses: Vec<_> = endpoints
                .as_array()
                .unwrap()
                .iter()
                .map(|it| {
                    let at = &it["endpoint"]["address"]["socket_address"];
                    json!({"address": format!("{}:{}", at["address"].as_str().unwrap(), at["port_value"])})
                })
                .collect();
            assert_eq!(pool["endpoints"]["static"], json!(addresses));
        }
    }

    #[test]
    fn edits_reach_the_plugin_and_the_module() {
        let mut bootstrap = shipped();
        bootstrap.set_plugin_text(r#"{"pools": []}"#);
        bootstrap.set_module(Path::new("/opt/other.wasm"));
        bootstrap.set_runtime("wamr");
        assert_eq!(bootstrap.plugin().unwrap(), json!({"pools": []}));
        assert!(bootstrap.text().contains("/opt/other.wasm"));
        assert!(bootstrap.text().contains("envoy.wasm.runtime.wamr"));
        assert!(!bootstrap.text().contains("envoy.wasm.runtime.v8"));
        bootstrap.remove_plugin().unwrap();
        assert!(bootstrap.plugin().is_err());
    }

    #[test]
    fn a_filter_that_is_read_from_a_file_is_still_edited_here() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("filter.json");
        let mut bootstrap = shipped();
        bootstrap.read_filter_from(&file).unwrap();
        assert_eq!(bootstrap.text().matches("config_discovery").count(), 2);
        assert!(!bootstrap.text().contains("vm_config"));
        bootstrap.set_plugin_text(r#"{"pools": []}"#);
        bootstrap.write_filter().unwrap();
        let written: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let resource = &written["resources"][0];
        assert_eq!(resource["name"], "warmpath");
        let text = &resource["typed_config"]["config"]["configuration"]["value"];
        assert_eq!(text, r#"{"pools": []}"#);
    }

    #[test]
    fn a_copied_cluster_keeps_all_but_name_and_endpoints() {
        let mut bootstrap = shipped();
        bootstrap.add_cluster_like("llama", "third").unwrap();
        bootstrap
            .set_endpoints("third", &["127.0.0.1:9".parse().unwrap()])
            .unwrap();
        let third = bootstrap.cluster_mut("third").unwrap().clone();
        let llama = bootstrap.cluster_mut("llama").unwrap();
        assert_eq!(
            third["load_balancing_policy"],
            llama["load_balancing_policy"]
        );
        assert_eq!(third["load_assignment"]["cluster_name"], "third");
        assert!(!third.to_string().contains("8001"));
    }
}
