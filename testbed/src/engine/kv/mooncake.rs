//! Mooncake: both engines know a transfer id, and the decode engine finds the prefill engine through
//! its bootstrap server.
//!
//! One idea: whoever comes first waits; the requests may be under way at once. The bootstrap server
//! says which engine id has which address; the engine id in the request must be one of them.

use serde_json::{Value, json};

use super::shelf::Want;
use super::{Kv, KvSeen, Part, Role, Sight, Trouble, fingerprint, is_set, text, transfer_params};
use crate::engine::clock::Job;
use crate::engine::error::ApiError;

/// What is done of a request.
pub(super) fn part(
    kv: &Kv,
    sight: &Sight<'_>,
    jobs: &[Job],
    seen: &mut KvSeen,
) -> Result<Part, Trouble> {
    let Some(params) = transfer_params(sight.json)? else {
        return Ok(Part::Alone);
    };
    let (gives, takes) = (
        is_set(params, "do_remote_decode"),
        is_set(params, "do_remote_prefill"),
    );
    if !gives && !takes {
        return Ok(Part::Alone);
    }
    let [job] = jobs else {
        return Err(refused(format!(
            "one transfer for {} sequences",
            jobs.len()
        )));
    };
    // Assertions of the real engine.
    if takes && kv.setup.role == Role::Prefill {
        return Err(Trouble::Fatal("a kv_producer is to fetch".to_owned()));
    }
    if gives && !takes && kv.setup.role == Role::Decode {
        return Err(Trouble::Fatal("a kv_consumer is to send".to_owned()));
    }
    let id = text(params, "transfer_id").filter(|id| !id.is_empty());
    if takes {
        let told = (
            id,
            text(params, "remote_engine_id"),
            text(params, "remote_bootstrap_addr"),
        );
        let (Some(id), Some(engine_id), Some(bootstrap)) = told else {
            // The real engine logs this and waits for ever for what nobody sends.
            return Err(refused(format!("incomplete transfer: {params}")));
        };
        let want = Want {
            key: id.to_owned(),
            engine_id: Some(engine_id.to_owned()),
            block_ids: None,
            hash: fingerprint(job),
            waits: true,
        };
        return Ok(Part::Take(vec![(bootstrap.to_owned(), want)]));
    }
    match id {
        Some(id) => Ok(Part::Give {
            keys: vec![id.to_owned()],
            to: None,
        }),
        None => {
            // The real engine logs this and sends nothing.
            seen.errors
                .push(kv.complain("a prefill without transfer_id"));
            Ok(Part::Alone)
        }
    }
}

fn refused(error: String) -> Trouble {
    ApiError::bad_request(Some("kv_transfer_params"), error).into()
}

/// Whether the engine has a bootstrap server.
pub(super) fn has_bootstrap(kv: &Kv) -> bool {
    kv.setup.connector == super::Connector::Mooncake && kv.setup.role == Role::Prefill
}

/// `GET /query` of the bootstrap server: by data-parallel rank the engine id and, by tensor- and
/// pipeline-parallel rank, the address.
pub(super) fn bootstrap(kv: &Kv) -> Value {
    let entry = |rank| {
        let addr = format!("tcp://{}", kv.addr());
        json!({"engine_id": kv.engine_id(rank), "worker_addr": {"0": {"0": addr}}})
    };
    (0..kv.ranks)
        .map(|rank| (rank.to_string(), entry(rank)))
        .collect()
}

/// The address of the engine that is wanted, as its bootstrap server knows it.
///
/// # Errors
/// The server is not there, or does not know the engine.
pub(super) async fn worker(
    http: &reqwest::Client,
    bootstrap: &str,
    want: &Want,
) -> Result<String, String> {
    let failed = |error: reqwest::Error| format!("bootstrap server {bootstrap}: {error}");
    let asked = http.get(format!("{bootstrap}/query")).send().await;
    let entries: Value = asked.map_err(failed)?.json().await.map_err(failed)?;
    let mut entries = entries
        .as_object()
        .into_iter()
        .flat_map(|ranks| ranks.values());
    let own = entries.find(|entry| text(entry, "engine_id") == want.engine_id.as_deref());
    let addr = own.and_then(|entry| entry.pointer("/worker_addr/0/0")?.as_str());
    let addr = addr.and_then(|addr| addr.strip_prefix("tcp://"));
    addr.map(str::to_owned).ok_or_else(|| {
        let id = &want.engine_id;
        format!("remote engine_id {id:?} not found from bootstrap server {bootstrap}")
    })
}
