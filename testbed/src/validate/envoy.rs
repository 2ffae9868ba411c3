//! Envoy's own word on a whole configuration, the module included.
//!
//! Configurations name the module by the path that it has where they are deployed; for the check that is
//! replaced by the path of a module that is there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// How the file of the module is called wherever it is deployed.
const MODULE: &str = "warmpath.wasm";

/// Envoy, and the module that it is to load.
pub struct Loader {
    /// Envoy's binary.
    pub envoy: PathBuf,
    /// The module; the paths in the configuration are used without one.
    pub module: Option<PathBuf>,
}

impl Loader {
    /// Lets Envoy load a configuration without serving anything; the filter's own check is a part of that.
    ///
    /// # Errors
    /// What Envoy says if it refuses, or why it cannot be asked.
    pub fn load(&self, config: &str) -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let extension = if config.trim_start().starts_with('{') {
            "json"
        } else {
            "yaml"
        };
        let file = folder.path().join("config").with_extension(extension);
        let config = match &self.module {
            Some(module) => with_module(config, module),
            None => config.to_owned(),
        };
        std::fs::write(&file, config)?;
        let mut command = Command::new(&self.envoy);
        command
            .args(["--mode", "validate", "-l", "warn", "-c"])
            .arg(&file);
        let output = command.output();
        let output = output.with_context(|| format!("starting {}", self.envoy.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{}", said.trim_end());
        }
        Ok(())
    }
}

/// The configuration with another path of the module, wherever a `filename` ends in its name.
fn with_module(config: &str, module: &Path) -> String {
    let module = module.display().to_string();
    let lines = config.split_inclusive('\n').map(|line| {
        let Some((before, after)) = line.split_once(MODULE) else {
            return line.to_owned();
        };
        let quote = after.chars().next().filter(|char| "\"'".contains(*char));
        let start = match quote {
            Some(quote) => before.rfind(quote),
            None => before.rfind([' ', '\t']),
        };
        let start = start.map_or(0, |at| at + 1);
        let (field, _) = before.split_at(start);
        let name = field
            .trim_end_matches([' ', '"', '\'', '\t'])
            .strip_suffix(':');
        let name = name.map(|name| name.trim_end_matches(['"', '\'']));
        match name.is_some_and(|name| name.ends_with("filename")) {
            true => format!("{field}{module}{after}"),
            false => line.to_owned(),
        }
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_the_module_is_replaced_in_every_style() {
        for (written, expected) in [
            (
                "code: {local: {filename: target/release/warmpath.wasm}}\n",
                "code: {local: {filename: /m.wasm}}\n",
            ),
            (
                "  filename: /etc/envoy/warmpath.wasm # ours\n",
                "  filename: /m.wasm # ours\n",
            ),
            ("filename: \"/a b/warmpath.wasm\"", "filename: \"/m.wasm\""),
            (
                r#"{"filename": "/etc/warmpath.wasm"}"#,
                r#"{"filename": "/m.wasm"}"#,
            ),
            ("filename: /etc/other.wasm", "filename: /etc/other.wasm"),
            ("url: oci://warmpath.wasm", "url: oci://warmpath.wasm"),
        ] {
            assert_eq!(with_module(written, Path::new("/m.wasm")), expected);
        }
    }
}
