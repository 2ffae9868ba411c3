//! What must hold for the reading of any answer, however it is cut. Property tests and the fuzz target
//! call it.

use serde_json::Value;
use warmpath_core::feedback::{Expected, Finding, Reading, Report, TAIL_BYTES, Unread};
use warmpath_core::wire::usage::{Framing, Usage, UsageScan, in_tail};

/// The token counts in an answer that comes in these pieces, all of it read.
pub fn scan(framing: Framing, pieces: &[&[u8]]) -> Option<Usage> {
    let mut scan = UsageScan::new(framing);
    for piece in pieces {
        scan.push(piece);
    }
    scan.finish()
}

/// Passes an answer by as Envoy does; what is found in it, and how many bytes were read.
pub fn pass(headers: &[(String, Vec<u8>)], pieces: &[&[u8]]) -> (Finding, usize) {
    let expected = Expected {
        whole: true,
        events: true,
        in_every_stream: true,
    };
    let mut reading = Reading::new(expected, 200, headers);
    let mut read = 0;
    for piece in pieces {
        if let Some(part) = reading.wants(piece.len()) {
            assert!(part.len() <= TAIL_BYTES);
            read += part.len();
            reading.push(piece.get(part).unwrap_or_default());
        }
    }
    (reading.finish(true, (0, 0)), read)
}

/// What is found where these counts are.
pub fn finding(usage: Option<Usage>) -> Finding {
    match usage {
        Some(usage) => Finding::Report(Report::new(usage, (0, 0))),
        None => Finding::Unread(Unread::NoUsage),
    }
}

/// The header of a stream of events.
pub fn event_stream() -> (String, Vec<u8>) {
    ("content-type".to_owned(), b"text/event-stream".to_vec())
}

/// An input of the fuzzer: the size of a piece, in powers of two up to more than is read of one, and an
/// answer, whole or a stream of events.
pub fn check_input(input: &[u8]) {
    if let Some((size, body)) = input.split_first() {
        let pieces: Vec<&[u8]> = body.chunks(1 << (size % 14)).collect();
        check(&pieces);
    }
}

/// Panics unless the counts of an answer in these pieces are those of the whole, read from as little
/// of it as promised, and from where engines write them.
pub fn check(pieces: &[&[u8]]) {
    let body = pieces.concat();
    for framing in [Framing::Json, Framing::EventStream] {
        assert_eq!(scan(framing, pieces), scan(framing, &[&body]));
    }
    let end = body.get(body.len().saturating_sub(TAIL_BYTES)..);
    let want = finding(in_tail(end.unwrap_or_default()));
    let length = ("content-length".to_owned(), body.len().to_string().into());
    let (found, read) = pass(&[length], pieces);
    assert_eq!((found, read), (want, body.len().min(TAIL_BYTES)));
    assert_eq!(pass(&[], pieces).0, want);
    let (found, _) = pass(&[event_stream()], pieces);
    if pieces.iter().all(|piece| piece.len() <= TAIL_BYTES) {
        assert_eq!(found, finding(scan(Framing::EventStream, pieces)));
    }
    if let Ok(json) = serde_json::from_slice::<Value>(&body)
        && json.get("usage").is_none()
    {
        assert_eq!(in_tail(&body), None, "counts from inside the answer");
    }
}
