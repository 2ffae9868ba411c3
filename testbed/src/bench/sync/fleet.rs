//! Several Envoys before the same engines, with a store between them or without.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use serde_json::json;

use super::report::Round;
use super::{Args, rate};
use crate::bench::contestant::{Setup, Variant, configure};
use crate::bench::corpus::Corpus;
use crate::bench::load;
use crate::bench::process::{Process, pin_this_thread};
use crate::e2e::harness::eventually;
use crate::envoy::{Envoy, Launch, stats};
use crate::store::{self, CLUSTER, Store};
use crate::subject::existing;

/// Webdis processes.
const FRONTS: usize = 2;
/// Connections of the first, unmeasured requests.
const WARM_UP_CONNECTIONS: usize = 8;
/// Load before a window opens.
const LEAD_IN: Duration = Duration::from_secs(1);
/// The code of `warmpath_peers_view` that says that all is well.
const WHOLE: u64 = 2;

/// See the module documentation.
pub(super) struct Fleet {
    members: Vec<(SocketAddr, Envoy)>,
    store: Option<Store>,
}

/// What has been counted so far.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    envoy_cpu_ns: u64,
    redis_cpu_ns: u64,
    webdis_cpu_ns: u64,
    calls: u64,
    told_bytes: u64,
    heard_bytes: u64,
    written_bytes: u64,
    read_bytes: u64,
}

impl Fleet {
    /// Starts it; `shares` says whether with a store.
    pub(super) async fn start(
        args: &Args,
        setup: &Setup,
        engines: &[SocketAddr],
        shares: bool,
    ) -> anyhow::Result<Self> {
        let store = match shares {
            true => Some(Store::start(&args.binaries, FRONTS).await?),
            false => None,
        };
        let variant = Variant::Warmpath {
            policy: json!({"prefix": {"kv_tokens": args.kv_tokens}}),
            module: existing(&args.subject.module)?,
        };
        let mut members = Vec::new();
        for _ in &args.rates {
            let mut bootstrap = configure(&variant, setup, engines)?;
            if let Some(store) = &store {
                let fronts = store.addresses();
                store::join(&mut bootstrap, &fronts, store::KEY, args.interval_ms)?;
            }
            let address = bootstrap.addresses()?.listener;
            // Envoy inherits the CPU of the thread that starts it, for all its threads.
            if let Some((router_cpu, _)) = setup.cpus {
                pin_this_thread(router_cpu)?;
            }
            let envoy = Envoy::start(Launch {
                binary: setup.binary.clone(),
                bootstrap,
                concurrency: setup.concurrency,
                component_log_level: String::new(),
            });
            let envoy = envoy.await;
            if let Some((_, load_cpu)) = setup.cpus {
                pin_this_thread(load_cpu)?;
            }
            members.push((address, envoy?));
        }
        Ok(Self { members, store })
    }

    /// Sends every prompt once through each Envoy, so that code is compiled and what can be known is known.
    pub(super) async fn warm_up(&self, corpus: &Arc<Corpus>) -> anyhow::Result<()> {
        for (address, _) in &self.members {
            let count = corpus.len() as u64;
            let errors = load::send(*address, corpus, WARM_UP_CONNECTIONS, count).await?;
            ensure!(
                errors == 0,
                "{errors} of {count} requests were not answered 200"
            );
        }
        Ok(())
    }

    /// Halts its Envoys.
    pub(super) fn halt(&self) -> anyhow::Result<()> {
        self.members.iter().try_for_each(|(_, it)| it.stall())
    }

    /// Lets them go on; returns once those that share hear each other.
    pub(super) async fn go_on(&self) -> anyhow::Result<()> {
        self.members.iter().try_for_each(|(_, it)| it.resume())?;
        if self.store.is_none() {
            return Ok(());
        }
        let others = self.members.len() as u64 - 1;
        eventually("every Envoy hears every other", async || {
            for (_, envoy) in &self.members {
                let page = envoy.filter_stats().await?;
                let view = stats::sum(&page, "warmpath_peers_view", &[]);
                if view != WHOLE || stats::sum(&page, "warmpath_peers", &[]) != others {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await
    }

    /// Loads its Envoys at these rates and measures.
    pub(super) async fn measure(
        &self,
        rates: &[u32],
        corpus: &Arc<Corpus>,
        length: Duration,
    ) -> anyhow::Result<Round> {
        let addresses = self.members.iter().map(|(address, _)| *address);
        let load = rate::Load::start(addresses.zip(rates.iter().copied()), corpus);
        tokio::time::sleep(LEAD_IN).await;
        let before = self.count().await?;
        let opened = load.open();
        tokio::time::sleep(length).await;
        let window = load.close(opened);
        let after = self.count().await?;
        let window = load.finish(window).await?;
        let seconds = window.elapsed.as_secs_f64();
        let each = self.members.len() as f64 * seconds;
        let grown = |of: fn(&Count) -> u64| of(&after).saturating_sub(of(&before)) as f64;
        let [p50_us, p99_us] = [0.5, 0.99].map(|it| load::quantile_us(&window.latencies_ns, it));
        Ok(Round {
            requests_per_s: window.answered as f64 / seconds,
            failed: window.failed,
            late_p99_us: load::quantile_us(&window.late_ns, 0.99),
            p50_us,
            p99_us,
            envoy_ms_per_s: grown(|it| it.envoy_cpu_ns) / 1e6 / each,
            redis_ms_per_s: grown(|it| it.redis_cpu_ns) / 1e6 / seconds,
            webdis_ms_per_s: grown(|it| it.webdis_cpu_ns) / 1e6 / seconds,
            calls_per_s: grown(|it| it.calls) / each,
            told_bytes_per_s: grown(|it| it.told_bytes) / each,
            heard_bytes_per_s: grown(|it| it.heard_bytes) / each,
            written_bytes_per_s: grown(|it| it.written_bytes) / each,
            read_bytes_per_s: grown(|it| it.read_bytes) / each,
        })
    }

    /// The processes' CPU time is read last and first, next to the window.
    async fn count(&self) -> anyhow::Result<Count> {
        let mut count = Count::default();
        for (_, envoy) in &self.members {
            if self.store.is_none() {
                break;
            }
            let page = envoy.filter_stats().await?;
            let sum = |name| stats::sum(&page, name, &[]);
            count.calls += sum("warmpath_peers_calls_total");
            count.told_bytes += sum("warmpath_peers_sent_bytes_total");
            count.heard_bytes += sum("warmpath_peers_received_bytes_total");
            let wire = async |way| {
                let name = format!("cluster.{CLUSTER}.upstream_cx_{way}_bytes_total");
                envoy.stat(&name).await
            };
            count.written_bytes += wire("tx").await?;
            count.read_bytes += wire("rx").await?;
        }
        if let Some(store) = &self.store {
            count.redis_cpu_ns = store.redis.cpu_ns()?;
            count.webdis_cpu_ns = store.cpu_ns()?.saturating_sub(count.redis_cpu_ns);
        }
        for (_, envoy) in &self.members {
            count.envoy_cpu_ns += Process::new(envoy.process_id()).cpu_ns()?;
        }
        Ok(count)
    }
}
