//! What the pages of Envoy's admin have in common: how clusters are named and addresses written.

use std::net::{IpAddr, SocketAddr};

use super::scalar::Scalar;
use crate::json::Source;

/// Most clusters taken from an answer.
pub const MAX_CLUSTERS: usize = 256;
/// Most hosts taken from an answer, all clusters together; as many as there are endpoint ids.
pub const MAX_HOSTS: usize = 4096;

/// A regular expression (RE2) for exactly these names, without anchors, percent-encoded. Linear.
pub(super) fn names_regex(names: &[&str]) -> String {
    let escaped: Vec<String> = names.iter().map(|name| escape(name)).collect();
    percent_encode(&format!("(?:{})", escaped.join("|")))
}

fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for character in name.chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// Everything but the unreserved characters of RFC 3986.
pub(crate) fn percent_encode(text: &str) -> String {
    const HEX: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F',
    ];
    let digit = |value: u8| HEX.get(usize::from(value)).copied().unwrap_or('0');
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.extend(['%', digit(byte >> 4), digit(byte & 0xf)]);
        }
    }
    encoded
}

/// Reads an `envoy.config.core.v3.Address` as `upstream.address` will name it. `Some(None)` for pipes,
/// internal listeners, names that are not resolved and addresses with a scope, none of which a ranked list
/// can carry.
pub(super) fn socket(source: &mut Source) -> Option<Option<SocketAddr>> {
    let (mut address, mut port) = <(Scalar, Scalar)>::default();
    source.object(&mut |source, name| {
        if name != "socket_address" {
            return source.skip();
        }
        if source.is_null() {
            return Some(());
        }
        source.object(&mut |source, name| {
            let field = match name {
                "address" => &mut address,
                "port_value" => &mut port,
                _ => return source.skip(),
            };
            *field = Scalar::read(source)?;
            Some(())
        })
    })?;
    let ip: Option<IpAddr> = address.text().and_then(|ip| ip.parse().ok());
    let port = port.whole().and_then(|port| u16::try_from(port).ok());
    Some(ip.zip(port).map(SocketAddr::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::read;

    #[test]
    fn names_match_themselves_only() {
        assert_eq!(names_regex(&["engines"]), "%28%3F%3Aengines%29");
        assert_eq!(
            names_regex(&["a.b", "outbound|80||x", "é +"]),
            "%28%3F%3Aa%5C.b%7Coutbound%5C%7C80%5C%7C%5C%7Cx%7C%C3%A9%20%5C%2B%29"
        );
        assert_eq!(escape(r"a\(b)[c]{d}^$*?-"), r"a\\\(b\)\[c\]\{d\}\^\$\*\?-");
    }

    #[test]
    fn only_plain_addresses_are_taken() {
        let socket = |text: &str| read(text.as_bytes(), socket).unwrap();
        let v6 = r#"{"socket_address":{"address":"::1","port_value":80}}"#;
        assert_eq!(socket(v6), "[::1]:80".parse().ok());
        for other in [
            r#"{"pipe":{"path":"/run/engine.sock"}}"#,
            r#"{"envoy_internal_address":{"server_listener_name":"x"}}"#,
            r#"{"socket_address":{"address":"fe80::1%1","port_value":80}}"#,
            r#"{"socket_address":{"address":"example.com","port_value":80}}"#,
            r#"{"socket_address":{"address":"10.0.0.1","port_value":65536}}"#,
            r#"{"socket_address":{"address":"10.0.0.1","named_port":"http"}}"#,
            r#"{"socket_address":null}"#,
        ] {
            assert_eq!(socket(other), None, "{other}");
        }
    }
}
