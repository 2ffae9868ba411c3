//! What must hold for changes of any body. Property tests and the fuzz target call it.

use serde_json::{Map, Value};
use warmpath_core::scan::{Api, RequestScan, ScanPlan};
use warmpath_core::splice::{Change, MOST_MEMBERS, members, rewrite};

/// One bit of the first byte of an input for each.
pub const CHANGES: [fn() -> Change; 8] = [
    || Change::Remove(&["kv_transfer_params"]),
    || Change::Remove(&["vllm_xargs", "kv_transfer_params"]),
    || Change::Set("max_tokens", "1".to_owned()),
    || Change::Replace("max_completion_tokens", "1".to_owned()),
    || Change::Set("stream", "false".to_owned()),
    || Change::Remove(&["stream"]),
    || {
        Change::Set(
            "kv_transfer_params",
            r#"{"do_remote_prefill":true}"#.to_owned(),
        )
    },
    || Change::Remove(&["a", "b", "c"]),
];

/// The changes that a byte stands for.
pub fn changes(byte: u8) -> Vec<Change> {
    let chosen = CHANGES.iter().enumerate();
    let chosen = chosen.filter(|(bit, _)| byte >> bit & 1 == 1);
    chosen.map(|(_, change)| change()).collect()
}

/// Checks an input: the first byte chooses the changes, the rest is the body.
pub fn check_input(input: &[u8]) {
    if let Some((byte, body)) = input.split_first() {
        check(body, &changes(*byte));
    }
}

/// Checks one body and these changes.
pub fn check(body: &[u8], changes: &[Change]) {
    let changed = rewrite(body, changes);
    if !accepts(body) {
        return;
    }
    let Some(changed) = changed else {
        let many = raw_members(body).len() > MOST_MEMBERS / 2;
        let nested = String::from_utf8_lossy(body).matches(':').count() > MOST_MEMBERS / 2;
        assert!(many || nested, "refused: {}", String::from_utf8_lossy(body));
        return;
    };
    let shown = || String::from_utf8_lossy(&changed).into_owned();
    assert!(accepts(&changed), "not JSON any more: {}", shown());
    if changes.is_empty() {
        assert_eq!(changed, body);
    }
    if let Ok(before) = serde_json::from_slice::<Value>(body) {
        let after: Value = serde_json::from_slice(&changed).expect("still JSON");
        assert_eq!(after, expected(before, changes), "{}", shown());
    }
    // What is not spoken of stays as it was written, in its order.
    let spoken = |name: &str| changes.iter().any(|change| first_key(change) == Some(name));
    let kept = |body: &[u8]| {
        let mut all = raw_members(body);
        all.retain(|(name, _)| !spoken(name));
        all
    };
    assert_eq!(kept(body), kept(&changed), "{}", shown());
    // What surrounds the object, too.
    let (before, after) = (edges(body), edges(&changed));
    assert_eq!(before, after);
}

fn accepts(body: &[u8]) -> bool {
    let mut scan = RequestScan::new(Api::ChatCompletions);
    let fed = scan.feed(&ScanPlan::default(), body);
    fed.and_then(|()| scan.finish()).is_ok()
}

/// Names and bytes of the top-level members.
fn raw_members(body: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut walk = members(body, 0..body.len()).expect("an object");
    let mut found = Vec::new();
    while let Some(member) = walk.step().expect("a member") {
        let bytes = body[member.key.start..member.value.end].to_vec();
        found.push((member.name(body).into_owned(), bytes));
    }
    found
}

/// The bytes before and after the object.
fn edges(body: &[u8]) -> (&[u8], &[u8]) {
    let open = body.iter().position(|byte| *byte == b'{').unwrap_or(0);
    let close = body.iter().rposition(|byte| *byte == b'}').unwrap_or(0);
    (&body[..open], &body[close + 1..])
}

fn first_key(change: &Change) -> Option<&'static str> {
    match change {
        Change::At(_) => None,
        Change::Remove(path) => path.first().copied(),
        Change::Set(name, _) | Change::Replace(name, _) => Some(name),
    }
}

/// The same changes of a value.
fn expected(mut body: Value, changes: &[Change]) -> Value {
    for change in changes {
        let Some(object) = body.as_object_mut() else {
            continue;
        };
        match change {
            Change::At(_) => {}
            Change::Remove(path) => remove(object, path),
            Change::Set(name, json) => {
                object.insert(
                    (*name).to_owned(),
                    serde_json::from_str(json).expect("JSON"),
                );
            }
            Change::Replace(name, json) => {
                if let Some(value) = object.get_mut(*name) {
                    *value = serde_json::from_str(json).expect("JSON");
                }
            }
        }
    }
    body
}

fn remove(object: &mut Map<String, Value>, path: &[&str]) {
    match path {
        [] => {}
        [name] => {
            object.remove(*name);
        }
        [name, rest @ ..] => {
            if let Some(Value::Object(inner)) = object.get_mut(*name) {
                remove(inner, rest);
            }
        }
    }
}
