//! Command lines from the documentation of other routers, each with where it comes from.

use anyhow::Context;

/// A file with its name.
macro_rules! printed {
    ($file:literal) => {
        ($file, include_str!(concat!("commands/", $file)))
    };
}

/// Names of files in `commands/`, and the files: a comment that says where it comes from, and a command line
/// as it is printed there.
pub const PRINTED: &[(&str, &str)] = &[
    printed!("dynamo-decode.sh"),
    printed!("dynamo.sh"),
    printed!("production-stack-module.sh"),
    printed!("production-stack-pd.sh"),
    printed!("production-stack.sh"),
    printed!("vllm-router-breaker.sh"),
    printed!("vllm-router-dp.sh"),
    printed!("vllm-router-mooncake.sh"),
    printed!("vllm-router-pd.sh"),
    printed!("vllm-router-retries.sh"),
];

/// The words of a command line, as a shell would pass them.
///
/// # Errors
/// There is no such file, or a quote is not closed in it.
pub fn words(file: &str) -> anyhow::Result<Vec<String>> {
    let mut printed = PRINTED.iter();
    let (_, text) = printed
        .find(|(name, _)| *name == file)
        .with_context(|| format!("no command line {file}"))?;
    // Lines that go on are one to a shell, and an empty word each to this splitter.
    let text = text.replace("\\\n", " ");
    shlex::split(&text).with_context(|| format!("{file}: an open quote"))
}
