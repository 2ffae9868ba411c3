//! Where a server of the store comes from: a binary that is started, or addresses at which one runs already.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::envoy::port;

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Is started, at an address of its own.
    Binary(PathBuf),
    /// Run already.
    Given(Vec<SocketAddr>),
}

impl Source {
    /// So many servers: the binary of each that is to be started, and where it listens. Of those that are
    /// given, all.
    ///
    /// # Errors
    /// There is no free port.
    pub(super) fn places(
        &self,
        count: usize,
    ) -> anyhow::Result<Vec<(Option<PathBuf>, SocketAddr)>> {
        match self {
            Self::Given(addresses) => Ok(addresses.iter().map(|it| (None, *it)).collect()),
            Self::Binary(binary) => {
                let place = |_| Ok((Some(located(binary)?), port::reserve()?));
                (0..count).map(place).collect()
            }
        }
    }

    /// The binary, if it is not there.
    pub(super) fn absent(&self) -> Option<String> {
        match self {
            Self::Binary(binary) if !is_there(binary) => Some(binary.display().to_string()),
            _ => None,
        }
    }
}

impl FromStr for Source {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let addresses: Result<_, _> = text.split(',').map(str::parse).collect();
        Ok(match addresses {
            Ok(addresses) => Self::Given(addresses),
            Err(_) => Self::Binary(text.into()),
        })
    }
}

/// Whether a binary is to be looked for in the PATH.
fn is_name(binary: &Path) -> bool {
    binary.components().count() == 1
}

/// A binary for a process in another folder. Links are kept: Redis goes by the name it is called by.
fn located(binary: &Path) -> std::io::Result<PathBuf> {
    match is_name(binary) {
        true => Ok(binary.to_owned()),
        false => std::path::absolute(binary),
    }
}

/// Whether a binary can be found as a shell would find it.
fn is_there(binary: &Path) -> bool {
    if !is_name(binary) {
        return binary.is_file();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(binary).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        text.parse().unwrap()
    }

    #[test]
    fn a_binary_is_told_from_addresses() {
        let given = source("127.0.0.1:7001,127.0.0.1:7002");
        assert_eq!(given.places(9).unwrap().len(), 2);
        assert!(given.places(1).unwrap().iter().all(|it| it.0.is_none()));
        assert_eq!(
            source("redis-server"),
            Source::Binary("redis-server".into())
        );
        let started = source("tools/webdis").places(3).unwrap();
        assert_eq!(started.len(), 3);
        assert!(
            started
                .iter()
                .all(|it| it.0.as_ref().unwrap().is_absolute())
        );
        let named = source("webdis").places(1).unwrap();
        assert_eq!(named.first().unwrap().0, Some("webdis".into()));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(source("sh").absent(), None);
        assert_eq!(source("/bin/sh").absent(), None);
        assert_eq!(source("127.0.0.1:7001").absent(), None);
        assert_eq!(source("/no/redis").absent().as_deref(), Some("/no/redis"));
        assert!(source("no-such-redis").absent().is_some());
    }
}
