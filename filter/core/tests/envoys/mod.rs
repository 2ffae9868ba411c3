//! Several Envoys with a store between them, each of two workers, in time that a test lets pass.

#![allow(
    dead_code,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a panic is a failed test, and each has its own use for it"
)]

#[path = "../prompts/mod.rs"]
mod prompts;

use prompts::prompt;
use std::collections::VecDeque;
use std::iter::repeat_n;
use warmpath_core::call::{CallBody, HttpCall, Reply};
use warmpath_core::router::{Ask, Charge, Outcome, Router};
use warmpath_core::scrape::Call;
use warmpath_core::store::MemoryStore;
use warmpath_core::sync::{Tally, View};
use warmpath_core::{Config, Decision, Reason};

pub const KEY: &str = "the key of the fleet under test";
pub const MS: u64 = 1000;
pub const TICK_US: u64 = 25 * MS;

pub fn config(engines: &[usize], key: &str) -> Config {
    let list: Vec<String> = engines
        .iter()
        .map(|n| format!(r#"{{"address": "10.2.0.{n}:80"}}"#))
        .collect();
    let endpoints = format!(r#"{{"static": [{}]}}"#, list.join(","));
    parse(&endpoints, r#""discovery": "off","#, key)
}

/// The endpoints are what Envoy tells.
pub fn discovering() -> Config {
    parse(r#""envoy""#, "", KEY)
}

fn parse(endpoints: &str, discovery: &str, key: &str) -> Config {
    let json = format!(
        r#"{{"pools": [{{"name": "p", "endpoints": {endpoints},
            "policy": {{"prefix": {{"kv_tokens": 400000}}}}}}],
            {discovery} "scrape": "off",
            "sync": {{"redis": {{"cluster": "webdis", "key": "{key}"}}}}}}"#
    );
    Config::parse(json.as_bytes()).expect("a valid config")
}

/// Redis behind Webdis, as far as it is used.
#[derive(Default)]
pub struct Redis {
    pub last: u64,
    pub streams: [VecDeque<(u64, Vec<u8>)>; 2],
    pub fault: Option<Fault>,
    pub last_answer: Option<Vec<u8>>,
    pub calls: usize,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Fault {
    Dead,
    Full,
    Loading,
    /// Each call gets the answer to the one before it.
    Mixed,
    Rubbish,
    Unavailable,
    /// Of no call anything is heard again, not even its end.
    Lost,
    /// Each call is done, and nobody hears of it.
    Silent,
    /// No answer of more bytes arrives in time.
    Slow(usize),
}

impl Redis {
    fn answer(&mut self, call: &HttpCall) -> Result<(u16, Vec<u8>), Reply<'static>> {
        self.calls += 1;
        match self.fault {
            None | Some(Fault::Lost) => Ok((200, self.run(call))),
            Some(Fault::Dead) => Err(Reply::Failed),
            Some(Fault::Full) => Ok((200, self.run(call))),
            Some(Fault::Loading) => Ok((200, b"-LOADING not yet\r\n".to_vec())),
            Some(Fault::Mixed) => {
                let mine = self.run(call);
                Ok((200, self.last_answer.replace(mine).unwrap_or_default()))
            }
            Some(Fault::Rubbish) => Ok((200, b"*9\r\n$5\r\nabc".to_vec())),
            Some(Fault::Unavailable) => Ok((503, Vec::new())),
            Some(Fault::Silent) => {
                self.run(call);
                Err(Reply::TimedOut)
            }
            Some(Fault::Slow(most_bytes)) => {
                let answer = self.run(call);
                let arrives = answer.len() <= most_bytes;
                arrives.then_some((200, answer)).ok_or(Reply::TimedOut)
            }
        }
    }

    fn run(&mut self, call: &HttpCall) -> Vec<u8> {
        let path = call.path.strip_suffix(".raw").expect("raw");
        let parts: Vec<&str> = path.split('/').skip(6).collect();
        let number = |text: &str| text.parse::<u64>().expect("a number");
        let id = |text: &str| number(text.split_once('-').expect("an id").0);
        let name = |id: u64| format!("{id}-0").into_bytes();
        if let [word, bytes, before, _most] = parts[..] {
            let newest = |at: usize| self.streams[at].back().map_or(0, |(id, _)| *id);
            let before = match before {
                "%2B" => u64::MAX,
                entry => id(entry.strip_prefix("%28").expect("exclusive")),
            };
            let found: Vec<_> = self.streams[0]
                .iter()
                .rev()
                .filter(|it| it.0 < before)
                .take(3)
                .take_while(room(number(bytes), false))
                .collect();
            let oldest = found.last().map(|(id, _)| format!("({id}-0").into_bytes());
            let mut strings = vec![
                word.as_bytes().to_vec(),
                name(newest(0)),
                name(newest(1)),
                oldest.unwrap_or_default(),
            ];
            strings.extend(found.into_iter().map(|(_, bytes)| bytes.clone()));
            return array(&strings);
        }
        let [word, news, now, bytes, entries, stream] = parts[..] else {
            panic!("{parts:?}")
        };
        if news.is_empty() || now.is_empty() {
            return b"-ERR Invalid stream ID specified as stream command argument\r\n".to_vec();
        }
        let most_bytes = number(bytes);
        let mut strings: Vec<_> = [word, news, now, ""]
            .map(|it| it.as_bytes().to_vec())
            .into();
        for (at, after) in [(1, id(now)), (0, id(news))] {
            let read: usize = strings.iter().skip(4).map(Vec::len).sum();
            let new = self.streams[at].iter().filter(|it| it.0 > after);
            let left = most_bytes.saturating_sub(read as u64);
            for (id, bytes) in new.take_while(room(left, strings.len() > 4)) {
                strings[at + 1] = name(*id);
                strings.push(bytes.clone());
            }
        }
        if self.fault == Some(Fault::Full) {
            strings[3] = b"OOM command not allowed".to_vec();
        } else if let CallBody::Bytes(bytes) = &call.body {
            self.last += 1;
            let stream = &mut self.streams[number(stream) as usize - 1];
            stream.push_back((self.last, bytes.clone()));
            while stream.len() as u64 > number(entries) {
                stream.pop_front();
            }
        }
        array(&strings)
    }

    pub fn append(&mut self, bytes: Vec<u8>) {
        self.last += 1;
        self.streams[0].push_back((self.last, bytes));
    }
}

/// Lets entries through as long as there is room, but the first one at least.
fn room(mut left: u64, mut any: bool) -> impl FnMut(&&(u64, Vec<u8>)) -> bool {
    move |(_, bytes)| {
        let fits = bytes.len() as u64 <= left;
        left = left.saturating_sub(bytes.len() as u64);
        fits || !std::mem::replace(&mut any, true)
    }
}

fn array(strings: &[Vec<u8>]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", strings.len()).into_bytes();
    for string in strings {
        out.extend_from_slice(format!("${}\r\n", string.len()).as_bytes());
        out.extend_from_slice(string);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// Envoys of two workers each; the first of them holds the lease.
pub struct Fleet {
    pub envoys: Vec<Vec<Router<&'static MemoryStore>>>,
    pub redis: Redis,
    pub now_us: u64,
    /// An Envoy that does nothing for now.
    pub halted: Option<usize>,
    /// Engines that Envoys tell of.
    pub engines: Vec<usize>,
}

impl Fleet {
    pub fn new(envoys: usize) -> Self {
        let mut fleet = Fleet {
            envoys: Vec::new(),
            redis: Redis::default(),
            now_us: 1_000_000_000_000,
            halted: None,
            engines: Vec::new(),
        };
        for _ in 0..envoys {
            fleet.start(config(&[1, 2, 3, 4], KEY));
        }
        fleet.pass(3000);
        fleet
    }

    pub fn start(&mut self, config: Config) -> usize {
        let store: &'static MemoryStore = Box::leak(Box::new(MemoryStore::new()));
        // Envoys are not born in the same microsecond.
        self.now_us += 7;
        let worker = || Router::new(config.clone(), store, self.now_us);
        let mut workers = vec![worker(), worker()];
        workers.iter_mut().for_each(|it| it.attend(self.now_us));
        self.envoys.push(workers);
        self.envoys.len() - 1
    }

    pub fn pass(&mut self, ms: u64) {
        let end_us = self.now_us + ms * MS;
        while self.now_us < end_us {
            self.now_us += TICK_US;
            let envoys = self.envoys.iter_mut().enumerate();
            let running = envoys.filter(|(at, _)| Some(*at) != self.halted);
            for worker in running.flat_map(|(_, workers)| workers) {
                worker.tick(self.now_us);
                for (call, http) in worker.calls(self.now_us) {
                    let answer = match call {
                        Call::Peers => self.redis.answer(&http),
                        Call::Endpoints => Ok((200, clusters(&self.engines))),
                        other => panic!("{other:?}"),
                    };
                    if self.redis.fault == Some(Fault::Lost) {
                        continue;
                    }
                    let reply = match &answer {
                        Ok((status, body)) => Reply::Answer {
                            status: *status,
                            body,
                        },
                        Err(reply) => *reply,
                    };
                    worker.call_ended(&call, reply, self.now_us);
                }
            }
        }
    }

    /// The worker that speaks for an Envoy.
    pub fn speaker(&self, envoy: usize) -> &Router<&'static MemoryStore> {
        let mut workers = self.envoys[envoy].iter();
        let speaker = workers.find(|worker| worker.sync_tally().is_some());
        speaker.expect("a worker that speaks")
    }

    pub fn view(&self, envoy: usize) -> View {
        self.speaker(envoy).view()
    }

    pub fn tally(&self, envoy: usize) -> Tally {
        self.speaker(envoy).sync_tally().expect("it speaks").clone()
    }

    /// What a worker of an Envoy knows to be in flight.
    pub fn in_flight(&mut self, envoy: usize, worker: usize) -> u32 {
        let now_us = self.now_us;
        let router = &mut self.envoys[envoy][worker];
        router.attend(now_us);
        (0..4).map(|position| router.in_flight(position)).sum()
    }

    pub fn send(&mut self, envoy: usize, worker: usize, own: u64) -> (Decision, Charge) {
        self.now_us += 1;
        let router = &mut self.envoys[envoy][worker];
        let target = router.only_target().cloned().expect("one pool");
        let ask = Ask {
            target: &target,
            key: None,
            prompt: Some(prompt(own, repeat_n(own, 60))),
            priority: Default::default(),
        };
        router.decide(ask, self.now_us).expect("endpoints")
    }

    pub fn serve(&mut self, envoy: usize, worker: usize, own: u64) -> (String, Reason) {
        self.serve_long(envoy, worker, own, 5)
    }

    /// The same with an answer of so many tokens.
    pub fn serve_long(
        &mut self,
        envoy: usize,
        worker: usize,
        own: u64,
        output_tokens: u32,
    ) -> (String, Reason) {
        let (decision, mut charge) = self.send(envoy, worker, own);
        let router = &mut self.envoys[envoy][worker];
        router.first_token(&mut charge, self.now_us);
        router.end(charge, Outcome::Served { output_tokens }, self.now_us);
        (
            router.address(decision.ranked[0]).to_owned(),
            decision.reason,
        )
    }
}

/// What Envoy tells of the cluster `p`.
fn clusters(engines: &[usize]) -> Vec<u8> {
    let host = |n: &usize| {
        format!(
            r#"{{"address": {{"socket_address": {{"address": "10.2.0.{n}", "port_value": 80}}}}}}"#
        )
    };
    let hosts: Vec<String> = engines.iter().map(host).collect();
    let hosts = hosts.join(",");
    format!(r#"{{"cluster_statuses": [{{"name": "p", "host_statuses": [{hosts}]}}]}}"#).into()
}
