//! NIXL: the answer of the prefill engine says where the KV lies, and that goes into the request to the
//! decode engine as it is.
//!
//! One idea: the prefill engine names itself, the request and the blocks; the decode engine pulls.
//! Whoever makes such a claim up takes the decode engine down, as it does the real one.

use serde_json::Value;

use super::shelf::{Parcel, Want};
use super::{
    Kv, KvSeen, Part, Role, Sight, Trouble, chance, fingerprint, is_set, text, transfer_params,
};
use crate::engine::clock::Job;
use crate::engine::error::ApiError;

/// Rides along, so that a router that reads and writes the object anew is found out: numbers and
/// escapes that most JSON libraries spell otherwise.
const ODDITIES: &str =
    r#""testbed":{"exact":1.50e+02,"large":12345678901234567890,"text":"caf\u00e9 \/"}"#;

/// All that a decode engine must be told.
const NEEDED: [&str; 4] = [
    "remote_engine_id",
    "remote_request_id",
    "remote_host",
    "remote_port",
];

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
    if (gives || takes) && jobs.len() != 1 {
        return Err(refused(format!(
            "one transfer for {} sequences",
            jobs.len()
        )));
    }
    let turned = match kv.setup.role {
        Role::Prefill => takes,
        Role::Decode => gives,
    };
    if turned {
        // The real engine is both; who says so has the pools mixed up.
        let error = kv.complain(format!("the other side's part: {params}"));
        seen.errors.push(error);
    }
    match (gives, takes, jobs) {
        (true, false, _) => Ok(Part::Give {
            keys: vec![format!("{}-{:016x}", sight.own_id, chance())],
            to: None,
        }),
        (false, true, [job]) => take(kv, params, job, sight, seen),
        (false, false, _) => Ok(Part::Alone),
        _ => Err(Trouble::Fatal(
            "both sides of a transfer at once".to_owned(),
        )),
    }
}

fn take(
    kv: &Kv,
    params: &Value,
    job: &Job,
    sight: &Sight<'_>,
    seen: &mut KvSeen,
) -> Result<Part, Trouble> {
    let Some(block_ids) = block_ids(params) else {
        return Err(Trouble::Fatal("a transfer without blocks".to_owned()));
    };
    if NEEDED.iter().any(|field| params[field].is_null()) {
        // The real engine logs this and waits for ever for what nobody sends.
        return Err(refused(format!("incomplete transfer: {params}")));
    }
    let told = (
        text(params, "remote_engine_id"),
        text(params, "remote_request_id"),
        text(params, "remote_host"),
        params["remote_port"].as_u64(),
    );
    let (Some(engine_id), Some(request_id), Some(host), Some(port)) = told else {
        return Err(Trouble::Fatal(format!(
            "a transfer of other types: {params}"
        )));
    };
    let told = params["remote_num_tokens"].as_u64();
    if told != Some(u64::from(job.prompt_tokens)) {
        return Err(refused(format!(
            "{told:?} tokens for {}",
            job.prompt_tokens
        )));
    }
    let verbatim = sight.body.windows(ODDITIES.len());
    if !verbatim.into_iter().any(|part| part == ODDITIES.as_bytes()) {
        let error = kv.complain(format!("not as it was answered: {params}"));
        seen.errors.push(error);
    }
    let want = Want {
        key: request_id.to_owned(),
        engine_id: Some(engine_id.to_owned()),
        block_ids: Some(block_ids),
        hash: fingerprint(job),
        waits: false,
    };
    Ok(Part::Take(vec![(format!("{host}:{port}"), want)]))
}

/// The blocks of the one KV cache group.
fn block_ids(params: &Value) -> Option<Vec<u64>> {
    let [group] = params["remote_block_ids"].as_array()?.as_slice() else {
        return None;
    };
    let ids = group.as_array()?.iter().map(Value::as_u64);
    ids.collect::<Option<Vec<u64>>>()
        .filter(|ids| !ids.is_empty())
}

fn refused(error: String) -> Trouble {
    ApiError::bad_request(Some("kv_transfer_params"), error).into()
}

/// `kv_transfer_params` of the answer.
pub(super) fn params(kv: &Kv, key: &str, parcel: &Parcel, block_ids: &[u64]) -> String {
    let ids: Vec<String> = block_ids.iter().map(u64::to_string).collect();
    format!(
        r#"{{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[[{}]],"remote_engine_id":{},"remote_request_id":{},"remote_host":"{}","remote_port":{},"tp_size":1,"dcp_size":1,"pp_size":1,"remote_num_tokens":{},"remote_blocks_expiry_time":null,"transfer_mode":"pull",{ODDITIES}}}"#,
        ids.join(","),
        Value::from(parcel.engine_id.as_str()),
        Value::from(key),
        kv.addr().ip(),
        kv.addr().port(),
        parcel.tokens,
    )
}
