//! The PROXY protocol as it is written to endpoints (haproxy.org, doc/proxy-protocol.txt): whose connection it is that they are
//! given.

use std::net::{IpAddr, SocketAddr};

/// How version 2 begins.
pub const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

/// A connection that an endpoint is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Told {
    /// By which version.
    pub version: Version,
    /// The client's address.
    pub from: SocketAddr,
    /// The address that the client has connected to.
    pub to: SocketAddr,
}

impl Told {
    /// The header. Addresses of two families can't be told: the endpoint hears that they are unknown.
    pub fn header(&self) -> Vec<u8> {
        let Told { version, from, to } = *self;
        match (version, from.ip(), to.ip()) {
            (Version::V1, IpAddr::V4(_), IpAddr::V4(_)) => line("TCP4", from, to),
            (Version::V1, IpAddr::V6(_), IpAddr::V6(_)) => line("TCP6", from, to),
            (Version::V1, ..) => b"PROXY UNKNOWN\r\n".to_vec(),
            // TCP over IPv4 and over IPv6.
            (Version::V2, IpAddr::V4(a), IpAddr::V4(b)) => binary(0x11, &[a.octets(), b.octets()], from, to),
            (Version::V2, IpAddr::V6(a), IpAddr::V6(b)) => binary(0x21, &[a.octets(), b.octets()], from, to),
            (Version::V2, ..) => local(),
        }
    }
}

impl Version {
    /// The header of a connection that is nobody's but this proxy's own, as a health check's: version 1 tells of the connection
    /// itself, for version 2 there is the command LOCAL (Envoy's `UpstreamProxyProtocolSocket`). An address is unknown for a
    /// unix socket.
    pub fn own_header(self, from: Option<SocketAddr>, to: Option<SocketAddr>) -> Vec<u8> {
        match (self, from, to) {
            (Version::V1, Some(from), Some(to)) => Told { version: self, from, to }.header(),
            (Version::V1, ..) => b"PROXY UNKNOWN\r\n".to_vec(),
            (Version::V2, ..) => local(),
        }
    }
}

fn line(family: &str, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()).into_bytes()
}

fn binary<const N: usize>(family: u8, ips: &[[u8; N]; 2], from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    // Version 2, the command PROXY.
    header.extend([0x21, family, 0, (2 * N + 4) as u8]);
    header.extend(ips.concat());
    header.extend(from.port().to_be_bytes());
    header.extend(to.port().to_be_bytes());
    header
}

/// Version 2, the command LOCAL, and no addresses.
fn local() -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.extend([0x20, 0, 0, 0]);
    header
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn told(version: Version, from: &str, to: &str) -> Vec<u8> {
        Told { version, from: from.parse().unwrap(), to: to.parse().unwrap() }.header()
    }

    #[test]
    fn an_endpoint_is_told_both_addresses() {
        let v1 = |from, to| String::from_utf8(told(Version::V1, from, to)).unwrap();
        assert_eq!(v1("1.2.3.4:1111", "5.6.7.8:2222"), "PROXY TCP4 1.2.3.4 5.6.7.8 1111 2222\r\n");
        assert_eq!(v1("[::1]:1", "[2001:db8::2]:65535"), "PROXY TCP6 ::1 2001:db8::2 1 65535\r\n");
        let v2 = told(Version::V2, "1.2.3.4:1111", "5.6.7.8:2222");
        assert_eq!(
            v2,
            *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x04\x57\x08\xae"
        );
        let v2 = told(Version::V2, "[::1]:1", "[::2]:2");
        assert_eq!(v2[12..16], *b"\x21\x21\0\x24");
        assert_eq!((v2.len(), v2[31], v2[47], &v2[48..]), (52, 1, 2, &b"\0\x01\0\x02"[..]));
    }

    #[test]
    fn what_can_t_be_told_is_said_to_be_unknown() {
        assert_eq!(told(Version::V1, "1.2.3.4:1", "[::1]:2"), b"PROXY UNKNOWN\r\n");
        assert_eq!(told(Version::V2, "1.2.3.4:1", "[::1]:2"), *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
        let own: Option<SocketAddr> = Some("127.0.0.1:7".parse().unwrap());
        assert_eq!(Version::V1.own_header(own, own), b"PROXY TCP4 127.0.0.1 127.0.0.1 7 7\r\n");
        assert_eq!(Version::V1.own_header(None, None), b"PROXY UNKNOWN\r\n");
        assert_eq!(Version::V2.own_header(own, own), local());
    }
}
