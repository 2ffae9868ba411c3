//! Answers that break off: a body that is cut, then resets its connection or never ends.
//!
//! One idea: any body is passed on up to a limit that leaves at least its last byte unsent when the
//! length is known, so that the client can always tell. O(1) a frame.

use std::io;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::ready;
use futures_util::stream::{once, unfold};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::Response;
use hyper::body::{Body as _, Frame};
use hyper::header::{CONTENT_LENGTH, HeaderValue};

use super::http::Body;
use super::listen::Connection;

/// Bytes that a wrong content length promises beyond the body.
const MISSING_BYTES: u64 = 64;

/// What happens where the body is cut.
#[derive(Debug)]
pub(super) enum Cut {
    /// The connection is reset.
    Reset(Connection),
    /// Nothing, for ever.
    Hang,
}

struct Passing {
    frames: BodyStream<Body>,
    left: u64,
    cut: Cut,
}

/// Cuts the body of `answer` after `limit_bytes`.
pub(super) fn cut(answer: Response<Body>, limit_bytes: u64, cut: Cut) -> Response<Body> {
    let length = answer.body().size_hint().exact();
    let left = length.map_or(limit_bytes, |length| {
        limit_bytes.min(length.saturating_sub(1))
    });
    let answer = answer.map(|body| {
        let passing = Passing {
            frames: BodyStream::new(body),
            left,
            cut,
        };
        StreamBody::new(unfold(passing, pass)).boxed_unsync()
    });
    with_length(answer, length)
}

async fn pass(mut passing: Passing) -> Option<(io::Result<Frame<Bytes>>, Passing)> {
    if passing.left > 0
        && let Some(Ok(frame)) = passing.frames.next().await
        && let Ok(mut data) = frame.into_data()
    {
        data.truncate(usize::try_from(passing.left).unwrap_or(usize::MAX));
        passing.left -= data.len() as u64;
        return Some((Ok(Frame::data(data)), passing));
    }
    if let Cut::Reset(connection) = &passing.cut {
        connection.reset();
    }
    std::future::pending().await
}

/// Makes `answer` promise more than it has.
pub(super) fn overstate(answer: Response<Body>) -> Response<Body> {
    let length = answer.body().size_hint().exact().unwrap_or(1 << 30) + MISSING_BYTES;
    // Without a known length of its own, the body cannot contradict the header; and unless it ends
    // later than its last byte, the server would find the fault before it has sent anything.
    let answer = answer.map(|body| {
        let late_end = once(tokio::task::yield_now()).filter_map(|()| ready(None));
        StreamBody::new(BodyStream::new(body).chain(late_end)).boxed_unsync()
    });
    with_length(answer, Some(length))
}

/// An answer of bytes that are no text of any kind, made as they are sent.
pub(super) fn nonsense(body_bytes: u64) -> Response<Body> {
    const PIECE_BYTES: u32 = 1 << 16;
    let bytes = (0..PIECE_BYTES).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 24) as u8);
    let piece: Bytes = bytes.collect();
    let pieces = unfold(body_bytes, move |left| {
        let length = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
        let piece = piece.slice(..length);
        async move {
            let more = !piece.is_empty();
            more.then_some((Ok(Frame::data(piece)), left - length as u64))
        }
    });
    let answer = Response::new(StreamBody::new(pieces).boxed_unsync());
    with_length(answer, Some(body_bytes))
}

fn with_length(mut answer: Response<Body>, length: Option<u64>) -> Response<Body> {
    if let Some(length) = length {
        answer
            .headers_mut()
            .insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    answer
}
