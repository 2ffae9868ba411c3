//! What was decided, and why: the values of logs, metrics and debug headers.

use crate::call::RequestCall;
use crate::splice::Change;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Position of the pool in the config.
    pub pool: usize,
    /// Name of the policy that decided.
    pub policy: &'static str,
    /// Why the first endpoint is first.
    pub reason: Reason,
    /// Positions of distinct usable endpoints in the router, best first; never empty.
    pub ranked: Vec<usize>,
    /// What to change in the body. Of a body that was not read to its end only bytes
    /// ([`Change::At`]), else members too.
    pub changes: Vec<Change>,
    /// Headers to set beside those that name the destination.
    pub headers: Vec<(&'static str, String)>,
    /// A call to make when the request is sent on; its reply goes to
    /// [`Exchange::on_reply`](crate::Exchange::on_reply).
    pub beside: Option<Box<RequestCall>>,
    /// What was not known when it was decided.
    pub fallback: Option<Fallback>,
}

/// Why an endpoint was put first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It was its turn.
    Turn,
    /// It was drawn by lot.
    Draw,
    /// It had the fewest requests in flight.
    LeastInFlight,
    /// It had fewer requests in flight than the other one drawn.
    LesserOfTwo,
    /// It got the fewest requests within the window.
    LowestRate,
    /// It uses the least of its KV memory.
    LowestUsage,
    /// It owns the session.
    SessionOwner,
    /// The owner of the session is loaded beyond the bound.
    OwnerBusy,
    /// It holds the longest part of the prompt.
    LongestPrefix,
    /// Another holds more of the prompt, but has more to do.
    LoadOverPrefix,
    /// No endpoint holds enough of the prompt.
    ColdPrefix,
    /// It holds the longest part of the prompt, as the index service says.
    LongestCached,
    /// Another holds more of the prompt, as the index service says, but has more to do.
    LoadOverCached,
    /// Load is spread so unevenly that only load counted.
    Imbalance,
    /// It had stalled, and is put to the test.
    Probe,
    /// Another was preferred, but has as much to do as the pool's admission gives it.
    PreferredFull,
}

impl Reason {
    /// The name in metrics and debug headers.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Turn => "turn",
            Reason::Draw => "draw",
            Reason::LeastInFlight => "least_in_flight",
            Reason::LesserOfTwo => "lesser_of_two",
            Reason::LowestRate => "lowest_rate",
            Reason::LowestUsage => "lowest_usage",
            Reason::SessionOwner => "session_owner",
            Reason::OwnerBusy => "owner_busy",
            Reason::LongestPrefix => "longest_prefix",
            Reason::LoadOverPrefix => "load_over_prefix",
            Reason::ColdPrefix => "cold_prefix",
            Reason::LongestCached => "longest_cached",
            Reason::LoadOverCached => "load_over_cached",
            Reason::Imbalance => "imbalance",
            Reason::Probe => "probe",
            Reason::PreferredFull => "preferred_full",
        }
    }
}

/// Why a request went on with less knowledge than it could have had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fallback {
    /// Not a request that we know how to read; Envoy's own load balancing serves it.
    NotInference,
    /// The body is compressed, so it cannot be read.
    EncodedBody,
    /// The model stands beyond the read limit.
    ModelBeyondLimit,
    /// The session key could stand beyond the read limit.
    KeyBeyondLimit,
    /// The prompt goes on beyond the read limit; it is matched as far as it was read.
    PromptBeyondLimit,
    /// Envoy does not show bodies of held requests.
    StopIterationMissing,
    /// No pool is known for the request; the route decides alone.
    NoPool,
    /// Too few endpoints are usable, so those that are not are ranked, too.
    LastResort,
    /// Nobody has told yet which endpoints the pool has; Envoy's own load balancing serves it.
    EndpointsUnknown,
}

impl Fallback {
    /// Every cause, for metrics that are defined in advance.
    pub const ALL: [Fallback; 9] = [
        Fallback::NotInference,
        Fallback::EncodedBody,
        Fallback::ModelBeyondLimit,
        Fallback::KeyBeyondLimit,
        Fallback::PromptBeyondLimit,
        Fallback::StopIterationMissing,
        Fallback::NoPool,
        Fallback::LastResort,
        Fallback::EndpointsUnknown,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Fallback::NotInference => "not_inference",
            Fallback::EncodedBody => "encoded_body",
            Fallback::ModelBeyondLimit => "model_beyond_limit",
            Fallback::KeyBeyondLimit => "key_beyond_limit",
            Fallback::PromptBeyondLimit => "prompt_beyond_limit",
            Fallback::StopIterationMissing => "stop_iteration_missing",
            Fallback::NoPool => "no_pool",
            Fallback::LastResort => "last_resort",
            Fallback::EndpointsUnknown => "endpoints_unknown",
        }
    }
}
