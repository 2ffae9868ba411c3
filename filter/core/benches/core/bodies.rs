//! Request bodies of each kind and size, and routers to ask about them.

use std::sync::Arc;

use warmpath_core::router::{PromptFacts, Router};
use warmpath_core::scan::{Api, RequestScan, ScanPlan};
use warmpath_core::store::MemoryStore;
use warmpath_core::{Config, hash};

/// Bytes that the filter reads from Envoy at a time.
pub const SLICE_BYTES: usize = 64 * 1024;

/// What a prompt consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text without an escape.
    Plain,
    /// Text with a JSON escape in 70 bytes.
    Escaped,
    /// Token ids.
    Tokens,
    /// An image, with a short question.
    Base64,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 4] = [Kind::Plain, Kind::Escaped, Kind::Tokens, Kind::Base64];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Plain => "plain",
            Kind::Escaped => "escaped",
            Kind::Tokens => "tokens",
            Kind::Base64 => "base64",
        }
    }

    /// The API that such bodies are sent to.
    pub fn api(self) -> Api {
        match self {
            Kind::Tokens => Api::Completions,
            _ => Api::ChatCompletions,
        }
    }

    /// A body of about `bytes` bytes.
    pub fn body(self, bytes: usize) -> Vec<u8> {
        let text = match self {
            Kind::Plain => chat(&repeat(
                "please explain how the engine keeps this prompt ",
                bytes,
            )),
            Kind::Escaped => chat(&repeat(
                "please explain how the engine keeps this prompt, as I said before:\\n",
                bytes,
            )),
            Kind::Base64 => {
                let image = repeat("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ", bytes);
                format!(
                    r#"{{"model":"m","messages":[{{"role":"user","content":[{{"type":"text","text":"What is this?"}},{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{image}"}}}}]}}]}}"#
                )
            }
            Kind::Tokens => {
                let mut ids = String::with_capacity(bytes + 8);
                let mut id = 1_u64;
                while ids.len() < bytes {
                    id = id * 48_271 % 0x7fff_ffff;
                    ids.push_str(&(id % 128_000).to_string());
                    ids.push(',');
                }
                format!(r#"{{"model":"m","prompt":[{ids}1]}}"#)
            }
        };
        text.into_bytes()
    }
}

fn repeat(text: &str, bytes: usize) -> String {
    text.repeat(bytes.div_ceil(text.len()))
}

fn chat(content: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{content}"}}]}}"#)
}

/// Reads a whole body as the filter does.
pub fn read(plan: &ScanPlan, api: Api, body: &[u8]) -> RequestScan {
    let mut scan = RequestScan::new(api);
    let read = body
        .chunks(SLICE_BYTES)
        .try_for_each(|slice| scan.feed(plan, slice))
        .and_then(|()| scan.finish());
    assert!(read.is_ok(), "the body is JSON");
    scan
}

/// What a decision is told of a prompt of `bytes` bytes; every seed makes another prompt.
pub fn facts(scan: &RequestScan, seed: u64) -> PromptFacts {
    let seed = hash::mix(seed, 1);
    let prompt = scan.prompt();
    PromptFacts {
        chain: prompt.chain(seed).collect(),
        bytes: prompt.bytes(),
        conversation: prompt.conversation(seed),
        streamed: true,
        output_tokens: None,
        told: None,
    }
}

/// A router with one pool of `endpoints` endpoints.
pub fn router(endpoints: usize, policy: &str) -> Router<Arc<MemoryStore>> {
    worker(endpoints, policy, &Arc::default())
}

/// One of several routers over one store.
pub fn worker(
    endpoints: usize,
    policy: &str,
    store: &Arc<MemoryStore>,
) -> Router<Arc<MemoryStore>> {
    let list: Vec<String> = (0..endpoints)
        .map(|n| format!(r#"{{"address": "10.1.{}.{}:8000"}}"#, n / 250, n % 250 + 1))
        .collect();
    let json = format!(
        r#"{{"pools": [{{"name": "p", "models": ["m"], "policy": {policy},
            "endpoints": {{"static": [{}]}}}}]}}"#,
        list.join(",")
    );
    match Config::parse(json.as_bytes()) {
        Ok(config) => Router::new(config, Arc::clone(store), 1_000_000),
        Err(errors) => unreachable!("the config is valid: {errors:?}"),
    }
}
