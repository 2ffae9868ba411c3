//! The engines' metrics pages for simulated routers: their own calls, answered at once.
//!
//! The page is text with vLLM's names, made of the engine model at that moment, and goes through the
//! code that reads it in Envoy. O(engines that are due) a call.

use warmpath_core::call::Reply;
use warmpath_core::router::Router;
use warmpath_core::scrape::Call;
use warmpath_core::store::Store;

use super::FleetView;
use crate::model::{ModelParams, Stats};

/// Makes the calls about the fleet that are due; `engine_at` tells which engine has an address.
pub(super) fn answer_calls<S: Store>(
    router: &mut Router<S>,
    fleet: &FleetView<'_>,
    engine_at: impl Fn(&std::net::SocketAddr) -> Option<usize>,
    now_us: u64,
) {
    for (call, _) in router.fleet_calls(now_us) {
        let page = match &call {
            Call::Metrics(address) => engine_at(address).and_then(|engine| fleet.told(engine)),
            Call::Endpoints | Call::Metadata | Call::Models(_) | Call::Peers => None,
        };
        let page = page.map(|(stats, params)| page_of(&stats, params));
        let reply = page.as_ref().map_or(Reply::Failed, |page| Reply::Answer {
            status: 200,
            body: page.as_bytes(),
        });
        router.call_ended(&call, reply, now_us);
    }
}

/// What an engine would show.
fn page_of(stats: &Stats, params: &ModelParams) -> String {
    let usage = f64::from(stats.kv_used_blocks) / f64::from(params.kv_blocks.max(1));
    format!(
        "vllm:num_requests_running{{engine=\"0\"}} {}\n\
         vllm:num_requests_waiting{{engine=\"0\"}} {}\n\
         vllm:kv_cache_usage_perc{{engine=\"0\"}} {usage}\n\
         vllm:prefix_cache_queries_total{{engine=\"0\"}} {}\n\
         vllm:prefix_cache_hits_total{{engine=\"0\"}} {}\n\
         vllm:cache_config_info{{block_size=\"{}\",engine=\"0\",num_gpu_blocks=\"{}\"}} 1.0\n",
        stats.running,
        stats.waiting,
        stats.prefix_queries_tokens,
        stats.prefix_hits_tokens,
        params.block_tokens,
        params.kv_blocks,
    )
}
