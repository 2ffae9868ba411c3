//! A VM that dies when a test asks for it; only with the feature `trap`, which the shipped module does
//! not have.
//!
//! Whoever scrapes may sit on the main thread, which no request reaches. So a request with the header
//! leaves a note in shared data, and the holder of the lease finds it with its next tick. With the value
//! `here` it is the VM that serves the request which dies, at once.

use crate::host::{self, SharedData};
use warmpath_core::store::Store;

/// The header that asks for it.
const HEADER: &str = "x-warmpath-trap";
const KEY: &str = "warmpath/trap";
const SET: &[u8] = b"set";
const HERE: &[u8] = b"here";

/// Sets the trap if the request asks for it; only in the request header callback.
pub fn set() {
    let headers = host::RequestHeaders::held().all();
    match headers.iter().find(|(name, _)| name == HEADER) {
        Some((_, value)) if value == HERE => std::process::abort(),
        Some(_) => SharedData::default().set(KEY, SET),
        None => {}
    }
}

/// Ends the VM that holds the lease, once for each time the trap was set.
pub fn spring(holds_lease: bool) {
    if holds_lease && SharedData::default().get(KEY).bytes == SET {
        SharedData::default().set(KEY, b"");
        std::process::abort();
    }
}
