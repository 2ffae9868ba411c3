use super::testing::Page;
use super::*;
use crate::admission::Priority;
use crate::answer::{Answer, Shed};
use crate::config::Config;
use crate::decision::{Decision, Fallback};
use crate::feedback::{Finding, Report, Unread};
use crate::load::Load;
use crate::router::{Ask, Charge, PromptFacts, Router, State};
use crate::store::MemoryStore;

fn stat(metric: &Metric, values: &[&str]) -> String {
    name::stat_name(metric, values)
}

fn recorder(page: &Page) -> Recorder<&Page> {
    Recorder::new(page, ["p", "q"], 0)
}

/// A decision about a streamed prompt of 1000 tokens.
fn decided() -> (Decision, Charge) {
    let config = br#"{"pools": [{"name": "p", "policy": "prefix",
        "endpoints": {"static": [{"address": "10.0.0.1:1"}]}}]}"#;
    let mut router = Router::new(Config::parse(config).unwrap(), MemoryStore::new(), 0);
    let target = router.any_model().unwrap().clone();
    let prompt = PromptFacts {
        bytes: 1000 * crate::prefix::BYTES_PER_TOKEN,
        streamed: true,
        ..PromptFacts::default()
    };
    let ask = Ask {
        target: &target,
        key: None,
        prompt: Some(prompt),
        priority: Default::default(),
    };
    router.decide(ask, 0).unwrap()
}

#[test]
fn a_request_leaves_its_figures() {
    let page = Page::default();
    let mut recorder = recorder(&page);
    let (decision, charge) = decided();
    let (named, served) = ("10.0.0.1:1", "10.0.0.2:1");
    let mut span = recorder.routed(&decision, &charge, named, 1_000_000);
    recorder.retried(span.pool());
    recorder.first_token(&mut span, served, 1_030_400);
    recorder.finished(&span, served, true, 11, 1_130_400);
    assert_eq!(page.calls(), 0, "a request calls no host");
    recorder.flush();
    let reason = decision.reason.name();
    let at = |metric| stat(metric, &["p", served]);
    for (name, want) in [
        (stat(&table::VM_STARTS, &[]), 1),
        (stat(&table::REQUESTS, &["p", "prefix", reason]), 1),
        (stat(&table::DECISIONS, &["p", named]), 1),
        (stat(&table::PROMPT_TOKENS, &["p"]), 1000),
        (stat(&table::RETRIED, &["p"]), 1),
        (stat(&table::TTFT, &["p"]), 30),
        (stat(&table::ITL, &["p"]), 10),
        (stat(&table::LATENCY, &["p"]), 130),
        (at(&table::FIRST_TOKENS), 1),
        (at(&table::TTFT_SUM), 30),
        (at(&table::FINISHED), 1),
        (at(&table::LATENCY_SUM), 130),
        (at(&table::DECODE_SUM), 100),
        (at(&table::DECODE_PARTS), 10),
    ] {
        assert_eq!(page.value(&name), Some(want), "{name}");
    }
    let untouched = [
        stat(&table::PREDICTED_CACHED, &["p"]),
        stat(&table::RETRIED, &["q"]),
        at(&table::FAILED),
        at(&table::DECISIONS),
    ];
    for name in untouched {
        assert_eq!(page.value(&name), None, "{name}");
    }
}

#[test]
fn short_and_failed_answers_tell_less() {
    let page = Page::default();
    let mut recorder = recorder(&page);
    let (decision, charge) = decided();
    let mut span = recorder.routed(&decision, &charge, "a", 0);
    recorder.finished(&span, "a", false, 0, 5_000);
    recorder.first_token(&mut span, "a", 1_000);
    recorder.finished(&span, "a", true, 2, 9_000);
    recorder.flush();
    assert_eq!(page.values(&stat(&table::LATENCY, &["p"])), [9]);
    assert_eq!(page.value(&stat(&table::ITL, &["p"])), None);
    assert_eq!(page.value(&stat(&table::FAILED, &["p", "a"])), Some(1));
    assert_eq!(page.value(&stat(&table::FINISHED, &["p", "a"])), Some(2));
}

#[test]
fn answers_and_fallbacks_are_told_by_cause() {
    let page = Page::default();
    let mut recorder = recorder(&page);
    recorder.answered(&Answer::missing_model());
    recorder.answered(&Answer::no_endpoint("p"));
    let shed = Shed {
        pool: 1,
        priority: Priority::Low,
    };
    recorder.answered(&Answer::overloaded("q", shed, 1));
    Fallback::ALL
        .iter()
        .for_each(|fallback| recorder.fell_back(*fallback));
    recorder.flush();
    let missing = stat(&table::ANSWERS, &["400", "missing_model"]);
    assert_eq!(page.value(&missing), Some(1));
    let overloaded = stat(&table::ANSWERS, &["429", "overloaded"]);
    assert_eq!(page.value(&overloaded), Some(1));
    for (priority, want) in [("low", Some(1)), ("high", None)] {
        let name = stat(&table::SHED, &["q", priority]);
        assert_eq!(page.value(&name), want, "{name}");
    }
    for fallback in Fallback::ALL {
        let name = stat(&table::FALLBACKS, &[fallback.name()]);
        assert_eq!(page.value(&name), Some(1), "{name}");
    }
}

#[test]
fn reports_are_held_against_predictions_by_endpoint() {
    let page = Page::default();
    let mut recorder = recorder(&page);
    let at = Endpoint {
        pool: 0,
        address: "10.0.0.1:1",
    };
    let report = Report {
        prompt_tokens: 100,
        cached_tokens: Some(64),
        output_tokens: Some(7),
        predicted_tokens: Some(70),
    };
    let unpredicted = Report {
        predicted_tokens: None,
        ..report
    };
    let partial = Report {
        prompt_tokens: 10,
        ..Report::default()
    };
    for report in [report, unpredicted, partial] {
        recorder.told(at, Finding::Report(report));
    }
    recorder.told(at, Finding::Unread(Unread::Compressed));
    recorder.told(at, Finding::Nothing);
    recorder.load_told(0);
    recorder.flush();
    let unread = |cause: Unread| stat(&table::UNREPORTED, &["p", cause.name()]);
    for (name, want) in [
        (stat(&table::REPORTED_PROMPT, &["p"]), Some(210)),
        (stat(&table::REPORTED_CACHED, &["p"]), Some(128)),
        (stat(&table::REPORTED_OUTPUT, &["p"]), Some(14)),
        (
            stat(&table::ENDPOINT_PREDICTED, &["p", at.address]),
            Some(70),
        ),
        (
            stat(&table::ENDPOINT_REPORTED, &["p", at.address]),
            Some(64),
        ),
        (stat(&table::LOAD_REPORTS, &["p"]), Some(1)),
        (unread(Unread::Compressed), Some(1)),
        (unread(Unread::NoCachedTokens), Some(1)),
        (unread(Unread::NoUsage), None),
    ] {
        assert_eq!(page.value(&name), want, "{name}");
    }
}

#[test]
fn alarming_counters_are_shown_before_they_count() {
    let page = Page::default();
    let mut recorder = recorder(&page);
    recorder.flush();
    let names = Fallback::ALL.map(|fallback| stat(&table::FALLBACKS, &[fallback.name()]));
    let rest = [
        stat(&table::ANSWERS, &["503", Answer::no_endpoint("p").cause]),
        stat(&table::DROPPED, &[]),
        stat(&table::STATE_ERRORS, &[]),
    ];
    for name in names.iter().chain(&rest) {
        assert!(page.is_defined(name), "{name}");
        assert_eq!(page.value(name), None, "{name}");
    }
}

#[test]
fn gauges_of_the_gone_are_zero() {
    let page = Page::default();
    let mut recorder = recorder(&page);
    let endpoint = Endpoint {
        pool: 1,
        address: "10.0.0.1:1",
    };
    let values = ["q", endpoint.address];
    let load = Load {
        in_flight: 3,
        ..Load::default()
    };
    let scrape = Scrape {
        running: Some(2),
        kv_usage: Some(0.4251),
        kv_capacity_tokens: Some(8320),
        prefix_hits: Some(f64::NAN),
        ..Scrape::default()
    };
    recorder.load(endpoint, &load);
    recorder.state(endpoint, State::Healthy);
    recorder.scraped(endpoint, &scrape);
    recorder.scrape_took(endpoint.pool, 12_000);
    recorder.scrape_age(endpoint, 1_400_000);
    recorder.scrape_failed(endpoint);
    recorder.flush();
    for (metric, want) in [
        (&table::IN_FLIGHT, Some(3)),
        (&table::STATE, Some(State::Healthy.code())),
        (&table::ENGINE_RUNNING, Some(2)),
        (&table::ENGINE_WAITING, None),
        (&table::ENGINE_KV_USAGE, Some(425)),
        (&table::ENGINE_KV_CAPACITY, Some(8320)),
        (&table::ENGINE_PREFIX_HITS, Some(0)),
        (&table::SCRAPE_AGE, Some(1400)),
        (&table::SCRAPE_ERRORS, Some(1)),
    ] {
        assert_eq!(page.value(&stat(metric, &values)), want, "{metric:?}");
    }
    recorder.gone(endpoint);
    recorder.flush();
    let gauges = |metric: &&Metric| metric.kind == Kind::Gauge && metric.labels.len() == 2;
    for metric in table::ALL.iter().filter(gauges) {
        let value = page.value(&stat(metric, &values));
        assert_eq!(value, Some(0), "{}", metric.name);
    }
    assert_eq!(page.value(&stat(&table::SCRAPE_ERRORS, &values)), Some(1));
}

#[test]
fn endpoints_beyond_the_bound_share_a_label() {
    let page = Page::default();
    let mut recorder = recorder(&page);
    let load = Load {
        in_flight: 1,
        ..Load::default()
    };
    let tell = |recorder: &mut Recorder<&Page>| {
        for number in 0..MAX_ENDPOINTS + 5 {
            let address = format!("10.1.{}.{}:80", number / 256, number % 256);
            let endpoint = Endpoint {
                pool: number % 2,
                address: &address,
            };
            recorder.load(endpoint, &load);
            recorder.scrape_failed(endpoint);
            recorder.gone(Endpoint {
                pool: 0,
                address: "10.9.9.9:80",
            });
        }
        recorder.flush();
    };
    tell(&mut recorder);
    let series = page.series();
    tell(&mut recorder);
    assert_eq!(page.series(), series, "no new series");
    let in_flight = |pool| {
        page.value(&stat(&table::IN_FLIGHT, &[pool, OTHER]))
            .unwrap_or(0)
    };
    // The first call of `gone` took a place of its own.
    assert_eq!(in_flight("p") + in_flight("q"), 6, "added up, once a tick");
    let errors = |pool| {
        page.value(&stat(&table::SCRAPE_ERRORS, &[pool, OTHER]))
            .unwrap_or(0)
    };
    assert_eq!(errors("p") + errors("q"), 12);
}

#[test]
fn who_leaves_clears_the_gauges_it_wrote() {
    let (written, not) = (Page::default(), Page::default());
    let mut writer = recorder(&written);
    writer.alive(3, 90_000_000);
    writer.pool_size(0, 4, 3);
    writer.pool_stale(0, 1);
    writer.prefix_table(1 << 20, 4096, 17);
    writer.flush();
    assert_eq!(written.value(&stat(&table::WORKERS, &[])), Some(3));
    assert_eq!(written.value(&stat(&table::UPTIME, &[])), Some(90));
    assert_eq!(written.value(&stat(&table::USABLE, &["p"])), Some(3));
    writer.lease_changed();
    writer.leave();
    assert_eq!(written.value(&stat(&table::USABLE, &["p"])), Some(0));
    assert_eq!(written.value(&stat(&table::KNOWN, &["q"])), None);
    assert_eq!(written.value(&stat(&table::LEASE_CHANGES, &[])), Some(1));
    let mut other = recorder(&not);
    other.leave();
    assert_eq!(not.value(&stat(&table::VM_STARTS, &[])), Some(1));
    assert_eq!(not.value(&stat(&table::WORKERS, &[])), None);
}
