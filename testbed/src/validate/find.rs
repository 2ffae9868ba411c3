//! Plugin configurations, wherever in a document they stand.
//!
//! By itself; as `configuration` of a wasm filter anywhere in a configuration of Envoy, an ECDS resource, a
//! patch of Istio or Envoy Gateway; in the resources of these that have a field for it; and in the
//! texts of a ConfigMap, which are documents of their own. Whose a wasm filter is tells `pools` in its
//! configuration, or `warmpath` in what names it.

use serde_json::Value;

use super::document::documents;
use super::lines::{Lines, escaped};

/// Deepest nesting of documents in texts of documents.
const DEEPEST: usize = 2;

/// A plugin configuration.
pub struct Plugin<'a> {
    /// What the filter gets.
    pub text: String,
    /// Its path in the document; empty if it is the document.
    pub at: String,
    /// Lines of its values, by pointers within it.
    pub lines: Lines,
    /// Who holds it.
    pub holder: Holder,
    /// The object that it is the configuration of; the document if it is that.
    pub object: &'a Value,
    /// The line of that object.
    pub line: Option<usize>,
    /// What else the document says.
    pub around: Around<'a>,
}

/// What a plugin configuration is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nothing.
    Alone,
    /// A wasm filter of Envoy.
    Envoy,
    /// Istio's WasmPlugin or TrafficExtension.
    Istio,
    /// Envoy Gateway's EnvoyExtensionPolicy.
    Gateway,
}

/// The parts of an Envoy configuration that a filter stands in.
#[derive(Clone, Copy, Default)]
pub struct Around<'a> {
    /// All of it, if it can be started.
    pub bootstrap: Option<&'a Value>,
    /// The listener.
    pub listener: Option<&'a Value>,
    /// The filter chain.
    pub chain: Option<&'a Value>,
    /// The HTTP connection manager.
    pub manager: Option<&'a Value>,
}

/// A field by the name of the proto, or by that of its JSON form.
pub fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    value.get(name).or_else(|| {
        let mut words = name.split('_');
        let first = words.next()?.to_owned();
        let camel = words.fold(first, |name, word| {
            let (start, rest) = word.split_at(word.len().min(1));
            format!("{name}{}{rest}", start.to_uppercase())
        });
        value.get(camel)
    })
}

/// Whether a document is a configuration that Envoy starts with.
pub fn is_bootstrap(value: &Value) -> bool {
    let parts = ["static_resources", "dynamic_resources"];
    parts.iter().any(|part| field(value, part).is_some())
}

/// Tells of every plugin configuration of a document.
pub fn plugins(document: &Value, lines: &Lines, found: &mut dyn FnMut(Plugin)) {
    let mut finder = Finder {
        lines,
        prefix: String::new(),
        depth: 0,
        found,
    };
    finder.document(document);
}

struct Finder<'f> {
    lines: &'f Lines,
    /// Path of the document, if it is a text of another.
    prefix: String,
    depth: usize,
    found: &'f mut dyn FnMut(Plugin),
}

impl Finder<'_> {
    fn document(&mut self, document: &Value) {
        let around = Around {
            bootstrap: is_bootstrap(document).then_some(document),
            ..Around::default()
        };
        let kind = document
            .get("kind")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let spec = |path: &str| document.pointer(path).map(|value| (path.to_owned(), value));
        match kind {
            "ConfigMap" => self.texts(document),
            "WasmPlugin" => self.resource(spec("/spec"), "pluginConfig", Holder::Istio),
            "TrafficExtension" => self.resource(spec("/spec/wasm"), "pluginConfig", Holder::Istio),
            "EnvoyExtensionPolicy" => {
                let filters = document.pointer("/spec/wasm").and_then(Value::as_array);
                for at in 0..filters.map_or(0, Vec::len) {
                    let path = format!("/spec/wasm/{at}");
                    self.resource(spec(&path), "config", Holder::Gateway);
                }
            }
            _ if is_alone(document) => {
                self.tell("", document, document, "", Holder::Alone, around);
            }
            _ => self.walk(document, String::new(), around),
        }
    }

    /// A resource that has the configuration as a field.
    fn resource(&mut self, place: Option<(String, &Value)>, name: &str, holder: Holder) {
        if let Some((path, object)) = place
            && let Some(config) = object.get(name)
            && is_ours(config, object)
        {
            let pointer = format!("{path}/{name}");
            self.tell(&pointer, config, object, &path, holder, Around::default());
        }
    }

    /// The texts of a ConfigMap.
    fn texts(&mut self, document: &Value) {
        let data = document.get("data").and_then(Value::as_object);
        for (name, text) in data.into_iter().flatten() {
            let Some(text) = text.as_str().filter(|text| text.contains("pools")) else {
                continue;
            };
            let pointer = format!("/data/{}", escaped(name));
            let Ok(mut inner) = documents(text) else {
                continue;
            };
            // Of several documents in one text only lines of the first are known.
            if let Some(first) = inner.first_mut() {
                first.lines = self.inner(text, &pointer);
            }
            for document in inner.iter().filter(|_| self.depth < DEEPEST) {
                let mut finder = Finder {
                    lines: &document.lines,
                    prefix: format!("{}{}", self.prefix, shown(&pointer)),
                    depth: self.depth + 1,
                    found: &mut *self.found,
                };
                finder.document(&document.value);
            }
        }
    }

    fn walk<'a>(&mut self, value: &'a Value, pointer: String, around: Around<'a>) {
        let mut around = around;
        if let Value::Object(map) = value {
            if field(value, "filter_chains").is_some()
                || field(value, "default_filter_chain").is_some()
            {
                around.listener = Some(value);
            }
            if map.get("filters").is_some_and(Value::is_array) {
                around.chain = Some(value);
            }
            if field(value, "http_filters").is_some() {
                around.manager = Some(value);
            }
            if let Some((below, config)) = configuration(value) {
                let at = format!("{pointer}{below}");
                self.tell(&at, config, value, &pointer, Holder::Envoy, around);
            }
            for (name, inner) in map {
                self.walk(inner, format!("{pointer}/{}", escaped(name)), around);
            }
        }
        if let Value::Array(items) = value {
            for (index, item) in items.iter().enumerate() {
                self.walk(item, format!("{pointer}/{index}"), around);
            }
        }
    }

    fn tell(
        &mut self,
        pointer: &str,
        config: &Value,
        object: &Value,
        object_pointer: &str,
        holder: Holder,
        around: Around,
    ) {
        let (text, lines) = match config {
            Value::String(text) => (text.clone(), self.inner(text, pointer)),
            other => (other.to_string(), self.lines.below(pointer)),
        };
        let within = match (self.prefix.as_str(), pointer) {
            ("", _) | (_, "") => "",
            _ => ": ",
        };
        (self.found)(Plugin {
            text,
            at: format!("{}{within}{}", self.prefix, shown(pointer)),
            lines,
            holder,
            object,
            line: self.lines.line(object_pointer),
            around,
        });
    }

    /// Lines of a text that stands there.
    fn inner(&self, text: &str, pointer: &str) -> Lines {
        match self.lines.content(pointer) {
            Some(first) => Lines::inside(text, first),
            None => Lines::on(self.lines.line(pointer).unwrap_or(1)),
        }
    }
}

/// The configuration of a wasm filter that is ours, and where in the filter it stands.
fn configuration(filter: &Value) -> Option<(&'static str, &Value)> {
    field(filter, "vm_config")?;
    let config = match filter.get("configuration") {
        Some(any) => ("/configuration/value", any.get("value").unwrap_or(any)),
        None => ("/configuration", &Value::Null),
    };
    is_ours(config.1, filter).then_some(config)
}

fn is_ours(config: &Value, holder: &Value) -> bool {
    let names = [
        "name",
        "root_id",
        "rootID",
        "pluginName",
        "vm_config",
        "url",
        "code",
    ];
    let named = names.iter().filter_map(|name| field(holder, name));
    let named = named
        .map(Value::to_string)
        .any(|name| name.contains("warmpath"));
    let has_pools = match config {
        Value::String(text) => text.contains("\"pools\"") || text.contains("pools:"),
        other => other.get("pools").is_some(),
    };
    has_pools || named
}

/// Whether a document is a plugin configuration and nothing else.
pub fn is_alone(document: &Value) -> bool {
    let names = document.as_object().into_iter().flatten();
    let names: Vec<_> = names.map(|(name, _)| name.as_str()).collect();
    let has = |known: &[&str]| known.iter().any(|name| names.contains(name));
    // Nearly right is right enough to be told what is wrong.
    let has_pools = names
        .iter()
        .any(|name| name.to_ascii_lowercase().starts_with("pool"));
    !is_bootstrap(document)
        && !has(&["apiVersion", "resources"])
        && (has_pools || has(&["default_pool", "session_key"]))
}

/// A JSON pointer as one reads it: `listeners[0].name`.
pub fn shown(pointer: &str) -> String {
    let mut path = String::new();
    for part in pointer.split('/').skip(1) {
        let part = part.replace("~1", "/").replace("~0", "~");
        let is_plain = |char: char| char.is_ascii_alphanumeric() || "_-@".contains(char);
        if !part.is_empty() && part.chars().all(|char| char.is_ascii_digit()) {
            path.push_str(&format!("[{part}]"));
        } else if part.chars().all(is_plain) {
            let dot = if path.is_empty() { "" } else { "." };
            path.push_str(&format!("{dot}{part}"));
        } else {
            path.push_str(&format!("[{part:?}]"));
        }
    }
    path
}
