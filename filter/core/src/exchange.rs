//! One request's way through the router, from its headers to its end.
//!
//! Until it is decided, this file reads it; then it is decided for one engine (`deciding`), for two (`handoff`),
//! or after a question to an index (`lookup`), and what follows is told to the router (`response`).
//!
//! The adapter feeds what Envoy shows it and does what each [`Step`] says. It may stop at any point:
//! whatever happens, [`Exchange::end`] gives back what was counted, exactly once.

mod call_head;
mod deciding;
mod handoff;
mod lookup;
mod response;

use crate::admission::Priority;
use crate::answer::Answer;
use crate::call::{Reply, RequestCall};
use crate::decision::{Decision, Fallback};
use crate::disaggregation::Note;
use crate::feedback::Feedback;
use crate::kv::Told;
use crate::router::{Charge, Explained, Router, Target};
use crate::scan::{Api, Field, RequestScan};
use crate::session::{self, HeaderKey, Key, header};
use crate::splice::Change;
use crate::store::Store;
use call_head::CallHead;
use handoff::Handoff;
use lookup::Lookup;

/// The request's headers.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// All headers, pseudo-headers included, names in lower case.
    pub headers: &'a [(String, Vec<u8>)],
    /// Whether no body follows.
    pub end_of_stream: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Hold the request and show its body. To a reply: nothing is to be done.
    Hold,
    /// Hold the request, make this call, and hand its reply to [`Exchange::on_reply`].
    Call(Box<RequestCall>),
    /// Send it to the first endpoint of the decision.
    Route(Decision),
    /// Let Envoy's own load balancing serve it from this pool's cluster, if one is known.
    Pass {
        /// Position of the pool.
        pool: Option<usize>,
        /// What to change in the body, as [`Decision::changes`].
        changes: Vec<Change>,
        /// Why.
        fallback: Fallback,
    },
    /// Answer it ourselves.
    Answer(Answer),
}

/// The state of one request.
#[derive(Debug, Default)]
pub struct Exchange {
    api: Option<Api>,
    key: HeaderKey,
    pool_header: Option<Vec<u8>>,
    priority: Priority,
    /// Boxed: a request is moved more often than it is scanned.
    scan: Option<Box<RequestScan>>,
    charge: Option<Charge>,
    feedback: Feedback,
    /// What an index service said of the prompt, and the pool whose engines it is about.
    told: Option<(usize, Told)>,
    /// What a reply is awaited for.
    wait: Wait,
    /// For calls; where there may be any.
    head: Option<Box<CallHead>>,
    notes: Vec<Note>,
    prefill_engine: Option<usize>,
    /// Whether the response has begun.
    begun: bool,
}

/// What a request waits for.
#[derive(Debug, Default)]
enum Wait {
    /// Nothing.
    #[default]
    Nothing,
    /// That another engine computes its prompt.
    Handoff(Box<Handoff>),
    /// A lookup in a KV index.
    Lookup(Box<Lookup>),
}

impl Exchange {
    /// Looks at the headers.
    pub fn on_headers<S: Store>(
        &mut self,
        router: &mut Router<S>,
        head: Head,
        now_us: u64,
    ) -> Step {
        let path = header(head.headers, ":path").unwrap_or_default();
        let method = header(head.headers, ":method").unwrap_or_default();
        self.pool_header = header(head.headers, &router.config().headers.pool).map(<[u8]>::to_vec);
        if method == b"GET"
            && let Some(answer) = models_answer(router, path)
        {
            return Step::Answer(answer);
        }
        let api = Api::from_path(path).filter(|_| method == b"POST");
        let Some(api) = api else {
            return self.pass(router, Fallback::NotInference);
        };
        self.api = Some(api);
        self.feedback.on_request(head.headers);
        self.key = session::from_headers(&router.config().session_key, head.headers);
        self.priority = priority(router, head.headers);
        self.head = (router.makes_calls() || router.asks_index()).then(|| {
            let ids = &router.config().headers.request_id;
            Box::new(CallHead::new(head.headers, ids))
        });
        if encoded(head.headers) {
            return self.give_up(router, Fallback::EncodedBody, now_us);
        }
        if head.end_of_stream {
            return Step::Answer(Answer::bad_json("it is empty"));
        }
        if let Some((target, key)) = self.known_early(router) {
            return self.decide(router, &target, key, None, now_us);
        }
        self.scan = Some(Box::new(RequestScan::new(api)));
        Step::Hold
    }

    /// What would become of a request with these headers and this whole body. Changes nothing.
    ///
    /// # Errors
    /// The answer that the request would get instead.
    pub fn explain<S: Store>(
        router: &Router<S>,
        api: Api,
        headers: &[(String, Vec<u8>)],
        body: &[u8],
        now_us: u64,
    ) -> Result<Explained, Answer> {
        let mut exchange = Exchange {
            api: Some(api),
            key: session::from_headers(&router.config().session_key, headers),
            pool_header: header(headers, &router.config().headers.pool).map(<[u8]>::to_vec),
            priority: priority(router, headers),
            ..Exchange::default()
        };
        if body.is_empty() {
            return Err(Answer::bad_json("it is empty"));
        }
        if let Some((target, key)) = exchange.known_early(router) {
            return router.explain(exchange.ask(router, &target, key), now_us);
        }
        let mut scan = Box::new(RequestScan::new(api));
        let read = scan.feed(router.plan(), body).and_then(|()| scan.finish());
        read.map_err(|error| Answer::bad_json(&error.to_string()))?;
        exchange.scan = Some(scan);
        let target = exchange.target(router, true)?;
        let target = target.ok_or_else(Answer::missing_model)?;
        let key = exchange.key_for(router, &target, true).flatten();
        router.explain(exchange.ask(router, &target, key), now_us)
    }

    /// Looks at the next bytes of the body; `ended` says that they are the last.
    pub fn on_body<S: Store>(
        &mut self,
        router: &mut Router<S>,
        bytes: &[u8],
        ended: bool,
        now_us: u64,
    ) -> Step {
        let Some(scan) = self.scan.as_mut() else {
            return Step::Hold;
        };
        let mut result = scan.feed(router.plan(), bytes);
        if ended && result.is_ok() {
            result = scan.finish();
        }
        if let Err(error) = result {
            return Step::Answer(Answer::bad_json(&error.to_string()));
        }
        // A proxy tells of the end in a callback of its own; the closing brace tells it sooner.
        let ended = ended || scan.is_complete();
        let target = match self.target(router, ended) {
            Ok(Some(target)) => target,
            Ok(None) => return Step::Hold,
            Err(answer) => return Step::Answer(answer),
        };
        if router.wants_prompt(&target) && !ended {
            return Step::Hold;
        }
        match self.key_for(router, &target, ended) {
            Some(key) if router.wants_prompt(&target) => {
                self.decide_told(router, &target, key, now_us)
            }
            Some(key) => self.decide(router, &target, key, None, now_us),
            None => Step::Hold,
        }
    }

    /// Takes the reply to the call of a [`Step::Call`] or of a decision's
    /// [`beside`](Decision::beside). A request that was held for it goes on, whatever the reply is; to
    /// one that was not, only an answer may follow, and only as long as its response has not begun.
    pub fn on_reply<S: Store>(
        &mut self,
        router: &mut Router<S>,
        reply: Reply,
        now_us: u64,
    ) -> Step {
        match std::mem::take(&mut self.wait) {
            Wait::Nothing => Step::Hold,
            Wait::Handoff(handoff) => self.handoff_reply(router, handoff, reply, now_us),
            Wait::Lookup(lookup) => self.on_lookup_reply(router, *lookup, reply, now_us),
        }
    }

    /// Decides on what is known, because no more of the body will be seen.
    pub fn give_up<S: Store>(
        &mut self,
        router: &mut Router<S>,
        fallback: Fallback,
        now_us: u64,
    ) -> Step {
        let known = match self.target(router, false) {
            Ok(target) => target,
            Err(answer) => return Step::Answer(answer),
        };
        let model_known = known.is_some();
        let pool_header = self.pool_header.as_deref();
        let Some(target) = known.or_else(|| router.default_target(pool_header)) else {
            return self.pass(router, Fallback::NoPool);
        };
        let key = self.key.with_body(self.scan.as_deref(), true);
        let fallback = match fallback {
            Fallback::ModelBeyondLimit if !model_known => fallback,
            Fallback::ModelBeyondLimit if router.wants_prompt(&target) => {
                Fallback::PromptBeyondLimit
            }
            Fallback::ModelBeyondLimit => Fallback::KeyBeyondLimit,
            other => other,
        };
        self.decide(router, &target, found(key), Some(fallback), now_us)
    }

    /// Most bytes of the body that are held before it is decided on what is known. Where engines share
    /// their work all of it is read, so Envoy's limit counts.
    pub fn most_held_bytes<S: Store>(&self, router: &Router<S>) -> usize {
        let shares = match self.target(router, false) {
            Ok(Some(target)) => router.disaggregation(target.pool).is_some(),
            _ => router.makes_calls(),
        };
        match shares {
            true => usize::MAX,
            false => router.config().limits.hold_bytes,
        }
    }

    fn pass<S: Store>(&self, router: &Router<S>, fallback: Fallback) -> Step {
        let target = router.default_target(self.pool_header.as_deref());
        Step::Pass {
            pool: target.map(|target| target.pool),
            changes: Vec::new(),
            fallback,
        }
    }

    /// Where the model leads; `None` while it may still come.
    fn target<S: Store>(&self, router: &Router<S>, ended: bool) -> Result<Option<Target>, Answer> {
        let field = self
            .scan
            .as_deref()
            .map_or(Field::Absent, RequestScan::model);
        match field {
            Field::Text(model) => {
                let known = router.target(model).cloned();
                match known.or_else(|| router.untold_models_target()) {
                    Some(target) => Ok(Some(target.for_model(model))),
                    None => Err(Answer::unknown_model(model)),
                }
            }
            Field::TooLong => Err(Answer::unknown_model(b"(its name is too long)")),
            Field::WrongType => Err(Answer::missing_model()),
            Field::Absent if !ended => Ok(router.only_target().cloned()),
            Field::Absent => {
                // SGLang's own path has no model, and an engine that serves one may not ask for it.
                let unnamed = matches!(self.api, Some(Api::Generate | Api::Tokenize));
                let default = || router.default_target(self.pool_header.as_deref());
                let target = router.any_model().cloned();
                let target = target.or_else(|| default().filter(|_| unnamed));
                target.map(Some).ok_or_else(Answer::missing_model)
            }
        }
    }

    /// The session key as far as the pool's policy cares; `None` while it may still come.
    fn key_for<S: Store>(
        &self,
        router: &Router<S>,
        target: &Target,
        ended: bool,
    ) -> Option<Option<u64>> {
        if !router.wants_key(target) {
            return Some(None);
        }
        match self.key.with_body(self.scan.as_deref(), ended) {
            Key::Unknown => None,
            key => Some(found(key)),
        }
    }

    /// Where the request leads and its session key, if the headers tell enough.
    fn known_early<S: Store>(&self, router: &Router<S>) -> Option<(Target, Option<u64>)> {
        let target = router.only_target()?;
        if router.wants_prompt(target) {
            return None;
        }
        let key = self.key_for(router, target, false)?;
        Some((target.clone(), key))
    }
}

fn found(key: Key) -> Option<u64> {
    match key {
        Key::Found(hash) => Some(hash),
        Key::Unknown | Key::Absent => None,
    }
}

/// The class of a request, where it matters.
fn priority<S: Store>(router: &Router<S>, headers: &[(String, Vec<u8>)]) -> Priority {
    match router.sheds() {
        true => Priority::of(headers, &router.config().headers.priority),
        false => Priority::default(),
    }
}

fn encoded(headers: &[(String, Vec<u8>)]) -> bool {
    header(headers, "content-encoding")
        .is_some_and(|value| !value.eq_ignore_ascii_case(b"identity"))
}

fn models_answer<S: Store>(router: &Router<S>, path: &[u8]) -> Option<Answer> {
    let path = path.split(|byte| *byte == b'?').next()?;
    if path.ends_with(b"/v1/models") {
        return router.model_list();
    }
    let at = path.windows(11).rposition(|part| part == b"/v1/models/")?;
    let name = path.get(at + 11..).filter(|name| !name.is_empty())?;
    router.model_list()?;
    match (router.target(name), std::str::from_utf8(name)) {
        (Some(_), Ok(name)) => Some(Answer::model(name)),
        _ => Some(Answer::unknown_model(name)),
    }
}
