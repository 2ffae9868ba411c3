//! P2P NCCL: the id of the request carries the addresses of both engines.
//!
//! One idea: the prefill engine pushes what it computed to the decode engine's address, under its own
//! id of the sequence; the decode engine waits for what comes under the same id. A consumer loads the
//! KV of *every* request, so an id without addresses takes either engine down.

use std::sync::Arc;

use super::shelf::{Parcel, Ready, Want};
use super::{Kv, Part, Role, Sight, Trouble, fingerprint};
use crate::engine::clock::Job;

/// What is done of a request.
pub(super) fn part(kv: &Kv, sight: &Sight<'_>, jobs: &[Job]) -> Result<Part, Trouble> {
    let id = &sight.own_id;
    let missing = || {
        Trouble::Fatal(format!(
            "Request id {id} does not contain hostname and port"
        ))
    };
    let keys = (0..jobs.len()).map(|index| format!("{id}-{index}"));
    match kv.setup.role {
        Role::Prefill => Ok(Part::Give {
            keys: keys.collect(),
            to: Some(decode_addr(id).ok_or_else(missing)?),
        }),
        Role::Decode => {
            let from = prefill_addr(id).ok_or_else(missing)?;
            let order = |(key, job): (String, &Job)| {
                let want = Want {
                    key: format!("{from} {key}"),
                    engine_id: None,
                    block_ids: None,
                    hash: fingerprint(job),
                    waits: true,
                };
                (from.clone(), want)
            };
            Ok(Part::Take(keys.zip(jobs).map(order).collect()))
        }
    }
}

/// As vLLM's `___prefill_addr_(.*):(\d+)___`, which is greedy.
fn prefill_addr(id: &str) -> Option<String> {
    let (_, rest) = id.split_once("___prefill_addr_")?;
    let ends = rest.rmatch_indices("___").map(|(at, _)| at);
    ends.filter_map(|end| rest.get(..end)).find_map(|addr| {
        let (host, port) = addr.rsplit_once(':')?;
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| format!("{host}:{port}"))
    })
}

/// As vLLM's `___decode_addr_(.*):(\d+)`, which is greedy.
fn decode_addr(id: &str) -> Option<String> {
    let (_, rest) = id.split_once("___decode_addr_")?;
    let colons = rest.rmatch_indices(':');
    colons
        .filter_map(|(at, _)| Some((rest.get(..at)?, rest.get(at + 1..)?)))
        .find_map(|(host, after)| {
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            let port = after.get(..digits).filter(|port| !port.is_empty())?;
            Some(format!("{host}:{port}"))
        })
}

impl Kv {
    /// A parcel was pushed here. It lies under the address that its sender's id says and its key.
    pub(super) fn receive(self: &Arc<Self>, key: &str, parcel: Parcel) {
        let Some(from) = prefill_addr(key) else {
            self.complain(format!("pushed without an address: {key}"));
            return;
        };
        let ready = Ready {
            parcel,
            block_ids: Vec::new(),
        };
        let key = format!("{from} {key}");
        self.shelf.put(&key, ready);
        let kv = Arc::clone(self);
        tokio::spawn(async move {
            if !kv.shelf.gone(&key, kv.setup.lease).await {
                kv.shelf.drop_slot(&key);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_where_vllm_finds_them() {
        let id = "cmpl-___prefill_addr_10.0.0.1:21001___decode_addr_10.0.0.2:22001_0a1b";
        assert_eq!(prefill_addr(id).unwrap(), "10.0.0.1:21001");
        assert_eq!(decode_addr(id).unwrap(), "10.0.0.2:22001");
        let six = "___prefill_addr_[::1]:1___decode_addr_[::2]:2_x";
        assert_eq!(prefill_addr(six).unwrap(), "[::1]:1");
        assert_eq!(decode_addr(six).unwrap(), "[::2]:2");
        // A colon and a digit in the rest mislead vLLM, too.
        assert_eq!(decode_addr("___decode_addr_a:1_b:2c").unwrap(), "a:1_b:2");
        for wrong in [
            "",
            "___prefill_addr____decode_addr_",
            "___prefill_addr_a:b___decode_addr_c:d",
        ] {
            assert_eq!((prefill_addr(wrong), decode_addr(wrong)), (None, None));
        }
    }
}
