//! Every metric, in the order in which an operator asks: is it serving, is it fast, is the cache
//! working, who is unwell, is the router itself well.
//!
//! Rules that a test holds: names are those of Prometheus (`_total` for counters and for them only,
//! the unit at the end of what has one), no two are the same, and each label is known to the shipped
//! Envoy configuration. Durations are in milliseconds: Envoy's own histograms are, and its default
//! buckets suit them, also where nobody can set others.

use super::{Kind, Label, Metric, Unit};

macro_rules! table {
    ($($constant:ident: $kind:ident $name:literal, $unit:ident [$($label:ident),*] $meaning:literal;)+) => {
        $(
            #[doc = $meaning]
            pub const $constant: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                unit: Unit::$unit,
                labels: &[$(Label::$label),*],
                meaning: $meaning,
            };
        )+

        /// All of them.
        pub const ALL: &[Metric] = &[$($constant),+];
    };
}

table! {
    REQUESTS: Counter "warmpath_requests_total", Requests [Pool, Policy, Reason]
        "requests that were routed";
    DECISIONS: Counter "warmpath_decisions_total", Requests [Pool, Endpoint]
        "requests by the endpoint that their decision put first";
    ANSWERS: Counter "warmpath_answers_total", Requests [Status, Cause]
        "requests that the filter answered itself";
    SHED: Counter "warmpath_shed_requests_total", Requests [Pool, Priority]
        "those of them that were refused with 429 because every engine of the pool was full";
    FALLBACKS: Counter "warmpath_fallbacks_total", Requests [Cause]
        "requests that went on with less knowledge than they could have had";
    RETRIED: Counter "warmpath_retried_total", Requests [Pool]
        "requests answered by another endpoint than the one put first";
    DISCONNECTS: Counter "warmpath_client_disconnects_total", Requests [Pool]
        "requests whose client left before the answer was complete";

    DISAGGREGATED: Counter "warmpath_disaggregated_requests_total", Requests [Pool, Cause]
        "requests of a pool with disaggregation for which a prefill was begun, by what became of it";
    UNDISAGGREGATED: Counter "warmpath_undisaggregated_requests_total", Requests [Pool, Reason]
        "requests of a pool with disaggregation for which none was begun";
    PREFILL_CALLS: Counter "warmpath_prefill_calls_total", Events [Pool, Cause]
        "calls to engines of a pool that prefills, by how they ended";
    PREFILL_TIME: Histogram "warmpath_prefill_milliseconds", Milliseconds [Pool]
        "time that such engines took to compute a prompt, of calls that succeeded";

    TTFT: Histogram "warmpath_time_to_first_token_milliseconds", Milliseconds [Pool]
        "time from the request's headers to the first byte of the answer's body; where the filter reads the prompt, of streams only";
    ITL: Histogram "warmpath_inter_token_latency_milliseconds", Milliseconds [Pool]
        "mean time between two parts of a stream, one value for each answer of at least 8 parts";
    LATENCY: Histogram "warmpath_request_latency_milliseconds", Milliseconds [Pool]
        "time from the request's headers to the end of the answer";

    PROMPT_TOKENS: Counter "warmpath_prompt_tokens_total", Tokens [Pool]
        "tokens of routed prompts, as the filter estimates them; only where the policy looks at prompts";
    PREDICTED_CACHED: Counter "warmpath_predicted_cached_tokens_total", Tokens [Pool]
        "the part of them that the filter believed to be cached where it sent them";
    REPORTED_PROMPT: Counter "warmpath_reported_prompt_tokens_total", Tokens [Pool]
        "prompt tokens that engines reported in their answers";
    REPORTED_CACHED: Counter "warmpath_reported_cached_tokens_total", Tokens [Pool]
        "the part of them that engines reported as cached";
    REPORTED_OUTPUT: Counter "warmpath_reported_output_tokens_total", Tokens [Pool]
        "output tokens that engines reported in their answers";
    UNREPORTED: Counter "warmpath_unreported_answers_total", Requests [Pool, Cause]
        "answers that should say what the engine had cached and from which it could not be read";
    LOAD_REPORTS: Counter "warmpath_load_reports_total", Requests [Pool]
        "answers whose headers told the engine's load";
    KV_LOOKUPS: Counter "warmpath_kv_lookups_total", Requests [Pool, Cause]
        "requests for which `kv_aware` used what the index service says, or tried to";
    KV_SKIPPED: Counter "warmpath_kv_skipped_total", Requests [Pool, Cause]
        "requests for which `kv_aware` did not ask the index service";
    KV_DURATION: Histogram "warmpath_kv_lookup_milliseconds", Milliseconds [Pool]
        "time that lookups took which asked the engine and the index service, failed ones included";
    KV_OVERLAP: Counter "warmpath_kv_overlap_tokens_total", Tokens [Pool]
        "prompt tokens that the index service said to be cached where they were sent";
    TABLE_BYTES: Gauge "warmpath_prefix_table_bytes", Bytes []
        "size of the prefix table of one worker";
    TABLE_CAPACITY: Gauge "warmpath_prefix_table_capacity_entries", Entries []
        "entries that the prefix table has room for";
    TABLE_ENTRIES: Gauge "warmpath_prefix_table_used_entries", Entries []
        "entries of the prefix table that are in use";
    TABLE_EVICTIONS: Counter "warmpath_prefix_table_evictions_total", Entries []
        "entries that gave way before their time because the prefix table was full, as one worker saw it";

    IN_FLIGHT: Gauge "warmpath_endpoint_in_flight_requests", Requests [Pool, Endpoint]
        "requests sent and not ended";
    WAITING: Gauge "warmpath_endpoint_waiting_requests", Requests [Pool, Endpoint]
        "those of them that have no first token yet";
    QUEUED_TOKENS: Gauge "warmpath_endpoint_queued_tokens", Tokens [Pool, Endpoint]
        "prompt tokens to prefill of the waiting ones, without what is believed to be cached";
    CONTEXT_TOKENS: Gauge "warmpath_endpoint_context_tokens", Tokens [Pool, Endpoint]
        "prompt and expected output tokens of all in flight";
    FINISHED: Counter "warmpath_endpoint_finished_total", Requests [Pool, Endpoint]
        "requests that ended, however they ended";
    FAILED: Counter "warmpath_endpoint_failed_total", Requests [Pool, Endpoint]
        "those of them without an answer's body; where the policy looks at prompts also those with a status other than 2xx";
    FIRST_TOKENS: Counter "warmpath_endpoint_first_tokens_total", Requests [Pool, Endpoint]
        "requests whose first token was seen";
    TTFT_SUM: Counter "warmpath_endpoint_first_token_milliseconds_total", Milliseconds [Pool, Endpoint]
        "the times to first token of these, added up";
    LATENCY_SUM: Counter "warmpath_endpoint_latency_milliseconds_total", Milliseconds [Pool, Endpoint]
        "the times from headers to end of the requests that ended, added up";
    DECODE_SUM: Counter "warmpath_endpoint_decode_milliseconds_total", Milliseconds [Pool, Endpoint]
        "the times from first to last part of answers of at least 8 parts, added up";
    DECODE_PARTS: Counter "warmpath_endpoint_decode_parts_total", Parts [Pool, Endpoint]
        "the parts of these answers after their first";
    ENDPOINT_PREDICTED: Counter "warmpath_endpoint_predicted_cached_tokens_total", Tokens [Pool, Endpoint]
        "prompt tokens, as the engine counts them, that the filter believed to be cached there; only of answers in which the engine reported what it had cached";
    ENDPOINT_REPORTED: Counter "warmpath_endpoint_reported_cached_tokens_total", Tokens [Pool, Endpoint]
        "prompt tokens that the engine reported as cached in these answers";
    STATE: Gauge "warmpath_endpoint_state", Code [Pool, Endpoint]
        "what the filter makes of the endpoint";
    ENGINE_RUNNING: Gauge "warmpath_engine_running_requests", Requests [Pool, Endpoint]
        "requests that the engine says it works on";
    ENGINE_WAITING: Gauge "warmpath_engine_waiting_requests", Requests [Pool, Endpoint]
        "requests that the engine says are queued in it";
    ENGINE_FINISHED: Gauge "warmpath_engine_finished_requests", Requests [Pool, Endpoint]
        "requests that the engine says it has completed since it started";
    ENGINE_KV_USAGE: Gauge "warmpath_engine_kv_usage_permille", Permille [Pool, Endpoint]
        "how full the engine says its KV cache is";
    ENGINE_KV_CAPACITY: Gauge "warmpath_engine_kv_capacity_tokens", Tokens [Pool, Endpoint]
        "how much the engine says its KV cache holds";
    ENGINE_PREFIX_HITS: Gauge "warmpath_engine_prefix_hits_permille", Permille [Pool, Endpoint]
        "share of prompt tokens that the engine says it had cached, since it started";
    ENGINE_UPTIME: Gauge "warmpath_engine_uptime_seconds", Seconds [Pool, Endpoint]
        "time since the engine says it started";

    KNOWN: Gauge "warmpath_pool_known_endpoints", Endpoints [Pool]
        "endpoints of the pool";
    USABLE: Gauge "warmpath_pool_usable_endpoints", Endpoints [Pool]
        "endpoints of the pool that requests are sent to";
    STALE: Gauge "warmpath_pool_stale_endpoints", Endpoints [Pool]
        "endpoints of the pool whose metrics were read but are too old to be used";
    SCRAPE_AGE: Gauge "warmpath_scrape_age_milliseconds", Milliseconds [Pool, Endpoint]
        "age of what is known of the engine's metrics";
    SCRAPE_DURATION: Histogram "warmpath_scrape_duration_milliseconds", Milliseconds [Pool]
        "time that engines took to show their metrics";
    SCRAPE_ERRORS: Counter "warmpath_scrape_errors_total", Events [Pool, Endpoint]
        "attempts to read the engine's metrics that failed";
    DISCOVERY_CHANGES: Counter "warmpath_discovery_changes_total", Events [Pool]
        "changes of the pool's set of endpoints";
    DISCOVERY_ERRORS: Counter "warmpath_discovery_errors_total", Events []
        "attempts to learn the endpoints that failed";
    LEASE_CHANGES: Counter "warmpath_lease_changes_total", Events []
        "times that another worker became the one that asks the engines";

    PEERS: Gauge "warmpath_peers", Envoys []
        "other Envoys that were heard within the last five intervals";
    PEER_VIEW: Gauge "warmpath_peers_view", Code []
        "how the Envoys see each other";
    PEER_CALLS: Counter "warmpath_peers_calls_total", Events [Cause]
        "calls to the store of the fleet, by how they ended";
    PEER_BATCHES: Counter "warmpath_peers_batches_total", Events [Cause]
        "batches that were sent, and that came, by what became of them";
    PEER_SENT: Counter "warmpath_peers_sent_bytes_total", Bytes []
        "bytes of the batches that were sent";
    PEER_RECEIVED: Counter "warmpath_peers_received_bytes_total", Bytes []
        "bytes of the batches that were taken over";
    PEER_DROPPED: Counter "warmpath_peers_dropped_total", Events [Cause]
        "news of prompts that were dropped: there was no room for them until they could be sent, or nobody here knows their engine";
    PEER_LAG: Gauge "warmpath_peers_lag_milliseconds", Milliseconds []
        "time from a call to the one that brought its batch back";

    WORKERS: Gauge "warmpath_workers", Workers []
        "workers that are alive and have had a request";
    UPTIME: Gauge "warmpath_uptime_seconds", Seconds []
        "age of the configuration at the worker that writes the gauges";
    VM_STARTS: Counter "warmpath_vm_starts_total", Events []
        "configurations taken by a VM: one for each worker and one for the main thread at start and with each new configuration, one for each VM that crashed";
    STATE_ERRORS: Counter "warmpath_state_errors_total", Events []
        "operations on shared state that were given up";
    STATE_CONFLICTS: Counter "warmpath_state_conflicts_total", Events []
        "compare-and-set attempts that another worker was ahead of";
    DROPPED: Counter "warmpath_observations_dropped_total", Events []
        "values of histograms that found no room until the next tick";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_prometheus_names() {
        let names: BTreeSet<&str> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            let name = metric.name;
            let legal = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
            assert!(
                name.starts_with("warmpath_") && name.bytes().all(legal),
                "{name}"
            );
            assert_eq!(
                metric.kind == Kind::Counter,
                name.ends_with("_total"),
                "{name}"
            );
            let stem = name.trim_end_matches("_total");
            let unit = match metric.unit {
                Unit::Milliseconds => Some("milliseconds"),
                Unit::Seconds => Some("seconds"),
                Unit::Permille => Some("permille"),
                Unit::Bytes => Some("bytes"),
                Unit::Tokens => Some("tokens"),
                _ => None,
            };
            assert!(unit.is_none_or(|unit| stem.ends_with(unit)), "{name}");
            assert!(!metric.meaning.ends_with('.'), "{name}");
        }
    }

    #[test]
    fn no_label_hides_in_another() {
        for label in Label::ALL {
            let clash = |other: &Label| *other != label && other.name().ends_with(label.name());
            assert!(!Label::ALL.iter().any(clash), "{label:?}");
        }
    }
}
