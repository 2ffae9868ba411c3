//! TCP ports that Envoy can be given: found free, or known to be taken.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

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

/// A loopback address whose port nobody else is given for the next minute.
///
/// The port goes through one whole connection: while its closed side lingers (TIME_WAIT), the
/// system hands the port to nobody who asks for any port, yet one who asks for this very port, with
/// address reuse on as servers have it, gets it. So many tests can start servers at the same time.
pub fn reserve() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let client = TcpStream::connect(address)?;
    let (server, _) = listener.accept()?;
    // Whoever closes first lingers; it must be the side that owns the port.
    drop(server);
    drop(client);
    Ok(address)
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
