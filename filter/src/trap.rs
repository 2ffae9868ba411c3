//! A VM that dies when a test asks for it; only with the feature `trap`, which the shipped module does
//! not have.
//!
//! Whoever scrapes may sit on the main thread, which no request reaches. So a request with the header
//! leaves a note in shared data, and the holder of the lease finds it with its next tick.

use crate::host::{self, SharedData};
use warmpath_core::store::Store;

/// The header that asks for it.
const HEADER: &str = "x-warmpath-trap";
const KEY: &str = "warmpath/trap";
const SET: &[u8] = b"set";

/// Sets the trap if the request asks for it; only in the request header callback.
pub fn set() {
    if host::request_headers()
        .iter()
        .any(|(name, _)| name == HEADER)
    {
        SharedData::default().set(KEY, SET);
    }
}

/// Ends the VM that holds the lease, once for each time the trap was set.
pub fn spring(holds_lease: bool) {
    if holds_lease && SharedData::default().get(KEY).bytes == SET {
        SharedData::default().set(KEY, b"");
        std::process::abort();
    }
}
