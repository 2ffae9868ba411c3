//! Metrics pages of every known engine, with the figures a person reads in them, and properties.
#![cfg(not(target_arch = "wasm32"))]
#![allow(
    clippy::indexing_slicing,
    clippy::expect_used,
    reason = "a panic is a failed test"
)]

mod metrics_page;

use metrics_page::{TABLE, check};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use warmpath_core::stats::{
    Adapter, EngineStats, Figures, MAX_ADAPTER_NAME_BYTES, MAX_ADAPTERS, MAX_RANKS, Names, Rank,
};

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("fixtures/metrics/", $name, ".txt"))
    };
}

fn read(page: &[u8]) -> EngineStats {
    check(page);
    EngineStats::read(page, &Names::default())
}

/// A page whose series have no rank.
fn unranked(page: &[u8]) -> Figures {
    let stats = read(page);
    assert_eq!(stats.ranks, []);
    assert!(!stats.is_cut);
    stats.total
}

fn adapter(name: &str, is_running: bool, is_waiting: bool) -> Adapter {
    Adapter {
        name: name.to_owned(),
        is_running,
        is_waiting,
    }
}

#[test]
fn vllm_0_32() {
    let idle = Figures {
        running: Some(0),
        waiting: Some(0),
        kv_usage: Some(0.0),
        prefix_queries_tokens: Some(44_419),
        prefix_hits_tokens: Some(960),
        kv_capacity_tokens: Some(65_536),
        finished: Some(500),
        generated_tokens: Some(3108),
        is_sleeping: Some(false),
        ..Figures::default()
    };
    let stats = read(fixture!("vllm-0.32"));
    assert_eq!(stats.total, idle);
    let rank = Rank {
        number: 0,
        figures: idle,
    };
    assert_eq!(stats.ranks, [rank]);
    assert_eq!((stats.adapters, stats.max_adapters), (vec![], None));
    let decode = Figures {
        prefix_queries_tokens: Some(1501),
        prefix_hits_tokens: Some(0),
        kv_capacity_tokens: Some(8320),
        finished: Some(4),
        generated_tokens: Some(28),
        ..idle
    };
    assert_eq!(read(fixture!("vllm-0.32-decode")).total, decode);
}

#[test]
fn vllm_0_10_with_two_ranks_and_both_names() {
    let stats = read(fixture!("vllm-0.10"));
    let first = Figures {
        running: Some(12),
        waiting: Some(3),
        kv_usage: Some(0.75),
        prefix_queries_tokens: Some(1_048_576),
        prefix_hits_tokens: Some(786_432),
        kv_capacity_tokens: Some(440_000),
        finished: Some(1000),
        ..Figures::default()
    };
    let second = Figures {
        running: Some(9),
        waiting: Some(0),
        kv_usage: Some(0.5),
        prefix_queries_tokens: Some(524_288),
        prefix_hits_tokens: Some(131_072),
        kv_capacity_tokens: Some(440_000),
        finished: Some(500),
        ..Figures::default()
    };
    let total = Figures {
        running: Some(21),
        waiting: Some(3),
        kv_usage: Some(0.625),
        prefix_queries_tokens: Some(1_572_864),
        prefix_hits_tokens: Some(917_504),
        // Each rank says the blocks of all ranks.
        kv_capacity_tokens: Some(880_000),
        finished: Some(1500),
        ..Figures::default()
    };
    assert_eq!(stats.total, total);
    let ranks = [(0, first), (1, second)].map(|(number, figures)| Rank { number, figures });
    assert_eq!(stats.ranks, ranks);
}

#[test]
fn vllm_0_8_with_adapters() {
    let stats = read(fixture!("vllm-0.8"));
    let total = Figures {
        running: Some(5),
        waiting: Some(1),
        kv_usage: Some(0.125),
        prefix_queries_tokens: Some(4000),
        prefix_hits_tokens: Some(1000),
        kv_capacity_tokens: Some(432_000),
        finished: Some(42),
        ..Figures::default()
    };
    assert_eq!(stats.total, total);
    let adapters = [
        adapter("sql", true, false),
        adapter("chat", true, true),
        adapter("law", false, true),
    ];
    assert_eq!(stats.adapters, adapters);
    assert_eq!(stats.max_adapters, Some(4));
}

#[test]
fn vllm_v0() {
    let figures = Figures {
        running: Some(8),
        waiting: Some(4),
        kv_usage: Some(0.9375),
        prefix_hit_rate: Some(0.625),
        kv_capacity_tokens: Some(184_960),
        finished: Some(6226),
        ..Figures::default()
    };
    assert_eq!(unranked(fixture!("vllm-v0")), figures);
    let stats = read(fixture!("vllm-v0"));
    assert_eq!((stats.adapters, stats.max_adapters), (vec![], Some(0)));
}

#[test]
fn vllm_asleep() {
    let stats = read(fixture!("vllm-asleep"));
    assert_eq!(stats.total.is_sleeping, Some(true));
    assert_eq!(stats.ranks[0].figures.is_sleeping, Some(true));
}

#[test]
fn sglang_0_5_with_two_ranks_of_two_shards() {
    let stats = read(fixture!("sglang-0.5"));
    let first = Figures {
        running: Some(11),
        waiting: Some(2),
        kv_usage: Some(0.75),
        prefix_hit_rate: Some(0.5),
        kv_capacity_tokens: Some(80_000),
        ..Figures::default()
    };
    let second = Figures {
        running: Some(7),
        waiting: Some(0),
        kv_usage: Some(0.25),
        prefix_hit_rate: Some(0.0),
        kv_capacity_tokens: Some(80_000),
        ..Figures::default()
    };
    let total = Figures {
        running: Some(18),
        waiting: Some(2),
        kv_usage: Some(0.5),
        prefix_queries_tokens: Some(8_128_902),
        prefix_hits_tokens: Some(3_500_000),
        prefix_hit_rate: Some(0.25),
        kv_capacity_tokens: Some(160_000),
        finished: Some(4321),
        ..Figures::default()
    };
    assert_eq!(stats.total, total);
    let ranks = [(0, first), (1, second)].map(|(number, figures)| Rank { number, figures });
    assert_eq!(stats.ranks, ranks);
}

#[test]
fn sglang_0_4_in_both_spellings() {
    let figures = Figures {
        running: Some(161),
        waiting: Some(2826),
        kv_usage: Some(0.28),
        prefix_queries_tokens: Some(8_128_902),
        prefix_hit_rate: Some(0.007_507_553),
        kv_capacity_tokens: Some(713_408),
        ..Figures::default()
    };
    let page = fixture!("sglang-0.4");
    assert_eq!(unranked(page), figures);
    let renamed = String::from_utf8_lossy(page).replace("sglang:", "sglang_");
    assert_eq!(unranked(renamed.as_bytes()), figures);
    let both = [page, renamed.as_bytes()].concat();
    assert_eq!(unranked(&both), figures);
}

#[test]
fn tensorrt_llm() {
    let figures = Figures {
        running: Some(6),
        waiting: Some(2),
        kv_usage: Some(0.5),
        prefix_queries_tokens: Some(1800),
        prefix_hits_tokens: Some(450),
        prefix_hit_rate: Some(0.25),
        kv_capacity_tokens: Some(97_088),
        finished: Some(155),
        ..Figures::default()
    };
    assert_eq!(unranked(fixture!("trtllm-1.3")), figures);
    let figures = Figures {
        finished: Some(12),
        ..Figures::default()
    };
    assert_eq!(unranked(fixture!("trtllm-1.0")), figures);
}

#[test]
fn triton() {
    let figures = Figures {
        running: Some(4),
        waiting: Some(3),
        kv_usage: Some(0.6),
        kv_capacity_tokens: Some(384_000),
        ..Figures::default()
    };
    assert_eq!(unranked(fixture!("triton")), figures);
}

#[test]
fn tgi() {
    let figures = Figures {
        running: Some(5),
        waiting: Some(3),
        finished: Some(148),
        ..Figures::default()
    };
    assert_eq!(unranked(fixture!("tgi")), figures);
}

#[test]
fn llama_cpp() {
    let figures = Figures {
        running: Some(4),
        waiting: Some(46),
        prefix_queries_tokens: Some(80_000),
        prefix_hits_tokens: Some(60_000),
        generated_tokens: Some(39_303),
        ..Figures::default()
    };
    assert_eq!(unranked(fixture!("llama-cpp")), figures);
    let figures = Figures {
        running: Some(1),
        waiting: Some(0),
        kv_usage: Some(0.0625),
        ..Figures::default()
    };
    assert_eq!(unranked(fixture!("llama-cpp-2025-04")), figures);
}

#[test]
fn configured_names_come_before_known_ones() {
    let names = Names {
        running: Some("engine_active".to_owned()),
        waiting: Some("engine_queued".to_owned()),
        kv_usage: Some("engine_kv".to_owned()),
        prefix_queries_tokens: Some("engine_asked_total".to_owned()),
        prefix_hits_tokens: Some("engine_found_total".to_owned()),
        kv_capacity_tokens: Some("engine_kv_tokens".to_owned()),
        finished: Some("engine_done_total".to_owned()),
    };
    let page =
        b"engine_active{dp_rank=\"1\"} 1\nengine_active{dp_rank=\"2\"} 2\nengine_queued 4\r\n\
        engine_kv 0.5\nengine_asked_total 10\nengine_found_total 5\nengine_kv_tokens 1000\n\
        engine_done_total 7\nvllm:num_requests_running 99\nvllm:num_requests_waiting 9\n";
    let figures = Figures {
        running: Some(3),
        waiting: Some(4),
        kv_usage: Some(0.5),
        prefix_queries_tokens: Some(10),
        prefix_hits_tokens: Some(5),
        kv_capacity_tokens: Some(1000),
        finished: Some(7),
        ..Figures::default()
    };
    let stats = EngineStats::read(page, &names);
    assert_eq!(stats.total, figures);
    let numbers: Vec<u32> = stats.ranks.iter().map(|rank| rank.number).collect();
    assert_eq!(numbers, [1, 2]);
    let known = EngineStats::read(b"vllm:num_requests_running 99\n", &names);
    assert_eq!(known.total.running, Some(99));
}

#[test]
fn values_that_no_figure_can_have_are_absent() {
    let running = |value: &str| {
        let page = format!("vllm:num_requests_running {value}\n");
        unranked(page.as_bytes()).running
    };
    for value in ["NaN", "+Inf", "-Inf", "-1", "1e300", "4294967296", "", "x"] {
        assert_eq!(running(value), None, "{value}");
    }
    assert_eq!(running("4294967295"), Some(u32::MAX));
    assert_eq!(running("2.9"), Some(2));
    let usage = |value: &str| {
        let page = format!("vllm:kv_cache_usage_perc {value}\n");
        unranked(page.as_bytes()).kv_usage
    };
    assert_eq!(usage("1.0000001"), Some(1.0));
    assert_eq!(usage("42"), None);
    let finished = |value: &str| {
        let page = format!("tgi_request_success {value}\n");
        unranked(page.as_bytes()).finished
    };
    assert_eq!(finished("9007199254740992"), Some(1 << 53));
    assert_eq!(finished("9007199254740994"), None);
}

#[test]
fn one_bad_series_leaves_the_others() {
    let page =
        b"vllm:num_requests_running{engine=\"0\"} NaN\nvllm:num_requests_running{engine=\"1\"} 2\n";
    let stats = read(page);
    assert_eq!(stats.total.running, Some(2));
    assert_eq!(stats.ranks.len(), 1);
}

#[test]
fn several_models_are_added() {
    let page = b"vllm:num_requests_running{model_name=\"a\"} 2\nvllm:num_requests_running{model_name=\"b\"} 3\n\
        vllm:kv_cache_usage_perc{model_name=\"a\"} 0.25\nvllm:kv_cache_usage_perc{model_name=\"b\"} 0.75\n";
    let figures = Figures {
        running: Some(5),
        kv_usage: Some(0.5),
        ..Figures::default()
    };
    assert_eq!(unranked(page), figures);
}

#[test]
fn sums_stop_at_the_greatest_number() {
    let page = b"vllm:num_requests_running{a=\"b\"} 4294967295\n".repeat(3);
    assert_eq!(unranked(&page).running, Some(u32::MAX));
    let page = b"tgi_request_success 9007199254740992\n".repeat(4096);
    assert_eq!(unranked(&page).finished, Some(u64::MAX));
}

#[test]
fn labels_may_hold_anything() {
    let page = b"vllm:num_requests_running{model_name=\"a\\\\\",engine=\"0\"} 1\n\
        vllm:num_requests_running{model_name=\"} 9 \\\" engine=\\\"7\\\"\\n\", engine = \"3\" , } 2 1700000000\r\n\
        \tvllm:num_requests_running\t{ } 4 # {trace_id=\"x y\"} 1.0\n\
        vllm:num_requests_running{model_name=\"\xff\xfe\"} 8\n\
        vllm:num_requests_running{model_name=\"open} 16\n\
        \x00\xff\n\n#\nvllm:num_requests_running 32";
    let stats = read(page);
    assert_eq!(stats.total.running, Some(15));
    assert!(stats.is_cut);
    let numbers: Vec<u32> = stats.ranks.iter().map(|rank| rank.number).collect();
    assert_eq!(numbers, [0, 3]);
}

#[test]
fn ranks_are_bounded_and_all_count_in_the_total() {
    let line =
        |rank| format!("sglang:num_running_reqs{{dp_rank=\"{rank}\",tp_rank=\"{rank}\"}} 1\n");
    let page: String = (0..100).rev().map(line).collect();
    let stats = EngineStats::read(page.as_bytes(), &Names::default());
    assert_eq!(stats.total.running, Some(100));
    let numbers: Vec<u32> = stats.ranks.iter().map(|rank| rank.number).collect();
    let expected: Vec<u32> = (100 - MAX_RANKS as u32..100).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn adapters_are_bounded() {
    let mut names: Vec<String> = (0..100).map(|i| format!("adapter-{i}")).collect();
    names[1] = "n".repeat(MAX_ADAPTER_NAME_BYTES + 1);
    names[2] = " \\\"quoted\\\" ".to_owned();
    let page = format!(
        "vllm:lora_requests_info{{running_lora_adapters=\"{}\",max_lora=\"x\"}} 5\n",
        names.join(",")
    );
    let stats = read(page.as_bytes());
    assert_eq!(stats.adapters.len(), MAX_ADAPTERS);
    assert_eq!(stats.adapters[0].name, "adapter-0");
    assert_eq!(stats.adapters[1].name, "\"quoted\"");
    assert_eq!(stats.adapters[63].name, "adapter-64");
    assert_eq!(stats.max_adapters, None);
}

#[test]
fn a_rank_that_sleeps_makes_the_engine_asleep() {
    let page = b"vllm:engine_sleep_state{engine=\"0\",sleep_state=\"awake\"} 1\n\
        vllm:engine_sleep_state{engine=\"1\",sleep_state=\"awake\"} 0\n\
        vllm:engine_sleep_state{engine=\"2\",sleep_state=\"dreaming\"} 1\n";
    let stats = read(page);
    assert_eq!(stats.total.is_sleeping, Some(true));
    let ranks: Vec<_> = stats
        .ranks
        .iter()
        .map(|rank| rank.figures.is_sleeping)
        .collect();
    assert_eq!(ranks, [Some(false), Some(true)]);
}

#[test]
fn huge_pages_are_read() {
    let page = b"vllm:num_requests_running{engine=\"1\"} 1\n".repeat(1_000_000);
    let stats = EngineStats::read(&page, &Names::default());
    assert_eq!(stats.total.running, Some(1_000_000));
    let one_line = [b"vllm:num_requests_running ", &[b'x'; 5_000_000][..]].concat();
    let stats = EngineStats::read(&one_line, &Names::default());
    assert_eq!((stats.total, stats.is_cut), (Figures::default(), true));
}

fn label_value() -> impl Strategy<Value = String> {
    let texts = [
        "",
        "0",
        "1",
        "2",
        "16",
        "64",
        "None",
        "awake",
        "weights_offloaded",
        "discard_all",
        "stop",
        "scheduled",
        "active",
        "waiting",
        "fraction",
        "max",
        "tokens_per",
        "a,b",
        "b, c",
        "a\\\"b",
        "} 7",
        "x\\\\",
        "\\n",
        "\u{e9}",
        "a=\\\"b\\\",",
    ];
    prop_oneof![4 => select(texts.to_vec()).prop_map(str::to_owned), 1 => "[a-z]{0,9}"]
}

fn label() -> impl Strategy<Value = String> {
    let keys = [
        "engine",
        "dp_rank",
        "tp_rank",
        "pp_rank",
        "model_name",
        "finished_reason",
        "request_type",
        "kv_cache_block_type",
        "kv_cache_size_tokens",
        "block_size",
        "num_gpu_blocks",
        "page_size",
        "num_pages",
        "sleep_state",
        "running_lora_adapters",
        "waiting_lora_adapters",
        "max_lora",
    ];
    (select(keys.to_vec()), label_value()).prop_map(|(key, value)| format!("{key}=\"{value}\""))
}

fn name() -> impl Strategy<Value = String> {
    let named: Vec<&str> = TABLE.iter().map(|(_, name, _)| *name).collect();
    let info = [
        "vllm:cache_config_info",
        "sglang:cache_config_info",
        "vllm:engine_sleep_state",
        "vllm:lora_requests_info",
        "vllm:request_success",
        "vllm:num_requests_waiting_by_reason",
        "python_info",
        "# TYPE",
        "",
    ];
    let name = prop_oneof![3 => select(named), 2 => select(info.to_vec())];
    (name, 0..8).prop_map(|(name, spelling)| match spelling {
        0 => name.replace(':', "_"),
        1 => format!("{name}_bucket"),
        _ => name.to_owned(),
    })
}

fn number() -> impl Strategy<Value = String> {
    let odd = [
        "NaN",
        "+Inf",
        "-1",
        "-0",
        "1e300",
        "0x10",
        "9007199254740992",
        "4294967296",
        "",
        "1 2 3",
        "7 1700000000",
        "8 # {a=\"b\"} 1",
        "1.005",
        "1e-9",
    ];
    prop_oneof![
        3 => (0_u32..1000).prop_map(|number| format!("{number}.0")),
        2 => (0.0..1.0).prop_map(|ratio: f64| ratio.to_string()),
        1 => select(odd.to_vec()).prop_map(str::to_owned),
    ]
}

fn line() -> impl Strategy<Value = String> {
    let blank = || select(&["", " ", "\t"][..]);
    let labels = option::weighted(0.8, vec(label(), 0..5));
    let end = select(&["\n", "\n", "\n", "\r\n", " \n", ""][..]);
    (blank(), name(), blank(), labels, number(), end).prop_map(
        |(before, name, between, labels, number, end)| match labels {
            Some(labels) => format!(
                "{before}{name}{between}{{{}}} {number}{end}",
                labels.join(",")
            ),
            None => format!("{before}{name} {number}{end}"),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_read_as_by_the_plain_reading(page in vec(any::<u8>(), 0..400)) {
        check(&page);
    }

    #[test]
    fn generated_pages_are_read_as_by_the_plain_reading(lines in vec(line(), 0..30)) {
        check(lines.concat().as_bytes());
    }

    #[test]
    fn damaged_pages_are_read_as_by_the_plain_reading(
        lines in vec(line(), 1..20),
        damage in vec((any::<Index>(), select(&b"\"\\{}=, \n\r\t#0_:\xff"[..])), 1..5),
    ) {
        let mut page = lines.concat().into_bytes();
        for (at, byte) in damage {
            if !page.is_empty() {
                let at = at.index(page.len());
                page[at] = byte;
            }
        }
        check(&page);
    }
}
