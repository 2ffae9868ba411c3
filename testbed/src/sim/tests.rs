//! The simulator against theory and against itself.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::policy::Spec;
use super::statistics::Summary;
use super::workload::Workload;
use super::world::{Scenario, Sync, run};
use crate::model::ModelParams;
use crate::trace::format::Record;

fn scenario(engines: usize, block_tokens: u32, kv_blocks: u32) -> Scenario {
    Scenario {
        engines,
        params: ModelParams {
            block_tokens,
            kv_blocks,
            ..ModelParams::default()
        },
        routers: 1,
        shared: false,
        sync: None,
        seed: 1,
        time_scale: 1.0,
        scrape_interval_ms: None,
    }
}

/// Independent prompts of 1000 tokens, Poisson arrivals.
fn poisson(requests: u64, mean_gap_ms: f64) -> Workload {
    let mut rng = SmallRng::seed_from_u64(5);
    let mut now_ms = 0.0;
    let records: Vec<Record> = (0..requests)
        .map(|n| {
            now_ms -= mean_gap_ms * (1.0 - rng.random::<f64>()).ln();
            Record {
                t_ms: now_ms as u64,
                session: None,
                hash_ids: vec![n],
                block_tokens: 1000,
                input_tokens: 1000,
                output_tokens: 1,
                delay_ms: None,
            }
        })
        .collect();
    Workload::new(&records, None, 1, 1).unwrap()
}

/// Conversations that grow by a block a turn, some of them with a common start.
fn conversations() -> Workload {
    let records = crate::trace::generate::conversations(600, 60, 2).unwrap();
    Workload::new(&records, None, 1, 1).unwrap()
}

fn summary(workload: &Workload, policy: &str, scenario: &Scenario) -> Summary {
    let mut ended = 0;
    let spec = Spec::parse(policy).unwrap();
    let summary = run(workload, &spec, scenario, |n| ended = n).summary();
    assert_eq!(ended, workload.requests.len(), "{policy} lost requests");
    summary
}

#[test]
fn one_engine_is_a_queue_with_fixed_service_time() {
    // M/D/1: service D = 8 + 50 + 1 ms, mean time in system D + rho D / (2 (1 - rho)).
    let (service_s, rho) = (0.059, 0.7);
    let workload = poisson(40_000, 1000.0 * service_s / rho);
    let mut scenario = scenario(1, 1000, 1000);
    scenario.params.token_budget = 1000;
    let theory_s = service_s * (1.0 + rho / (2.0 * (1.0 - rho)));
    let mean_s = summary(&workload, "round_robin", &scenario).ttft_mean_s;
    assert!(
        (mean_s / theory_s - 1.0).abs() < 0.05,
        "{mean_s} {theory_s}"
    );
}

#[test]
fn every_policy_ends_every_request_and_repeats_itself() {
    let workload = conversations();
    let mut scenario = scenario(3, 64, 1500);
    for (routers, shared) in [(1, false), (4, false), (4, true)] {
        scenario.routers = routers;
        scenario.shared = shared;
        for policy in [
            "round_robin",
            "least_request",
            "p2c",
            "consistent_hash",
            "cache_aware",
            "cache_aware=0.3/64/1.5",
            "gie",
            "gie_capped",
            "dynamo_approx",
            "oracle=2",
            "oracle=load",
            "ours_reference",
            "ours_reference=true_cache",
            "prefix",
        ] {
            let first = summary(&workload, policy, &scenario);
            assert_eq!(first, summary(&workload, policy, &scenario), "{policy}");
        }
    }
}

#[test]
fn one_endless_engine_hits_what_was_seen_before() {
    let records = crate::trace::generate::conversations(600, 60, 2).unwrap();
    let workload = Workload::new(&records, None, 1, 1).unwrap();
    let mut calm = scenario(1, 64, 10_000_000);
    calm.time_scale = 50.0;
    let hit = summary(&workload, "round_robin", &calm).hit_percent;
    let spread = summary(&workload, "round_robin", &Scenario { engines: 8, ..calm });
    assert!(hit > 60.0, "{hit}");
    assert!(spread.hit_percent < hit - 20.0, "{}", spread.hit_percent);
}

#[test]
fn affinity_beats_blindness_and_the_oracle_beats_both() {
    let workload = conversations();
    let mut busy = scenario(4, 64, 600);
    busy.time_scale = 0.25;
    let mean_s = |policy| summary(&workload, policy, &busy).ttft_mean_s;
    let (blind, ours, oracle) = (
        mean_s("round_robin"),
        mean_s("ours_reference"),
        mean_s("oracle"),
    );
    assert!(
        ours < blind && oracle < ours * 1.1,
        "{blind} {ours} {oracle}"
    );
}

#[test]
fn a_request_that_fits_no_engine_is_counted_and_its_session_goes_on() {
    let workload = conversations();
    let mut tiny = scenario(2, 64, 40);
    tiny.time_scale = 4.0;
    assert!(summary(&workload, "ours_reference", &tiny).refused > 0);
}

/// The capacity here is far from the default, so who does not learn it does visibly worse. A single
/// run of this size tells little: one early placement may move its mean TTFT by a tenth.
#[test]
fn a_capacity_learned_from_metrics_is_as_good_as_one_given() {
    let mut scraped = scenario(4, 64, 1600);
    scraped.scrape_interval_ms = Some(1000);
    let runs = [2, 3, 4, 5].map(|seed| {
        let records = crate::trace::generate::conversations(600, 60, seed).unwrap();
        let workload = Workload::new(&records, None, 1, 1).unwrap();
        [
            summary(&workload, "prefix", &scenario(4, 64, 1600)),
            summary(&workload, "prefix=learned", &scraped),
            summary(&workload, "prefix=learned", &scenario(4, 64, 1600)),
        ]
    });
    let mean = |policy: usize, figure: fn(&Summary) -> f64| {
        runs.iter().map(|run| figure(&run[policy])).sum::<f64>() / runs.len() as f64
    };
    let [given, learned, unknown] = [0, 1, 2].map(|policy| {
        let hits = mean(policy, |summary| summary.hit_percent);
        (hits, mean(policy, |summary| summary.ttft_mean_s))
    });
    assert!((learned.0 / given.0 - 1.0).abs() < 0.02, "{runs:?}");
    assert!(learned.1 < 1.1 * given.1, "{runs:?}");
    assert!(unknown.0 < 0.98 * given.0, "{runs:?}");
}

#[test]
fn unknown_policies_are_named() {
    for bad in [
        "prefixes",
        "cache_aware=1",
        "oracle=x",
        "gie=1",
        "ours_reference=y",
    ] {
        assert!(
            Spec::parse(bad).unwrap_err().to_string().contains("want"),
            "{bad}"
        );
    }
}

/// Several routers that tell each other what they learn are about as good as one, and better than
/// those that do not.
#[test]
fn telling_each_other_is_nearly_as_good_as_being_one() {
    let workload = conversations();
    let hit = |routers, sync| {
        let mut scenario = scenario(8, 512, 800);
        scenario.routers = routers;
        scenario.sync = sync;
        scenario.time_scale = 4.0;
        summary(&workload, "prefix", &scenario).hit_percent
    };
    let sync = |loss_percent| {
        Some(Sync {
            interval_ms: 100,
            loss_percent,
        })
    };
    let (one, alone) = (hit(1, None), hit(4, None));
    let (told, lossy) = (hit(4, sync(0.0)), hit(4, sync(5.0)));
    assert!(
        told > one - 2.0 && lossy > one - 4.0,
        "{one} {told} {lossy}"
    );
    assert!(alone < told - 4.0, "{alone} {told}");
}
