//! What the configuration of a cluster says about single endpoints: the namespace `warmpath` of
//! their metadata, from Envoy's `GET /config_dump?include_eds`.
//!
//! The page names clusters as discovery does: by the EDS service name where a cluster has one, else
//! by the cluster's name. One request covers clusters from the bootstrap file and clusters that
//! came over xDS. An endpoint costs Envoy's main thread about 30 us and the answer about 600 bytes,
//! more than twice what its health costs, so ask for it seldom.
//!
//! The health in this page is coarser than that in [`clusters`](super::clusters) and is not read.

mod shapes;

use std::net::SocketAddr;

use super::admin::{MAX_CLUSTERS, MAX_HOSTS, names_regex};
use super::{WireError, at_most};
use shapes::DumpJson;

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
/// [`MAX_HOSTS`](super::MAX_HOSTS) or more clusters than [`MAX_CLUSTERS`](super::MAX_CLUSTERS). One
/// pass.
pub fn parse(body: &[u8]) -> Result<Dump, WireError> {
    let dump: DumpJson = serde_json::from_slice(body)?;
    let (dump, found) = dump.content();
    at_most("endpoints", found, MAX_HOSTS)?;
    at_most("clusters", dump.clusters.len(), MAX_CLUSTERS)?;
    Ok(dump)
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
