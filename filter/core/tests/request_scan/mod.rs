//! What must hold for the scan of any request body, however it is cut. Property tests and the fuzz
//! target call it.

use serde_json::Value;
use std::ops::Range;
use warmpath_core::scan::{
    Api, CHUNK_BYTES, Field, Link, MAX_VALUE_BYTES, RequestScan, ScanError, ScanPlan,
};

/// What the plan of these tests keeps.
pub const POINTERS: [&str; 6] = [
    "/user",
    "/model",
    "/metadata/user_id",
    "/messages/0/role",
    "/a~1b/1",
    "/sampling_params",
];

/// Every API.
pub const APIS: [Api; 9] = [
    Api::ChatCompletions,
    Api::Completions,
    Api::Responses,
    Api::Messages,
    Api::Embeddings,
    Api::Rerank,
    Api::Score,
    Api::Generate,
    Api::Tokenize,
];

/// A prompt is written with marks of its own; the costliest is an empty `content`, 29 bytes for 13.
const MOST_BYTES_PER_BYTE: usize = 3;

pub fn plan() -> ScanPlan {
    ScanPlan::new(&POINTERS.map(str::to_owned), true).unwrap_or_default()
}

pub fn scan_pieces<'a>(
    api: Api,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (RequestScan, Result<(), ScanError>) {
    let plan = plan();
    let mut scan = RequestScan::new(api);
    let fed = pieces
        .into_iter()
        .try_for_each(|piece| scan.feed(&plan, piece));
    let result = fed.and_then(|()| scan.finish());
    (scan, result)
}

/// Everything a scan tells.
#[derive(Debug, PartialEq)]
pub struct Told {
    pub model: String,
    pub span: Option<Range<usize>>,
    pub stream: bool,
    pub include_usage: bool,
    pub pointers: Vec<Option<Vec<u8>>>,
    pub salt: Option<Vec<u8>>,
    pub max_tokens: Option<u32>,
    pub links: Vec<Link>,
    pub bytes: usize,
    pub conversation: u64,
    pub scanned: usize,
}

pub fn told(scan: &RequestScan) -> Told {
    Told {
        model: format!("{:?}", scan.model()),
        span: scan.model_span(),
        stream: scan.stream(),
        include_usage: scan.include_usage(),
        pointers: (0..POINTERS.len())
            .map(|i| scan.pointer(i).map(<[u8]>::to_vec))
            .collect(),
        salt: scan.cache_salt().map(<[u8]>::to_vec),
        max_tokens: scan.max_tokens(),
        links: scan.prompt().chain(7).collect(),
        bytes: scan.prompt().bytes(),
        conversation: scan.prompt().conversation(7),
        scanned: scan.scanned(),
    }
}

/// Panics unless a body that comes in these pieces tells the same as the whole, what `serde_json`
/// reads, and no more than its length allows.
pub fn check_pieces(api: Api, pieces: &[&[u8]]) {
    let body = pieces.concat();
    let (whole, result) = scan_pieces(api, [&body[..]]);
    let (cut, cut_result) = scan_pieces(api, pieces.iter().copied());
    assert_eq!(result, cut_result);
    let told = told(&whole);
    assert_eq!(told, self::told(&cut));
    is_bounded(&told, body.len());
    agrees(&whole, result, &body);
}

/// An input of the fuzzer: the API, the number of cuts, the cuts in two bytes each, the body.
pub fn check(input: &[u8]) {
    let Some(([api, cuts], rest)) = input.split_first_chunk() else {
        return;
    };
    let api = APIS.iter().cycle().nth(usize::from(*api));
    let api = *api.unwrap_or(&Api::ChatCompletions);
    let (cuts, body) = rest.split_at(rest.len().min(2 * usize::from(*cuts % 16)));
    let (cuts, _) = cuts.as_chunks();
    let mut ends: Vec<usize> = cuts
        .iter()
        .map(|cut| usize::from(u16::from_le_bytes(*cut)) % (body.len() + 1))
        .collect();
    ends.push(body.len());
    ends.sort_unstable();
    let mut start = 0;
    let pieces: Vec<&[u8]> = ends
        .into_iter()
        .map(|end| {
            let piece = body.get(start..end);
            start = end;
            piece.unwrap_or_default()
        })
        .collect();
    check_pieces(api, &pieces);
}

fn is_bounded(told: &Told, body_bytes: usize) {
    assert!(told.bytes <= MOST_BYTES_PER_BYTE * body_bytes);
    // Sections end with a link of their own length.
    assert!(told.links.len() <= told.bytes / CHUNK_BYTES + 3);
    let ends: Vec<usize> = told.links.iter().map(|link| link.end).collect();
    assert!(ends.is_sorted_by(|a, b| a < b));
    assert!(ends.last().is_none_or(|end| *end <= told.bytes));
    let kept = told.pointers.iter().chain([&told.salt]).flatten();
    assert!(kept.map(Vec::len).all(|bytes| bytes <= MAX_VALUE_BYTES));
    let span = told.span.clone().unwrap_or_default();
    assert!(span.end <= body_bytes && told.scanned <= body_bytes);
}

/// What the scan leaves to the engine, in the words of `serde_json`.
const UNCHECKED: [&str; 4] = [
    "number out of range",
    "surrogate",
    "unexpected end of hex escape",
    "invalid unicode code point",
];

/// Panics unless the scan accepts what `serde_json` accepts, and reads what it reads.
pub fn agrees(scan: &RequestScan, result: Result<(), ScanError>, body: &[u8]) {
    let value = match serde_json::from_slice::<Value>(body) {
        Ok(value) => value,
        Err(error) => {
            let message = error.to_string();
            let is_unchecked = UNCHECKED.iter().any(|part| message.contains(part));
            assert!(result.is_err() || is_unchecked, "{message}");
            return;
        }
    };
    assert_eq!(result.is_ok(), value.is_object(), "{result:?}");
    if result.is_err() {
        return;
    }
    let model = match value.get("model") {
        None | Some(Value::Null) => Field::Absent,
        Some(Value::String(model)) if model.len() > MAX_VALUE_BYTES => Field::TooLong,
        Some(Value::String(model)) => Field::Text(model.as_bytes()),
        Some(_) => Field::WrongType,
    };
    assert_eq!(scan.model(), model);
    let is_true = |pointer| value.pointer(pointer) == Some(&Value::Bool(true));
    assert_eq!(scan.stream(), is_true("/stream"));
    assert_eq!(
        scan.include_usage(),
        is_true("/stream_options/include_usage")
    );
    for (i, pointer) in POINTERS.iter().enumerate() {
        match (value.pointer(pointer), scan.pointer(i)) {
            (Some(Value::String(text)), read) => {
                let text = text.as_bytes();
                let kept = text.get(..MAX_VALUE_BYTES).unwrap_or(text);
                assert_eq!(
                    read,
                    Some(kept).filter(|kept| !kept.is_empty()),
                    "{pointer}"
                );
            }
            // Its text is kept, which a `Value` does not have.
            (Some(Value::Number(_)), read) => assert!(read.is_some(), "{pointer}"),
            (_, read) => assert_eq!(read, None, "{pointer}"),
        }
    }
}
