//! What changes in an engine's prefix cache, published as vLLM 0.32 does: over ZMQ, in msgpack.
//!
//! One idea: the step driver turns what the model's cache noted into events, numbers the batch and
//! puts it in a bounded queue; one task encodes and sends. When the queue is full a batch is lost, and
//! its number with it, so that a subscriber sees the gap. A batch is three frames: topic, number as
//! eight bytes (big-endian), and the array `[time, [events], rank]` with each event a map.
//! Cost: O(tokens of the blocks that changed); nothing when it is not configured.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use zeromq::{PubSocket, Socket, SocketSend, ZmqMessage};

use crate::model::CacheChange;

/// Batches that may wait to be sent.
const QUEUE_BATCHES: usize = 100_000;
/// Where vLLM says that its blocks are, whatever they are in.
const MEDIUM: &str = "GPU";

/// Whom an engine tells of its prefix cache.
#[derive(Debug, Clone)]
pub struct KvEventsConfig {
    /// Where subscribers connect; port 0 takes a free one. `None`: nobody can.
    pub listen: Option<SocketAddr>,
    /// First frame of each batch.
    pub topic: String,
    /// Called with each batch, in order, before a token of that step is out.
    pub tap: Option<Tap>,
}

impl Default for KvEventsConfig {
    fn default() -> Self {
        Self {
            listen: Some((Ipv4Addr::LOCALHOST, 0).into()),
            topic: String::new(),
            tap: None,
        }
    }
}

/// A listener in this process.
#[derive(Clone)]
pub struct Tap(Arc<dyn Fn(&KvBatch) + Send + Sync>);

impl Tap {
    /// Calls `hear`, which must not block.
    pub fn new(hear: impl Fn(&KvBatch) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hear))
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tap")
    }
}

/// The events of one step: seconds of the Unix clock, events, rank.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KvBatch(pub f64, pub Vec<KvEvent>, pub u32);

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type")]
pub enum KvEvent {
    /// Blocks that follow each other can be hit from now on.
    BlockStored {
        /// Their names.
        block_hashes: Vec<u64>,
        /// The block before the first.
        parent_block_hash: Option<u64>,
        /// The tokens of all of them.
        token_ids: Vec<u32>,
        /// Tokens of one.
        block_size: u32,
        /// No adapter has a number here.
        lora_id: Option<u32>,
        /// Where they are.
        medium: &'static str,
        /// Nor a name.
        lora_name: Option<String>,
        /// What else tells each apart: the salt, for the first block of a prompt.
        extra_keys: Vec<Option<Vec<String>>>,
        /// Group of the KV cache.
        group_idx: u32,
        /// Its kind.
        kv_cache_spec_kind: &'static str,
    },
    /// Blocks can no longer be hit.
    BlockRemoved {
        /// Their names.
        block_hashes: Vec<u64>,
        /// Where they were.
        medium: &'static str,
        /// Group of the KV cache.
        group_idx: u32,
    },
    /// No block can be hit.
    AllBlocksCleared {},
}

/// A prompt whose blocks may enter the cache.
#[derive(Debug)]
pub(super) struct Source {
    /// Names of its blocks.
    pub(super) blocks: Vec<u64>,
    /// Its tokens.
    pub(super) ids: Vec<u32>,
    /// What separates its cache.
    pub(super) salt: Option<String>,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct KvEvents {
    block_tokens: u32,
    rank: u32,
    topic: String,
    endpoint: Option<String>,
    tap: Option<Tap>,
    queue: Option<mpsc::Sender<(u64, KvBatch)>>,
    next: AtomicU64,
}

impl KvEvents {
    /// Starts to publish for one rank, on the current tokio runtime.
    ///
    /// # Errors
    /// The address is not free.
    pub(super) async fn start(
        config: &KvEventsConfig,
        block_tokens: u32,
        rank: u32,
    ) -> anyhow::Result<Self> {
        let mut events = Self {
            block_tokens,
            rank,
            topic: config.topic.clone(),
            endpoint: None,
            tap: config.tap.clone(),
            queue: None,
            next: AtomicU64::new(0),
        };
        if let Some(mut address) = config.listen {
            if address.port() > 0 {
                // Each rank has a port of its own, as with vLLM.
                address.set_port(address.port() + u16::try_from(rank)?);
            }
            let mut socket = PubSocket::new();
            let bound = socket.bind(&format!("tcp://{address}")).await;
            let bound = bound.with_context(|| format!("cannot publish KV events on {address}"))?;
            events.endpoint = Some(bound.to_string());
            let (queue, batches) = mpsc::channel(QUEUE_BATCHES);
            events.queue = Some(queue);
            tokio::spawn(send(socket, events.topic.clone(), batches));
        }
        Ok(events)
    }

    /// Where subscribers connect, as `tcp://ip:port`.
    pub(super) fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref()
    }

    /// What `/kv_event_sources` says of this rank.
    pub(super) fn source(&self) -> Value {
        json!({
            "enable_kv_cache_events": true,
            "publisher": if self.endpoint.is_some() { "zmq" } else { "null" },
            "endpoint": self.endpoint,
            "replay_endpoint": null,
            "buffer_steps": 10_000,
            "hwm": QUEUE_BATCHES,
            "max_queue_size": QUEUE_BATCHES,
            "topic": self.topic,
        })
    }

    /// Publishes what a step changed; `source` finds the prompt of a request.
    pub(super) fn publish(
        &self,
        changes: &[CacheChange],
        source: impl Fn(u64) -> Option<Arc<Source>>,
    ) {
        let events = self.events(changes, source);
        if events.is_empty() {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let batch = KvBatch(now.unwrap_or_default().as_secs_f64(), events, self.rank);
        if let Some(tap) = &self.tap {
            (tap.0)(&batch);
        }
        if let Some(queue) = &self.queue {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            // A full queue loses the batch; what subscribers miss is its number.
            let _ = queue.try_send((number, batch));
        }
    }

    /// Neighbouring blocks of one prompt make one event.
    fn events(
        &self,
        changes: &[CacheChange],
        source: impl Fn(u64) -> Option<Arc<Source>>,
    ) -> Vec<KvEvent> {
        let mut events = Vec::new();
        let mut rest = changes;
        while let Some((change, after)) = rest.split_first() {
            rest = after;
            match *change {
                CacheChange::Stored { request, block } => {
                    let follow = rest.iter().zip(block + 1..).take_while(|(next, block)| {
                        let block = *block;
                        **next == CacheChange::Stored { request, block }
                    });
                    let more = follow.count();
                    rest = rest.get(more..).unwrap_or_default();
                    if let Some(source) = source(request) {
                        events.push(self.stored(&source, block, 1 + more));
                    }
                }
                CacheChange::Removed { hash } => events.push(KvEvent::BlockRemoved {
                    block_hashes: vec![hash],
                    medium: MEDIUM,
                    group_idx: 0,
                }),
                CacheChange::Cleared => events.push(KvEvent::AllBlocksCleared {}),
            }
        }
        events
    }

    fn stored(&self, source: &Source, first: usize, count: usize) -> KvEvent {
        let size = self.block_tokens as usize;
        let blocks = source.blocks.get(first..first + count);
        let ids = source.ids.get(first * size..(first + count) * size);
        let keys = |block| (block == 0).then(|| source.salt.clone().map(|salt| vec![salt]));
        KvEvent::BlockStored {
            block_hashes: blocks.unwrap_or_default().to_vec(),
            parent_block_hash: first
                .checked_sub(1)
                .and_then(|before| source.blocks.get(before).copied()),
            token_ids: ids.unwrap_or_default().to_vec(),
            block_size: self.block_tokens,
            lora_id: None,
            medium: MEDIUM,
            lora_name: None,
            extra_keys: (first..first + count)
                .map(|it| keys(it).flatten())
                .collect(),
            group_idx: 0,
            kv_cache_spec_kind: "full_attention",
        }
    }
}

/// The three frames of a batch.
fn frames(topic: &str, number: u64, batch: &KvBatch) -> anyhow::Result<ZmqMessage> {
    let mut payload = Vec::new();
    batch.serialize(&mut rmp_serde::Serializer::new(&mut payload).with_struct_map())?;
    let mut message = ZmqMessage::from(topic.as_bytes().to_vec());
    message.push_back(number.to_be_bytes().to_vec().into());
    message.push_back(payload.into());
    Ok(message)
}

async fn send(mut socket: PubSocket, topic: String, mut batches: mpsc::Receiver<(u64, KvBatch)>) {
    while let Some((number, batch)) = batches.recv().await {
        let sent = match frames(&topic, number, &batch) {
            Ok(message) => socket.send(message).await.map_err(anyhow::Error::from),
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            eprintln!("engine: KV events {number}: {error:#}");
        }
    }
    socket.close().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(hashes: Vec<u64>, parent: Option<u64>, ids: Vec<u32>) -> KvEvent {
        let extra_keys = vec![None; hashes.len()];
        KvEvent::BlockStored {
            block_hashes: hashes,
            parent_block_hash: parent,
            token_ids: ids,
            block_size: 32,
            lora_id: None,
            medium: MEDIUM,
            lora_name: None,
            extra_keys,
            group_idx: 0,
            kv_cache_spec_kind: "full_attention",
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The start of a batch that a vLLM 0.32 has published.
    #[test]
    fn a_batch_has_the_bytes_of_vllm() {
        let hashes = vec![10_184_037_287_841_480_884];
        let parent = Some(18_415_542_187_793_643_644);
        let batch = KvBatch(
            1795230179.3190653,
            vec![stored(hashes, parent, vec![573])],
            0,
        );
        let message = frames("kv@llama", 1, &batch).unwrap();
        let frames: Vec<&[u8]> = message.iter().map(|frame| frame.as_ref()).collect();
        let [topic, number, payload] = frames[..] else {
            panic!("{} frames", frames.len());
        };
        assert_eq!(
            (topic, number),
            (&b"kv@llama"[..], &[0, 0, 0, 0, 0, 0, 0, 1][..])
        );
        let captured = "93cb41dac04278d46b91918ba474797065ab426c6f636b53746f726564\
            ac626c6f636b5f68617368657391cf8d54f7f4b91fc0b4b1706172656e745f626c6f63";
        assert_eq!(&hex(payload)[..captured.len()], captured);
        let end = [&b"\xb2kv_cache_spec_kind"[..], b"\xaefull_attention\0"].concat();
        assert!(payload.ends_with(&end), "{}", hex(payload));
    }

    #[test]
    fn other_events_are_maps_too() {
        let removed = KvEvent::BlockRemoved {
            block_hashes: vec![7],
            medium: MEDIUM,
            group_idx: 0,
        };
        let text = |event: &KvEvent| serde_json::to_value(event).unwrap();
        assert_eq!(
            text(&removed),
            json!({"type": "BlockRemoved", "block_hashes": [7], "medium": "GPU", "group_idx": 0})
        );
        let cleared = text(&KvEvent::AllBlocksCleared {});
        assert_eq!(cleared, json!({"type": "AllBlocksCleared"}));
    }
}
