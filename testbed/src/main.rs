//! Model engines, a local stack, the end-to-end driver and the simulator of warmpath.

use clap::{Parser, Subcommand};

mod archive;
mod bench;
mod browser;
mod digest;
mod drill;
mod dynamo;
mod e2e;
mod engine;
mod envoy;
mod handover;
mod image;
mod lmcache;
mod manifests;
mod matrix;
mod microbench;
mod migrate;
mod model;
mod module;
mod nearest;
mod overload;
mod relay;
mod release;
mod replay;
mod sbom;
mod server;
mod sim;
mod soak;
mod store;
mod subject;
mod trace;
mod up;
mod validate;
mod vllm;

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run model engines with vLLM's HTTP surface.
    Engine(engine::Args),
    /// Run engines and Envoy with the shipped config until Ctrl-C.
    Up(up::Args),
    /// Drive a real Envoy through every end-to-end test.
    E2e(e2e::Args),
    /// Drive several Envoys in front of the same engines, with a real Redis and Webdis between them.
    E2eScale(e2e::scale::Args),
    /// Drive several Envoys, with every wasm runtime they have, through every end-to-end test.
    Matrix(matrix::Args),
    /// Break one thing after another under load, and count what is lost.
    Drill(drill::Args),
    /// Break the store of several Envoys, and one of them, under load, and count what is lost.
    DrillScale(drill::scale::Args),
    /// Hold the Kubernetes manifests against the schemas of their kinds.
    Manifests(manifests::Args),
    /// Show the status page to a headless Chromium and test what it does.
    BrowserTest(browser::Args),
    /// Serve the status page with plausible, moving facts until Ctrl-C.
    StatusMock(browser::MockArgs),
    /// Print what a built wasm module weighs and imports.
    Module(module::Args),
    /// Write what a built wasm module is made of, as CycloneDX.
    Sbom(sbom::Args),
    /// Write the module as an OCI image, in the forms that Istio and Envoy Gateway fetch.
    Image(image::Args),
    /// Push the image to a real registry with a real tool, and fetch it again.
    ImageRegistryTest(image::TrialArgs),
    /// Fill a folder with all that is published of a version.
    Release(release::Args),
    /// Measure what routing costs, beside a bare Envoy and other routers.
    Bench(bench::Args),
    /// Measure what it costs several Envoys to share, beside as many that do not.
    BenchSync(bench::sync::Args),
    /// Measure what a prefill on another engine costs beside its two calls.
    Handover(handover::Args),
    /// Time the core's functions, natively and inside Envoy.
    Microbench(microbench::Args),
    /// Compare routing policies on a request trace.
    Simulate(sim::Args),
    /// Run a slice of a request trace through a real Envoy, beside the simulator.
    Replay(replay::Args),
    /// Run a slice of a request trace through one Envoy, several, and several that share.
    ReplayFleet(replay::fleet::Args),
    /// Offer a pool more than it can do, with admission and without.
    Overload(overload::Args),
    /// Send very many requests and sessions, and look whether anything grows.
    Soak(soak::Args),
    /// Print an Envoy configuration for the command line of another router.
    Migrate(migrate::Args),
    /// Check plugin configurations, by themselves or inside Envoy configurations and manifests.
    Validate(validate::Args),
    /// Show on real vLLM engines what warmpath learns of them and how it routes.
    Vllm(vllm::Args),
    /// Route by what NVIDIA Dynamo's own KV indexer says, and compare with what the engines say.
    KvIndex(dynamo::Args),
    /// Make a small request trace.
    Trace(trace::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Engine(args) => engine::run(args),
        Command::Up(args) => up::run(args),
        Command::E2e(args) => e2e::run(args),
        Command::E2eScale(args) => e2e::scale::run(args),
        Command::Matrix(args) => matrix::run(args),
        Command::Drill(args) => drill::run(args),
        Command::DrillScale(args) => drill::scale::run(args),
        Command::Manifests(args) => manifests::run(args),
        Command::BrowserTest(args) => browser::run(args),
        Command::StatusMock(args) => browser::run_mock(args),
        Command::Module(args) => module::run(args),
        Command::Sbom(args) => sbom::run(args),
        Command::Image(args) => image::run(args),
        Command::ImageRegistryTest(args) => image::run_trial(args),
        Command::Release(args) => release::run(args),
        Command::Bench(args) => bench::run(args),
        Command::BenchSync(args) => bench::sync::run(args),
        Command::Handover(args) => handover::run(args),
        Command::Microbench(args) => microbench::run(args),
        Command::Simulate(args) => sim::run(args),
        Command::Replay(args) => replay::run(args),
        Command::ReplayFleet(args) => replay::fleet::run(args),
        Command::Overload(args) => overload::run(args),
        Command::Soak(args) => soak::run(args),
        Command::Migrate(args) => migrate::run(args),
        Command::Validate(args) => validate::run(args),
        Command::Vllm(args) => vllm::run(args),
        Command::KvIndex(args) => dynamo::run(args),
        Command::Trace(args) => trace::run(args),
    }
}
