//! The `up` verb: model engines and an Envoy with the shipped configuration, until Ctrl-C.
//!
//! What runs is read from the Envoy configuration alone: an engine for each endpoint of each pool of
//! the plugin's configuration, and Envoy on the addresses that the file names.

mod guide;
mod plan;
mod progress;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::engine::Engine;
use crate::envoy::bootstrap::{Addresses, Bootstrap};
use crate::envoy::{Envoy, Launch, end_signal, port};
use crate::subject::{Subject, Workers};
use plan::{Plan, PlannedEngine};
use progress::Progress;

/// How often Envoy is looked after.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// Ctrl-C reaches Envoy as well as us: so long may our own notice of it take.
const SIGNAL_GRACE: Duration = Duration::from_millis(500);

/// Arguments of the `up` verb.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
    #[command(flatten)]
    workers: Workers,
    /// How fast the engines' time runs: 1 is the pace of a real GPU, 0 answers at once.
    #[arg(long, default_value_t = 1.0)]
    time_scale: f64,
}

/// Runs the stack until Ctrl-C or SIGTERM. Fails if something cannot start or Envoy ends by itself.
pub fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = end_signal() => ended,
            failed = serve(args) => failed,
        }
    });
    if let Err(error) = ended {
        // Not returned: a person reads this, and has no use for a backtrace.
        eprintln!("\nerror: {error:#}");
        std::process::exit(1);
    }
    println!("\nstopped");
    Ok(())
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let module = args.subject.module.canonicalize().with_context(|| {
        format!(
            "no module at {}: run `make build`",
            args.subject.module.display()
        )
    })?;
    let mut bootstrap = Bootstrap::load(&args.subject.config)?;
    bootstrap.set_module(&module);
    let addresses = bootstrap.addresses()?;
    let plan = Plan::of(&bootstrap.plugin()?)?;
    check_ports(&plan, addresses, &args.subject.config)?;

    let progress = Progress::start("model engines");
    let _engines = start_engines(&plan.engines, args.time_scale).await?;
    progress.done(&engines_line(&plan.engines));
    let progress = Progress::start("Envoy, which compiles the module");
    let launch = Launch {
        binary: args.subject.envoy,
        bootstrap,
        concurrency: args.workers.concurrency,
        component_log_level: "wasm:info".to_owned(),
    };
    let mut envoy = Envoy::start(launch)
        .await
        .with_context(|| format!("with {}", args.subject.config.display()))?;
    progress.done(&format!(
        "Envoy    {}, admin interface {}, {} workers",
        addresses.listener, addresses.admin, args.workers.concurrency
    ));
    println!("{}", guide::text(&plan, addresses));
    watch(&mut envoy).await
}

/// Fails, naming all of them, if addresses of the stack are in use.
fn check_ports(plan: &Plan, envoy: Addresses, config: &Path) -> anyhow::Result<()> {
    let engines = plan
        .engines
        .iter()
        .map(|engine| (format!("engine {}", engine.name), engine.address));
    let problems: Vec<String> = engines
        .chain([
            ("Envoy's listener".to_owned(), envoy.listener),
            ("Envoy's admin interface".to_owned(), envoy.admin),
        ])
        .chain(
            envoy
                .status
                .map(|address| ("the status page".to_owned(), address)),
        )
        .filter_map(|(what, address)| port::check_free(&what, address).err())
        .map(|error| format!("  {error:#}"))
        .collect();
    ensure!(
        problems.is_empty(),
        "cannot start:\n{}\nStop what listens there (`ss -ltnp` names it), or change the ports in {} \
         and start again (an engine's port stands in it twice)",
        problems.join("\n"),
        config.display()
    );
    Ok(())
}

async fn start_engines(planned: &[PlannedEngine], time_scale: f64) -> anyhow::Result<Vec<Engine>> {
    let mut engines = Vec::new();
    for engine in planned {
        engines.push(
            Engine::start(engine.config(time_scale))
                .await
                .with_context(|| format!("engine {} on {}", engine.name, engine.address))?,
        );
    }
    Ok(engines)
}

fn engines_line(engines: &[PlannedEngine]) -> String {
    let list: Vec<_> = engines
        .iter()
        .map(|engine| format!("{} on {}", engine.name, engine.address))
        .collect();
    format!("engines  {}", list.join(", "))
}

/// Returns, with an error, when Envoy has ended by itself.
async fn watch(envoy: &mut Envoy) -> anyhow::Result<()> {
    loop {
        if let Some(status) = envoy.exit_status()? {
            tokio::time::sleep(SIGNAL_GRACE).await;
            bail!("Envoy ended ({status}):\n{}", envoy.log_tail());
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}
