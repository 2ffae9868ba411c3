//! TCP ports that Envoy can be given: found free, or known to be taken.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail};

/// Fails, naming `what` and the address, if something else listens on `address`.
pub fn check_free(what: &str, address: SocketAddr) -> anyhow::Result<()> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!("{what} needs {address}, which is in use")
        }
        Err(error) => Err(error).with_context(|| format!("{what} cannot listen on {address}")),
    }
}

/// Ports for servers of tests: below those that systems hand out by themselves, so that no client
/// connection of anybody can hold one.
const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;

/// How many ports this process has been given.
static GIVEN: AtomicU32 = AtomicU32::new(0);

/// A loopback address whose port is free and given to nobody else of this process.
///
/// Processes begin at places of their own, so that two of them seldom look at the same port.
pub fn reserve() -> anyhow::Result<SocketAddr> {
    let start = std::process::id().wrapping_mul(7919);
    for _ in 0..COUNT {
        let offset = start.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + offset)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if check_free("a test", address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port in {FIRST}..{}", FIRST + COUNT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_address_is_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = taken.local_addr().unwrap();
        let refused = check_free("the stove", address).unwrap_err().to_string();
        assert!(refused.contains("the stove") && refused.contains(&address.to_string()));
    }

    #[test]
    fn a_reserved_port_is_free_and_given_once() {
        let addresses: std::collections::HashSet<_> = (0..50).map(|_| reserve().unwrap()).collect();
        assert_eq!(addresses.len(), 50);
        for address in addresses {
            check_free("test", address).unwrap();
        }
    }
}
