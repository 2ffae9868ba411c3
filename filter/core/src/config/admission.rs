//! When a pool refuses requests, as the configuration says it.

use super::reader::Reader;
use crate::admission::AdmissionOptions;
use crate::json::Value;

/// A pool is rarely full for longer than it takes an engine to end one of its requests.
const RETRY_AFTER_S: u64 = 1;
const LOW_PERCENT: u64 = 80;

/// Reads the options of a pool; `sees_prompts` says whether its policy knows how long prompts are.
pub(super) fn admission(
    reader: &mut Reader,
    path: &str,
    value: &Value,
    sees_prompts: bool,
) -> Option<AdmissionOptions> {
    let mut fields = reader.object(path, value)?;
    let max_requests = fields.optional_count(reader, "max_requests", 1..=1_000_000, "off");
    let max_queued_tokens =
        fields.optional_count(reader, "max_queued_tokens", 1..=1_000_000_000, "off");
    let retry_after_s = fields.count(reader, "retry_after_s", 1..=3600, RETRY_AFTER_S);
    let low_percent = fields.count(reader, "low_priority_percent", 1..=100, LOW_PERCENT);
    if let Some(tokens) = max_queued_tokens
        && !sees_prompts
    {
        let want = "nothing, because the pool's policy does not look at prompts";
        reader.error(&fields.path("max_queued_tokens"), &tokens.into(), want);
    }
    let given = |name: &str| value.get(name).is_some();
    if !given("max_requests") && !given("max_queued_tokens") {
        reader.error(path, value, "`max_requests`, `max_queued_tokens` or both");
    }
    fields.finish(reader);
    Some(AdmissionOptions {
        max_requests: max_requests.map(|requests| requests as u32),
        max_queued_tokens,
        retry_after_s: retry_after_s as u32,
        low_percent: low_percent as u8,
    })
}
