//! The fleet in bytes.

use super::{
    Cluster, Engine, Fleet, Host, HostHealth, MAX_CLUSTERS, MAX_LORAS, MAX_MODELS, MAX_NAMES,
    Metadata,
};
use crate::address;
use crate::codec::{Bytes, put_address, put_text};
use crate::config::{MAX_ENDPOINTS, MAX_LABELS};
use crate::hash::Table;
use crate::sorted::Sorted;

const VERSION: u8 = 3;
const MAX_RANKS: usize = address::MAX_RANKS as usize;
/// Stands for "not told" where every number is legal.
const NOTHING_U16: u16 = u16::MAX;
const NOTHING_U32: u32 = u32::MAX;
const NOTHING_U64: u64 = u64::MAX;

pub(super) fn encode(fleet: &Fleet) -> Vec<u8> {
    let mut out = vec![VERSION];
    put_count(&mut out, fleet.clusters.len(), MAX_CLUSTERS);
    for (name, cluster) in fleet.clusters.iter().take(MAX_CLUSTERS) {
        put_text(&mut out, name);
        put_text(&mut out, cluster.service.as_deref().unwrap_or_default());
        out.extend_from_slice(&cluster.told_ms.to_le_bytes());
        put_count(&mut out, cluster.hosts.len(), MAX_ENDPOINTS);
        for (address, host) in cluster.hosts.iter().take(MAX_ENDPOINTS) {
            put_address(&mut out, address);
            out.push(host.health as u8);
            out.extend_from_slice(&host.weight.to_le_bytes());
            out.extend_from_slice(&host.since_s.to_le_bytes());
        }
        put_count(&mut out, cluster.metadata.len(), MAX_ENDPOINTS);
        for (address, metadata) in cluster.metadata.iter().take(MAX_ENDPOINTS) {
            put_address(&mut out, address);
            put_metadata(&mut out, metadata);
        }
    }
    put_count(&mut out, fleet.seen_models.len(), MAX_NAMES);
    let mut numbers: Table<&str, u16> = Table::default();
    for (number, name) in fleet.seen_models.iter().take(MAX_NAMES).enumerate() {
        put_text(&mut out, name);
        numbers.insert(name, number as u16);
    }
    put_count(&mut out, fleet.engines.len(), MAX_ENDPOINTS);
    for (address, engine) in fleet.engines.iter().take(MAX_ENDPOINTS) {
        put_address(&mut out, address);
        put_engine(&mut out, engine, &numbers);
        put_count(&mut out, engine.ranks.len(), MAX_RANKS);
        for rank in engine.ranks.iter().take(MAX_RANKS) {
            put_engine(&mut out, rank, &numbers);
        }
    }
    out
}

fn put_metadata(out: &mut Vec<u8>, metadata: &Metadata) {
    put_text(out, metadata.role.as_deref().unwrap_or_default());
    let weight = metadata.weight.unwrap_or(f32::NAN);
    out.extend_from_slice(&weight.to_bits().to_le_bytes());
    put_count(out, metadata.labels.len(), MAX_LABELS);
    for (name, value) in metadata.labels.iter().take(MAX_LABELS) {
        put_text(out, name);
        put_text(out, value);
    }
    put_count(out, metadata.models.len(), MAX_MODELS);
    for model in metadata.models.iter().take(MAX_MODELS) {
        put_text(out, model);
    }
}

fn put_count(out: &mut Vec<u8>, count: usize, most: usize) {
    out.extend_from_slice(&(count.min(most) as u16).to_le_bytes());
}

fn put_engine(out: &mut Vec<u8>, engine: &Engine, numbers: &Table<&str, u16>) {
    let usage = engine.kv_usage.unwrap_or(f32::NAN);
    out.extend_from_slice(&engine.told_ms.to_le_bytes());
    out.extend_from_slice(&engine.failures.to_le_bytes());
    out.extend_from_slice(&engine.running.unwrap_or(NOTHING_U32).to_le_bytes());
    out.extend_from_slice(&engine.waiting.unwrap_or(NOTHING_U32).to_le_bytes());
    out.extend_from_slice(&engine.foreign.to_le_bytes());
    out.extend_from_slice(&usage.to_bits().to_le_bytes());
    for figure in [
        engine.kv_capacity_tokens,
        engine.queried_tokens,
        engine.hit_tokens,
        engine.finished,
        engine.generated_tokens,
        Some(engine.moved_ms),
        engine.started_s,
    ] {
        out.extend_from_slice(&figure.unwrap_or(NOTHING_U64).to_le_bytes());
    }
    out.push(u8::from(engine.sleeping));
    out.extend_from_slice(&engine.max_loras.unwrap_or(NOTHING_U16).to_le_bytes());
    put_count(out, engine.loras.len(), MAX_LORAS);
    for (name, loaded) in engine.loras.iter().take(MAX_LORAS) {
        out.extend_from_slice(&name.to_le_bytes());
        out.push(u8::from(*loaded));
    }
    match &engine.models {
        None => out.extend_from_slice(&NOTHING_U16.to_le_bytes()),
        Some(models) => {
            let known = models.iter().filter_map(|name| numbers.get(name.as_str()));
            let known: Vec<u16> = known.copied().take(MAX_MODELS).collect();
            put_count(out, known.len(), MAX_MODELS);
            for number in known {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
    }
}

pub(super) fn decode(bytes: &[u8]) -> Option<Fleet> {
    let (&VERSION, rest) = bytes.split_first()? else {
        return None;
    };
    let mut bytes = Bytes(rest);
    let mut clusters = Sorted::default();
    for _ in 0..count(&mut bytes, MAX_CLUSTERS)? {
        let name = bytes.text()?.to_owned();
        let service = some_text(&mut bytes)?;
        let told_ms = bytes.u64()?;
        let mut hosts = Sorted::default();
        for _ in 0..count(&mut bytes, MAX_ENDPOINTS)? {
            hosts.insert(bytes.address()?, host(&mut bytes)?);
        }
        let mut told = Vec::new();
        for _ in 0..count(&mut bytes, MAX_ENDPOINTS)? {
            told.push((bytes.address()?, metadata(&mut bytes)?));
        }
        let cluster = Cluster {
            service,
            told_ms,
            hosts,
            metadata: told,
        };
        clusters.insert(name, cluster);
    }
    let mut seen_models = Vec::new();
    for _ in 0..count(&mut bytes, MAX_NAMES)? {
        seen_models.push(bytes.text()?.to_owned());
    }
    let mut engines = Sorted::default();
    for _ in 0..count(&mut bytes, MAX_ENDPOINTS)? {
        let address = bytes.address()?;
        let mut found = engine(&mut bytes, &seen_models)?;
        for _ in 0..count(&mut bytes, MAX_RANKS)? {
            found.ranks.push(engine(&mut bytes, &seen_models)?);
        }
        engines.insert(address, found);
    }
    bytes.0.is_empty().then_some(Fleet {
        clusters,
        engines,
        seen_models,
    })
}

fn count(bytes: &mut Bytes, most: usize) -> Option<usize> {
    Some(usize::from(bytes.u16()?)).filter(|count| *count <= most)
}

/// A text that stands for nothing if it is empty.
fn some_text(bytes: &mut Bytes) -> Option<Option<String>> {
    let text = bytes.text()?;
    Some((!text.is_empty()).then(|| text.to_owned()))
}

fn metadata(bytes: &mut Bytes) -> Option<Metadata> {
    let role = some_text(bytes)?;
    let weight = f32::from_bits(bytes.u32()?);
    let mut labels = Vec::new();
    for _ in 0..count(bytes, MAX_LABELS)? {
        labels.push((bytes.text()?.to_owned(), bytes.text()?.to_owned()));
    }
    let mut models = Vec::new();
    for _ in 0..count(bytes, MAX_MODELS)? {
        models.push(bytes.text()?.to_owned());
    }
    Some(Metadata {
        role,
        labels,
        models,
        weight: Some(weight).filter(|weight| weight.is_finite() && *weight > 0.0),
    })
}

fn host(bytes: &mut Bytes) -> Option<Host> {
    Some(Host {
        health: match bytes.u8()? {
            0 => HostHealth::Healthy,
            1 => HostHealth::Unhealthy,
            2 => HostHealth::Ejected,
            3 => HostHealth::Draining,
            _ => return None,
        },
        weight: bytes.u16()?.max(1),
        since_s: bytes.u32()?,
    })
}

fn engine(bytes: &mut Bytes, names: &[String]) -> Option<Engine> {
    let told_ms = bytes.u64()?;
    let failures = bytes.u16()?;
    let running = bytes.u32()?;
    let waiting = bytes.u32()?;
    let foreign = bytes.u32()?;
    let usage = f32::from_bits(bytes.u32()?);
    let mut figure = || Some(bytes.u64()?).map(|figure| (figure != NOTHING_U64).then_some(figure));
    let (kv_capacity_tokens, queried_tokens) = (figure()?, figure()?);
    let (hit_tokens, finished) = (figure()?, figure()?);
    let (generated_tokens, moved_ms) = (figure()?, figure()?.unwrap_or_default());
    let started_s = figure()?;
    let sleeping = bytes.u8()? != 0;
    let max_loras = Some(bytes.u16()?).filter(|most| *most != NOTHING_U16);
    let mut loras = Vec::new();
    for _ in 0..count(bytes, MAX_LORAS)? {
        loras.push((bytes.u64()?, bytes.u8()? != 0));
    }
    let models = match bytes.u16()? {
        NOTHING_U16 => None,
        models if usize::from(models) <= MAX_MODELS => {
            let mut found = Vec::new();
            for _ in 0..models {
                found.push(names.get(usize::from(bytes.u16()?))?.clone());
            }
            Some(found)
        }
        _ => return None,
    };
    Some(Engine {
        told_ms,
        failures,
        running: (running != NOTHING_U32).then_some(running),
        waiting: (waiting != NOTHING_U32).then_some(waiting),
        foreign,
        kv_usage: usage.is_finite().then(|| usage.clamp(0.0, 1.0)),
        kv_capacity_tokens,
        queried_tokens,
        hit_tokens,
        finished,
        generated_tokens,
        started_s,
        moved_ms,
        sleeping,
        max_loras,
        loras,
        models,
        ranks: Vec::new(),
    })
}
