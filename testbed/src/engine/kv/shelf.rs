//! Where the KV of prompts lies until it is fetched.
//!
//! One idea: a slot has a key on which both sides agree, and either may come first: who wants
//! something waits for it, and who has something may wait until it is wanted. Memory is bounded by
//! leases: a slot goes when it is taken, when its time is up, or when the last who wanted it leaves.
//! Every operation is O(1), a change wakes all who wait.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// The KV of one prompt, in transit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::engine) struct Parcel {
    /// Name of the engine that computed it.
    pub(in crate::engine) engine: String,
    /// That engine's id among connectors.
    pub(in crate::engine) engine_id: String,
    /// Chained hash of the prompt's blocks.
    pub(in crate::engine) hash: u64,
    /// Length of the prompt.
    pub(in crate::engine) tokens: u32,
}

/// A parcel that can be fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) parcel: Parcel,
    /// Where its blocks lie.
    pub(super) block_ids: Vec<u64>,
}

/// What is asked for; what is `None` may be anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::engine) struct Want {
    pub(super) key: String,
    /// The engine that must have computed it.
    pub(super) engine_id: Option<String>,
    /// Where it must lie.
    pub(super) block_ids: Option<Vec<u64>>,
    /// Chained hash of the blocks of the prompt that it is wanted for.
    pub(super) hash: u64,
    /// Whether it is waited for; if not, it must be there.
    pub(super) waits: bool,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Shelf {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    slots: HashMap<String, Slot>,
    /// Blocks handed out.
    blocks: u64,
}

#[derive(Debug, Default)]
struct Slot {
    ready: Option<Ready>,
    /// How many wait for it.
    wanted: u32,
}

impl Default for Shelf {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl Shelf {
    /// Numbers for so many blocks, not given before.
    pub(super) fn block_ids(&self, count: usize) -> Vec<u64> {
        let mut state = self.state.lock();
        let first = state.blocks + 1;
        state.blocks += count as u64;
        (first..=state.blocks).collect()
    }

    /// Lays something ready.
    pub(super) fn put(&self, key: &str, ready: Ready) {
        let mut state = self.state.lock();
        state.slots.entry(key.to_owned()).or_default().ready = Some(ready);
        drop(state);
        self.changed.send_replace(());
    }

    /// Takes what is wanted off the shelf.
    ///
    /// # Errors
    /// It is not there, not in time, or something else is.
    pub(super) async fn take(&self, want: &Want, patience: Duration) -> Result<Ready, String> {
        let _wanting = want.waits.then(|| Wanting::new(self, &want.key));
        let patience = if want.waits { patience } else { Duration::ZERO };
        let look = || {
            let mut state = self.state.lock();
            let slot = state.slots.get_mut(&want.key)?;
            let checked = want.check(slot.ready.as_ref()?);
            Some(checked.map(|()| slot.ready.take()))
        };
        match self.wait(look, patience).await {
            Some(Ok(Some(ready))) => {
                self.drop_slot(&want.key);
                Ok(ready)
            }
            Some(Err(error)) => Err(error),
            _ => Err(format!("no KV for {}", want.key)),
        }
    }

    /// Waits until somebody wants what will lie here.
    ///
    /// # Errors
    /// Nobody does in time.
    pub(super) async fn asked(&self, key: &str, patience: Duration) -> Result<(), String> {
        let look = || {
            let state = self.state.lock();
            (state.slots.get(key)?.wanted > 0).then_some(())
        };
        let asked = self.wait(look, patience).await;
        asked.ok_or_else(|| format!("nobody wants KV for {key}"))
    }

    /// Waits until nothing lies here; false if something still does after `patience`.
    pub(super) async fn gone(&self, key: &str, patience: Duration) -> bool {
        let look = || {
            let state = self.state.lock();
            let ready = state.slots.get(key).and_then(|slot| slot.ready.as_ref());
            ready.is_none().then_some(())
        };
        self.wait(look, patience).await.is_some()
    }

    /// Forgets a slot.
    pub(super) fn drop_slot(&self, key: &str) {
        self.state.lock().slots.remove(key);
        self.changed.send_replace(());
    }

    /// Looks after every change, and at last when the time is up.
    async fn wait<T>(&self, look: impl Fn() -> Option<T>, patience: Duration) -> Option<T> {
        let deadline = Instant::now() + patience;
        let mut changes = self.changed.subscribe();
        loop {
            if let Some(found) = look() {
                return Some(found);
            }
            // The sender lives in self: this ends with a change or with the time.
            if timeout_at(deadline, changes.changed()).await.is_err() {
                return look();
            }
        }
    }
}

impl Want {
    fn check(&self, ready: &Ready) -> Result<(), String> {
        let Ready { parcel, block_ids } = ready;
        if self
            .engine_id
            .as_ref()
            .is_some_and(|id| *id != parcel.engine_id)
        {
            return Err(format!("{}: not of engine {:?}", self.key, self.engine_id));
        }
        if self.block_ids.as_ref().is_some_and(|ids| ids != block_ids) {
            return Err(format!("{}: not in blocks {:?}", self.key, self.block_ids));
        }
        if self.hash != parcel.hash {
            return Err(format!("{}: KV of another prompt", self.key));
        }
        Ok(())
    }
}

/// As long as it lives, somebody waits for a slot.
struct Wanting<'a> {
    shelf: &'a Shelf,
    key: &'a str,
}

impl<'a> Wanting<'a> {
    fn new(shelf: &'a Shelf, key: &'a str) -> Self {
        let mut state = shelf.state.lock();
        state.slots.entry(key.to_owned()).or_default().wanted += 1;
        drop(state);
        shelf.changed.send_replace(());
        Self { shelf, key }
    }
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        let mut state = self.shelf.state.lock();
        if let Some(slot) = state.slots.get_mut(self.key) {
            slot.wanted = slot.wanted.saturating_sub(1);
            if slot.wanted == 0 && slot.ready.is_none() {
                state.slots.remove(self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);
    const NONE: Duration = Duration::ZERO;

    fn ready(hash: u64) -> Ready {
        let parcel = Parcel {
            engine: "p".to_owned(),
            engine_id: "p-1".to_owned(),
            hash,
            tokens: 32,
        };
        Ready {
            parcel,
            block_ids: vec![1, 2],
        }
    }

    fn want(waits: bool) -> Want {
        Want {
            key: "k".to_owned(),
            engine_id: Some("p-1".to_owned()),
            block_ids: Some(vec![1, 2]),
            hash: 7,
            waits,
        }
    }

    #[tokio::test]
    async fn either_side_may_come_first() {
        let shelf = Shelf::default();
        let early = want(true);
        let (taken, ()) = tokio::join!(shelf.take(&early, PATIENCE), async {
            shelf.asked("k", PATIENCE).await.unwrap();
            shelf.put("k", ready(7));
        });
        assert_eq!(taken.unwrap(), ready(7));
        shelf.put("k", ready(7));
        assert!(!shelf.gone("k", NONE).await);
        assert_eq!(shelf.take(&want(false), NONE).await.unwrap(), ready(7));
        assert!(shelf.gone("k", NONE).await);
        assert!(shelf.state.lock().slots.is_empty());
    }

    #[tokio::test]
    async fn only_what_was_wanted_is_taken() {
        let shelf = Shelf::default();
        assert!(shelf.take(&want(true), NONE).await.is_err());
        assert!(shelf.asked("k", NONE).await.is_err());
        assert!(shelf.state.lock().slots.is_empty());
        shelf.put("k", ready(8));
        assert!(shelf.take(&want(false), NONE).await.is_err());
        shelf.put("k", ready(7));
        let wrong = [
            Want {
                engine_id: Some("p-2".to_owned()),
                ..want(false)
            },
            Want {
                block_ids: Some(vec![2, 1]),
                ..want(false)
            },
            Want {
                key: "l".to_owned(),
                ..want(false)
            },
        ];
        for wrong in wrong {
            assert!(shelf.take(&wrong, NONE).await.is_err(), "{wrong:?}");
        }
        assert!(shelf.take(&want(false), NONE).await.is_ok());
    }
}
