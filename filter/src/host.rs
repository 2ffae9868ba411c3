//! The only file that names host calls.
//!
//! The SDK panics on every status it does not list, and a panic kills all streams of the worker. So
//! each call here is made only in callbacks where Envoy is known to have what it asks for, and what
//! can fail returns an `Option` or a `bool`.

use proxy_wasm::hostcalls;
use proxy_wasm::types::{BufferType, MapType, MetricType, Status};
use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};
use warmpath_core::Answer;
use warmpath_core::call::{HttpCall, Reply};
use warmpath_core::store::{ABSENT, Store, Versioned};
use warmpath_core::telemetry::Kind;
use warmpath_core::wire::retry_after;

/// Microseconds of the Unix clock.
pub fn now_us() -> u64 {
    let now = hostcalls::get_current_time().ok();
    let since = now.and_then(|now| now.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| {
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    })
}

/// Takes over Envoy's log level, which an operator may change at any time.
pub fn follow_log_level() {
    if let Ok(level) = hostcalls::get_log_level() {
        proxy_wasm::set_log_level(level);
    }
}

/// Asks for a tick at least every `period`.
pub fn tick_every(period: Duration) {
    hostcalls::set_tick_period(period).ok();
}

/// A request's headers, from their callback until the filter lets them go. To touch them later is a
/// trap, so there is no other way to them, and who lets them go gives this up.
#[derive(Debug)]
pub struct RequestHeaders(());

impl RequestHeaders {
    /// Those of this stream; only in the request header callback.
    pub fn held() -> Self {
        RequestHeaders(())
    }

    /// All of them.
    pub fn all(&self) -> Vec<(String, Vec<u8>)> {
        hostcalls::get_map_bytes(MapType::HttpRequestHeaders).unwrap_or_default()
    }

    /// Sets or removes one.
    pub fn set(&self, name: &str, value: Option<&[u8]>) {
        hostcalls::set_map_value_bytes(MapType::HttpRequestHeaders, name, value).ok();
    }
}

/// Sets `wasm.NAME` in the stream's filter state; as long as there is a request.
pub fn set_filter_state(name: &str, value: &[u8]) {
    hostcalls::set_property(vec![name], Some(value)).ok();
}

/// Lets Envoy match the route again when it is next needed.
pub fn clear_route_cache() {
    hostcalls::call_foreign_function("clear_route_cache", None).ok();
}

/// The response's status; only in the response header callback.
pub fn response_status() -> Option<u16> {
    let status = hostcalls::get_map_value_bytes(MapType::HttpResponseHeaders, ":status");
    number(&status.ok().flatten()?)
}

/// The status among a response's headers.
pub fn status_in(headers: &[(String, Vec<u8>)]) -> Option<u16> {
    number(warmpath_core::session::header(headers, ":status")?)
}

fn number(value: &[u8]) -> Option<u16> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The response's headers; only in the response header callback.
pub fn response_headers() -> Vec<(String, Vec<u8>)> {
    hostcalls::get_map_bytes(MapType::HttpResponseHeaders).unwrap_or_default()
}

/// What the response asks to wait, in seconds; only in the response header callback.
pub fn retry_after_s(now_s: u64) -> Option<u64> {
    let value = hostcalls::get_map_value_bytes(MapType::HttpResponseHeaders, "retry-after");
    let value = value.ok().flatten()?;
    retry_after::parse(&value, now_s).map(u64::from)
}

/// Whether the response came from a host, and not from Envoy for want of one.
pub fn response_is_upstreams() -> bool {
    let details = hostcalls::get_property(vec!["response", "code_details"]);
    details.ok().flatten().as_deref() == Some(b"via_upstream")
}

/// Sets or removes a response header; only in the response header callback.
pub fn set_response_header(name: &str, value: Option<&[u8]>) {
    hostcalls::set_map_value_bytes(MapType::HttpResponseHeaders, name, value).ok();
}

/// A slice of the response body that passes; only in body callbacks.
pub fn response_body(part: Range<usize>) -> Option<Vec<u8>> {
    hostcalls::get_buffer(BufferType::HttpResponseBody, part.start, part.len())
        .ok()
        .flatten()
}

/// A slice of the request body; only in body callbacks.
pub fn request_body(start: usize, length: usize) -> Option<Vec<u8>> {
    hostcalls::get_buffer(BufferType::HttpRequestBody, start, length)
        .ok()
        .flatten()
}

/// Replaces all of the request body that has arrived; only in body callbacks.
pub fn replace_request_body(body: &[u8]) {
    // Envoy replaces everything when the length covers the buffer; other ranges are refused.
    hostcalls::set_buffer(BufferType::HttpRequestBody, 0, usize::MAX, body).ok();
}

/// The `ip:port` of the host that answers, once one was chosen.
pub fn upstream_address() -> Option<Vec<u8>> {
    hostcalls::get_property(vec!["upstream", "address"])
        .ok()
        .flatten()
}

/// How often Envoy has sent the request, once it was answered.
pub fn attempts() -> Option<u64> {
    let count = hostcalls::get_property(vec!["upstream", "request_attempt_count"]);
    let count = count.ok().flatten()?;
    Some(u64::from_le_bytes(*count.first_chunk()?))
}

/// Whether the client ended the stream, by closing its connection or by a reset; only when the stream
/// is over.
pub fn client_left() -> bool {
    // Envoy's flags `DownstreamConnectionTermination` and `DownstreamRemoteReset`.
    const BY_CLIENT: u64 = 1 << 14 | 1 << 28;
    let flags = hostcalls::get_property(vec!["response", "flags"]);
    let flags = flags.ok().flatten();
    let flags = flags.and_then(|flags| Some(u64::from_le_bytes(*flags.first_chunk()?)));
    flags.is_some_and(|flags| flags & BY_CLIENT != 0)
}

/// Answers the request from here.
pub fn respond(answer: &Answer) {
    let retry_after = answer.retry_after_s.map(|seconds| seconds.to_string());
    let mut headers = vec![("content-type", "application/json")];
    if let Some(seconds) = &retry_after {
        headers.push(("retry-after", seconds));
    }
    hostcalls::send_http_response(
        u32::from(answer.status),
        headers,
        Some(answer.body.as_bytes()),
    )
    .ok();
}

/// Starts an asynchronous call with this body; its token, or why there is none.
///
/// # Errors
/// [`Reply::NoCluster`] or [`Reply::Failed`].
pub fn call(http: &HttpCall, body: Option<&[u8]>) -> Result<u32, Reply<'static>> {
    let mut headers = vec![
        (":method", http.method.name()),
        (":path", http.path.as_str()),
        (":authority", http.authority.as_str()),
        ("accept", "*/*"),
    ];
    let more = http.headers.iter();
    headers.extend(more.map(|(name, value)| (name.as_str(), value.as_str())));
    let timeout = Duration::from_millis(http.timeout_ms);
    let started = hostcalls::dispatch_http_call(&http.cluster, headers, body, Vec::new(), timeout);
    started.map_err(|status| match status {
        Status::BadArgument => Reply::NoCluster,
        _ => Reply::Failed,
    })
}

/// How an asynchronous call ended of whose answer at most so many bytes are read, given the number of
/// its headers and its size; only in its callback. The body is put into `body`.
pub fn call_reply(headers: usize, size: usize, most_bytes: usize, body: &mut Vec<u8>) -> Reply<'_> {
    let Some(status) = call_status(headers) else {
        return Reply::Failed;
    };
    if !call_has_header("x-envoy-upstream-service-time") {
        // Envoy answers in the place of who does not.
        match status {
            503 if call_has_header("x-envoy-overloaded") => return Reply::NoRoom,
            503 => return Reply::Failed,
            504 => return Reply::TimedOut,
            _ => {}
        }
    }
    if size > most_bytes {
        return Reply::TooLong;
    }
    *body = call_body(size);
    Reply::Answer { status, body }
}

/// Whether a call's answer has a header; only in its callback, and only if it has any.
fn call_has_header(name: &str) -> bool {
    let value = hostcalls::get_map_value_bytes(MapType::HttpCallResponseHeaders, name);
    value.ok().flatten().is_some()
}

/// The status of an asynchronous call's answer; only in its callback.
///
/// Without headers there is no answer, and asking for one of them would be a trap.
fn call_status(headers: usize) -> Option<u16> {
    if headers == 0 {
        return None;
    }
    let status = hostcalls::get_map_value_bytes(MapType::HttpCallResponseHeaders, ":status");
    number(&status.ok().flatten()?)
}

/// The body of an asynchronous call's answer; only in its callback.
fn call_body(size: usize) -> Vec<u8> {
    if size == 0 {
        return Vec::new();
    }
    hostcalls::get_buffer(BufferType::HttpCallResponseBody, 0, size)
        .ok()
        .flatten()
        .unwrap_or_default()
}

/// Makes a stream the one that host calls speak of; false when it is gone.
pub fn enter(context: u32) -> bool {
    hostcalls::set_effective_context(context).is_ok()
}

/// Lets a held request go on.
pub fn resume_request() {
    hostcalls::resume_http_request().ok();
}

/// Defines a metric that all workers share. Envoy refuses none of these kinds, which matters: the SDK
/// panics when it does.
pub fn define_metric(kind: Kind, name: &str) -> Option<u32> {
    let kind = match kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
    };
    hostcalls::define_metric(kind, name).ok()
}

/// Adds to a counter that was defined.
pub fn increment_metric(metric: u32, amount: i64) {
    hostcalls::increment_metric(metric, amount).ok();
}

/// Sets a gauge that was defined, or enters a value into a histogram that was.
pub fn record_metric(metric: u32, value: u64) {
    hostcalls::record_metric(metric, value).ok();
}

/// The value of a counter or gauge that was defined.
pub fn metric(metric: u32) -> Option<u64> {
    hostcalls::get_metric(metric).ok()
}

/// The name of the filter chain that the request came by, if it has one.
pub fn filter_chain() -> Option<Vec<u8>> {
    hostcalls::get_property(vec!["xds", "filter_chain_name"])
        .ok()
        .flatten()
}

/// Answers the request from here with these headers.
pub fn respond_with(status: u16, headers: Vec<(&str, &str)>, body: &[u8]) {
    hostcalls::send_http_response(u32::from(status), headers, Some(body)).ok();
}

/// Envoy's shared data.
#[derive(Clone, Debug, Default)]
pub struct SharedData {
    /// Clones count together.
    lost: Rc<Lost>,
}

/// What did not succeed at once since this was last asked.
#[derive(Debug, Default)]
struct Lost {
    errors: Cell<u64>,
    conflicts: Cell<u64>,
}

impl SharedData {
    /// Operations that were given up, and compare-and-sets that somebody else was ahead of, since this
    /// was last asked.
    pub fn take_lost(&self) -> (u64, u64) {
        (self.lost.errors.take(), self.lost.conflicts.take())
    }

    fn failed(&self) {
        self.lost.errors.set(self.lost.errors.get() + 1);
    }
}

impl Store for SharedData {
    fn get(&self, key: &str) -> Versioned {
        match hostcalls::get_shared_data(key) {
            Ok((bytes, Some(version))) => Versioned {
                bytes: bytes.unwrap_or_default(),
                version,
            },
            _ => Versioned {
                bytes: Vec::new(),
                version: ABSENT,
            },
        }
    }

    fn set(&self, key: &str, bytes: &[u8]) {
        if hostcalls::set_shared_data(key, Some(bytes), None).is_err() {
            self.failed();
        }
    }

    fn compare_and_set(&self, key: &str, bytes: &[u8], version: u32) -> bool {
        // Version 0 would mean "whatever is there".
        let version = version.max(1);
        let result: Result<(), Status> =
            hostcalls::set_shared_data(key, Some(bytes), Some(version));
        if result.is_err() {
            self.lost.conflicts.set(self.lost.conflicts.get() + 1);
        }
        result.is_ok()
    }

    fn gave_up(&self) {
        self.failed();
    }
}
