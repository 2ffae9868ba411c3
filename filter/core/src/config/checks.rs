//! What no pool can see alone: that names are unique, sums bounded, and that there is somebody to ask.
//! O(pools² · models).

use super::reader::Reader;
use super::{MAX_ENDPOINTS, PoolConfig};
use crate::json::Value;

/// Checks what no pool can see alone: names that must be unique, and sums that are bounded.
pub(super) fn check_pools(reader: &mut Reader, pools: &[PoolConfig]) {
    let mut any_model = None;
    let mut endpoints = 0;
    for (index, pool) in pools.iter().enumerate() {
        let path = format!("config.pools[{index}]");
        let earlier = || pools.iter().take(index);
        endpoints += pool.listed_ranks();
        check_ranks(reader, &path, pool, earlier());
        if earlier().any(|other| other.name == pool.name) {
            reader.error(
                &format!("{path}.name"),
                &pool.name.clone().into(),
                "a name no other pool has",
            );
        }
        for name in pool.served_names() {
            if earlier().any(|other| other.served_names().contains(&name)) {
                let want = "a model or alias that no other pool serves";
                reader.error(&format!("{path}.models"), &name.into(), want);
            }
        }
        if pool.served_names().is_empty() && !pool.prefills {
            if let Some(first) = any_model {
                let want = format!("`models`: pool `{first}` already takes every model");
                reader.error(&format!("{path}.models"), &Value::Null, &want);
            }
            any_model = Some(&pool.name);
        }
    }
    if endpoints > MAX_ENDPOINTS {
        let want = format!("at most {MAX_ENDPOINTS} endpoints in all, each rank counted");
        reader.error("config.pools", &endpoints.into(), &want);
    }
}

/// An engine has as many ranks in each pool that lists it.
fn check_ranks<'a>(
    reader: &mut Reader,
    path: &str,
    pool: &PoolConfig,
    earlier: impl Iterator<Item = &'a PoolConfig> + Clone,
) {
    for (index, one) in pool.endpoints.iter().enumerate() {
        let mut others = earlier.clone().flat_map(|other| {
            let same = other.endpoints.iter();
            let same = same.filter(|it| it.address == one.address);
            same.map(|it| other.ranks_of(it))
        });
        let ranks = pool.ranks_of(one);
        if others.any(|other| other != ranks) {
            let path = format!("{path}.endpoints.static[{index}].data_parallel_size");
            let want = "the same as in the other pool that lists this address";
            reader.error(&path, &ranks.map_or(Value::Null, Into::into), want);
        }
    }
}

/// A pool can ask only where somebody answers.
pub(super) fn check_sources(
    reader: &mut Reader,
    pools: &[PoolConfig],
    discovery: bool,
    scrape: bool,
) {
    for (index, pool) in pools.iter().enumerate() {
        let path = format!("config.pools[{index}]");
        if pool.discovered && !discovery {
            let want = "`static`, because `discovery` is off";
            reader.error(&format!("{path}.endpoints"), &"envoy".into(), want);
        }
        if pool.policy.kv_aware().is_some() && !scrape {
            let want = "another policy, because `scrape` is off: engines are asked for tokens by its cluster";
            reader.error(&format!("{path}.policy"), &"kv_aware".into(), want);
        }
        if pool.discover_models && !scrape {
            let want = "false, because `scrape` is off";
            reader.error(&format!("{path}.discover_models"), &true.into(), want);
        }
    }
}
