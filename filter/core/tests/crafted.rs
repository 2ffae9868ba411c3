//! Prompts that are built to be taken for others. XXH3-64 is no secret and no hard problem: a chunk with
//! any hash is made in no time, here and by whoever wants to. What must hold is that it gains nothing.
#![cfg(not(target_arch = "wasm32"))]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a panic is a failed test"
)]

use serde_json::json;
use warmpath_core::hash::{chain, hash, mix};
use warmpath_core::router::{Explained, Outcome, Router};
use warmpath_core::scan::{Api, CHUNK_BYTES, RequestScan, ScanPlan};
use warmpath_core::store::MemoryStore;
use warmpath_core::{Config, Decision, Exchange, Head, Step};

/// The secret of XXH3 that its specification gives.
const SECRET: [u8; 192] = *b"\
    \xb8\xfe\x6c\x39\x23\xa4\x4b\xbe\x7c\x01\x81\x2c\xf7\x21\xad\x1c\xde\xd4\x6d\xe9\x83\x90\x97\xdb\
    \x72\x40\xa4\xa4\xb7\xb3\x67\x1f\xcb\x79\xe6\x4e\xcc\xc0\xe5\x78\x82\x5a\xd0\x7d\xcc\xff\x72\x21\
    \xb8\x08\x46\x74\xf7\x43\x24\x8e\xe0\x35\x90\xe6\x81\x3a\x26\x4c\x3c\x28\x52\xbb\x91\xc3\x00\xcb\
    \x88\xd0\x65\x8b\x1b\x53\x2e\xa3\x71\x64\x48\x97\xa2\x0d\xf9\x4e\x38\x19\xef\x46\xa9\xde\xac\xd8\
    \xa8\xfa\x76\x3f\xe3\x9c\x34\x3f\xf9\xdc\xbb\xc7\xc7\x0b\x4f\x1d\x8a\x51\xe0\x4b\xcd\xb4\x59\x31\
    \xc8\x9f\x7e\xc9\xd9\x78\x73\x64\xea\xc5\xac\x83\x34\xd3\xeb\xc3\xc5\x81\xa0\xff\xfa\x13\x63\xeb\
    \x17\x0d\xdd\x51\xb7\xf0\xda\x49\xd3\x16\x55\x26\x29\xd4\x68\x9e\x2b\x16\xbe\x58\x7d\x47\xa1\xfc\
    \x8f\xf8\xb8\xd1\x7a\xd0\x31\xce\x45\xcb\x3a\x8f\x95\x16\x04\x28\xaf\xd7\xfb\xca\xbb\x4b\x40\x7e";

const LANES: usize = 8;
const STRIPES: usize = CHUNK_BYTES / 64;
/// Where the secret of the last stripe and that of the end begin.
const LAST_SECRET: usize = 192 - 64 - 7;
const END_SECRET: usize = 11;
const PRIME: u64 = 0x9E37_79B1_85EB_CA87;
/// What the lanes begin with.
const START: [u64; LANES] = [
    0xC2B2_AE3D,
    PRIME,
    0xC2B2_AE3D_27D4_EB4F,
    0x1656_67B1_9E37_79F9,
    0x85EB_CA77_C2B2_AE63,
    0x85EB_CA77,
    0x27D4_EB2F_1656_67C5,
    0x9E37_79B1,
];
const LOW: u64 = 0xffff_ffff;

fn secret(at: usize) -> u64 {
    u64::from_le_bytes(SECRET[at..at + 8].try_into().expect("8 bytes"))
}

fn lane_secret(stripe: usize, lane: usize) -> u64 {
    let start = match stripe {
        _ if stripe + 1 == STRIPES => LAST_SECRET,
        _ => 8 * stripe,
    };
    secret(start + 8 * lane)
}

/// The inverse of an odd number.
fn inverse(odd: u64) -> u64 {
    (0..6).fold(odd, |x, _| {
        x.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(x)))
    })
}

/// Undoes `x ^ (x >> shift)`.
fn unshift(x: u64, shift: u32) -> u64 {
    let steps = 0..64 / shift;
    steps.fold(x, |found, _| x ^ (found >> shift))
}

/// A chunk with this hash. A lane's word adds to its neighbour and multiplies its halves into its own
/// lane, after it met the secret; a half that equals the secret's makes that product zero, and the other
/// half is free. So the first two stripes set every lane to anything.
fn chunk_with(hash: u64) -> [u8; CHUNK_BYTES] {
    let merged = unshift(
        unshift(hash, 32).wrapping_mul(inverse(0x1656_6791_9E37_79F9)),
        37,
    );
    let sum = merged.wrapping_sub(PRIME.wrapping_mul(CHUNK_BYTES as u64));
    // At the end pairs of lanes are multiplied: 1 with what is wanted, and zeros.
    let mut wanted: [u64; LANES] = std::array::from_fn(|lane| secret(END_SECRET + 8 * lane));
    wanted[0] ^= 1;
    wanted[1] ^= sum;
    let mut chunk = [0; CHUNK_BYTES];
    let mut put = |stripe: usize, lane: usize, word: u64| {
        let at = 64 * stripe + 8 * lane;
        chunk[at..at + 8].copy_from_slice(&word.to_le_bytes());
    };
    for lane in 0..LANES {
        let mut left = wanted[lane ^ 1].wrapping_sub(START[lane ^ 1]);
        for stripe in 2..STRIPES {
            let word = (lane_secret(stripe, lane) & LOW) | 0x6161_6161 << 32;
            put(stripe, lane, word);
            left = left.wrapping_sub(word);
        }
        let low = lane_secret(0, lane) & LOW;
        let high = lane_secret(1, lane) & !LOW;
        let free = left.wrapping_sub(low).wrapping_sub(high);
        put(0, lane, (free & !LOW) | low);
        put(1, lane, high | (free & LOW));
    }
    chunk
}

/// What follows `previous` in a chain that goes on with `link`.
fn chunk_hash_between(previous: u64, link: u64) -> u64 {
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    const OFFSET: u64 = 0xd6e8_feb8_6659_fd93;
    const LINK: u64 = 0xa076_1d64_78bd_642f;
    let x = unshift(link, 31).wrapping_mul(inverse(0x94d0_49bb_1331_11eb));
    let x = unshift(x, 27).wrapping_mul(inverse(0xbf58_476d_1ce4_e5b9));
    let left = (previous ^ LINK).wrapping_mul(SPREAD).rotate_left(32);
    unshift(x, 30) ^ left ^ OFFSET
}

/// A request for completion of this prompt, which need not be UTF-8.
fn body(prompt: &[u8], salt: &str) -> Vec<u8> {
    let mut body = format!(r#"{{"model":"m","cache_salt":"{salt}","prompt":""#).into_bytes();
    for byte in prompt {
        match byte {
            0..0x20 | b'"' | b'\\' => body.extend(format!("\\u{byte:04x}").bytes()),
            _ => body.push(*byte),
        }
    }
    body.extend(b"\"}");
    body
}

/// What everybody can compute of a prompt without `cache_salt`: the seed of its chain, and its links.
fn public_seed() -> u64 {
    mix(hash(b"m"), hash(b""))
}

fn public_links(prompt: &[u8]) -> Vec<u64> {
    let plan = ScanPlan::new(&[], true).expect("a plan");
    let mut scan = RequestScan::new(Api::Completions);
    scan.feed(&plan, &body(prompt, "")).expect("JSON");
    scan.finish().expect("JSON");
    let links = scan.prompt().chain(public_seed());
    links.map(|link| link.hash).collect()
}

const NOW_US: u64 = 1_790_000_000_000_000;

fn router(store: &MemoryStore) -> Router<&MemoryStore> {
    let engines: Vec<_> = (1..=4)
        .map(|n| json!({"address": format!("10.0.0.{n}:80")}))
        .collect();
    let config = json!({
        "pools": [{"name": "p", "models": ["m"], "endpoints": {"static": engines}, "policy": "prefix"}],
        "limits": {"prefix_table_bytes": 1 << 20},
    });
    let config = Config::parse(config.to_string().as_bytes()).expect("a valid config");
    Router::new(config, store, NOW_US)
}

/// Sends a request through, which its engine serves.
fn serve(router: &mut Router<&MemoryStore>, body: &[u8], now_us: u64) -> Decision {
    let headers = [(":method", "POST"), (":path", "/v1/completions")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
    let mut exchange = Exchange::default();
    let head = Head {
        headers: &headers,
        end_of_stream: false,
    };
    assert_eq!(exchange.on_headers(router, head, now_us), Step::Hold);
    let Step::Route(decision) = exchange.on_body(router, body, true, now_us) else {
        panic!("not routed");
    };
    exchange.end(router, Outcome::Served { output_tokens: 1 }, now_us);
    decision
}

fn explain(router: &Router<&MemoryStore>, body: &[u8], now_us: u64) -> Explained {
    Exchange::explain(router, Api::Completions, &[], body, now_us).expect("an engine")
}

/// How many tokens of a request some engine is believed to hold.
fn believed(router: &Router<&MemoryStore>, body: &[u8], now_us: u64) -> u64 {
    let candidates = explain(router, body, now_us).candidates;
    let tokens = candidates.iter().map(|candidate| candidate.held_tokens);
    tokens.max().unwrap_or_default()
}

#[test]
fn a_chunk_can_be_made_for_any_hash() {
    for seed in 0..1000 {
        let wanted = mix(seed, 7);
        assert_eq!(hash(&chunk_with(wanted)), wanted);
        let between = chunk_hash_between(seed, wanted);
        assert_eq!(chain(seed, between), wanted);
    }
}

#[test]
fn a_short_prompt_made_for_the_link_of_a_long_one_is_not_taken_for_it() {
    let long =
        b"what everybody sends first, as all of them have the same instructions. ".repeat(600);
    let links = public_links(&long);
    let (last, chunks) = (*links.last().expect("links"), links.len());
    assert!(chunks > 80);
    let mut short = chunk_with(chunk_hash_between(public_seed(), last)).to_vec();
    short.extend(b"and some more");
    assert_eq!(public_links(&short), [last], "one chunk for {chunks}");

    let store = MemoryStore::new();
    let mut router = router(&store);
    serve(&mut router, &body(&short, ""), NOW_US);
    assert_eq!(believed(&router, &body(&long, ""), NOW_US + 1), 0);
    // It is its own prompt all the same, and so is the other.
    assert_eq!(believed(&router, &body(&short, ""), NOW_US + 1), 128);
    serve(&mut router, &body(&long, ""), NOW_US + 2);
    let held = believed(&router, &body(&long, ""), NOW_US + 3);
    assert_eq!(held, chunks as u64 * 128);
}

#[test]
fn what_collides_chunk_by_chunk_costs_a_wrong_guess_and_nothing_else() {
    let theirs =
        b"a question that somebody else asks over and over again, word for word. ".repeat(60);
    let crafted: Vec<u8> = theirs
        .chunks(CHUNK_BYTES)
        .flat_map(|chunk| match chunk.len() {
            CHUNK_BYTES => chunk_with(hash(chunk)).to_vec(),
            _ => chunk.to_vec(),
        })
        .collect();
    assert_ne!(crafted, theirs);
    assert_eq!(public_links(&crafted), public_links(&theirs));

    let store = MemoryStore::new();
    let mut router = router(&store);
    let first = serve(&mut router, &body(&crafted, ""), NOW_US);
    // The guess is wrong: the engine has another text there, and computes this one.
    let next = serve(&mut router, &body(&theirs, ""), NOW_US + 1);
    assert_eq!(next.ranked[0], first.ranked[0]);
    assert_eq!(
        (next.pool, next.changes, next.fallback),
        (0, Vec::new(), None)
    );
    // Who sets `cache_salt` shares nothing with anybody.
    assert_eq!(believed(&router, &body(&theirs, "mine"), NOW_US + 2), 0);
}

#[test]
fn where_prompts_lie_in_the_table_cannot_be_computed_outside() {
    let prompt = b"the same prompt in two processes. ".repeat(40);
    let (one, other) = (MemoryStore::new(), MemoryStore::new());
    let mut born_first = router(&one);
    serve(&mut born_first, &body(&prompt, ""), NOW_US);
    // Another process: started at another time.
    let _before = Router::new(born_first.config().clone(), &other, NOW_US + 1);
    assert_ne!(seed_of(&one), seed_of(&other));
    assert_ne!(seed_of(&one), 0);
    // Workers of one process, and those after a change of the configuration, agree.
    let second = router(&one);
    let mut third = Router::new(second.config().clone(), &one, NOW_US + 5_000_000);
    born_first.tick(NOW_US + 5_000_000);
    third.tick(NOW_US + 5_000_000);
    serve(&mut third, &body(b"hello", ""), NOW_US + 5_000_000);
    assert_eq!(
        believed(&third, &body(&prompt, ""), NOW_US + 5_000_000),
        prompt.len() as u64 / CHUNK_BYTES as u64 * 128
    );
}

fn seed_of(store: &MemoryStore) -> u64 {
    use warmpath_core::store::Store;
    let bytes = store.get("warmpath/seed").bytes;
    bytes
        .get(1..)
        .and_then(|seed| seed.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}
