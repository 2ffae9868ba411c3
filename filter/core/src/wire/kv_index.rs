//! Who holds how much of a prompt: questions to KV index services, and their answers.
//!
//! | service | question | answer |
//! |---|---|---|
//! | LMCache controller | `POST /lookup {"tokens"}` | `{"layout_info": {instance: [location, tokens]}}` |
//! | the same | `POST /query_instance {"event_id", "ip"}` | `{"res": instance}` |
//! | Dynamo's indexer | `POST /query {"token_ids", "model_name"}` | `{"scores": {instance: {rank: tokens}}}` |
//! | the same | `GET /workers` | `[{"instance_id", "endpoints": {rank: "tcp://ip:port"}}]` |
//!
//! What is not understood of an answer is left out; an answer without the member that matters is an
//! error. At most [`MAX_OVERLAPS`] overlaps are kept, and no name longer than
//! [`MAX_NAME_BYTES`](super::MAX_NAME_BYTES). O(bytes). An answer is short, so it is read as a tree: typed
//! readers of five of them were a tenth of the module.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use super::{MAX_NAME_BYTES, WireError};
use crate::json::{self, Value};

/// Most overlaps and names taken from an answer; the rest is left out.
pub const MAX_OVERLAPS: usize = 4096;

/// What an instance holds of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// Its name at the service.
    pub instance: String,
    /// The data-parallel rank, where the service tells ranks apart.
    pub rank: Option<u16>,
    /// Tokens from the beginning of the prompt.
    pub tokens: u64,
}

/// The body of a lookup at an LMCache controller.
pub fn lmcache_lookup(tokens: &[u32]) -> Vec<u8> {
    let mut body = String::from("{\"tokens\":");
    write_list(&mut body, tokens);
    body.push('}');
    body.into_bytes()
}

/// The body of the question which instance runs at an address.
pub fn lmcache_instance(ip: IpAddr) -> Vec<u8> {
    format!("{{\"event_id\":\"warmpath\",\"ip\":\"{ip}\"}}").into_bytes()
}

/// The body of a query at Dynamo's indexer.
pub fn dynamo_query(tokens: &[u32], model: &str) -> Vec<u8> {
    let mut body = String::from("{\"token_ids\":");
    write_list(&mut body, tokens);
    body.push_str(",\"model_name\":");
    body.push_str(&json::string(model));
    body.push('}');
    body.into_bytes()
}

fn write_list(body: &mut String, tokens: &[u32]) {
    body.reserve(7 * tokens.len());
    for (at, token) in tokens.iter().enumerate() {
        // Writing into a text does not fail.
        let _ = write!(body, "{}{token}", if at == 0 { '[' } else { ',' });
    }
    body.push_str(if tokens.is_empty() { "[]" } else { "]" });
}

/// Reads an LMCache controller's answer to a lookup.
///
/// # Errors
/// It is not JSON of that shape.
pub fn lmcache_overlaps(body: &[u8]) -> Result<Vec<Overlap>, WireError> {
    let layout = member(body, "layout_info")?;
    let overlaps = members(&layout).filter_map(|(name, info)| {
        Some(Overlap {
            instance: name.clone(),
            rank: None,
            tokens: info.as_array()?.get(1)?.as_u64()?,
        })
    });
    Ok(overlaps.take(MAX_OVERLAPS).collect())
}

/// Reads an LMCache controller's answer to the question which instance runs at an address; `None` if
/// it knows of none.
///
/// # Errors
/// It is not JSON of that shape.
pub fn lmcache_name(body: &[u8]) -> Result<Option<String>, WireError> {
    let name = member(body, "res")?;
    let name = name.as_str().filter(|name| is_name(name));
    Ok(name.map(str::to_owned))
}

/// Reads the answer of Dynamo's indexer to a query.
///
/// # Errors
/// It is not JSON of that shape.
pub fn dynamo_overlaps(body: &[u8]) -> Result<Vec<Overlap>, WireError> {
    let scores = member(body, "scores")?;
    let overlaps = members(&scores).flat_map(|(name, ranks)| {
        members(ranks).filter_map(move |(rank, tokens)| {
            Some(Overlap {
                instance: name.clone(),
                rank: Some(rank.parse().ok()?),
                tokens: tokens.as_u64()?,
            })
        })
    });
    Ok(overlaps.take(MAX_OVERLAPS).collect())
}

/// Reads the list of the workers of Dynamo's indexer: the instances and where each publishes.
///
/// # Errors
/// It is not JSON of that shape.
pub fn dynamo_workers(body: &[u8]) -> Result<Vec<(String, IpAddr)>, WireError> {
    let workers = Value::read(body)?;
    let workers = workers.as_array().ok_or(NOT_THAT)?.iter();
    Ok(workers.filter_map(place).take(MAX_OVERLAPS).collect())
}

/// A worker's name, and the address that all its ranks publish at.
fn place(worker: &Value) -> Option<(String, IpAddr)> {
    let name = match worker.get("instance_id")? {
        Value::String(name) => name.clone(),
        Value::Number(_) => worker.get("instance_id")?.to_string(),
        _ => return None,
    };
    let address = |(_, endpoint): (&String, &Value)| {
        let address = endpoint.as_str()?.strip_prefix("tcp://")?;
        let address: SocketAddr = address.parse().ok()?;
        Some(address.ip())
    };
    let mut found = members(worker.get("endpoints")?).map(address);
    let first = found.next()??;
    let same = found.all(|ip| ip == Some(first));
    (same && is_name(&name)).then_some((name, first))
}

const NOT_THAT: WireError = WireError::Json { line: 1, column: 1 };

/// A member of an answer, which is an object.
fn member(body: &[u8], name: &str) -> Result<Value, WireError> {
    Value::read(body)?.into_member(name).ok_or(NOT_THAT)
}

/// The members of an object that have a name; of anything else none.
fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let members = value
        .as_object()
        .into_iter()
        .flat_map(|members| members.iter());
    members.filter(|(name, _)| is_name(name))
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlap(instance: &str, rank: Option<u16>, tokens: u64) -> Overlap {
        Overlap {
            instance: instance.to_owned(),
            rank,
            tokens,
        }
    }

    #[test]
    fn questions_are_what_the_services_expect() {
        assert_eq!(lmcache_lookup(&[1, 2]), br#"{"tokens":[1,2]}"#);
        let query = dynamo_query(&[3], "a\"b");
        assert_eq!(query, br#"{"token_ids":[3],"model_name":"a\"b"}"#);
        let instance = lmcache_instance([10, 0, 0, 7].into());
        assert_eq!(instance, br#"{"event_id":"warmpath","ip":"10.0.0.7"}"#);
    }

    #[test]
    fn the_controllers_layout_is_read() {
        let body = br#"{"event_id":"Lookup1","layout_info":{
            "a":["LocalCPUBackend",512],"b":["RemoteBackend",16]}}"#;
        let expected = vec![overlap("a", None, 512), overlap("b", None, 16)];
        assert_eq!(lmcache_overlaps(body), Ok(expected));
        assert_eq!(lmcache_overlaps(br#"{"layout_info":{}}"#), Ok(Vec::new()));
        assert_eq!(
            lmcache_name(br#"{"event_id":"x","res":"lmcache_1"}"#),
            Ok(Some("lmcache_1".to_owned()))
        );
        assert_eq!(lmcache_name(br#"{"event_id":"x","res":null}"#), Ok(None));
    }

    /// As `python -m dynamo.indexer` of ai-dynamo-runtime 1.6.1 answers.
    #[test]
    fn the_indexers_scores_are_read() {
        let body = br#"{"scores":{"2":{"1":4},"1":{"0":12}},"frequencies":[],"instances":{"2":
            {"longest_matched":4,"gpu":4,"dp":{"1":4},"cpu":4,"disk":4}}}"#;
        let expected = vec![overlap("1", Some(0), 12), overlap("2", Some(1), 4)];
        assert_eq!(dynamo_overlaps(body), Ok(expected));
        let body = br#"[{"instance_id":2,"source":"zmq","status":"active","model_name":"m",
            "endpoints":{"1":"tcp://10.0.0.7:45739","0":"tcp://10.0.0.7:45738"}},
            {"instance_id":3,"endpoints":{"0":"tcp://10.0.0.7:1","1":"tcp://10.0.0.8:1"}},
            {"instance_id":4,"endpoints":{"0":"ipc:///x"}},{"instance_id":5},{}]"#;
        let expected = vec![("2".to_owned(), IpAddr::from([10, 0, 0, 7]))];
        assert_eq!(dynamo_workers(body), Ok(expected));
    }

    #[test]
    fn what_is_not_understood_is_left_out() {
        let body = br#"{"layout_info":{"":["x",1],"a":["x"],"b":"x","c":["x",-5],"d":["x",null],
            "e":[{},7],"f":["x",18446744073709551616]}}"#;
        assert_eq!(lmcache_overlaps(body), Ok(vec![overlap("e", None, 7)]));
        let body = br#"{"scores":{"1":{"x":1,"70000":2,"3":-1,"4":5},"2":7,"3":[1],"":{"0":1}}}"#;
        assert_eq!(dynamo_overlaps(body), Ok(vec![overlap("1", Some(4), 5)]));
    }

    #[test]
    fn other_answers_are_errors_or_empty() {
        for body in [
            "",
            "7",
            "{}",
            "[]",
            "null",
            r#"{"detail":"boom"}"#,
            "{\"scores\":",
        ] {
            assert!(lmcache_overlaps(body.as_bytes()).is_err(), "{body}");
            assert!(dynamo_overlaps(body.as_bytes()).is_err(), "{body}");
        }
        for value in ["null", "7", "[]", "\"x\""] {
            let body = format!("{{\"scores\":{value},\"layout_info\":{value}}}");
            assert_eq!(lmcache_overlaps(body.as_bytes()), Ok(Vec::new()));
            assert_eq!(dynamo_overlaps(body.as_bytes()), Ok(Vec::new()));
        }
    }

    #[test]
    fn answers_have_a_bound() {
        let ranks: Vec<String> = (0..1100).map(|rank| format!("\"{rank}\":1")).collect();
        let ranks = ranks.join(",");
        let instances: Vec<String> = (0..9).map(|it| format!("\"{it}\":{{{ranks}}}")).collect();
        let body = format!("{{\"scores\":{{{}}}}}", instances.join(","));
        let found = dynamo_overlaps(body.as_bytes()).unwrap();
        assert_eq!(found.len(), MAX_OVERLAPS);
    }
}
