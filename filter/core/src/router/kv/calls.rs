//! The calls of a lookup, and what their answers say.
//!
//! An engine is asked by the cluster of scrapes, which leads to exactly that engine; the service by its
//! own. What does not read as it should is a failure of who gave it, and nothing more.

use super::super::{Router, Target};
use crate::call::{CallBody, HttpCall, Method, Purpose, Reply, RequestCall};
use crate::config::IndexKind;
use crate::kv::Outcome;
use crate::splice::Change;
use crate::store::Store;
use crate::wire::kv_index::{self, Overlap};
use crate::wire::tokens;
use std::net::IpAddr;

/// Longest answer of an index service: 4096 overlaps with long names.
const MOST_BYTES: usize = 1 << 20;

/// The body of a request as an engine can read it, and who sends it.
pub(crate) struct Sender {
    /// What the engine knows otherwise than the client wrote it.
    pub(crate) changes: Vec<Change>,
    /// What calls have in common with the request.
    pub(crate) headers: Option<Vec<(String, String)>>,
}

impl<S: Store> Router<S> {
    /// The question to an engine which tokens a prompt has.
    pub(crate) fn kv_tokens_call(
        &self,
        engine: usize,
        sender: Sender,
        timeout_ms: u64,
    ) -> Option<RequestCall> {
        let scrape = self.config.scrape.as_ref()?;
        let address = self.address(engine).to_owned();
        let mut headers = sender.headers.unwrap_or_else(json_header);
        headers.push((scrape.header.clone(), address.clone()));
        Some(RequestCall {
            purpose: Purpose::Tokens,
            http: HttpCall {
                cluster: scrape.polling.cluster.clone(),
                method: Method::Post,
                path: "/tokenize".to_owned(),
                authority: address,
                headers,
                body: CallBody::Request(sender.changes),
                timeout_ms,
                max_bytes: tokens::MAX_BYTES,
            },
        })
    }

    /// The question to the service who holds these tokens, of the model that a client named so.
    pub(crate) fn kv_overlaps_call(
        &self,
        target: &Target,
        model: &str,
        tokens: &[u32],
        timeout_ms: u64,
    ) -> Option<RequestCall> {
        let index = &self.kv_options(target.pool)?.index;
        let (path, body) = match &index.kind {
            IndexKind::Lmcache => ("/lookup", kv_index::lmcache_lookup(tokens)),
            IndexKind::Dynamo { model: own } => {
                let model = own.as_deref().or(target.rename.as_deref()).unwrap_or(model);
                ("/query", kv_index::dynamo_query(tokens, model))
            }
        };
        Some(index_call(&index.cluster, path, Some(body), timeout_ms))
    }

    /// The question to the service where its instances are, if some of these are not known; with the
    /// address that it is about, if it is about one.
    pub(crate) fn kv_names_call(
        &mut self,
        target: &Target,
        overlaps: &[Overlap],
        timeout_ms: u64,
        now_us: u64,
    ) -> Option<(Option<IpAddr>, RequestCall)> {
        let directory = &mut self.kv.get_mut(target.pool)?.as_mut()?.directory;
        let unknown = |overlap: &Overlap| directory.find(&overlap.instance).is_empty();
        if !overlaps.iter().any(unknown) {
            return None;
        }
        let index = &self.config.pools.get(target.pool)?.policy.kv_aware()?.index;
        match index.kind {
            IndexKind::Lmcache => {
                let ip = directory.unasked(now_us)?;
                let body = Some(kv_index::lmcache_instance(ip));
                let call = index_call(&index.cluster, "/query_instance", body, timeout_ms);
                Some((Some(ip), call))
            }
            IndexKind::Dynamo { .. } => directory.ask_all(now_us).then(|| {
                (
                    None,
                    index_call(&index.cluster, "/workers", None, timeout_ms),
                )
            }),
        }
    }

    /// Reads an engine's answer.
    pub(crate) fn kv_tokens(&mut self, pool: usize, reply: Reply, now_us: u64) -> Option<Vec<u32>> {
        let read = match reply {
            Reply::Answer { status: 200, body } => tokens::parse(body).ok(),
            _ => None,
        };
        // What the engine refuses is this request's fault, unless it has no such path.
        let refused =
            |status: u16| (400..500).contains(&status) && ![401, 403, 404, 405].contains(&status);
        let is_fault = !matches!(reply, Reply::Answer { status, .. } if refused(status));
        if let Some(kv) = self.kv_pool(pool)
            && read.is_none()
            && is_fault
        {
            kv.rest.failed(now_us);
        }
        read.filter(|tokens| !tokens.is_empty())
    }

    /// Reads the service's answer to a lookup.
    pub(crate) fn kv_overlaps(
        &mut self,
        pool: usize,
        reply: Reply,
        now_us: u64,
    ) -> Result<Vec<Overlap>, Outcome> {
        let lmcache = self
            .kv_options(pool)
            .is_some_and(|options| options.index.kind == IndexKind::Lmcache);
        let read = match reply {
            Reply::Answer { status: 200, body } => match lmcache {
                true => kv_index::lmcache_overlaps(body),
                false => kv_index::dynamo_overlaps(body),
            }
            .map_err(|_| Outcome::Unreadable),
            Reply::Answer { .. } => Err(Outcome::Refused),
            Reply::TooLong => Err(Outcome::Unreadable),
            _ => Err(Outcome::Unanswered),
        };
        if let Some(kv) = self.kv_pool(pool) {
            match &read {
                Ok(_) => kv.rest.succeeded(),
                Err(_) => kv.rest.failed(now_us),
            }
        }
        read
    }

    /// Reads the service's answer where its instances are; `asked` is the address that it was about.
    pub(crate) fn kv_names(
        &mut self,
        pool: usize,
        asked: Option<IpAddr>,
        reply: Reply,
        now_us: u64,
    ) {
        let Reply::Answer { status: 200, body } = reply else {
            return;
        };
        let names = match asked {
            Some(ip) => {
                let name = kv_index::lmcache_name(body).ok().flatten();
                name.map(|name| (name, ip)).into_iter().collect()
            }
            None => kv_index::dynamo_workers(body).unwrap_or_default(),
        };
        if let Some(kv) = self.kv_pool(pool) {
            for (name, ip) in names {
                kv.directory.learn(name, ip, now_us);
            }
        }
    }
}

fn index_call(cluster: &str, path: &str, body: Option<Vec<u8>>, timeout_ms: u64) -> RequestCall {
    let (method, headers) = match body {
        Some(_) => (Method::Post, json_header()),
        None => (Method::Get, Vec::new()),
    };
    RequestCall {
        purpose: Purpose::Overlaps,
        http: HttpCall {
            cluster: cluster.to_owned(),
            method,
            path: path.to_owned(),
            authority: cluster.to_owned(),
            headers,
            body: body.map_or(CallBody::Empty, CallBody::Bytes),
            timeout_ms,
            max_bytes: MOST_BYTES,
        },
    }
}

fn json_header() -> Vec<(String, String)> {
    vec![("content-type".to_owned(), "application/json".to_owned())]
}
