//! The `image-registry-test` verb: the image in a real registry, pushed by a real tool.
//!
//! The registry is Docker's, on loopback, with an empty folder of its own; skopeo pushes each image as a
//! user would, and so does our own client. Each must come back by the fetchers' rules, by tag and by
//! digest, as the very module, and with the digest that was printed when it was made.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use tokio::process::{Child, Command};

use super::fetch::fetch;
use super::push::Repository;
use super::{Layout, of_release};
use crate::e2e::harness::eventually;
use crate::envoy::port;
use crate::module::Built;

/// Arguments of the `image-registry-test` verb.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    module: Built,
    /// Docker's registry.
    #[arg(long)]
    registry: PathBuf,
    /// The tool that copies images.
    #[arg(long)]
    skopeo: PathBuf,
}

/// Runs the `image-registry-test` verb.
///
/// # Errors
/// Something does not start, refuses the image, or gives back another.
pub fn run(args: Args) -> anyhow::Result<()> {
    let module = args.module.read()?;
    let layout = of_release(&module)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let folder = tempfile::tempdir()?;
        let image = folder.path().join("image");
        layout.write(&image)?;
        let registry = Registry::start(&args.registry, folder.path()).await?;
        let own = registry.repository("own/warmpath")?;
        own.push(&layout).await.context("our own client")?;
        check(&own, &layout, &module).await?;
        println!("pushed by our own client: every image comes back");
        for (tag, _) in layout.tags() {
            let to = format!("docker://{}/team/warmpath:{tag}", registry.host);
            copy(&args.skopeo, &format!("oci:{}:{tag}", image.display()), &to).await?;
        }
        let team = registry.repository("team/warmpath")?;
        check(&team, &layout, &module).await?;
        println!("pushed by skopeo: every image comes back");
        let back = folder.path().join("back");
        for (tag, _) in layout.tags() {
            let from = format!("docker://{}/team/warmpath:{tag}", registry.host);
            copy(
                &args.skopeo,
                &from,
                &format!("oci:{}:{tag}", back.display()),
            )
            .await?;
        }
        let back = Layout::read(&back)?;
        ensure!(back == layout, "skopeo pulled other images");
        println!("pulled by skopeo: the same bytes");
        Ok(())
    })
}

/// Whether every image of the layout is there, by tag and by digest.
async fn check(from: &Repository, layout: &Layout, module: &[u8]) -> anyhow::Result<()> {
    for (tag, digest) in layout.tags() {
        for reference in [tag, digest] {
            let fetched = fetch(from, reference).await?;
            ensure!(fetched.digest == digest, "{tag} is {}", fetched.digest);
            ensure!(fetched.module == module, "{tag} has another module");
        }
        println!("{tag:<10} {digest}");
    }
    Ok(())
}

/// Copies an image between a folder and the registry. `--preserve-digests` makes a change an error.
async fn copy(skopeo: &Path, from: &str, to: &str) -> anyhow::Result<()> {
    let mut command = Command::new(skopeo);
    // Who may sign what is a matter of the machine, and not ours.
    command.args(["--insecure-policy", "copy", "--preserve-digests"]);
    command.args([
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        from,
        to,
    ]);
    let output = command.stdin(Stdio::null()).output().await;
    let output = output.with_context(|| format!("starting {}", skopeo.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "skopeo copy {from} {to}: {said}");
    Ok(())
}

/// Docker's registry; it ends when it is dropped.
struct Registry {
    _child: Child,
    /// `address:port`.
    host: String,
}

impl Registry {
    async fn start(binary: &Path, folder: &Path) -> anyhow::Result<Self> {
        let host = port::reserve()?.to_string();
        let config = serde_json::json!({
            "version": "0.1",
            "storage": {"filesystem": {"rootdirectory": folder.join("registry")}},
            "http": {"addr": host},
        });
        let file = folder.join("registry.yaml");
        std::fs::write(&file, config.to_string())?;
        let child = Command::new(binary)
            .arg("serve")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let client = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("http://{host}/v2/");
        eventually("the registry serves", async || {
            let answer = client.get(&url).send().await;
            Ok(answer
                .is_ok_and(|it| it.status().is_success())
                .then_some(()))
        })
        .await?;
        Ok(Self {
            _child: child,
            host,
        })
    }

    fn repository(&self, name: &str) -> anyhow::Result<Repository> {
        Repository::new(&format!("http://{}", self.host), name)
    }
}
