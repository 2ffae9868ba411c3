//! Asking an engine for a prompt, as each connector wants it.

use super::super::{Exchange, Step, Wait};
use super::{Handoff, Stage};
use crate::call::{CallBody, HttpCall, Method, Purpose, RequestCall};
use crate::config::Connector;
use crate::decision::Decision;
use crate::disaggregation::{self as protocol, CallEnd};
use crate::router::Router;
use crate::scan::Api;
use crate::splice::Change;
use crate::store::Store;
use std::net::{IpAddr, SocketAddr};

/// More rooms than an engine takes answers of one request.
const MOST_ROOMS: u32 = 1024;
/// How long a bootstrap server may take to tell the names of its engines.
const NAMES_TIMEOUT_MS: u64 = 1000;

impl Exchange {
    /// Asks the engine whose turn it is.
    pub(super) fn ask_engine<S: Store>(
        &mut self,
        router: &mut Router<S>,
        mut handoff: Box<Handoff>,
        now_us: u64,
    ) -> Step {
        let engine = handoff.engine();
        let Some(at) = router.socket(engine) else {
            return self.without(router, handoff, CallEnd::NoRoom, now_us);
        };
        handoff.started_us = now_us;
        let mut changes = handoff.changes.clone();
        let http = |body| self.prefill_call(router, &handoff, at, body);
        match handoff.options.connector {
            Connector::Nixl => {
                changes.extend(protocol::prefill_only());
                changes.push(protocol::nixl_prefill());
                let call = http(changes);
                self.hold_for(handoff, Stage::Prefill, Purpose::Prefill, call)
            }
            Connector::P2pNccl { port } => {
                changes.extend(protocol::prefill_only());
                let mut call = http(changes);
                let id = self.p2p_id(router, &mut handoff, port);
                call.headers.retain(|(name, _)| name != "x-request-id");
                call.headers.push(("x-request-id".to_owned(), id));
                self.hold_for(handoff, Stage::Prefill, Purpose::Prefill, call)
            }
            Connector::Mooncake { bootstrap_port } => {
                let (host, address) = bootstrap(router, engine, at, bootstrap_port);
                let Some(name) = router.engine_name(engine, now_us) else {
                    let call = router.call_to(address, "/query".to_owned(), NAMES_TIMEOUT_MS);
                    return self.hold_for(handoff, Stage::Names, Purpose::EngineIds, call);
                };
                let decode = protocol::mooncake_decode(handoff.unique, name, &host);
                changes.extend(protocol::prefill_only());
                changes.push(protocol::mooncake_prefill(handoff.unique));
                let call = http(changes);
                handoff.changes.push(decode);
                self.send_on(handoff, engine, call)
            }
            Connector::Sglang { bootstrap_port } => {
                let port = label(router, engine, "bootstrap_port").unwrap_or(bootstrap_port);
                let host = router.label(engine, "bootstrap_host").map(str::to_owned);
                let host = host.unwrap_or_else(|| at.ip().to_string());
                let rooms: Vec<u64> = (0..self.rooms()).map(|_| router.draw()).collect();
                let both = protocol::sglang(&host, port, &rooms);
                changes.extend(both.iter().cloned());
                let call = self.prefill_call(router, &handoff, at, changes);
                handoff.changes.extend(both);
                self.send_on(handoff, engine, call)
            }
        }
    }

    /// The request id of both requests, which the one that was held gets with its decision.
    fn p2p_id<S: Store>(&self, router: &Router<S>, handoff: &mut Handoff, port: u16) -> String {
        let address = |position: usize| {
            let label = router.label(position, "kv_addr").map(str::to_owned);
            let own = || Some(SocketAddr::new(router.socket(position)?.ip(), port).to_string());
            label.or_else(own).unwrap_or_default()
        };
        let decision = handoff.decision.as_ref();
        let decode = decision.and_then(|decision| decision.ranked.first());
        let decode = decode.map_or_else(String::new, |decode| address(*decode));
        let id = protocol::p2p_request_id(&address(handoff.engine()), &decode, handoff.unique);
        if let Some(decision) = handoff.decision.as_mut() {
            decision.headers.retain(|(name, _)| *name != "x-request-id");
            decision.headers.push(("x-request-id", id.clone()));
        }
        id
    }

    /// How many rooms a request of SGLang needs.
    fn rooms(&self) -> u32 {
        let shape = self.scan.as_ref().map(|scan| scan.shape());
        let count = shape.map_or(1, |shape| match self.api {
            Some(Api::ChatCompletions) => shape.choices,
            _ => shape.prompts,
        });
        match count {
            0..=MOST_ROOMS => count.max(1),
            _ => 1,
        }
    }

    fn prefill_call<S: Store>(
        &self,
        router: &Router<S>,
        handoff: &Handoff,
        at: SocketAddr,
        changes: Vec<Change>,
    ) -> HttpCall {
        let head = self.head.as_deref().cloned().unwrap_or_default();
        let mut call = router.call_to(at, head.path, handoff.options.timeout_ms);
        call.method = Method::Post;
        call.body = CallBody::Request(changes);
        call.headers.extend(head.headers);
        let rank = router.rank(handoff.engine());
        let rank = match handoff.options.connector {
            // Its rooms say the rank.
            Connector::Sglang { .. } => None,
            // The name that the other engine is told is that of one rank.
            Connector::Mooncake { .. } => Some(rank.unwrap_or_default()),
            Connector::Nixl | Connector::P2pNccl { .. } => rank,
        };
        if let Some(rank) = rank {
            let name = crate::address::RANK_HEADER.to_owned();
            call.headers.push((name, rank.to_string()));
        }
        call
    }

    fn hold_for(
        &mut self,
        mut handoff: Box<Handoff>,
        stage: Stage,
        purpose: Purpose,
        http: HttpCall,
    ) -> Step {
        handoff.stage = stage;
        self.wait = Wait::Handoff(handoff);
        Step::Call(Box::new(RequestCall { http, purpose }))
    }

    /// Sends the request on with the prefill beside it.
    fn send_on(&mut self, mut handoff: Box<Handoff>, engine: usize, http: HttpCall) -> Step {
        let Some(mut decision) = handoff.decision.take() else {
            return Step::Hold;
        };
        decision.changes = handoff.changes.clone();
        keep_to_one(&mut decision);
        let purpose = Purpose::Prefill;
        decision.beside = Some(Box::new(RequestCall { http, purpose }));
        self.prefill_engine = Some(engine);
        self.scan = None;
        handoff.stage = Stage::Beside;
        self.wait = Wait::Handoff(handoff);
        Step::Route(decision)
    }
}

/// The prompt is at one engine's disposal, so no other may be tried.
pub(super) fn keep_to_one(decision: &mut Decision) {
    decision.ranked.truncate(1);
    decision
        .headers
        .push(("x-envoy-max-retries", "0".to_owned()));
}

/// A label that is a number.
fn label<S: Store>(router: &Router<S>, position: usize, name: &str) -> Option<u16> {
    router.label(position, name)?.parse().ok()
}

/// The bootstrap server of an engine: as the other engine is told, and as it is asked from here.
fn bootstrap<S: Store>(
    router: &Router<S>,
    position: usize,
    at: SocketAddr,
    port: u16,
) -> (String, SocketAddr) {
    let port = label(router, position, "bootstrap_port").unwrap_or(port);
    let host = router.label(position, "bootstrap_host");
    let ip = host.and_then(|host| host.parse::<IpAddr>().ok());
    let address = SocketAddr::new(ip.unwrap_or(at.ip()), port);
    match host {
        Some(host) if ip.is_none() => (format!("{host}:{port}"), address),
        _ => (address.to_string(), address),
    }
}
