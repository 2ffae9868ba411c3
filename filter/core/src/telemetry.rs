//! What the filter tells of itself: every metric in one table, and the figures behind them.
//!
//! [`table`] is the contract: name, kind, unit, labels and meaning of each metric. [`name`] writes
//! names and labels as Envoy's stats carry them. [`Registry`] adds figures up in memory and hands
//! them to a [`Sink`] with every tick, so that no request waits for a host call. [`Recorder`] has one
//! function for each thing that happens.
//!
//! Bounds: label values come from the config, from closed sets, or are addresses of engines, of
//! which [`MAX_ENDPOINTS`] are told apart; the rest share the label [`OTHER`]. Nothing that a client
//! sends becomes a label.

pub mod name;
mod recorder;
mod registry;
mod series;
pub mod table;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use recorder::{Endpoint, EndpointTotals, Recorder, Scrape, Span, Totals};
pub use registry::{Handle, Registry, Sink};

/// Endpoints of all pools together that are told apart, over the life of a VM: Envoy never forgets a
/// metric, and replicas that come and go bring new addresses.
pub const MAX_ENDPOINTS: usize = 1024;

/// What stands for every endpoint beyond [`MAX_ENDPOINTS`].
pub const OTHER: &str = "other";

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Name in `/stats/prometheus`.
    pub name: &'static str,
    /// How it is added up.
    pub kind: Kind,
    /// What is counted or measured.
    pub unit: Unit,
    /// Labels, in the order in which their values are given.
    pub labels: &'static [Label],
    /// What it says, as a sentence without its full stop.
    pub meaning: &'static str,
}

/// How the values of workers become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; Envoy adds up what the workers add.
    Counter,
    /// What is written last counts, so one worker writes it for all.
    Gauge,
    /// A distribution of single values.
    Histogram,
}

/// Units. Envoy's metrics are whole numbers, hence the small ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// HTTP requests.
    Requests,
    /// Tokens of a prompt or an output.
    Tokens,
    /// Pieces of an answer; a stream has about one for each token.
    Parts,
    /// Engines.
    Endpoints,
    /// Events of another kind.
    Events,
    /// Entries of a table.
    Entries,
    /// Worker threads.
    Workers,
    /// Envoys.
    Envoys,
    /// Bytes.
    Bytes,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Thousandths.
    Permille,
    /// A number that stands for a word.
    Code,
}

impl Kind {
    /// The word for it in the docs, which is Prometheus's.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

impl Unit {
    /// The word for it in the docs.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Requests => "requests",
            Unit::Tokens => "tokens",
            Unit::Parts => "parts",
            Unit::Endpoints => "endpoints",
            Unit::Events => "events",
            Unit::Entries => "entries",
            Unit::Workers => "workers",
            Unit::Envoys => "Envoys",
            Unit::Bytes => "bytes",
            Unit::Milliseconds => "ms",
            Unit::Seconds => "s",
            Unit::Permille => "1/1000",
            Unit::Code => "code",
        }
    }

    /// Whether values of several endpoints may be added; of others the highest is of interest.
    pub fn adds_up(self) -> bool {
        match self {
            Unit::Milliseconds | Unit::Seconds | Unit::Permille | Unit::Code => false,
            Unit::Requests | Unit::Tokens | Unit::Parts | Unit::Endpoints => true,
            Unit::Events | Unit::Entries | Unit::Workers | Unit::Envoys | Unit::Bytes => true,
        }
    }
}

/// Names of labels. No name may end with another one: Envoy cuts a label out wherever it finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// Name of a pool.
    Pool,
    /// `ip:port` of an engine, `ip:port@rank` of one of its ranks, or [`OTHER`].
    Endpoint,
    /// Name of a policy.
    Policy,
    /// Name of a reason.
    Reason,
    /// Short name of what happened.
    Cause,
    /// HTTP status.
    Status,
    /// Class of a request.
    Priority,
}

impl Label {
    /// Every label.
    pub const ALL: [Label; 7] = [
        Label::Pool,
        Label::Endpoint,
        Label::Policy,
        Label::Reason,
        Label::Cause,
        Label::Status,
        Label::Priority,
    ];

    /// The name in `/stats/prometheus`.
    pub fn name(self) -> &'static str {
        match self {
            Label::Pool => "pool",
            Label::Endpoint => "endpoint",
            Label::Policy => "policy",
            Label::Reason => "reason",
            Label::Cause => "cause",
            Label::Status => "status",
            Label::Priority => "priority",
        }
    }
}
