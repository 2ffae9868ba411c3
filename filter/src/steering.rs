//! How a request is told where to go: by its headers as long as they are held, by the filter state of its
//! stream when they were let go.
//!
//! What would have been the header `NAME` becomes `wasm.warmpath.NAME`, which Envoy's `header_mutation`
//! filter turns into the header again, behind a `buffer` filter that waits for the body.

use crate::host::{self, RequestHeaders};

/// What the filter state of ours begins with, behind Envoy's own `wasm.`.
const PREFIX: &str = "warmpath.";

/// The way to steer one request.
#[derive(Debug)]
pub enum Steering {
    /// The filter holds its headers.
    Headers(RequestHeaders),
    /// Another filter holds them.
    FilterState,
    /// It is on its way.
    Over,
}

impl Steering {
    /// Sets a header, sooner or later.
    pub fn set(&self, name: &str, value: &[u8]) {
        match self {
            Steering::Headers(headers) => headers.set(name, Some(value)),
            Steering::FilterState => host::set_filter_state(&[PREFIX, name].concat(), value),
            Steering::Over => {}
        }
    }

    /// Sets the length of the body.
    pub fn set_length(&self, bytes: usize) {
        // The `buffer` filter sets it otherwise.
        if let Steering::Headers(headers) = self {
            headers.set("content-length", Some(bytes.to_string().as_bytes()));
        }
    }

    /// Lets the headers go on to the filter that waits for the body.
    pub fn let_go(&mut self) {
        if let Steering::Headers(headers) = self {
            // The body may yet change.
            headers.set("content-length", None);
            *self = Steering::FilterState;
        }
    }

    /// Nothing more is to be set.
    pub fn finish(&mut self) {
        if matches!(self, Steering::FilterState) {
            // The route is matched when the first filter asks for it, which is after the headers are set.
            host::clear_route_cache();
        }
        *self = Steering::Over;
    }
}
