//! What the verbs that drive a real Envoy are told in the same words: which one, with which module and
//! configuration, and with how many threads.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::e2e::Setting;

/// The Envoy to drive, and the module in it.
#[derive(Clone, Debug, clap::Args)]
pub struct Subject {
    /// The Envoy binary.
    #[arg(long)]
    pub envoy: PathBuf,
    /// The wasm module.
    #[arg(long)]
    pub module: PathBuf,
    /// The Envoy configuration to start from.
    #[arg(long, default_value = "envoy/static.yaml")]
    pub config: PathBuf,
}

impl Subject {
    /// The same for tests, in Envoy's usual runtime; no module traps when it is told to.
    ///
    /// # Errors
    /// A file does not exist.
    pub fn setting(&self, concurrency: u32) -> anyhow::Result<Setting> {
        let module = existing(&self.module)?;
        Ok(Setting {
            envoy: existing(&self.envoy)?,
            runtime: "v8".to_owned(),
            trap_module: module.clone(),
            module,
            config: existing(&self.config)?,
            concurrency,
        })
    }
}

/// How many threads it has.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Workers {
    /// Worker threads of each Envoy.
    #[arg(long, default_value_t = 2)]
    pub concurrency: u32,
}

/// An existing file. Envoys run in folders of their own, so its path is made absolute.
///
/// # Errors
/// It does not exist.
pub fn existing(path: &Path) -> anyhow::Result<PathBuf> {
    path.canonicalize()
        .with_context(|| format!("{} does not exist", path.display()))
}
