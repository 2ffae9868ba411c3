//! The routing core of warmpath: everything the filter decides, as functions of their arguments.
//!
//! A request enters as headers and body slices ([`Exchange`]), is scanned as it arrives ([`scan`]),
//! and leaves as a ranked list of endpoints ([`Decision`]) or as an answer of our own ([`Answer`]).
//! What the workers of one Envoy must agree on (load in flight, round robin, request rates) lives
//! behind one small trait, [`store::Store`].
//!
//! There is no clock, no randomness, no global state and no host call in here: time and seeds are
//! arguments, so the same input gives the same answer natively, in Node and inside Envoy.

pub mod address;
pub mod admission;
pub mod answer;
pub mod board;
pub mod call;
mod codec;
pub mod config;
pub mod decision;
pub mod disaggregation;
pub mod exchange;
pub mod fading;
pub mod feedback;
pub mod fitness;
pub mod fleet;
pub mod hash;
pub mod ids;
pub mod json;
pub mod kv;
pub mod lease;
pub mod load;
pub mod order;
pub mod policy;
pub mod prefix;
pub mod pulse;
pub mod rate;
pub mod recent;
pub mod router;
pub mod scan;
pub mod scout;
pub mod scrape;
pub mod session;
pub mod sorted;
pub mod splice;
pub mod stats;
pub mod status;
pub mod store;
pub mod sync;
pub mod telemetry;
pub mod wire;
pub mod workers;

pub use answer::Answer;
pub use config::Config;
pub use decision::{Decision, Fallback, Reason};
pub use exchange::{Exchange, Head, Step};
pub use router::Router;
