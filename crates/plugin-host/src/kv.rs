//! State of a plugin that outlives its instances: bounded, with a time to live.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::bindings::piko::plugin::kv::KvError;

/// Keys of one plugin at most.
const MAX_KEYS: usize = 65_536;
/// Keys and values together, bytes.
const MAX_BYTES: usize = 16 << 20;
/// Longest key of an entry, bytes.
const MAX_KEY: usize = 1 << 10;
/// Largest value of an entry, bytes.
const MAX_VALUE: usize = 64 << 10;
/// What an entry costs beside its key and value, bytes: about.
const OVERHEAD: usize = 64;

/// The keys of one plugin, by its name: a new version finds what the one before it wrote.
#[derive(Default)]
pub(crate) struct Kv {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<String, Entry>,
    bytes: usize,
    /// Insertions until expired entries are looked for again.
    until_sweep: usize,
}

struct Entry {
    value: Value,
    expires: Option<Instant>,
}

enum Value {
    Bytes(Vec<u8>),
    Counter(i64),
}

impl Kv {
    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        let inner = self.inner.lock();
        let entry = inner.entries.get(key).filter(|entry| entry.lives())?;
        Some(match &entry.value {
            Value::Bytes(bytes) => bytes.clone(),
            Value::Counter(n) => n.to_string().into_bytes(),
        })
    }

    pub(crate) fn set(&self, key: String, value: Vec<u8>, ttl_ms: Option<u64>) -> Result<(), KvError> {
        if key.len() > MAX_KEY || value.len() > MAX_VALUE {
            return Err(KvError::TooLarge);
        }
        self.inner.lock().insert(key, Entry { value: Value::Bytes(value), expires: expiry(ttl_ms) })
    }

    pub(crate) fn delete(&self, key: &str) {
        self.inner.lock().remove(key);
    }

    pub(crate) fn increment(&self, key: String, delta: i64, ttl_ms: Option<u64>) -> Result<i64, KvError> {
        if key.len() > MAX_KEY {
            return Err(KvError::TooLarge);
        }
        let mut inner = self.inner.lock();
        match inner.entries.get_mut(&key).filter(|entry| entry.lives()) {
            Some(Entry { value: Value::Counter(n), .. }) => {
                // The time to live stays: a counter of one minute ends with it, however often it grows.
                *n = n.saturating_add(delta);
                Ok(*n)
            }
            Some(_) => Err(KvError::NotACounter),
            None => {
                let entry = Entry { value: Value::Counter(delta), expires: expiry(ttl_ms) };
                inner.insert(key, entry).map(|()| delta)
            }
        }
    }
}

impl Inner {
    /// A value that does not fit leaves the old one as it was.
    fn insert(&mut self, key: String, entry: Entry) -> Result<(), KvError> {
        self.until_sweep = self.until_sweep.saturating_sub(1);
        let size = size(&key, &entry);
        if self.until_sweep == 0 {
            self.sweep();
        }
        let (old_count, old_size) = match self.entries.get(&key) {
            Some(old) => (1, self::size(&key, old)),
            None => (0, 0),
        };
        if self.entries.len() - old_count >= MAX_KEYS || self.bytes - old_size + size > MAX_BYTES {
            return Err(KvError::Full);
        }
        self.bytes = self.bytes - old_size + size;
        self.entries.insert(key, entry);
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        if let Some(old) = self.entries.remove(key) {
            self.bytes -= size(key, &old);
        }
    }

    /// Looks at every entry, so no more often than once for every so many insertions.
    fn sweep(&mut self) {
        self.entries.retain(|_, entry| entry.lives());
        self.bytes = self.entries.iter().map(|(key, entry)| size(key, entry)).sum();
        self.until_sweep = 1024 + self.entries.len() / 8;
    }
}

impl Entry {
    fn lives(&self) -> bool {
        self.expires.is_none_or(|at| Instant::now() < at)
    }
}

fn expiry(ttl_ms: Option<u64>) -> Option<Instant> {
    // A time too far away to be written is never.
    ttl_ms.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)))
}

fn size(key: &str, entry: &Entry) -> usize {
    let value = match &entry.value {
        Value::Bytes(bytes) => bytes.len(),
        Value::Counter(_) => size_of::<i64>(),
    };
    OVERHEAD + key.len() + value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn counters_keep_the_time_to_live_they_began_with() {
        let kv = Kv::default();
        assert_eq!(kv.increment("a".into(), 2, Some(1000)), Ok(2));
        tokio::time::advance(Duration::from_millis(900)).await;
        assert_eq!(kv.increment("a".into(), 3, Some(1000)), Ok(5));
        assert_eq!(kv.get("a").as_deref(), Some(&b"5"[..]));
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(kv.get("a"), None);
        assert_eq!(kv.increment("a".into(), 1, None), Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_store_refuses_and_expired_entries_make_room() {
        let kv = Kv::default();
        for n in 0..MAX_KEYS {
            kv.increment(n.to_string(), 1, Some(1000)).expect("room");
        }
        assert_eq!(kv.increment("one more".into(), 1, None), Err(KvError::Full));
        assert_eq!(kv.increment("7".into(), 1, None), Ok(2), "what is there still counts");
        tokio::time::advance(Duration::from_secs(2)).await;
        let room = (0..MAX_KEYS).any(|_| kv.increment("one more".into(), 1, None).is_ok());
        assert!(room, "expired entries are found in bounded time");
    }

    #[test]
    fn sizes_are_bounded_and_accounted() {
        let kv = Kv::default();
        assert_eq!(kv.set("k".into(), vec![0; MAX_VALUE + 1], None), Err(KvError::TooLarge));
        for _ in 0..1000 {
            kv.set("k".into(), vec![0; MAX_VALUE], None).expect("replaces");
        }
        assert_eq!(kv.increment("k".into(), 1, None), Err(KvError::NotACounter));
        kv.delete("k");
        assert_eq!((kv.get("k"), kv.inner.lock().bytes), (None, 0));
    }
}
