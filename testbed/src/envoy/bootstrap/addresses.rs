//! Where an Envoy listens: read from its configuration, and moved to addresses of a test's own.

use std::net::SocketAddr;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{Bootstrap, for_each_object, is_named};
use crate::envoy::port;

/// The listener of the status page.
pub(super) const STATUS_LISTENER: &str = "warmpath_status";

/// What one Envoy listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Requests.
    pub listener: SocketAddr,
    /// Admin interface.
    pub admin: SocketAddr,
    /// Status page, if it is served.
    pub status: Option<SocketAddr>,
}

impl Addresses {
    /// Free ones for one more Envoy, without a status page.
    ///
    /// # Errors
    /// No port is free.
    pub fn free() -> anyhow::Result<Self> {
        Ok(Self {
            listener: port::reserve()?,
            admin: port::reserve()?,
            status: None,
        })
    }

    /// The same, with one for the status page.
    ///
    /// # Errors
    /// No port is free.
    pub fn free_with_status() -> anyhow::Result<Self> {
        Ok(Self {
            status: Some(port::reserve()?),
            ..Self::free()?
        })
    }
}

impl Bootstrap {
    /// Where the listeners and the admin interface listen.
    pub fn addresses(&self) -> anyhow::Result<Addresses> {
        let address = |pointer: &str| {
            let place = self.tree.pointer(pointer).and_then(|address| {
                let host = address.get("address")?.as_str()?;
                let port = address.get("port_value")?.as_u64()?;
                format!("{host}:{port}").parse().ok()
            });
            place.with_context(|| format!("no IP address at {pointer}"))
        };
        let listener = |at| {
            address(&format!(
                "/static_resources/listeners/{at}/address/socket_address"
            ))
        };
        Ok(Addresses {
            listener: listener(0)?,
            admin: address("/admin/address/socket_address")?,
            status: self.status_listener().map(listener).transpose()?,
        })
    }

    /// Moves the listeners and the admin interface, and with it every cluster endpoint that named the
    /// admin interface. Without an address for the status page its listener is taken out.
    pub fn set_addresses(&mut self, new: Addresses) -> anyhow::Result<()> {
        let old_admin = socket_address(self.addresses()?.admin);
        for_each_object(&mut self.tree, &mut |object| {
            if let Some(address) = object.get_mut("address").filter(|it| **it == old_admin) {
                *address = socket_address(new.admin);
            }
        });
        *self
            .tree
            .pointer_mut("/static_resources/listeners/0/address")
            .context("no listener")? = socket_address(new.listener);
        let Some(at) = self.status_listener() else {
            return Ok(());
        };
        match (new.status, self.listeners_mut()?.get_mut(at)) {
            (Some(status), Some(listener)) => {
                if let Some(address) = listener.get_mut("address") {
                    *address = socket_address(status);
                }
            }
            _ => {
                self.listeners_mut()?.remove(at);
            }
        }
        Ok(())
    }

    /// Place of the status page's listener among all.
    fn status_listener(&self) -> Option<usize> {
        let listeners = self.tree.pointer("/static_resources/listeners")?;
        let mut listeners = listeners.as_array()?.iter();
        listeners.position(|listener| is_named(listener, STATUS_LISTENER))
    }
}

/// An address in Envoy's form.
pub fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

#[cfg(test)]
mod tests {
    use super::super::tests::shipped;
    use super::*;

    #[test]
    fn moving_envoy_moves_its_stats_cluster_too() {
        let mut bootstrap = shipped();
        let new = Addresses {
            listener: "127.0.0.1:4001".parse().unwrap(),
            admin: "127.0.0.1:4002".parse().unwrap(),
            status: Some("127.0.0.1:4003".parse().unwrap()),
        };
        bootstrap.set_addresses(new).unwrap();
        assert_eq!(bootstrap.addresses().unwrap(), new);
        let stats = bootstrap.cluster_mut("prometheus_stats").unwrap();
        assert!(stats.to_string().contains("4002") && !stats.to_string().contains("9901"));
        let without_page = Addresses {
            status: None,
            ..new
        };
        bootstrap.set_addresses(without_page).unwrap();
        assert_eq!(bootstrap.addresses().unwrap(), without_page);
    }
}
