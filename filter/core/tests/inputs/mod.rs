//! What must hold of any bytes where a configuration, Envoy's answer or a header is expected.

use warmpath_core::Config;
use warmpath_core::config::MAX_ENDPOINTS;
use warmpath_core::router::Router;
use warmpath_core::store::MemoryStore;
use warmpath_core::wire::{
    MAX_NAME_BYTES, WireError, clusters, kv_index, models, retry_after, tokens,
};

/// Some time in 2026.
const NOW_S: u64 = 1_790_000_000;

/// Of one answer.
const MOST_CLUSTERS: usize = 256;
const MOST_HOSTS: usize = 4096;

/// A configuration is refused with reasons, or a router can be made of it.
pub fn config(json: &[u8]) {
    match Config::parse(json) {
        Err(errors) => {
            assert!(!errors.is_empty(), "refused without a reason");
            assert!(errors.iter().all(|error| !error.path.is_empty()));
        }
        // A table of any allowed size is made at once: hundreds of megabytes for some.
        Ok(config) if config.prefix_table_bytes() > 1 << 20 => {}
        Ok(config) => {
            let endpoints = config.pools.iter().map(|pool| pool.endpoints.len());
            assert!(endpoints.sum::<usize>() <= MAX_ENDPOINTS);
            let store = MemoryStore::new();
            let mut router = Router::new(config, &store, NOW_S * 1_000_000);
            router.attend(NOW_S * 1_000_000);
            router.tick(NOW_S * 1_000_000 + 500_000);
        }
    }
}

/// Envoy's answer about its clusters is refused, or says no more than it may.
pub fn clusters(body: &[u8]) {
    let Ok(found) = clusters::parse(body) else {
        return;
    };
    let hosts: usize = found.iter().map(|cluster| cluster.hosts.len()).sum();
    let text = String::from_utf8_lossy(body);
    assert!(
        hosts <= text.matches("port_value").count(),
        "a host from nowhere"
    );
    assert_eq!(clusters::parse(body).ok(), Some(found), "another answer");
}

/// An engine's answer about its models is refused, or names no more and nothing longer than it may.
pub fn models(body: &[u8]) {
    let Ok(found) = models::parse(body) else {
        return;
    };
    assert!(found.len() <= models::MAX_MODELS);
    let parents = found.iter().filter_map(|model| model.parent.as_ref());
    let mut names = found.iter().map(|model| &model.id).chain(parents);
    assert!(names.all(|name| (1..=MAX_NAME_BYTES).contains(&name.len())));
    assert_eq!(models::parse(body).ok(), Some(found), "another answer");
}

/// What an engine says of tokens, or an index service of who holds them, is refused, or says no more and
/// nothing longer than it may.
pub fn kv_index(body: &[u8]) {
    if let Ok(found) = tokens::parse(body) {
        assert!(found.len() <= tokens::MAX_TOKENS);
        let asked = kv_index::dynamo_query(&found, "m");
        assert!(asked.ends_with(b",\"model_name\":\"m\"}"));
        assert_eq!(tokens::parse(&kv_index::lmcache_lookup(&found)), Ok(found));
    }
    type Parse = fn(&[u8]) -> Result<Vec<kv_index::Overlap>, WireError>;
    for parse in [
        kv_index::lmcache_overlaps as Parse,
        kv_index::dynamo_overlaps,
    ] {
        let Ok(found) = parse(body) else { continue };
        assert!(found.len() <= kv_index::MAX_OVERLAPS);
        let mut names = found.iter().map(|overlap| overlap.instance.len());
        assert!(names.all(|length| (1..=MAX_NAME_BYTES).contains(&length)));
        assert_eq!(parse(body).ok(), Some(found), "another answer");
    }
    if let Ok(Some(name)) = kv_index::lmcache_name(body) {
        assert!((1..=MAX_NAME_BYTES).contains(&name.len()));
    }
    let workers = kv_index::dynamo_workers(body).unwrap_or_default();
    assert!(workers.len() <= kv_index::MAX_OVERLAPS);
    assert!(workers.iter().all(|(name, _)| !name.is_empty()));
}

/// A wait is none, or one that is believed; later it is no longer.
pub fn retry_after(value: &[u8]) {
    let Some(seconds) = retry_after::parse(value, NOW_S) else {
        return;
    };
    assert!(seconds <= retry_after::MAX_SECONDS);
    let later = retry_after::parse(value, NOW_S + 60);
    assert!(later.is_some_and(|later| later <= seconds), "{value:?}");
}
