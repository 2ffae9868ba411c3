//! Where a LoRA adapter is loaded.
//!
//! An engine that has to load an adapter first delays the request, and if all its places are taken,
//! the request waits until one is free or puts out another adapter. Steps count that: 0 where it is
//! loaded, 1 where there is a place or nothing is known, 2 where there is none.

/// The adapter that a request asks for, when at least one engine of the group has it loaded.
#[derive(Clone, Copy, Debug)]
pub struct Adapter<'a> {
    /// Positions of the engines that have it loaded.
    pub loaded: &'a [usize],
    /// Whether all places for adapters are taken, by position.
    pub full: &'a [bool],
}

impl Adapter<'_> {
    /// How far an endpoint is from serving it at once.
    pub fn steps(&self, position: usize) -> u32 {
        let full = self.full.get(position).copied().unwrap_or_default();
        match self.loaded.contains(&position) {
            true => 0,
            false => 1 + u32::from(full),
        }
    }
}
