//! The PROXY protocol, versions 1 and 2 (haproxy.org, doc/proxy-protocol.txt).

use sixfold_core::proxy_protocol::{SIGNATURE, Version};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest line of version 1, its end included.
const V1_MAX: usize = 107;

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its version.
    pub version: Version,
    /// Source and destination; `None` for `UNKNOWN`, `LOCAL` and `UNSPEC`: the socket's own count.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// The proxy in front passes a client on and can't tell whom (v2 `UNSPEC`).
    pub unspecified: bool,
    /// Bytes it takes, TLVs included.
    pub consumed: usize,
}

/// What the bytes of a connection's beginning are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A header.
    Header(Header),
    /// The beginning of a header.
    NeedsMore,
    /// No header.
    Absent,
    /// A header that breaks the rules.
    Malformed,
}

/// Reads the header at the start of `bytes`.
pub fn parse(bytes: &[u8]) -> Outcome {
    if starts(bytes, SIGNATURE) {
        parse_v2(bytes)
    } else if starts(bytes, b"PROXY ") {
        parse_v1(bytes)
    } else {
        Outcome::Absent
    }
}

/// Whether `bytes` begin with `prefix`, or may yet.
fn starts(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes.iter().zip(prefix).all(|(a, b)| a == b)
}

fn parse_v1(bytes: &[u8]) -> Outcome {
    let window = bytes.get(..V1_MAX).unwrap_or(bytes);
    let Some(end) = memchr::memchr(b'\n', window) else {
        return if bytes.len() >= V1_MAX { Outcome::Malformed } else { Outcome::NeedsMore };
    };
    let line = bytes.get(..end).and_then(|l| l.strip_suffix(b"\r")).and_then(|l| std::str::from_utf8(l).ok());
    let Some(addresses) = line.and_then(v1_addresses) else { return Outcome::Malformed };
    Outcome::Header(Header { version: Version::V1, addresses, unspecified: false, consumed: end + 1 })
}

/// The outer `None` is a malformed line.
fn v1_addresses(line: &str) -> Option<Option<(SocketAddr, SocketAddr)>> {
    let rest = line.strip_prefix("PROXY ")?;
    if rest == "UNKNOWN" || rest.starts_with("UNKNOWN ") {
        return Some(None);
    }
    let mut words = rest.split(' ');
    let ip: fn(&str) -> Option<IpAddr> = match words.next()? {
        "TCP4" => |text| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" => |text| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => return None,
    };
    let (source, destination) = (ip(words.next()?)?, ip(words.next()?)?);
    let (from, to) = (port(words.next()?)?, port(words.next()?)?);
    match words.next() {
        None => Some(Some((SocketAddr::new(source, from), SocketAddr::new(destination, to)))),
        Some(_) => None,
    }
}

/// A port in decimal digits without sign or leading zeros.
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

fn parse_v2(bytes: &[u8]) -> Outcome {
    let Some(&[version_command, family, high, low]) = bytes.get(12..16) else { return Outcome::NeedsMore };
    let len = usize::from(u16::from_be_bytes([high, low]));
    if version_command >> 4 != 2 {
        return Outcome::Malformed;
    }
    let Some(body) = bytes.get(16..16 + len) else { return Outcome::NeedsMore };
    let (addresses, tlvs) = match (version_command & 0xf, family) {
        // LOCAL: a health check of the proxy in front; UNSPEC: it can't tell. What follows is to be ignored.
        (0, _) | (1, 0x00) => (None, &[][..]),
        // Of datagrams too, as in Envoy: the proxy in front may have had them from its client.
        (1, 0x11 | 0x12) => (v2_ipv4(body), body.get(12..).unwrap_or_default()),
        (1, 0x21 | 0x22) => (v2_ipv6(body), body.get(36..).unwrap_or_default()),
        // Unix sockets can't have come this way.
        _ => return Outcome::Malformed,
    };
    let (local, unspecified) = (version_command & 0xf == 0, version_command & 0xf == 1 && family == 0);
    if (addresses.is_none() && !local && !unspecified) || !are_tlvs(tlvs) {
        return Outcome::Malformed;
    }
    Outcome::Header(Header { version: Version::V2, addresses, unspecified, consumed: 16 + len })
}

/// Whether these are whole TLVs, each as long as it says: a type, two bytes of length, the value.
fn are_tlvs(mut bytes: &[u8]) -> bool {
    while let [_, high, low, rest @ ..] = bytes {
        match rest.get(usize::from(u16::from_be_bytes([*high, *low]))..) {
            Some(next) => bytes = next,
            None => return false,
        }
    }
    bytes.is_empty()
}

fn v2_ipv4(body: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let source: [u8; 4] = body.get(..4)?.try_into().ok()?;
    let destination: [u8; 4] = body.get(4..8)?.try_into().ok()?;
    Some(((source, be16(body, 8)?).into(), (destination, be16(body, 10)?).into()))
}

fn v2_ipv6(body: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let source: [u8; 16] = body.get(..16)?.try_into().ok()?;
    let destination: [u8; 16] = body.get(16..32)?.try_into().ok()?;
    Some(((source, be16(body, 32)?).into(), (destination, be16(body, 34)?).into()))
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

/// For the fuzzer: a header never takes more bytes than there are, and more bytes after it change nothing.
pub fn fuzz(data: &[u8]) {
    if let Outcome::Header(header) = parse(data) {
        assert!(header.consumed <= data.len());
        let alone = data.get(..header.consumed).unwrap_or_default();
        assert_eq!(parse(alone), Outcome::Header(header));
        for end in 0..header.consumed {
            assert_eq!(parse(data.get(..end).unwrap_or_default()), Outcome::NeedsMore, "cut at {end}");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn header(bytes: &[u8]) -> Header {
        match parse(bytes) {
            Outcome::Header(header) => header,
            other => panic!("{other:?}"),
        }
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0x20 | command, family]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn version_1_gives_addresses_and_what_it_took() {
        let bytes = b"PROXY TCP4 1.2.3.4 5.6.7.8 1111 2222\r\nGET / HTTP/1.1\r\n";
        let Header { addresses, consumed, version, .. } = header(bytes);
        assert_eq!((version, consumed), (Version::V1, 38));
        assert_eq!(addresses, Some(("1.2.3.4:1111".parse().unwrap(), "5.6.7.8:2222".parse().unwrap())));
        let six = header(b"PROXY TCP6 ::1 2001:db8::1 1 65535\r\n");
        assert_eq!(six.addresses.unwrap().1, "[2001:db8::1]:65535".parse().unwrap());
        assert_eq!(header(b"PROXY UNKNOWN ffff::1 what ever\r\n").addresses, None);
    }

    #[test]
    fn malformed_lines_are_refused() {
        for line in [
            "PROXY TCP4 1.2.3.4 5.6.7.8 1111 2222\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1111\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1111 2222 3\r\n",
            "PROXY TCP4 1.2.3.4  5.6.7.8 1111 2222\r\n",
            "PROXY TCP4 ::1 ::1 1111 2222\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 +111 2222\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 0111 2222\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1111 65536\r\n",
            "PROXY UDP4 1.2.3.4 5.6.7.8 1111 2222\r\n",
            "PROXY \r\n",
        ] {
            assert_eq!(parse(line.as_bytes()), Outcome::Malformed, "{line}");
        }
        assert_eq!(parse(format!("PROXY UNKNOWN {}", "x".repeat(200)).as_bytes()), Outcome::Malformed);
        assert_eq!(parse(b"PROXY TCP4 1.2"), Outcome::NeedsMore);
        assert_eq!(parse(b""), Outcome::NeedsMore);
        assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Outcome::Absent);
        assert_eq!(parse(b"PROXX"), Outcome::Absent);
    }

    #[test]
    fn version_2_gives_addresses_and_skips_tlvs() {
        let mut body = vec![1, 2, 3, 4, 5, 6, 7, 8, 0x04, 0x57, 0x08, 0xae];
        body.extend([0x03, 0, 4, 1, 2, 3, 4]);
        let bytes = v2(1, 0x11, &body);
        let mut more = bytes.clone();
        more.extend(b"hello");
        let found = header(&more);
        assert_eq!((found.version, found.consumed), (Version::V2, bytes.len()));
        assert_eq!(found.addresses, Some(("1.2.3.4:1111".parse().unwrap(), "5.6.7.8:2222".parse().unwrap())));
        assert_eq!(header(&v2(0, 0x00, &[])).addresses, None);
        assert_eq!(header(&v2(0, 0x11, &[0; 12])).addresses, None, "LOCAL ignores addresses");
        assert_eq!(header(&v2(1, 0x21, &[0; 36])).addresses.unwrap().0, "[::]:0".parse().unwrap());
        for bad in
            [v2(1, 0x11, &[0; 11]), v2(1, 0x21, &[0; 12]), v2(1, 0x31, &[0; 216]), v2(2, 0x11, &[0; 12])]
        {
            assert_eq!(parse(&bad), Outcome::Malformed);
        }
    }

    /// More than 4 KiB was malformed, and so were datagrams.
    #[test]
    fn version_2_is_as_long_as_its_length_allows() {
        for family in [0x11, 0x12, 0x21, 0x22] {
            let addresses = if family < 0x20 { 12 } else { 36 };
            let value = usize::from(u16::MAX) - addresses - 3;
            let length = (value as u16).to_be_bytes();
            let tlv = [&[0xee][..], &length, &vec![9; value]].concat();
            let bytes = v2(1, family, &[&vec![0; addresses][..], &tlv].concat());
            assert_eq!(bytes.len(), 16 + 0xffff);
            assert_eq!(header(&bytes).consumed, bytes.len());
            assert_eq!(parse(&bytes[..bytes.len() - 1]), Outcome::NeedsMore);
        }
    }

    /// TLVs that were longer than the header, or cut, were skipped with it.
    #[test]
    fn tlvs_are_as_long_as_they_say() {
        let with = |tlvs: &[u8]| parse(&v2(1, 0x11, &[&[0; 12][..], tlvs].concat()));
        for good in [&[][..], &[4, 0, 0], &[4, 0, 2, 1, 2, 0xee, 0, 1, 9]] {
            assert!(matches!(with(good), Outcome::Header(_)), "{good:?}");
        }
        for bad in
            [&[4][..], &[4, 0], &[4, 0, 1], &[4, 0xff, 0xff, 1], &[4, 0, 1, 1, 5], &[4, 0, 0, 4, 0, 9, 1]]
        {
            assert_eq!(with(bad), Outcome::Malformed, "{bad:?}");
        }
        assert_eq!(parse(&v2(1, 0x21, &[&[0; 36][..], &[4, 0, 1]].concat())), Outcome::Malformed);
    }

    #[test]
    fn an_unspecified_family_is_told_apart_from_a_local_command() {
        assert!(header(&v2(1, 0x00, &[])).unspecified && header(&v2(1, 0x00, &[9; 5])).unspecified);
        assert!(!header(&v2(0, 0x00, &[])).unspecified);
    }

    #[test]
    fn the_fuzz_target_holds() {
        crate::stable::run(
            "proxy_protocol",
            &["PROXY ", "TCP4 ", "TCP6 ::1 ", " 65535", "\r\n", "\x21\x11"],
            fuzz,
        );
    }

    proptest! {
        #[test]
        fn nothing_panics_and_cuts_need_more(
            data in prop::collection::vec(any::<u8>(), 0..64),
            prefix in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 1.2.3.4 ", SIGNATURE]),
        ) {
            fuzz(&[prefix, &data].concat());
        }
    }
}
