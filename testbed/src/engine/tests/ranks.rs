//! Data-parallel ranks: who runs what, and what is told of each.

use super::*;

async fn ranked(ranks: u32) -> Engine {
    started(EngineConfig {
        time_scale: 0.0,
        data_parallel_size: ranks,
        ..EngineConfig::default()
    })
    .await
}

async fn sent(engine: &Engine, rank: &str) -> (u16, String) {
    let request = Client::new()
        .post(url(engine, "/v1/completions"))
        .header("X-data-parallel-rank", rank)
        .json(&completion(&"long enough to be cached ".repeat(20)));
    let answer = timeout(DEADLINE, request.send()).await.unwrap().unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn a_rank_has_a_cache_of_its_own() {
    let engine = ranked(3).await;
    for rank in ["1", "1", "2", "2", "1"] {
        assert_eq!(sent(&engine, rank).await.0, 200);
    }
    let log = engine.log();
    let ran: Vec<_> = log.iter().map(|seen| seen.rank).collect();
    assert_eq!(ran, [Some(1), Some(1), Some(2), Some(2), Some(1)]);
    let cached: Vec<bool> = log.iter().map(|it| it.cached_tokens > Some(0)).collect();
    assert_eq!(cached, [false, true, false, true, true]);
    let prompts: Vec<u64> = engine
        .rank_stats()
        .iter()
        .map(|it| it.prompt_tokens)
        .collect();
    assert_eq!(prompts[0], 0);
    assert_eq!(prompts[1] * 2, prompts[2] * 3);
    assert_eq!(engine.stats().prompt_tokens, prompts.iter().sum::<u64>());
}

#[tokio::test]
async fn a_rank_that_is_none_is_refused_and_no_number_is_ignored() {
    let engine = ranked(2).await;
    for rank in ["2", "-1", "99999999999"] {
        let (status, body) = sent(&engine, rank).await;
        assert_eq!(status, 400, "{rank}");
        assert!(
            body.contains(&format!("{rank} is out of range [0, 2)")),
            "{body}"
        );
    }
    for rank in ["", "x", "1.5"] {
        assert_eq!(sent(&engine, rank).await.0, 200, "{rank}");
    }
}

#[tokio::test]
async fn requests_without_a_rank_are_spread_in_turn() {
    let engine = ranked(3).await;
    for _ in 0..6 {
        post_json(&engine, "/v1/completions", completion("hello")).await;
    }
    let ran: Vec<_> = engine.log().iter().map(|seen| seen.rank).collect();
    assert_eq!(ran, [0, 1, 2, 0, 1, 2].map(Some));
}

#[tokio::test]
async fn the_page_has_each_family_once_and_a_series_for_each_rank() {
    let engine = ranked(3).await;
    for rank in ["1", "2", "2"] {
        assert_eq!(sent(&engine, rank).await.0, 200);
    }
    let page = get_text(&engine, "/metrics").await;
    for family in [
        "vllm:num_requests_running",
        "vllm:cache_config_info",
        "process_start_time_seconds",
    ] {
        let heads = page.matches(&format!("# TYPE {family} ")).count();
        assert_eq!(heads, 1, "{family}");
    }
    let finished: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("vllm:request_success_total") && line.contains("length"))
        .collect();
    for (rank, count) in [(0, "0.0"), (1, "1.0"), (2, "2.0")] {
        let series = finished[rank];
        let label = format!("engine=\"{rank}\"");
        assert!(
            series.contains(&label) && series.ends_with(count),
            "{series}"
        );
    }
    assert_eq!(finished.len(), 3);
    let stats = warmpath_core::stats::EngineStats::read(page.as_bytes(), &Default::default());
    assert_eq!(stats.rank_count(), Some(3));
    assert_eq!(stats.ranks[2].figures.finished, Some(2));
    assert!(stats.started_s.is_some());
}

#[tokio::test]
async fn an_engine_that_knows_no_ranks_ignores_the_header() {
    let engine = started(EngineConfig {
        time_scale: 0.0,
        heeds_ranks: false,
        ..EngineConfig::default()
    })
    .await;
    assert_eq!(sent(&engine, "7").await.0, 200);
    assert_eq!(engine.log()[0].rank, Some(0));
}
