use super::*;

fn errors(json: &str) -> Vec<String> {
    let errors = Config::parse(json.as_bytes()).expect_err("must be refused");
    errors.iter().map(ConfigError::to_string).collect()
}

const SMALLEST: &str =
    r#"{"pools": [{"name": "llama", "endpoints": {"static": [{"address": "127.0.0.1:8001"}]}}]}"#;

#[test]
fn the_smallest_config_gets_every_default() {
    let config = Config::parse(SMALLEST.as_bytes()).unwrap();
    let pool = &config.pools[0];
    assert_eq!((pool.cluster.as_str(), pool.candidates), ("llama", 3));
    assert_eq!(pool.policy, PolicyConfig::LeastRequest);
    assert_eq!(config.default_pool, Some(0), "the only pool is the default");
    assert_eq!(config.session_key, KeySource::defaults());
    assert_eq!(config.headers, HeaderNames::default());
    assert_eq!(config.limits, Limits::default());
    assert!(config.feedback.usage && !config.feedback.orca);
    assert!(!config.debug_headers);
    assert_eq!(config.steer_by, SteerBy::Headers);
}

#[test]
fn every_error_is_named_with_its_path() {
    let found = errors(
        r#"{"pools": [{"name": "a b", "endpoints": {"static": [{"address": "host:80"}, {}]},
            "policy": {"fastest": {}}, "candidates": 0, "colour": "red"}],
            "default_pool": "nobody", "limits": {"hold_bytes": "1 MB"}, "debug_headers": 1}"#,
    );
    let expected = [
        "config.pools[0].name: got \"a b\", want up to 64 letters, digits, `_` and `-`",
        "config.pools[0].endpoints.static[0].address: got \"host:80\", want `ip:port` or `[ipv6]:port`",
        "config.pools[0].endpoints.static[1].address: got nothing, want a value (the field is required)",
        "config.pools[0].policy: got {\"fastest\":{}}, want one of round_robin, random, least_request, least_kv, power_of_two, lowest_qps, prefix, cache_aware, kv_aware, consistent_hash",
        "config.pools[0].candidates: got 0, want a whole number in 1..=16 (default 3)",
        "config.pools[0].colour: got an unknown field, want one of name, cluster, models, aliases, endpoints, discover_models, metrics_path, metric_names, policy, candidates, admission, data_parallel_size, disaggregation",
        "config.limits.hold_bytes: got \"1 MB\", want a whole number in 1024..=268435456 (default 524288)",
        "config.debug_headers: got 1, want true or false (default false)",
        "config.default_pool: got \"nobody\", want the name of a pool",
    ];
    for line in expected {
        assert!(
            found.iter().any(|error| error == line),
            "missing {line:?} in {found:#?}"
        );
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn what_is_not_json_or_not_an_object_is_one_error() {
    assert_eq!(errors("").len(), 1);
    assert!(errors("{\"pools\": [}")[0].starts_with("config: got "));
    assert_eq!(errors("[]"), ["config: got [], want an object"]);
    assert_eq!(
        errors("{}"),
        ["config.pools: got nothing, want a value (the field is required)"]
    );
}

#[test]
fn names_that_two_pools_claim_are_refused() {
    let pool = |name: &str, models: &str| {
        format!(r#"{{"name": "{name}", {models} "endpoints": {{"static": []}}}}"#)
    };
    let two = |a: String, b: String| format!(r#"{{"pools": [{a}, {b}]}}"#);
    let same = two(
        pool("a", r#""models": ["m"],"#),
        pool("a", r#""models": ["m"],"#),
    );
    assert_eq!(errors(&same).len(), 2);
    let alias = r#""models": ["n"], "aliases": {"m": "n"},"#;
    assert_eq!(
        errors(&two(pool("a", r#""models": ["m"],"#), pool("b", alias))).len(),
        1
    );
    assert_eq!(
        errors(&two(pool("a", ""), pool("b", ""))).len(),
        1,
        "two pools take every model"
    );
}

#[test]
fn an_alias_must_lead_to_a_model_of_the_pool() {
    let found = errors(
        r#"{"pools": [{"name": "a", "models": ["m"], "aliases": {"x": "n"}, "endpoints": {"static": []}}]}"#,
    );
    assert_eq!(
        found,
        ["config.pools[0].aliases.x: got \"n\", want the name of a model that the pool serves"]
    );
}

#[test]
fn options_of_policies_are_read_and_bounded() {
    let policy = |text: &str| {
        let json = SMALLEST.replace(
            "\"endpoints\"",
            &format!("\"policy\": {text}, \"endpoints\""),
        );
        Config::parse(json.as_bytes()).map(|config| config.pools[0].policy.clone())
    };
    assert_eq!(policy(r#""round_robin""#), Ok(PolicyConfig::RoundRobin));
    assert_eq!(
        policy(r#"{"lowest_qps": {"window_s": 10}}"#),
        Ok(PolicyConfig::LowestQps {
            window_us: 10_000_000
        })
    );
    let hash = r#"{"consistent_hash": {"bounded_load": 1.25, "without_key": "random"}}"#;
    let without_key = Box::new(PolicyConfig::Random);
    assert_eq!(
        policy(hash),
        Ok(PolicyConfig::ConsistentHash {
            bounded_load: Some(1.25),
            without_key
        })
    );
    assert!(policy(r#"{"consistent_hash": {"without_key": "consistent_hash"}}"#).is_err());
    assert!(policy(r#"{"consistent_hash": {"bounded_load": 0.5}}"#).is_err());
    assert!(policy(r#"{"round_robin": {"speed": 1}}"#).is_err());
    assert!(policy(r#"{"round_robin": {}, "random": {}}"#).is_err());
}

#[test]
fn choices_without_options_take_none() {
    let with = |more: &str| SMALLEST.replacen('{', &format!("{{{more}, "), 1);
    for choice in [
        r#""discovery": {"off": null}"#,
        r#""scrape": {"off": {}}"#,
        r#""health": {"none_usable": {"answer": {}}}"#,
    ] {
        assert!(Config::parse(with(choice).as_bytes()).is_ok(), "{choice}");
    }
    assert_eq!(
        errors(&with(
            r#""discovery": {"off": {"interval_ms": 1}}, "scrape": {"off": 1}, "health": {"none_usable": {"route": []}}"#
        )),
        [
            "config.discovery.off.interval_ms: got an unknown field, want nothing: there are no options",
            "config.scrape.off: got 1, want an object",
            "config.health.none_usable.route: got [], want an object",
        ]
    );
}

#[test]
fn where_the_schema_lies_is_left_to_editors() {
    let with = |schema: &str| SMALLEST.replacen('{', &format!(r#"{{"$schema": {schema}, "#), 1);
    let config = Config::parse(with(r#""config.schema.json""#).as_bytes()).unwrap();
    let plain = Config::parse(SMALLEST.as_bytes()).unwrap();
    assert_eq!(Config { hash: 0, ..config }, Config { hash: 0, ..plain });
    let long = with(&format!("\"{}\"", "x".repeat(1025)));
    for refused in [with("1"), with("\"\""), long] {
        assert!(errors(&refused)[0].starts_with("config.$schema: got "));
    }
}

#[test]
fn session_key_sources_keep_their_order() {
    let json = SMALLEST.replace(
        "{\"pools\"",
        r#"{"session_key": [{"header": "X-Tenant"}, {"cookie": "sid"}, {"body": "/metadata/user_id"}], "pools""#,
    );
    let config = Config::parse(json.as_bytes()).unwrap();
    assert_eq!(
        config.session_key,
        [
            KeySource::Header("x-tenant".to_owned()),
            KeySource::Cookie("sid".to_owned()),
            KeySource::Body("/metadata/user_id".to_owned()),
        ]
    );
    let bad = json.replace("/metadata/user_id", "user");
    assert!(errors(&bad)[0].starts_with("config.session_key[2].body: got "));
}

#[test]
fn the_number_of_endpoints_is_bounded() {
    let addresses: Vec<String> = (0..=MAX_ENDPOINTS)
        .map(|n| format!(r#"{{"address": "10.0.{}.{}:80"}}"#, n / 256, n % 256))
        .collect();
    let json = |n: usize| {
        let list = addresses[..n].join(",");
        format!(r#"{{"pools": [{{"name": "a", "endpoints": {{"static": [{list}]}}}}]}}"#)
    };
    assert!(Config::parse(json(MAX_ENDPOINTS).as_bytes()).is_ok());
    assert!(Config::parse(json(MAX_ENDPOINTS + 1).as_bytes()).is_err());
}

#[test]
fn models_of_endpoints_belong_to_the_pool_and_all_or_none_list_theirs() {
    let pool = |a: &str, b: &str| {
        format!(
            r#"{{"pools": [{{"name": "a", "endpoints": {{"static": [
                {{"address": "127.0.0.1:1" {a}}}, {{"address": "127.0.0.1:2" {b}}}]}}}}]}}"#
        )
    };
    let both = pool(r#", "models": ["m", "n"]"#, r#", "models": ["m"]"#);
    let config = Config::parse(both.as_bytes()).unwrap();
    assert_eq!(config.pools[0].served_names(), ["m", "n"]);
    assert_eq!(
        errors(&pool(r#", "models": ["m"]"#, "")),
        ["config.pools[0].models: got nothing, want a list, because only some endpoints have one"]
    );
}

#[test]
fn load_is_asked_for_only_where_engines_are_scraped() {
    let with = |more: &str| SMALLEST.replacen('{', &format!("{{{more}, "), 1);
    let config = Config::parse(with(r#""feedback": {"orca": true}"#).as_bytes()).unwrap();
    assert!(config.feedback.usage && config.feedback.orca);
    let config = Config::parse(with(r#""feedback": {"usage": false}"#).as_bytes()).unwrap();
    assert!(!config.feedback.usage && !config.feedback.orca);
    assert_eq!(
        errors(&with(r#""scrape": "off", "feedback": {"orca": true}"#)),
        ["config.feedback.orca: got true, want false, because `scrape` is off"]
    );
    assert_eq!(
        errors(&with(r#""feedback": {"use": 1}"#)),
        ["config.feedback.use: got an unknown field, want one of usage, orca"]
    );
}

#[test]
fn admission_needs_a_bound_and_tokens_need_prompts() {
    let with = |more: &str| {
        SMALLEST.replace(
            "\"endpoints\"",
            &format!("{more}, \"admission\": {{ADMISSION}}, \"endpoints\""),
        )
    };
    let config = |more: &str, admission: &str| with(more).replace("{ADMISSION}", admission);
    let least = config(r#""candidates": 1"#, r#"{"max_requests": 64}"#);
    let read = Config::parse(least.as_bytes()).unwrap().pools[0].admission;
    let read = read.unwrap();
    assert_eq!(
        (read.max_requests, read.max_queued_tokens),
        (Some(64), None)
    );
    assert_eq!((read.retry_after_s, read.low_percent), (1, 80));
    let both = r#"{"max_requests": 1, "max_queued_tokens": 2, "retry_after_s": 3, "low_priority_percent": 4}"#;
    let read = Config::parse(config(r#""policy": "prefix""#, both).as_bytes()).unwrap();
    let read = read.pools[0].admission.unwrap();
    assert_eq!((read.max_queued_tokens, read.retry_after_s), (Some(2), 3));
    assert_eq!(
        errors(&config(r#""candidates": 1"#, both)),
        [
            "config.pools[0].admission.max_queued_tokens: got 2, want nothing, because the pool's policy does not look at prompts"
        ]
    );
    assert_eq!(
        errors(&config(r#""candidates": 1"#, r#"{"retry_after_s": 1}"#)),
        [
            r#"config.pools[0].admission: got {"retry_after_s":1}, want `max_requests`, `max_queued_tokens` or both"#
        ]
    );
}

#[test]
fn there_are_two_ways_to_steer() {
    let parse = |way: &str| {
        let pool = r#"{"name": "p", "endpoints": {"static": []}}"#;
        let json = format!(r#"{{"pools": [{pool}], "steer_by": {way}}}"#);
        Config::parse(json.as_bytes()).map(|config| config.steer_by)
    };
    assert_eq!(parse(r#""headers""#).unwrap(), SteerBy::Headers);
    assert_eq!(parse(r#""filter_state""#).unwrap(), SteerBy::FilterState);
    let errors = parse(r#""metadata""#).unwrap_err();
    let told = errors.first().unwrap().to_string();
    let want = "config.steer_by: got \"metadata\", want one of headers, filter_state";
    assert_eq!((errors.len(), told.as_str()), (1, want));
}
