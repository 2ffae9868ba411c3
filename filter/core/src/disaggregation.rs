//! Prefill on one engine, decode on another: what the engines must be told, connector by connector.
//!
//! Pure text: changes of the two bodies, the ids that tie the two requests together, and what is read of an
//! answer. Field names and values are those of vLLM's connectors and proxies and of SGLang's router. Who is
//! asked, and in which order, is [`Exchange`](crate::Exchange)'s.

use crate::json::Value;
use crate::json::string;
use crate::scan::OWNED;
use crate::splice::{Change, members};

/// Longest answer of a prefill engine that is read: a few bytes for each block of a long prompt.
pub const MOST_REPLY_BYTES: usize = 4 * 1024 * 1024;
/// Most ranks whose names a bootstrap server is believed to know.
const MOST_RANKS: usize = 64;
/// Longest name of an engine that is believed.
const MOST_NAME_BYTES: usize = 256;

/// Why a request was not disaggregated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Skip {
    /// The engine that decodes holds nearly all of the prompt, or it is short.
    TooShort,
    /// It has several prompts, and the connector carries one.
    Batch,
    /// It wants several answers, and the connector carries one.
    SeveralChoices,
    /// Something of the prompt is to be in the answer, which only who computes it can say.
    PromptBack,
    /// The connector knows nothing of the API.
    Api,
    /// No engine that prefills may be used.
    NoPrefillEngine,
    /// As many requests wait for calls as may.
    TooManyPending,
}

impl Skip {
    /// Every reason.
    pub const ALL: [Skip; 7] = [
        Skip::TooShort,
        Skip::Batch,
        Skip::SeveralChoices,
        Skip::PromptBack,
        Skip::Api,
        Skip::NoPrefillEngine,
        Skip::TooManyPending,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Skip::TooShort => "too_short",
            Skip::Batch => "batch",
            Skip::SeveralChoices => "several_choices",
            Skip::PromptBack => "prompt_back",
            Skip::Api => "api",
            Skip::NoPrefillEngine => "no_prefill_engine",
            Skip::TooManyPending => "too_many_pending",
        }
    }
}

/// What became of a request for which a prefill was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Its prompt was handed over.
    Transferred,
    /// No prefill succeeded; the engine that decodes did it all.
    DecodedAlone,
    /// No prefill succeeded, and the connector leaves no other way: it was answered 503.
    Refused,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Outcome; 3] = [
        Outcome::Transferred,
        Outcome::DecodedAlone,
        Outcome::Refused,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Transferred => "transferred",
            Outcome::DecodedAlone => "decoded_alone",
            Outcome::Refused => "refused",
        }
    }
}

/// How a call to a prefill engine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallEnd {
    /// The prompt was computed.
    Ok,
    /// It was computed, and the answer does not say how to get it.
    NoHandle,
    /// The engine found a mistake of the client's.
    Rejected,
    /// The engine failed, or could not be reached.
    Failed,
    /// The engine said nothing in time.
    TimedOut,
    /// Envoy had no room for the call, or no cluster.
    NoRoom,
    /// The request was over before the call.
    Abandoned,
}

impl CallEnd {
    /// Every end.
    pub const ALL: [CallEnd; 7] = [
        CallEnd::Ok,
        CallEnd::NoHandle,
        CallEnd::Rejected,
        CallEnd::Failed,
        CallEnd::TimedOut,
        CallEnd::NoRoom,
        CallEnd::Abandoned,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            CallEnd::Ok => "ok",
            CallEnd::NoHandle => "no_handle",
            CallEnd::Rejected => "rejected",
            CallEnd::Failed => "failed",
            CallEnd::TimedOut => "timeout",
            CallEnd::NoRoom => "no_room",
            CallEnd::Abandoned => "abandoned",
        }
    }
}

/// Something that happened on a request's way, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A request was not disaggregated.
    Skipped {
        /// Position of its pool.
        pool: usize,
        /// Why.
        skip: Skip,
    },
    /// A disaggregated request was decided.
    Disaggregated {
        /// Position of its pool.
        pool: usize,
        /// What became of it.
        outcome: Outcome,
    },
    /// A call to a prefill engine ended.
    Prefilled {
        /// Position of the pool that prefills.
        pool: usize,
        /// Position of the engine.
        position: usize,
        /// How it ended.
        end: CallEnd,
        /// How long it took, if that was seen.
        took_us: Option<u64>,
    },
}

/// No field of which clients have a say.
pub fn owned_removed() -> impl Iterator<Item = Change> {
    OWNED.iter().map(|path| Change::Remove(path))
}

/// Nothing but the prompt is to be computed: one token, and no stream.
pub fn prefill_only() -> [Change; 5] {
    [
        Change::Set("max_tokens", "1".to_owned()),
        Change::Replace("max_completion_tokens", "1".to_owned()),
        Change::Remove(&["min_tokens"]),
        Change::Set("stream", "false".to_owned()),
        Change::Remove(&["stream_options"]),
    ]
}

/// NIXL: another engine will decode.
pub fn nixl_prefill() -> Change {
    let parameters = r#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}"#;
    Change::Set("kv_transfer_params", parameters.to_owned())
}

/// NIXL: what the prefill engine answered, word for word.
pub fn nixl_decode(handle: String) -> Change {
    Change::Set("kv_transfer_params", handle)
}

/// NIXL: the parameters in a prefill engine's answer; `None` unless they tell another engine to get the
/// prompt. An engine that gets incomplete ones may end, so nothing that is not plainly that is taken.
pub fn nixl_handle(answer: &[u8]) -> Option<String> {
    let mut walk = members(answer, 0..answer.len())?;
    let mut found = None;
    while let Some(member) = walk.step()? {
        if member.name(answer) == "kv_transfer_params" {
            found = Some(member.value);
        }
    }
    let text = std::str::from_utf8(answer.get(found?)?).ok()?;
    let value = Value::read(text.as_bytes()).ok()?;
    let remote = value.get("do_remote_prefill")?.as_bool()?;
    (remote && value.get("remote_engine_id").is_some_and(Value::is_string)).then(|| text.to_owned())
}

/// P2P NCCL: the request id of both requests. The connector finds either address in it by a pattern.
pub fn p2p_request_id(prefill: &str, decode: &str, unique: [u64; 2]) -> String {
    format!(
        "___prefill_addr_{prefill}___decode_addr_{decode}_{}",
        hex(unique)
    )
}

/// Mooncake: another engine will fetch the prompt of this transfer.
pub fn mooncake_prefill(unique: [u64; 2]) -> Change {
    let id = hex(unique);
    let parameters = format!(
        r#"{{"do_remote_decode":true,"do_remote_prefill":false,"transfer_id":"xfer-{id}"}}"#
    );
    Change::Set("kv_transfer_params", parameters)
}

/// Mooncake: the prompt of this transfer is at the engine of this name, which the bootstrap server at
/// `bootstrap` (`host:port`) knows.
pub fn mooncake_decode(unique: [u64; 2], engine: &str, bootstrap: &str) -> Change {
    let (id, engine) = (hex(unique), string(engine));
    let address = string(&format!("http://{bootstrap}"));
    let parameters = format!(
        r#"{{"do_remote_decode":false,"do_remote_prefill":true,"remote_bootstrap_addr":{address},"remote_engine_id":{engine},"transfer_id":"xfer-{id}"}}"#
    );
    Change::Set("kv_transfer_params", parameters)
}

/// Mooncake: the names of an engine's ranks, as its bootstrap server answers to `GET /query`.
pub fn engine_ids(answer: &[u8]) -> Option<Vec<(u16, String)>> {
    let value = Value::read(answer).ok()?;
    let ranks = value.as_object()?.iter().take(MOST_RANKS);
    let ids: Vec<(u16, String)> = ranks
        .filter_map(|(rank, entry)| {
            let id = entry.get("engine_id")?.as_str()?;
            let short = !id.is_empty() && id.len() <= MOST_NAME_BYTES;
            short.then_some((rank.parse().ok()?, id.to_owned()))
        })
        .collect();
    (!ids.is_empty()).then_some(ids)
}

/// SGLang: where the two engines meet, the same for both. Several prompts or answers need as many rooms.
pub fn sglang(host: &str, port: u16, rooms: &[u64]) -> [Change; 3] {
    // A room is a signed number to its engine.
    let rooms: Vec<String> = rooms.iter().map(|room| (room >> 1).to_string()).collect();
    let many = |one: String| match rooms.len() {
        1 => one,
        count => format!("[{}]", vec![one; count].join(",")),
    };
    let room = match rooms.as_slice() {
        [room] => room.clone(),
        rooms => format!("[{}]", rooms.join(",")),
    };
    [
        Change::Set("bootstrap_host", many(string(host))),
        Change::Set("bootstrap_port", many(port.to_string())),
        Change::Set("bootstrap_room", room),
    ]
}

fn hex([high, low]: [u64; 2]) -> String {
    format!("{high:016x}{low:016x}")
}

#[cfg(test)]
mod tests;
