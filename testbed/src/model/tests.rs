//! What the rest of the testbed relies on: token order, cache hits, LRU order, and no leak.

use std::collections::HashMap;

use proptest::prelude::*;

use super::cache::BlockCache;
use super::*;

fn small(kv_blocks: u32) -> EngineModel {
    EngineModel::new(ModelParams {
        block_tokens: 16,
        kv_blocks,
        token_budget: 64,
        max_num_seqs: 4,
        ..ModelParams::default()
    })
}

fn request(id: u64, blocks: &[u64], prompt_tokens: u32, output_tokens: u32) -> Submission {
    Submission {
        id,
        blocks: blocks.to_vec(),
        prompt_tokens,
        output_tokens,
        ..Submission::default()
    }
}

/// Steps until idle; returns every token and the time.
fn drain(engine: &mut EngineModel) -> (Vec<TokenEvent>, u64) {
    let (mut tokens, mut time_us) = (Vec::new(), 0);
    while let Some(step) = engine.step() {
        assert!(step.duration_us > 0);
        assert!(engine.cache.adds_up());
        time_us += step.duration_us;
        tokens.extend(step.tokens);
    }
    (tokens, time_us)
}

#[test]
fn tokens_come_in_order_and_the_last_is_marked() {
    let mut engine = small(64);
    engine.submit(request(7, &[1, 2], 32, 3)).unwrap();
    let (tokens, _) = drain(&mut engine);
    let seen: Vec<_> = tokens.iter().map(|t| (t.id, t.index, t.finished)).collect();
    assert_eq!(seen, [(7, 0, false), (7, 1, false), (7, 2, true)]);
    assert!(engine.is_idle());
    assert_eq!(engine.step(), None);
}

#[test]
fn a_long_prompt_is_computed_in_chunks_of_the_budget() {
    let mut engine = small(64);
    engine.submit(request(1, &[], 150, 1)).unwrap();
    let chunks: Vec<_> = std::iter::from_fn(|| engine.step())
        .map(|step| (step.prefill_tokens, step.tokens.len()))
        .collect();
    assert_eq!(chunks, [(64, 0), (64, 0), (22, 1)]);
}

#[test]
fn step_time_follows_the_formula() {
    let mut engine = EngineModel::new(ModelParams::default());
    engine.submit(request(1, &[], 1000, 2)).unwrap();
    let prefill = engine.step().unwrap();
    assert_eq!(prefill.duration_us, 8000 + 50_000 + 1000);
    let decode = engine.step().unwrap();
    assert_eq!(
        (decode.decode_seqs, decode.duration_us),
        (1, 8000 + 30 + 50)
    );
}

#[test]
fn the_last_prompt_token_is_always_computed() {
    let mut engine = small(64);
    for id in [1, 2] {
        engine.submit(request(id, &[1, 2, 3], 48, 1)).unwrap();
        drain(&mut engine);
    }
    assert_eq!(engine.matched_blocks(&[1, 2, 3]), 3);
    assert_eq!(engine.stats().prefix_hits_tokens, 32);
    assert_eq!(engine.stats().prefix_queries_tokens, 96);
    assert_eq!(engine.stats().prompt_tokens, 96);
    assert_eq!(engine.stats().generation_tokens, 2);
}

#[test]
fn a_partial_block_is_never_a_hit() {
    let mut engine = small(64);
    engine.submit(request(1, &[1, 2], 20, 1)).unwrap();
    drain(&mut engine);
    assert_eq!(engine.matched_blocks(&[1, 2]), 1);
}

#[test]
fn a_block_can_be_hit_once_scheduled() {
    let mut engine = small(64);
    engine.submit(request(1, &[1, 2], 33, 5)).unwrap();
    engine.submit(request(2, &[1, 2], 33, 5)).unwrap();
    let step = engine.step().unwrap();
    assert_eq!(step.prefill_tokens, 33 + 1);
    assert_eq!(engine.cached_tokens(2), Some(32));
    assert_eq!(engine.stats().kv_used_blocks, 3 + 1);
}

#[test]
fn a_request_larger_than_the_cache_is_refused() {
    let mut engine = small(4);
    let refusal = engine.submit(request(1, &[], 60, 5)).unwrap_err();
    assert_eq!(
        refusal,
        Refusal::TooLarge {
            need_blocks: 5,
            kv_blocks: 4
        }
    );
    assert!(engine.is_idle());
}

#[test]
fn a_full_cache_blocks_the_head_of_the_line() {
    let mut engine = small(4);
    engine.submit(request(1, &[1, 2], 32, 4)).unwrap();
    engine.submit(request(2, &[3, 4], 32, 4)).unwrap();
    engine.submit(request(3, &[5], 8, 1)).unwrap();
    engine.step();
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting), (1, 2));
    assert_eq!(engine.cached_tokens(2), None);
    let (tokens, _) = drain(&mut engine);
    let last: Vec<_> = tokens.iter().filter(|t| t.finished).map(|t| t.id).collect();
    assert_eq!(last, [1, 3, 2]);
}

#[test]
fn eviction_takes_the_oldest_release_and_its_deepest_block_first() {
    let mut cache = BlockCache::new(6);
    for chain in [[1, 2, 3], [1, 4, 5]] {
        let hits = cache.matched(&chain);
        let mut holding = cache.admit(&chain[..hits as usize], 3 - hits).unwrap();
        for &hash in &chain[hits as usize..] {
            cache.name(&mut holding, hash);
        }
        cache.release(holding);
    }
    assert_eq!(cache.eviction_order(), [3, 2, 5, 4, 1]);
    let holding = cache.admit(&[], 3).unwrap();
    assert_eq!(cache.eviction_order(), [5, 4, 1]);
    cache.release(holding);
    assert_eq!((cache.used(), cache.adds_up()), (0, true));
}

#[test]
fn aborting_gives_everything_back() {
    let mut engine = small(8);
    engine.submit(request(1, &[1, 2], 40, 9)).unwrap();
    engine.submit(request(2, &[1, 2], 90, 9)).unwrap();
    engine.step();
    assert!(engine.abort(2) && engine.abort(1) && !engine.abort(1));
    assert!(engine.is_idle() && engine.cache.adds_up());
    assert_eq!(engine.stats().kv_used_blocks, 0);
    assert_eq!(engine.matched_blocks(&[1, 2]), 2);
    engine.flush_cache();
    assert_eq!(engine.matched_blocks(&[1, 2]), 0);
}

/// Chains over a small tree of prompts, so that requests share prefixes of every length.
fn prompts() -> impl Strategy<Value = Vec<(Vec<u64>, u32, u32)>> {
    let chain = prop::collection::vec(0u64..3, 1..8).prop_map(|steps| {
        let mut hash = 0;
        steps
            .into_iter()
            .map(|step| {
                hash = hash * 4 + step + 1;
                hash
            })
            .collect::<Vec<u64>>()
    });
    prop::collection::vec((chain, 1u32..=16, 1u32..6), 1..40)
}

proptest! {
    #[test]
    fn every_request_finishes_and_nothing_leaks(
        prompts in prompts(),
        kv_blocks in 8u32..40,
        aborts in prop::collection::vec(0u64..40, 0..6),
    ) {
        let mut engine = small(kv_blocks);
        let mut outputs: HashMap<u64, u32> = HashMap::new();
        let mut finished = 0;
        for (id, (blocks, tail, output)) in (0..).zip(&prompts) {
            let tokens = (blocks.len() as u32 - 1) * 16 + tail;
            if engine.submit(request(id, blocks, tokens, *output)).is_ok() {
                outputs.insert(id, *output);
            }
            if let Some(step) = engine.step() {
                finished += step.tokens.iter().filter(|t| t.finished).count();
            }
            prop_assert!(engine.cache.adds_up());
        }
        for id in aborts {
            if engine.abort(id) {
                outputs.remove(&id);
            }
            prop_assert!(engine.cache.adds_up());
        }
        let (tokens, _) = drain(&mut engine);
        finished += tokens.iter().filter(|t| t.finished).count();
        prop_assert_eq!(finished, outputs.len());
        prop_assert!(tokens.iter().filter(|t| t.finished).all(|t| t.index + 1 == outputs[&t.id]));
        prop_assert_eq!(engine.stats().kv_used_blocks, 0);
    }

    #[test]
    fn an_endless_cache_hits_all_that_was_seen_before(prompts in prompts()) {
        let mut engine = small(1 << 20);
        let mut seen: std::collections::HashSet<u64> = Default::default();
        let mut ideal = 0;
        for (id, (blocks, tail, output)) in (0..).zip(&prompts) {
            let tokens = (blocks.len() as u32 - 1) * 16 + tail;
            let full = ((tokens - 1) / 16) as usize;
            ideal += 16 * blocks[..full].iter().take_while(|hash| seen.contains(*hash)).count() as u64;
            seen.extend(&blocks[..(tokens / 16) as usize]);
            engine.submit(request(id, blocks, tokens, *output)).unwrap();
            drain(&mut engine);
        }
        prop_assert_eq!(engine.stats().prefix_hits_tokens, ideal);
    }
}

#[test]
fn what_another_engine_sent_is_not_computed_and_can_be_hit_later() {
    let sent = |tokens| Submission {
        external_tokens: tokens,
        ..request(1, &[1, 2, 3], 48, 1)
    };
    let mut engine = small(64);
    engine.submit(sent(48)).unwrap();
    let step = engine.step().unwrap();
    assert_eq!((step.prefill_tokens, step.tokens.len()), (1, 1));
    let stats = engine.stats();
    assert_eq!(
        (stats.external_queries_tokens, stats.external_hits_tokens),
        (48, 48)
    );
    assert_eq!(engine.matched_blocks(&[1, 2, 3]), 3);
    // A local hit comes first; only the rest is another's.
    engine
        .submit(Submission {
            external_tokens: 64,
            ..request(2, &[1, 2, 3, 4], 64, 1)
        })
        .unwrap();
    drain(&mut engine);
    assert_eq!(engine.stats().external_hits_tokens, 48 + 16);
    assert_eq!(engine.stats().prefix_hits_tokens, 48);
}

#[test]
fn kept_blocks_stay_taken_until_they_are_let_go() {
    let mut engine = small(8);
    let keep = Submission {
        keep: true,
        ..request(1, &[1, 2], 32, 1)
    };
    engine.submit(keep).unwrap();
    drain(&mut engine);
    assert_eq!(engine.stats().kv_used_blocks, 3);
    assert!(engine.let_go(1) && !engine.let_go(1));
    assert_eq!(engine.stats().kv_used_blocks, 0);
    assert_eq!(engine.matched_blocks(&[1, 2]), 2);
}
