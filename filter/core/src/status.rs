//! The status page's questions and answers: what may be asked, and the JSON that is said.
//!
//! [`Question`] reads a request, [`Reporter`] writes the facts, [`explanation`] writes what
//! [`Router::explain`] found. Nothing of a prompt and no session key is in any of it; addresses of
//! engines are. The documents grow with the number of endpoints and nothing else.

mod question;
mod rates;
mod reply;

pub use question::Question;
pub use reply::Reply;

use crate::config::{Config, PoolConfig};
use crate::decision::Reason;
use crate::fleet::Engine;
use crate::json::{Field, list, object, string};
use crate::router::{Candidate, Explained, Router, Surveyed};
use crate::scout::Scout;
use crate::store::Store;
use crate::telemetry::{Endpoint, EndpointTotals, Recorder, Sink, Totals};
use rates::Rates;

/// Writes the facts, and keeps what it takes to tell rates from one time to the next.
#[derive(Debug, Default)]
pub struct Reporter {
    rates: Rates,
}

impl Reporter {
    /// Everything that the page shows, of all workers together, as a JSON document.
    pub fn report<S: Store, K: Sink>(
        &mut self,
        version: &str,
        router: &mut Router<S>,
        recorder: &mut Recorder<K>,
        now_us: u64,
    ) -> String {
        router.attend(now_us);
        let mut requests = 0;
        self.rates.begin(now_us);
        let mut pools = Vec::new();
        for (at, pool) in router.config().pools.iter().enumerate() {
            let mut rows: Vec<Row> = router
                .pool_members(at, now_us)
                .map(|endpoint| self.row(recorder, endpoint))
                .collect();
            requests += rows.iter().map(Row::decisions).sum::<u64>();
            share(&mut rows);
            let rows = rows.iter().map(|row| row.json(router.config(), now_us));
            pools.push(pool_json(pool, &rows.collect::<Vec<_>>()));
        }
        self.rates.end();
        let totals = recorder.totals();
        let table = table(router, &totals);
        let counters = counters(&totals, requests, table.as_deref());
        let workers = router.workers() as u64;
        let worker = object(&[
            ("id", router.worker().into()),
            ("workers", workers.into()),
            ("scraper", router.scout().holds_lease().into()),
        ]);
        let config = object(&[("generation", router.scout().generation().into())]);
        object(&[
            ("version", version.into()),
            ("now_ms", (now_us / 1000).into()),
            ("uptime_s", (recorder.age_us(now_us) / 1_000_000).into()),
            ("worker", Field::Json(&worker)),
            ("config", Field::Json(&config)),
            ("pools", Field::Json(&list(&pools))),
            ("recent", Field::Json(&list(&router.recent(now_us)))),
            ("counters", Field::Json(&counters)),
        ])
    }

    fn row<'a, K: Sink>(&mut self, recorder: &mut Recorder<K>, endpoint: Surveyed<'a>) -> Row<'a> {
        let totals = recorder.endpoint_totals(Endpoint {
            pool: endpoint.pool,
            address: endpoint.address,
        });
        // What several endpoints share is said of none of them.
        let totals = (!totals.shared).then_some(totals);
        let key = (endpoint.pool, endpoint.address);
        let qps = totals.and_then(|totals| self.rates.rate(key, totals.decisions));
        Row {
            endpoint,
            totals,
            qps,
            share: None,
        }
    }
}

/// An endpoint with its counters.
struct Row<'a> {
    endpoint: Surveyed<'a>,
    totals: Option<EndpointTotals>,
    qps: Option<f64>,
    share: Option<f64>,
}

/// Tells each endpoint's share of its pool's requests.
fn share(rows: &mut [Row]) {
    let all: f64 = rows.iter().filter_map(|row| row.qps).sum();
    for row in rows {
        row.share = row.qps.filter(|_| all > 0.0).map(|qps| qps / all);
    }
}

impl Row<'_> {
    fn decisions(&self) -> u64 {
        self.totals.map_or(0, |totals| totals.decisions)
    }

    fn json(&self, config: &Config, now_us: u64) -> String {
        let Surveyed { load, engine, .. } = &self.endpoint;
        let since_us = self.endpoint.state_since_us;
        let since_s = since_us.map(|since_us| now_us.saturating_sub(since_us) / 1_000_000);
        let told = engine.filter(|engine| engine.told_ms > 0);
        let told = told.map(|engine| engine_json(engine, config, now_us));
        let models = self.endpoint.models;
        let models = models.map(|models| texts(models.iter().map(AsRef::as_ref)));
        object(&[
            ("address", self.endpoint.address.into()),
            ("rank", self.endpoint.rank.into()),
            ("role", self.endpoint.role.into()),
            ("state", self.endpoint.state.name().into()),
            ("state_since_s", since_s.into()),
            ("weight", self.endpoint.weight.into()),
            ("in_flight", load.in_flight.into()),
            ("waiting", load.waiting.into()),
            ("prefill_tokens", load.prefill_tokens.into()),
            ("context_tokens", load.context_tokens.into()),
            ("engine", document(told.as_deref())),
            (
                "requests",
                self.totals.map(|totals| totals.decisions).into(),
            ),
            ("failures", self.totals.map(|totals| totals.failed).into()),
            ("qps", self.qps.into()),
            ("share", self.share.into()),
            ("models", document(models.as_deref())),
        ])
    }
}

fn document(json: Option<&str>) -> Field<'_> {
    json.map_or(Field::Null, Field::Json)
}

fn texts<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    list(&texts.map(string).collect::<Vec<_>>())
}

fn table<S: Store>(router: &mut Router<S>, totals: &Totals) -> Option<String> {
    let (bytes, capacity, entries) = router.table_size()?;
    let filled = entries as f64 / capacity.max(1) as f64;
    Some(object(&[
        ("bytes", bytes.into()),
        ("entries", entries.into()),
        ("filled", filled.into()),
        ("evictions", totals.evictions.into()),
    ]))
}

fn counters(totals: &Totals, requests: u64, table: Option<&str>) -> String {
    let fallbacks = totals.fallbacks.iter();
    let fallbacks: Vec<_> = fallbacks
        .map(|(cause, count)| (cause.name(), Field::Count(*count)))
        .collect();
    object(&[
        ("requests", requests.into()),
        ("fallbacks", Field::Json(&object(&fallbacks))),
        (
            "predicted_cached_tokens",
            totals.predicted_cached_tokens.into(),
        ),
        (
            "reported_cached_tokens",
            totals.reported_cached_tokens.into(),
        ),
        ("table", document(table)),
    ])
}

fn pool_json(pool: &PoolConfig, endpoints: &[String]) -> String {
    let aliases = pool.aliases.iter();
    let aliases: Vec<_> = aliases
        .map(|(alias, model)| (alias.as_str(), Field::Text(model)))
        .collect();
    let models = texts(pool.models.iter().map(String::as_str));
    object(&[
        ("name", pool.name.as_str().into()),
        ("cluster", pool.cluster.as_str().into()),
        ("policy", pool.policy.name().into()),
        ("models", Field::Json(&models)),
        ("aliases", Field::Json(&object(&aliases))),
        ("endpoints", Field::Json(&list(endpoints))),
    ])
}

fn engine_json(engine: &Engine, config: &Config, now_us: u64) -> String {
    let now_ms = now_us / 1000;
    let queried = engine.queried_tokens.filter(|queried| *queried > 0);
    let hits = queried.zip(engine.hit_tokens);
    let hit_ratio = hits.map(|(queried, hit)| hit as f64 / queried as f64);
    let stale = !engine.is_fresh(now_ms, Scout::stale_ms(config));
    object(&[
        ("running", engine.running.into()),
        ("queued", engine.waiting.into()),
        ("kv_usage", engine.kv_usage.into()),
        ("kv_capacity_tokens", engine.kv_capacity_tokens.into()),
        ("hit_ratio", hit_ratio.into()),
        ("age_ms", now_ms.saturating_sub(engine.told_ms).into()),
        ("stale", stale.into()),
    ])
}

/// What [`Router::explain`] found, as a JSON document.
pub fn explanation<S: Store>(router: &Router<S>, explained: &Explained) -> String {
    let address = |position: &usize| router.name(*position);
    let ranked = texts(explained.ranked.iter().map(address));
    let candidates = explained.candidates.iter();
    let candidates: Vec<_> = candidates.map(|one| candidate(router, one)).collect();
    object(&[
        ("pool", router.pool_name(explained.pool).into()),
        ("policy", explained.policy.into()),
        ("reason", explained.reason.map(Reason::name).into()),
        ("ranked", Field::Json(&ranked)),
        ("prompt_tokens", explained.prompt_tokens.into()),
        (
            "conversation_home",
            explained.home.as_ref().map(address).into(),
        ),
        ("alpha", explained.alpha.into()),
        (
            "fallback",
            explained.fallback.map(|fallback| fallback.name()).into(),
        ),
        ("candidates", Field::Json(&list(&candidates))),
    ])
}

fn candidate<S: Store>(router: &Router<S>, candidate: &Candidate) -> String {
    let load = router.load(candidate.position);
    let terms = candidate.terms.iter();
    let terms: Vec<_> = terms
        .map(|(name, value)| (*name, Field::Decimal(*value)))
        .collect();
    object(&[
        ("address", router.name(candidate.position).into()),
        ("usable", candidate.state.is_usable().into()),
        ("state", candidate.state.name().into()),
        ("held_tokens", candidate.held_tokens.into()),
        ("work_tokens", candidate.work_tokens.into()),
        ("queued_tokens", load.prefill_tokens.into()),
        ("in_flight", load.in_flight.into()),
        ("context_tokens", load.context_tokens.into()),
        ("cost", candidate.cost.into()),
        ("terms", Field::Json(&object(&terms))),
    ])
}

#[cfg(test)]
mod tests;
