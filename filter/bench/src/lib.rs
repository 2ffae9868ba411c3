//! The core's micro benchmarks as a list of named cases that run anywhere.
//!
//! The testbed runs a case in its own process and, compiled into a wasm module of its own, inside a
//! real Envoy, where a request names the case and the answer is the time it took. The module that
//! ships contains nothing of this.

mod cases;
#[cfg(target_arch = "wasm32")]
mod module;

// Bodies are those of the core's native benchmarks.
#[path = "../../core/benches/core/bodies.rs"]
#[allow(dead_code, reason = "shared with benchmarks that use all of it")]
mod bodies;

pub use cases::{Case, Work, all, find};
