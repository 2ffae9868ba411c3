//! What the part of a VM in the exchange came to so far, and whether it sees the other Envoys.

/// How the Envoys see each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// This VM does not look.
    #[default]
    Idle,
    /// What was sent before this Envoy came is being read.
    Warming,
    /// Peers are heard, or there are none.
    Whole,
    /// Of the peers that were heard in the last minute none is heard.
    Unseen,
    /// The store does not answer, or answers what it should not.
    Blind,
}

impl View {
    /// The name in logs and docs.
    pub fn name(self) -> &'static str {
        match self {
            View::Idle => "idle",
            View::Warming => "warming",
            View::Whole => "whole",
            View::Unseen => "unseen",
            View::Blind => "blind",
        }
    }

    /// The number that stands for it in metrics.
    pub fn code(self) -> u64 {
        self as u64
    }
}

/// What happened so far, in this VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Calls that were answered as they should be.
    pub calls: u64,
    /// Those that were not.
    pub failed: u64,
    /// Batches sent.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Batches of others that were taken over.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Batches of another version.
    pub other_version: u64,
    /// Batches that were not written with our key, or were damaged.
    pub refused: u64,
    /// Batches that came twice or late, and those of more peers than there is room for.
    pub repeated: u64,
    /// News that found no room before they were sent.
    pub unsent: u64,
    /// News of engines that are not known here.
    pub unknown: u64,
    /// Time from a call to the one that brought its batch back, the last time.
    pub lag_us: u64,
    /// Peers that are heard.
    pub peers: usize,
    /// How the Envoys see each other.
    pub view: View,
    /// What the store said when it last refused a call.
    pub error: String,
}
