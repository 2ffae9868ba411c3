//! HTTP calls that the filter makes itself, and what becomes of them.
//!
//! Core says whom to call and what an answer means; the adapter makes the call. There are two kinds: those
//! of the [scout](crate::scout), which no request waits for, and those on a request's way
//! ([`RequestCall`]). The number of the latter is bounded in each worker; a request for which there is no
//! room goes on without its call.

use crate::splice::Change;

/// A call as HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpCall {
    /// Envoy's cluster.
    pub cluster: String,
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// The `:authority`.
    pub authority: String,
    /// More headers, names in lower case; without pseudo-headers and `content-length`.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: CallBody,
    /// How long the answer may take, in milliseconds.
    pub timeout_ms: u64,
    /// Longest body of an answer that is read.
    pub max_bytes: usize,
}

/// The methods that calls use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// `GET`.
    #[default]
    Get,
    /// `POST`.
    Post,
    /// `PUT`.
    Put,
}

impl Method {
    /// As it stands in `:method`.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
        }
    }
}

/// The body of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CallBody {
    /// None.
    #[default]
    Empty,
    /// These bytes.
    Bytes(Vec<u8>),
    /// That of the request which waits, whole, with these changes. So it need not be held twice.
    Request(Vec<Change>),
}

/// How a call ended.
#[derive(Clone, Copy, Debug)]
pub enum Reply<'a> {
    /// An answer of whom was called, with this status.
    Answer {
        /// The status.
        status: u16,
        /// The body.
        body: &'a [u8],
    },
    /// An answer over the limit, unread.
    TooLong,
    /// None: no connection, a reset, or a body that could not be made.
    Failed,
    /// None in time.
    TimedOut,
    /// Envoy's cluster has as many calls under way as its circuit breaker allows.
    NoRoom,
    /// Envoy does not know the cluster.
    NoCluster,
}

/// A call on a request's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestCall {
    /// The call.
    pub http: HttpCall,
    /// What it is for.
    pub purpose: Purpose,
}

/// What calls on a request's way are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To let an engine compute the prompt for another one.
    Prefill,
    /// To learn the names by which engines know each other.
    EngineIds,
    /// To learn the tokens of a prompt.
    Tokens,
    /// To learn who holds them.
    Overlaps,
}

impl Purpose {
    /// The name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Purpose::Prefill => "prefill",
            Purpose::EngineIds => "engine ids",
            Purpose::Tokens => "tokens",
            Purpose::Overlaps => "overlaps",
        }
    }
}

/// How many calls on requests' ways are under way in a worker.
///
/// A call counts until it ends or its request does, whichever comes first. What a request that is gone
/// leaves under way is Envoy's: its cluster's circuit breakers bound it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pending {
    calls: usize,
}

impl Pending {
    /// Counts a call, unless there are `most` already.
    pub fn begin(&mut self, most: usize) -> bool {
        let room = self.calls < most;
        self.calls += usize::from(room);
        room
    }

    /// A call is not waited for any more.
    pub fn end(&mut self) {
        self.calls = self.calls.saturating_sub(1);
    }

    /// Calls that are waited for.
    pub fn calls(&self) -> usize {
        self.calls
    }
}
