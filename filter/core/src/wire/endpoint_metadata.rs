//! What the configuration of a cluster says about single endpoints: the namespace `warmpath` of
//! their metadata, from Envoy's `GET /config_dump?include_eds`.
//!
//! The page names clusters as discovery does: by the EDS service name where a cluster has one, else
//! by the cluster's name. One request covers clusters from the bootstrap file and clusters that
//! came over xDS. An endpoint costs Envoy's main thread about 30 us and the answer about 600 bytes,
//! more than twice what its health costs, so ask for it seldom.
//!
//! The health in this page is coarser than that in [`clusters`](super::clusters) and is not read.

use crate::json::{Map, Value};
use crate::order;
use std::net::{IpAddr, SocketAddr};

use super::admin::{MAX_CLUSTERS, MAX_HOSTS, names_regex};
use super::{MAX_NAME_BYTES, WireError, at_most};

/// Longest page that should be read, which its tree is bounded by: for [`MAX_HOSTS`](super::MAX_HOSTS)
/// endpoints of 1 KB.
pub const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Most models and labels of an endpoint.
const MAX_ENTRIES: usize = 256;

/// What is written about one endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointMetadata {
    /// EDS service name, or cluster name where there is none.
    pub cluster: String,
    /// Where the endpoint listens.
    pub address: SocketAddr,
    /// Key `role`, such as `prefill` or `decode`.
    pub role: Option<String>,
    /// Key `models`: a list of names, or one name. At most 256.
    pub models: Vec<String>,
    /// Key `labels`: names and values, sorted. At most 256. Numbers and flags are texts here.
    pub labels: Vec<(String, String)>,
    /// Key `weight`: finite and positive.
    pub weight: Option<f64>,
}

/// What a page says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dump {
    /// The clusters that it has, whether their endpoints have such metadata or not.
    pub clusters: Vec<String>,
    /// The endpoints that have it.
    pub endpoints: Vec<EndpointMetadata>,
}

/// Path and query that ask for exactly these clusters, by the names this page uses. The regular
/// expression has to match a whole name here, so it needs no anchors.
pub fn path(names: &[&str]) -> String {
    let names = names_regex(names);
    let kinds = "static_endpoint_configs,dynamic_endpoint_configs";
    format!("/config_dump?include_eds&mask={kinds}&name_regex={names}")
}

/// Reads an answer. Fails when it is not JSON of that shape, has more endpoints than
/// [`MAX_HOSTS`](super::MAX_HOSTS) or more clusters than [`MAX_CLUSTERS`](super::MAX_CLUSTERS). O(bytes),
/// and the only page that is kept as a tree while it is read: it comes seldom, and typed readers of a
/// page this deep were a twentieth of the module.
pub fn parse(body: &[u8]) -> Result<Dump, WireError> {
    let page = Value::read(body)?;
    let mut dump = Dump::default();
    let mut found = 0;
    let page = object(Some(&page))?;
    for config in list(page.get("configs"))? {
        let config = object(Some(config))?;
        for kind in KINDS {
            for cluster in list(config.get(kind))? {
                let Some(assignment) = object(Some(cluster))?.get("endpoint_config") else {
                    continue;
                };
                found += cluster_endpoints(object(Some(assignment))?, &mut dump)?;
            }
        }
    }
    at_most("endpoints", found, MAX_HOSTS)?;
    at_most("clusters", dump.clusters.len(), MAX_CLUSTERS)?;
    Ok(dump)
}

/// The lists of a configuration that have endpoints.
const KINDS: [&str; 2] = ["static_endpoint_configs", "dynamic_endpoint_configs"];
/// JSON of another shape; where, nobody knows any more.
const OTHER_SHAPE: WireError = WireError::Json { line: 1, column: 1 };

/// An object; one that is not there is an error.
fn object(value: Option<&Value>) -> Result<&Map, WireError> {
    value.and_then(Value::as_object).ok_or(OTHER_SHAPE)
}

/// A list; one that is not there is empty.
fn list(value: Option<&Value>) -> Result<&[Value], WireError> {
    match value {
        None => Ok(&[]),
        Some(Value::Array(list)) => Ok(list),
        Some(_) => Err(OTHER_SHAPE),
    }
}

/// Adds a cluster to what was found; how many endpoints it has.
fn cluster_endpoints(assignment: &Map, dump: &mut Dump) -> Result<usize, WireError> {
    let name = assignment.get("cluster_name").and_then(Value::as_str);
    let name = name.unwrap_or_default();
    let mut found = 0;
    for locality in list(assignment.get("endpoints"))? {
        for endpoint in list(object(Some(locality))?.get("lb_endpoints"))? {
            found += 1;
            if found <= MAX_HOSTS {
                dump.endpoints.extend(metadata(name, endpoint));
            }
        }
    }
    // One more than the most tells that there are too many.
    if dump.clusters.len() <= MAX_CLUSTERS {
        dump.clusters.push(name.to_owned());
    }
    Ok(found)
}

/// An endpoint with what is written about it; `None` without an address or without metadata of ours.
fn metadata(cluster: &str, endpoint: &Value) -> Option<EndpointMetadata> {
    let ours = endpoint.find(&["metadata", "filter_metadata", "warmpath"])?;
    let ours = ours.as_object()?;
    let address = endpoint.find(&["endpoint", "address", "socket_address"])?;
    let ip: IpAddr = text(address.get("address")?)?.parse().ok()?;
    let port = number(address.get("port_value")?)?;
    if port.fract() != 0.0 || !(0.0..=f64::from(u16::MAX)).contains(&port) {
        return None;
    }
    let models = match ours.get("models") {
        Some(Value::Array(models)) => models.as_slice(),
        // A list of one is often written without brackets.
        Some(model) => std::slice::from_ref(model),
        None => &[],
    };
    let models = models.iter().take(MAX_ENTRIES).filter_map(text);
    let labels = ours.get("labels").and_then(Value::as_object);
    let labels = labels.into_iter().flat_map(Map::iter).take(MAX_ENTRIES);
    let mut labels: Vec<(String, String)> = labels
        .filter_map(|(name, value)| Some((name.clone(), label(value)?)))
        .collect();
    // Envoy writes them in another order each time.
    order::sort(&mut labels, |one, other| one.cmp(other));
    let weight = ours.get("weight").and_then(number);
    Some(EndpointMetadata {
        cluster: cluster.to_owned(),
        address: SocketAddr::new(ip, port as u16),
        role: ours.get("role").and_then(text).map(str::to_owned),
        models: models.map(str::to_owned).collect(),
        labels,
        weight: weight.filter(|weight| *weight > 0.0),
    })
}

/// A text of bounded length that is not empty.
fn text(value: &Value) -> Option<&str> {
    let text = value.as_str()?;
    (!text.is_empty() && text.len() <= MAX_NAME_BYTES).then_some(text)
}

/// A finite number, also one in quotes: Envoy makes texts of the fractions in a YAML file.
fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_f64(),
    };
    number.filter(|number: &f64| number.is_finite())
}

/// What a person would call it: the text, or the number or flag as it is written.
fn label(value: &Value) -> Option<String> {
    match value {
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        other => text(other).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTURED: &[u8] = include_bytes!("../../tests/fixtures/envoy/endpoint_dump.json");

    #[test]
    fn metadata_of_all_kinds_of_clusters_is_read() {
        let Dump {
            clusters,
            endpoints: read,
        } = parse(CAPTURED).unwrap();
        let decode = EndpointMetadata {
            cluster: "eds-engines".to_owned(),
            address: "127.0.0.1:19101".parse().unwrap(),
            role: Some("decode".to_owned()),
            models: vec!["llama".to_owned(), "lora-1".to_owned()],
            labels: vec![
                ("gpu".to_owned(), "h100".to_owned()),
                ("zone".to_owned(), "a".to_owned()),
            ],
            weight: Some(2.0),
        };
        let bare = EndpointMetadata {
            models: vec![],
            labels: vec![],
            ..decode.clone()
        };
        let prefill = EndpointMetadata {
            cluster: "static-engines".to_owned(),
            address: "127.0.0.1:19201".parse().unwrap(),
            role: Some("prefill".to_owned()),
            models: vec!["a".to_owned()],
            weight: Some(1.5),
            ..bare.clone()
        };
        let both = EndpointMetadata {
            cluster: "cds-static".to_owned(),
            address: "127.0.0.1:19301".parse().unwrap(),
            role: Some("both".to_owned()),
            weight: Some(0.5),
            ..bare
        };
        for name in ["eds-engines", "static-engines", "cds-static"] {
            assert!(clusters.iter().any(|it| it == name), "{name}: {clusters:?}");
        }
        let mut sorted = read.clone();
        sorted.sort_by_key(|endpoint| endpoint.address);
        assert_eq!(sorted, [decode.clone(), decode, prefill, both]);
    }

    fn one(metadata: &str) -> Vec<EndpointMetadata> {
        let endpoint = format!(
            r#"{{"endpoint":{{"address":{{"socket_address":{{"address":"::1","port_value":1}}}}}},
            "metadata":{{"filter_metadata":{{"warmpath":{metadata}}}}}}}"#
        );
        parse(dump(&endpoint).as_bytes()).unwrap().endpoints
    }

    fn dump(endpoints: &str) -> String {
        format!(
            r#"{{"configs":[{{"dynamic_endpoint_configs":[{{"endpoint_config":{{
            "cluster_name":"a","endpoints":[{{"lb_endpoints":[{endpoints}]}}]}}}}]}}]}}"#
        )
    }

    #[test]
    fn one_wrong_value_costs_that_value_only() {
        let read = one(r#"{"role":7,"models":"llama","labels":["x"],"weight":-1}"#);
        assert_eq!(read[0].role, None);
        assert_eq!(read[0].models, ["llama"]);
        assert_eq!(read[0].labels, []);
        assert_eq!(read[0].weight, None);
        let read = one(r#"{"models":[1,"a",{}],"labels":{"n":1,"b":true,"x":[]},"weight":"3"}"#);
        assert_eq!(read[0].models, ["a"]);
        let labels = [("b", "true"), ("n", "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(read[0].labels, labels);
        assert_eq!(read[0].weight, Some(3.0));
    }

    #[test]
    fn endpoints_have_a_bound() {
        let endpoint = r#"{"endpoint":{"address":{"pipe":{"path":"/x"}}}}"#;
        let body = dump(&vec![endpoint; MAX_HOSTS].join(","));
        let read = parse(body.as_bytes()).unwrap();
        assert_eq!((read.clusters.len(), read.endpoints.len()), (1, 0));
        let body = dump(&vec![endpoint; MAX_HOSTS + 1].join(","));
        let error = parse(body.as_bytes()).unwrap_err().to_string();
        assert_eq!(error, "4097 endpoints, want at most 4096");
    }

    #[test]
    fn an_empty_page_has_no_endpoints() {
        assert_eq!(parse(b"{}"), Ok(Dump::default()));
        assert!(parse(b"dynamic_endpoint_configs not found in config dump").is_err());
    }

    #[test]
    fn the_path_names_clusters_exactly() {
        let mask = "mask=static_endpoint_configs,dynamic_endpoint_configs";
        let expected = format!("/config_dump?include_eds&{mask}&name_regex=%28%3F%3Aa%5C.b%29");
        assert_eq!(path(&["a.b"]), expected);
    }
}
