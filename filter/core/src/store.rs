//! The one door to shared state: get and compare-and-set by key.
//!
//! The contract is Envoy's shared data, traps included: keys cannot be listed or removed, an empty
//! value means "nothing here", and a compare-and-set on an *absent* key succeeds whatever version is
//! named. [`ABSENT`] turns that last trap into an atomic create-if-absent: it is a version that no
//! existing value carries, so only the first of two creators wins.

use std::collections::HashMap;
use std::sync::Mutex;

/// The version to name when a key was read as absent.
pub const ABSENT: u32 = u32::MAX;

/// A value with the version to name in the next compare-and-set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versioned {
    /// The value; empty when the key is absent.
    pub bytes: Vec<u8>,
    /// The version of the value, [`ABSENT`] when there is none.
    pub version: u32,
}

/// State shared by all workers of one process.
pub trait Store {
    /// Reads a key.
    fn get(&self, key: &str) -> Versioned;
    /// Writes a key whatever it holds. For keys with one writer only.
    fn set(&self, key: &str, bytes: &[u8]);
    /// Writes a key if it still has `version`; false when somebody else was faster.
    fn compare_and_set(&self, key: &str, bytes: &[u8], version: u32) -> bool;
    /// Hears that a change was given up after [`UPDATE_TRIES`].
    fn gave_up(&self) {}
}

impl<S: Store + ?Sized> Store for &S {
    fn get(&self, key: &str) -> Versioned {
        (**self).get(key)
    }
    fn set(&self, key: &str, bytes: &[u8]) {
        (**self).set(key, bytes);
    }
    fn compare_and_set(&self, key: &str, bytes: &[u8], version: u32) -> bool {
        (**self).compare_and_set(key, bytes, version)
    }
    fn gave_up(&self) {
        (**self).gave_up();
    }
}

impl<S: Store + ?Sized> Store for std::sync::Arc<S> {
    fn get(&self, key: &str) -> Versioned {
        (**self).get(key)
    }
    fn set(&self, key: &str, bytes: &[u8]) {
        (**self).set(key, bytes);
    }
    fn compare_and_set(&self, key: &str, bytes: &[u8], version: u32) -> bool {
        (**self).compare_and_set(key, bytes, version)
    }
    fn gave_up(&self) {
        (**self).gave_up();
    }
}

/// How often a read-modify-write is tried before it is given up.
///
/// A retry costs about 2 us; more than a handful in a row means the key is written faster than we
/// can follow, and every caller has a safe way to go on without the write.
pub const UPDATE_TRIES: u32 = 8;

/// Changes a value in place: `change` gets the current bytes and says whether to write them back.
///
/// Returns `None` when all [`UPDATE_TRIES`] lost the race, else what the winning `change` returned.
pub fn update<S: Store, T>(
    store: &S,
    key: &str,
    mut change: impl FnMut(&mut Vec<u8>) -> (bool, T),
) -> Option<T> {
    for _ in 0..UPDATE_TRIES {
        let mut value = store.get(key);
        let (write, result) = change(&mut value.bytes);
        if !write || store.compare_and_set(key, &value.bytes, value.version) {
            return Some(result);
        }
    }
    store.gave_up();
    None
}

/// [`Store`] in this process's memory, for tests and simulation; safe to share between threads.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    values: HashMap<String, (Vec<u8>, u32)>,
    last_version: u32,
}

impl Inner {
    fn write(&mut self, key: &str, bytes: &[u8]) {
        self.last_version = self.last_version.wrapping_add(1);
        let version = self.last_version;
        match self.values.get_mut(key) {
            Some(slot) => {
                slot.0.clear();
                slot.0.extend_from_slice(bytes);
                slot.1 = version;
            }
            None => {
                self.values
                    .insert(key.to_owned(), (bytes.to_vec(), version));
            }
        }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of keys ever written, for tests of bounds.
    pub fn keys(&self) -> usize {
        self.lock().values.len()
    }

    /// Bytes held in values, for tests of bounds.
    pub fn value_bytes(&self) -> usize {
        self.lock().values.values().map(|value| value.0.len()).sum()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A poisoned lock only says that another test thread panicked; the map itself is whole.
        self.inner
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Store for MemoryStore {
    fn get(&self, key: &str) -> Versioned {
        match self.lock().values.get(key) {
            Some((bytes, version)) => Versioned {
                bytes: bytes.clone(),
                version: *version,
            },
            None => Versioned {
                bytes: Vec::new(),
                version: ABSENT,
            },
        }
    }

    fn set(&self, key: &str, bytes: &[u8]) {
        self.lock().write(key, bytes);
    }

    fn compare_and_set(&self, key: &str, bytes: &[u8], version: u32) -> bool {
        let mut inner = self.lock();
        let current = inner.values.get(key).map(|value| value.1);
        if current.is_some_and(|current| current != version) {
            return false;
        }
        inner.write(key, bytes);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_creator_wins() {
        let store = MemoryStore::new();
        let first = store.get("k");
        let second = store.get("k");
        assert!(store.compare_and_set("k", b"a", first.version));
        assert!(!store.compare_and_set("k", b"b", second.version));
        assert_eq!(store.get("k").bytes, b"a");
    }

    #[test]
    fn update_retries_until_nobody_interferes() {
        let store = MemoryStore::new();
        let mut disturb = 3;
        let result = update(&store, "n", |bytes| {
            if disturb > 0 {
                disturb -= 1;
                store.set("n", &[disturb]);
            }
            bytes.push(9);
            (true, bytes.len())
        });
        assert_eq!(result, Some(2));
        assert_eq!(store.get("n").bytes, vec![0, 9]);
    }

    #[test]
    fn update_gives_up_after_its_tries() {
        let store = MemoryStore::new();
        let mut calls = 0;
        let result = update(&store, "n", |bytes| {
            calls += 1;
            store.set("n", &[1]);
            bytes.clear();
            (true, ())
        });
        assert_eq!((result, calls), (None, UPDATE_TRIES));
    }
}
