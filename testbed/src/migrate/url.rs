//! An engine as a command line names it: by a URL.

use std::net::IpAddr;

use anyhow::{Context, bail, ensure};

/// Where an engine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// An IP address, or a name that Envoy resolves.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl Engine {
    /// Reads `http://HOST[:PORT]`; the scheme may be missing, and `localhost` is `127.0.0.1`.
    ///
    /// # Errors
    /// Another scheme, a path, no host, a port that is none.
    pub fn read(url: &str) -> anyhow::Result<Self> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        match scheme {
            "http" => {}
            "https" => bail!(
                "{url}: engines are asked for their metrics without TLS, and so is all that is printed; \
                 name the engine by http://, or put what ends TLS before it"
            ),
            _ => bail!("{url}: engines are HTTP servers, {scheme}:// is not offered"),
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        ensure!(
            !rest.contains('/'),
            "{url}: an engine is a host and a port; for a path there is prefix_rewrite of the route"
        );
        let bracketed = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let (host, port) = match bracketed {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let port = match port {
            None if bracketed.is_some_and(|(_, port)| !port.is_empty()) => None,
            None => Some(80),
            Some(port) => port.parse().ok().filter(|&port| port != 0),
        };
        let port = port.with_context(|| format!("{url}: no port at its end"))?;
        let named = |char: char| char.is_ascii_alphanumeric() || "-._".contains(char);
        let fit = match bracketed {
            Some(_) => host.parse::<IpAddr>().is_ok(),
            None => !host.is_empty() && host.chars().all(named),
        };
        ensure!(fit, "{url}: no host that could be an engine's");
        let host = match host {
            "localhost" => "127.0.0.1",
            host => host,
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }

    /// Whether Envoy has to resolve it.
    pub fn is_named(&self) -> bool {
        self.host.parse::<IpAddr>().is_err()
    }

    /// `host:port`, with brackets around an IPv6 address.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_host_and_a_port() {
        let read = |url: &str| Engine::read(url).unwrap().authority();
        assert_eq!(read("http://localhost:9001"), "127.0.0.1:9001");
        assert_eq!(read("http://worker1:8000/"), "worker1:8000");
        assert_eq!(read("10.0.0.1:8000"), "10.0.0.1:8000");
        assert_eq!(read("http://[fd00::1]:8000"), "[fd00::1]:8000");
        assert_eq!(
            read("http://engines.svc.cluster.local"),
            "engines.svc.cluster.local:80"
        );
        assert!(Engine::read("http://worker1:8000").unwrap().is_named());
        assert!(!Engine::read("http://[fd00::1]:8000").unwrap().is_named());
    }

    #[test]
    fn what_no_pool_could_hold_is_refused() {
        let refused = [
            "https://a:1",
            "grpc://a:1",
            "http://a:1/v1",
            "http://",
            "http://a:0",
            "http://a:port",
            "http://a b:1",
            "http://[fd00::1",
            "http://[::1]8000",
            "http://fd00::1:8000",
        ];
        for url in refused {
            assert!(Engine::read(url).is_err(), "{url}");
        }
    }
}
