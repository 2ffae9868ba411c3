//! One worker thread's part in one config: the router, and the requests it has under way.

use crate::calls::Outstanding;
use crate::host::{self, RequestHeaders, SharedData};
use crate::metrics::{EnvoyStats, Metrics};
use crate::rewrite::rewrite;
use crate::steering::Steering;
use log::{Level, debug, log_enabled, warn};
use proxy_wasm::types::Action;
use warmpath_core::address::RANK_HEADER;
use warmpath_core::config::SteerBy;
use warmpath_core::disaggregation::Note;
use warmpath_core::feedback::Finding;
use warmpath_core::hash::Table;
use warmpath_core::router::{Outcome, Response};
use warmpath_core::scrape::Call;
use warmpath_core::splice::Change;
use warmpath_core::status::{Reply as Page, Reporter};
use warmpath_core::sync::View;
use warmpath_core::telemetry::{Endpoint, Span};
use warmpath_core::wire::orca;
use warmpath_core::{Answer, Config, Decision, Exchange, Fallback, Head, Router, Step};

/// Bytes read from a body at a time: a slice costs its size.
const READ_BYTES: usize = 64 * 1024;
/// Bytes read first where the prompt is of no interest: the model mostly stands in them.
const FIRST_READ_BYTES: usize = 4 * 1024;
/// A held request whose body was never shown is let go after this long.
const STRANDED_US: u64 = 1_000_000;
/// That many in a row, and nothing more is held for a while.
const STRANDED_TO_STOP: u32 = 3;
/// How long nothing is held then, before it is tried again.
const STOP_HOLDING_US: u64 = 30_000_000;

/// What happens to a stream next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its body is awaited.
    Held,
    /// The reply to a call is awaited.
    Calling,
    /// It was sent on.
    Sent,
    /// It was answered here.
    Answered,
}

/// A request, from its headers to its end.
#[derive(Debug)]
pub struct Request {
    pub exchange: Exchange,
    pub phase: Phase,
    steering: Steering,
    held_us: u64,
    read: usize,
    /// What Envoy holds of the body while the request is not sent.
    pub held_bytes: usize,
    /// Whether the client has sent all of it.
    pub arrived: bool,
    /// The call of which the reply is awaited.
    pub call: Option<Outstanding>,
    /// Whether the response has begun.
    pub responded: bool,
    /// Whether the response's status says that an engine took the request.
    accepted: bool,
    /// Parts of the response's body seen; with a stream about one for each token.
    parts: u32,
    /// Whether the response's body came to its end.
    complete: bool,
    /// For the metrics, once it was routed.
    span: Option<Span>,
    /// For the debug headers.
    explained: Option<String>,
    id: Option<Vec<u8>>,
    content_length: Option<usize>,
}

/// Whether Envoy shows the bodies of held requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holding {
    Untried { stranded: u32 },
    Works,
    Off { until_us: u64 },
}

/// The state of one VM and config.
#[derive(Debug)]
pub struct Worker {
    pub(crate) router: Router<SharedData>,
    /// The same as the router's.
    store: SharedData,
    pub(crate) metrics: Metrics,
    /// Boxed: a request changes hands with every callback.
    pub(crate) requests: Table<u32, Box<Request>>,
    holding: Holding,
    /// Calls under way, by token, with the time they were made; as many as there are engines.
    pub(crate) calls: Table<u32, (Call, u64)>,
    pub(crate) warned_of_cluster: bool,
    pub(crate) warned_of_unknown: bool,
    warned_of_steering: bool,
    /// How the Envoys of the fleet saw each other when that was last told.
    pub(crate) view: View,
    reporter: Reporter,
}

impl Worker {
    /// A worker for an accepted config.
    pub fn new(config: Config) -> Self {
        let now_us = host::now_us();
        let pools = config.pools.iter().map(|pool| pool.name.as_str());
        let holding = match config.steer_by {
            SteerBy::Headers => Holding::Untried { stranded: 0 },
            SteerBy::FilterState => Holding::Works,
        };
        let store = SharedData::default();
        Worker {
            metrics: Metrics::new(EnvoyStats, pools, now_us),
            router: Router::new(config, store.clone(), now_us),
            store,
            requests: Table::default(),
            holding,
            calls: Table::default(),
            warned_of_cluster: false,
            warned_of_unknown: false,
            warned_of_steering: false,
            view: View::Idle,
            reporter: Reporter::default(),
        }
    }

    /// The router, for who only asks.
    pub fn router(&mut self) -> &mut Router<SharedData> {
        &mut self.router
    }

    /// What the status page shows.
    pub fn report(&mut self, version: &str) -> Page {
        let (router, metrics) = (&mut self.router, &mut self.metrics);
        let report = self
            .reporter
            .report(version, router, metrics, host::now_us());
        Page::json(report)
    }

    /// The request's headers came.
    pub fn request_headers(&mut self, context: u32, end_of_stream: bool) -> Action {
        let now_us = host::now_us();
        let held = RequestHeaders::held();
        let headers = held.all();
        let names = &self.router.config().headers;
        for name in [names.destination.as_str(), &names.cluster, RANK_HEADER] {
            // Whatever a client sends here must never steer anything.
            if headers.iter().any(|(key, _)| key == name) {
                held.set(name, None);
            }
        }
        let id = log_enabled!(Level::Debug)
            .then(|| self.request_id(&headers))
            .flatten();
        let find = |name| warmpath_core::session::header(&headers, name);
        let content_length = find("content-length")
            .and_then(|value| std::str::from_utf8(value).ok())
            .and_then(|value| value.parse().ok());
        let mut request = Box::new(Request {
            exchange: Exchange::default(),
            phase: Phase::Held,
            steering: Steering::Headers(held),
            held_us: now_us,
            read: 0,
            held_bytes: 0,
            arrived: end_of_stream,
            call: None,
            responded: false,
            accepted: false,
            parts: 0,
            complete: false,
            span: None,
            explained: None,
            id,
            content_length,
        });
        let head = Head {
            headers: &headers,
            end_of_stream,
        };
        let mut step = request.exchange.on_headers(&mut self.router, head, now_us);
        if step == Step::Hold && self.holding_is_off(now_us) {
            let fallback = Fallback::StopIterationMissing;
            step = request.exchange.give_up(&mut self.router, fallback, now_us);
        }
        let mut action = self.apply(&mut request, step);
        let waits = action == Action::Pause && request.phase != Phase::Answered;
        if waits && self.router.config().steer_by == SteerBy::FilterState {
            request.steering.let_go();
            action = Action::Continue;
        }
        self.requests.insert(context, request);
        action
    }

    /// More of the request's body came; `size` is all that is held by now.
    pub fn request_body(&mut self, context: u32, size: usize, ended: bool) -> Action {
        let Some(mut request) = self.requests.remove(&context) else {
            return Action::Continue;
        };
        request.arrived |= ended;
        let action = match request.phase {
            Phase::Held => {
                self.holding = Holding::Works;
                request.held_bytes = size;
                let step = self.scan(&mut request, size, ended);
                self.apply(&mut request, step)
            }
            Phase::Calling => {
                request.held_bytes = size;
                Action::Pause
            }
            Phase::Sent => Action::Continue,
            Phase::Answered => Action::Pause,
        };
        if ended {
            self.sent(&mut request);
        }
        self.requests.insert(context, request);
        action
    }

    /// The request ended with trailers, so no more body will come.
    pub fn request_trailers(&mut self, context: u32) -> Action {
        let Some(mut request) = self.requests.remove(&context) else {
            return Action::Continue;
        };
        request.arrived = true;
        let action = match request.phase {
            Phase::Held => {
                let step = request
                    .exchange
                    .on_body(&mut self.router, &[], true, host::now_us());
                self.apply(&mut request, step)
            }
            Phase::Sent => Action::Continue,
            Phase::Calling | Phase::Answered => Action::Pause,
        };
        self.sent(&mut request);
        self.requests.insert(context, request);
        action
    }

    /// The response's headers came: now it is known who answers.
    pub fn response_headers(&mut self, context: u32, ended: bool) -> Action {
        let Some(request) = self.requests.get_mut(&context) else {
            return Action::Continue;
        };
        request.complete |= ended;
        request.responded = true;
        let charged = request.exchange.is_charged();
        if request.phase != Phase::Sent || !(charged || request.explained.is_some()) {
            return Action::Continue;
        }
        let wanted = request.exchange.feedback().wants_headers();
        let headers = wanted.then(host::response_headers).unwrap_or_default();
        let status = match wanted {
            true => host::status_in(&headers),
            false => host::response_status(),
        };
        let status = status.unwrap_or_default();
        request.accepted = (200..300).contains(&status);
        if let Some(address) = host::upstream_address() {
            let first = request.exchange.charge().map(|charge| charge.position());
            let is_first = |first| self.router.address(first).as_bytes() == address;
            if first.is_some_and(|first| !is_first(first))
                && let Some(span) = &request.span
            {
                self.metrics.retried(span.pool());
                if !self.warned_of_steering && host::attempts() == Some(1) {
                    self.warned_of_steering = true;
                    warn!(
                        "Envoy sent a request to {}, which was not the first choice: does the \
                         cluster have the policy `override_host`, and with `steer_by` set to \
                         `filter_state`, do a `buffer` and a `header_mutation` filter follow?",
                        String::from_utf8_lossy(&address)
                    );
                }
            }
            let now_us = host::now_us();
            let response = Response {
                status,
                address: &address,
                // Who answers well is an engine; of the others it must be asked.
                by_engine: status < 429 || host::response_is_upstreams(),
                retry_after_s: match status {
                    429 | 503 => host::retry_after_s(now_us / 1_000_000),
                    _ => None,
                },
            };
            let router = &mut self.router;
            request.exchange.responded(router, response, now_us);
            if wanted {
                let exchange = &mut request.exchange;
                let told = exchange.on_answer_headers(router, status, &headers, now_us);
                if told.is_ours {
                    host::set_response_header(orca::RESPONSE_HEADER, None);
                }
                if let (Some(_), Some(span)) = (told.load, &request.span) {
                    self.metrics.load_told(span.pool());
                }
            }
            if request.explained.is_some() {
                let charge = request.exchange.charge().map(|it| it.position());
                let served = charge.filter(|it| router.address(*it).as_bytes() == address);
                let name = served.map_or(address.as_slice(), |it| router.name(it).as_bytes());
                host::set_response_header("x-warmpath-endpoint", Some(name));
            }
        }
        if let (Some(_), Some(engine)) = (&request.explained, request.exchange.prefill_engine()) {
            let engine = self.router.name(engine).as_bytes();
            host::set_response_header("x-warmpath-prefill", Some(engine));
        }
        if let Some(explained) = &request.explained {
            host::set_response_header("x-warmpath-decision", Some(explained.as_bytes()));
        }
        Action::Continue
    }

    /// The response ended with trailers.
    pub fn response_trailers(&mut self, context: u32) -> Action {
        if let Some(request) = self.requests.get_mut(&context) {
            request.complete = true;
        }
        Action::Continue
    }

    /// A part of the response's body passes.
    pub fn response_body(&mut self, context: u32, size: usize, ended: bool) -> Action {
        let Some(request) = self.requests.get_mut(&context) else {
            return Action::Continue;
        };
        request.complete |= ended;
        if size > 0 {
            if request.parts == 0
                && let Some(charge) = request.exchange.charge()
            {
                let now_us = host::now_us();
                let address = self.router.name(charge.position());
                if let Some(span) = &mut request.span {
                    self.metrics.first_token(span, address, now_us);
                }
                request.exchange.first_token(&mut self.router, now_us);
            }
            request.exchange.heard(&mut self.router);
            request.parts = request.parts.saturating_add(1);
            let reading = request.exchange.feedback().reading();
            if let Some(part) = reading.wants(size)
                && let Some(bytes) = host::response_body(part)
            {
                reading.push(&bytes);
            }
        }
        Action::Continue
    }

    /// The stream is over, however it ended.
    pub fn ended(&mut self, context: u32) -> Action {
        if let Some(mut request) = self.requests.remove(&context) {
            let finding = request
                .exchange
                .reported(&mut self.router, request.complete);
            let told = match finding {
                Finding::Report(report) => report.output_tokens,
                Finding::Unread(_) | Finding::Nothing => None,
            };
            let outcome = match request.accepted && request.parts > 0 {
                true => Outcome::Served {
                    output_tokens: told.map_or(request.parts, |tokens| {
                        u32::try_from(tokens).unwrap_or(u32::MAX)
                    }),
                },
                false => Outcome::Failed,
            };
            let now_us = host::now_us();
            if let (Some(span), Some(charge)) = (&request.span, request.exchange.charge()) {
                let (address, served) = (
                    self.router.name(charge.position()),
                    outcome != Outcome::Failed,
                );
                let pool = span.pool();
                self.metrics
                    .finished(span, address, served, request.parts, now_us);
                self.metrics.told(Endpoint { pool, address }, finding);
                if request.complete && request.accepted {
                    request.exchange.answered(&mut self.router, now_us);
                }
                if !request.complete {
                    match host::client_left() {
                        true => self.metrics.client_left(span.pool()),
                        false if request.parts > 0 || request.accepted => {
                            request.exchange.broke_off(&mut self.router, now_us);
                        }
                        // An error of Envoy's own; its head was taken for what it says.
                        false => {}
                    }
                }
            }
            request.exchange.end(&mut self.router, outcome, now_us);
            self.take_notes(&mut request);
        }
        Action::Continue
    }

    /// Time passed. Returns the streams to [`Worker::release`].
    pub fn tick(&mut self) -> Vec<u32> {
        let now_us = host::now_us();
        self.router.tick(now_us);
        self.survey(now_us);
        for (pool, tally) in self.router.take_kv_tallies() {
            self.metrics.looked_up(pool, &tally);
        }
        self.metrics.flush();
        let Holding::Untried { stranded } = self.holding else {
            return Vec::new();
        };
        let is_stranded = |request: &Request| {
            request.phase == Phase::Held && now_us.saturating_sub(request.held_us) >= STRANDED_US
        };
        let found: Vec<u32> = self
            .requests
            .iter()
            .filter(|(_, request)| is_stranded(request))
            .map(|(context, _)| *context)
            .collect();
        if found.is_empty() {
            return found;
        }
        warn!(
            "{} held request(s) whose body Envoy did not show: set \
             `allow_on_headers_stop_iteration: true` in the wasm filter's `config`, or where that \
             cannot be, `steer_by` to `filter_state` in the plugin's configuration; \
             they are routed by their headers alone",
            found.len()
        );
        let stranded = stranded.saturating_add(u32::try_from(found.len()).unwrap_or(u32::MAX));
        self.holding = if stranded >= STRANDED_TO_STOP {
            Holding::Off {
                until_us: now_us.saturating_add(STOP_HOLDING_US),
            }
        } else {
            Holding::Untried { stranded }
        };
        found
    }

    /// Decides about a held request by its headers alone, so that it can be resumed.
    pub fn release(&mut self, context: u32) {
        let Some(mut request) = self.requests.remove(&context) else {
            return;
        };
        if request.phase == Phase::Held {
            let fallback = Fallback::StopIterationMissing;
            let step = request
                .exchange
                .give_up(&mut self.router, fallback, host::now_us());
            self.apply(&mut request, step);
        }
        self.requests.insert(context, request);
    }

    /// The config is no longer used.
    pub fn leave(&mut self) {
        self.metrics.leave();
        self.router.leave();
    }

    /// Whether this worker scrapes for all.
    #[cfg(feature = "trap")]
    pub fn holds_lease(&self) -> bool {
        self.router.scout().holds_lease()
    }

    /// Writes the gauges, if this worker is the one that does.
    fn survey(&mut self, now_us: u64) {
        for (pool, address) in self.router.take_departed() {
            let address = address.as_str();
            self.metrics.gone(Endpoint { pool, address });
        }
        for pool in self.router.take_changed_pools() {
            self.metrics.discovery_changed(pool);
        }
        if let Some((bytes, capacity, entries)) = self.router.table_size() {
            self.metrics.prefix_table(bytes, capacity, entries);
        }
        self.survey_peers();
        let (errors, conflicts) = self.store.take_lost();
        self.metrics.shared_state(errors, conflicts);
        let evicted = self.router.take_evicted();
        if !self.router.speaks_for_all() {
            return;
        }
        self.warn_of_unknown(now_us);
        self.metrics.evicted(evicted);
        self.metrics.alive(self.router.workers(), now_us);
        for (pool, (known, usable)) in self.router.pool_sizes(now_us).into_iter().enumerate() {
            self.metrics.pool_size(pool, known, usable);
        }
        if self.router.config().scrape.is_some() {
            for (pool, stale) in self.router.stale_sizes(now_us).into_iter().enumerate() {
                self.metrics.pool_stale(pool, stale);
            }
        }
        for row in self.router.survey(now_us) {
            let endpoint = Endpoint {
                pool: row.pool,
                address: row.address,
            };
            self.metrics.load(endpoint, row.load);
            self.metrics.state(endpoint, row.state);
            if let Some(age_us) = row.scrape_age_us {
                self.metrics.scrape_age(endpoint, age_us);
            }
        }
    }

    /// All of a request was read from the client.
    pub fn sent(&mut self, request: &mut Request) {
        if request.phase == Phase::Sent && request.exchange.is_charged() {
            let router = &mut self.router;
            request
                .exchange
                .sent(router, request.content_length, host::now_us());
        }
    }

    fn holding_is_off(&mut self, now_us: u64) -> bool {
        match self.holding {
            Holding::Off { until_us } if now_us < until_us => true,
            Holding::Off { .. } => {
                // One more stranded request turns it off again.
                self.holding = Holding::Untried {
                    stranded: STRANDED_TO_STOP - 1,
                };
                false
            }
            Holding::Untried { .. } | Holding::Works => false,
        }
    }

    /// Shows the router what it has not seen of the body.
    fn scan(&mut self, request: &mut Request, size: usize, ended: bool) -> Step {
        let now_us = host::now_us();
        loop {
            let limit = request.exchange.most_held_bytes(&self.router);
            let readable = size.min(limit);
            let most = match request.read {
                0 if !self.router.plan().prompt() => FIRST_READ_BYTES,
                _ => READ_BYTES,
            };
            let length = readable.saturating_sub(request.read).min(most);
            let bytes = match length {
                0 => Vec::new(),
                length => host::request_body(request.read, length).unwrap_or_default(),
            };
            request.read = request.read.saturating_add(bytes.len());
            let last = ended && request.read >= size;
            let step = request
                .exchange
                .on_body(&mut self.router, &bytes, last, now_us);
            if step != Step::Hold || bytes.is_empty() || last {
                return match step {
                    Step::Hold if request.read >= limit || last => {
                        let fallback = Fallback::ModelBeyondLimit;
                        request.exchange.give_up(&mut self.router, fallback, now_us)
                    }
                    step => step,
                };
            }
        }
    }

    /// Does what a step says.
    pub fn apply(&mut self, request: &mut Request, step: Step) -> Action {
        self.take_notes(request);
        match step {
            Step::Hold => return Action::Pause,
            Step::Call(call) => return self.hold_for(request, *call),
            Step::Route(decision) => return self.route(request, decision),
            Step::Pass {
                pool,
                changes,
                fallback,
            } => {
                if let Some(answer) = change_body(request, &changes) {
                    return self.answer(request, &answer);
                }
                self.metrics.fell_back(fallback);
                self.set_cluster(&request.steering, pool);
            }
            Step::Answer(answer) => return self.answer(request, &answer),
        }
        request.steering.finish();
        request.phase = Phase::Sent;
        Action::Continue
    }

    /// Counts what happened on a request's way.
    pub fn take_notes(&mut self, request: &mut Request) {
        for note in request.exchange.take_notes() {
            let engine = match note {
                Note::Prefilled { position, .. } => self.router.name(position),
                _ => "",
            };
            self.metrics.noted(note, engine);
        }
    }

    /// Answers a request from here.
    pub fn answer(&mut self, request: &mut Request, answer: &Answer) -> Action {
        self.metrics.answered(answer);
        request.phase = Phase::Answered;
        host::respond(answer);
        Action::Pause
    }

    fn route(&mut self, request: &mut Request, mut decision: Decision) -> Action {
        if let Some(call) = decision.beside.take()
            && let Some(answer) = self.call_beside(request, *call)
        {
            return self.answer(request, &answer);
        }
        if let Some(answer) = change_body(request, &decision.changes) {
            return self.answer(request, &answer);
        }
        let decision = &decision;
        for (name, value) in &decision.headers {
            request.steering.set(name, value.as_bytes());
        }
        let destination = self.router.destination(decision);
        let config = self.router.config();
        let steering = &request.steering;
        steering.set(&config.headers.destination, destination.as_bytes());
        let first = decision.ranked.first();
        if let Some(rank) = first.and_then(|first| self.router.rank(*first)) {
            steering.set(RANK_HEADER, rank.to_string().as_bytes());
        }
        self.set_cluster(steering, Some(decision.pool));
        if request.exchange.feedback().asks_load() {
            request.steering.set(orca::REQUEST_HEADER, b"TEXT");
        }
        if let Some(fallback) = decision.fallback {
            self.metrics.fell_back(fallback);
        }
        if let (Some(charge), Some(first)) = (request.exchange.charge(), decision.ranked.first()) {
            let address = self.router.name(*first);
            let span = self
                .metrics
                .routed(decision, charge, address, request.held_us);
            request.span = Some(span);
        }
        let config = self.router.config();
        let (policy, reason) = (decision.policy, decision.reason.name());
        if config.debug_headers {
            request.explained = Some(format!("{policy}; {reason}; {destination}"));
        }
        let id = request.id.as_deref().unwrap_or_default();
        debug!(
            "{}: {policy}; {reason}; {destination}",
            String::from_utf8_lossy(id)
        );
        request.steering.finish();
        request.phase = Phase::Sent;
        Action::Continue
    }

    fn set_cluster(&self, steering: &Steering, pool: Option<usize>) {
        let config = self.router.config();
        if let Some(pool) = pool.and_then(|pool| config.pools.get(pool)) {
            steering.set(&config.headers.cluster, pool.cluster.as_bytes());
        }
    }

    fn request_id(&self, headers: &[(String, Vec<u8>)]) -> Option<Vec<u8>> {
        let names = &self.router.config().headers.request_id;
        let mut found = names
            .iter()
            .map(|name| warmpath_core::session::header(headers, name));
        found.find_map(|value| value.map(<[u8]>::to_vec))
    }
}

/// Makes these changes in the body of a request that is about to be sent on; what to answer instead if they
/// cannot be made.
fn change_body(request: &Request, changes: &[Change]) -> Option<Answer> {
    let (steering, length) = (&request.steering, request.content_length);
    let changed = rewrite(steering, changes, request.held_bytes, length);
    (!changed).then(|| Answer::bad_json("it cannot be changed as it must be"))
}
