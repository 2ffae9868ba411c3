//! SGLang: both engines get the same body, with a room to meet in.
//!
//! One idea: the decode engine comes to the room at the prefill engine's bootstrap server and waits;
//! the prefill engine begins when it is there and answers when it has taken what it came for. An
//! engine in either mode refuses what has no room.

use serde_json::{Value, json};

use super::shelf::Want;
use super::{Kv, Part, Role, Sight, Trouble, fingerprint};
use crate::engine::clock::Job;
use crate::engine::error::ApiError;
use crate::engine::prompt::Api;

/// Above it are no rooms.
const MAX_ROOM: u64 = i64::MAX as u64;

/// A place to meet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Meeting {
    host: String,
    port: u64,
    room: u64,
}

/// What is done of a request.
pub(super) fn part(kv: &Kv, sight: &Sight<'_>, jobs: &[Job]) -> Result<Part, Trouble> {
    let carries = matches!(sight.api, Api::Chat | Api::Completions | Api::Generate);
    if !carries || sight.json["bootstrap_room"].is_null() {
        let error = "Disaggregated request received without bootstrap room id.";
        return Err(refused(error.to_owned()));
    }
    let meetings = meetings(sight.json, sight.ask.prompts.len(), jobs.len()).map_err(refused)?;
    let key = |meeting: &Meeting| format!("room {}", meeting.room);
    match kv.setup.role {
        Role::Prefill => {
            let own = u64::from(kv.addr().port());
            if let Some(other) = meetings.iter().find(|meeting| meeting.port != own) {
                return Err(refused(format!("not the bootstrap port: {}", other.port)));
            }
            Ok(Part::Give {
                keys: meetings.iter().map(key).collect(),
                to: None,
            })
        }
        Role::Decode => {
            let order = |(meeting, job): (&Meeting, &Job)| {
                let want = Want {
                    key: key(meeting),
                    engine_id: None,
                    block_ids: None,
                    hash: fingerprint(job),
                    waits: true,
                };
                (format!("{}:{}", meeting.host, meeting.port), want)
            };
            Ok(Part::Take(meetings.iter().zip(jobs).map(order).collect()))
        }
    }
}

/// The place of each sequence: one, or as many as there are sequences.
fn meetings(json: &Value, prompts: usize, sequences: usize) -> Result<Vec<Meeting>, String> {
    let each = |field: &str| -> Result<Vec<Value>, String> {
        match &json[field] {
            Value::Array(list) if list.len() == sequences => Ok(list.clone()),
            Value::Array(list) => Err(format!(
                "{field}: {} for {prompts} prompts, {sequences} sequences",
                list.len()
            )),
            one => Ok(vec![one.clone(); sequences]),
        }
    };
    let shared = json["bootstrap_room"].as_u64();
    let fields = each("bootstrap_host")?.into_iter();
    let fields = fields
        .zip(each("bootstrap_port")?)
        .zip(each("bootstrap_room")?);
    let mut meetings = Vec::with_capacity(sequences);
    for (((host, port), room), nth) in fields.zip(0_u64..) {
        // One room for all means: this one and those after it.
        let number = shared.map_or_else(|| room.as_u64(), |first| first.checked_add(nth));
        let meeting = match (host.as_str(), port.as_u64(), number) {
            (Some(host), Some(port), Some(room)) if room <= MAX_ROOM => Meeting {
                host: host.to_owned(),
                port,
                room,
            },
            _ => return Err(format!("not a place to meet: {host} {port} {room}")),
        };
        if meetings
            .iter()
            .any(|other: &Meeting| other.room == meeting.room)
        {
            return Err(format!("two sequences in room {}", meeting.room));
        }
        meetings.push(meeting);
    }
    Ok(meetings)
}

fn refused(error: String) -> Trouble {
    ApiError::bad_request(None, error).into()
}

/// Whether the engine has a bootstrap server.
pub(super) fn has_bootstrap(kv: &Kv) -> bool {
    kv.setup.connector == super::Connector::Sglang && kv.setup.role == Role::Prefill
}

/// `GET /route` of the bootstrap server: where the ranks of the engine listen.
pub(super) fn route(kv: &Kv) -> Value {
    json!({"rank_ip": kv.addr().ip().to_string(), "rank_port": kv.addr().port()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sequence_has_a_room_of_its_own() {
        let one = json!({"bootstrap_host": "h", "bootstrap_port": 1, "bootstrap_room": 7});
        assert_eq!(meetings(&one, 1, 1).unwrap().len(), 1);
        assert_eq!(meetings(&one, 1, 2).unwrap()[1].room, 8);
        let two = |rooms: Value| json!({"bootstrap_host": ["h", "h"], "bootstrap_port": [1, 1], "bootstrap_room": rooms});
        assert_eq!(meetings(&two(json!([7, 8])), 2, 2).unwrap()[1].room, 8);
        for wrong in [
            json!([7, 7]),
            json!([7]),
            json!([7, -1]),
            json!([7, u64::MAX]),
        ] {
            assert!(meetings(&two(wrong.clone()), 2, 2).is_err(), "{wrong}");
        }
    }
}
