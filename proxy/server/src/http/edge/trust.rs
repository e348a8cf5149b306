//! Who the client is, and whether it is one of ours.

use ipnet::IpNet;
use sixfold_core::hcm::{ClientAddress, Detection, EdgeHeaders};
use sixfold_core::headers::{Headers, Known};
use sixfold_core::stream::Stream;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What was found out about the client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trust {
    /// Its address; the port is 0 unless it is the connection's own peer.
    pub(super) remote: SocketAddr,
    /// It is inside, so what it says of itself is believed.
    pub(super) internal: bool,
    /// It is outside and this proxy is the first one it meets.
    pub(super) edge: bool,
}

/// An address found, and whether it may make the request internal.
type Detected = Option<(IpAddr, bool)>;

/// Finds the client's address and appends the peer to X-Forwarded-For where that is this proxy's duty.
/// `Err` is the status of the answer to a request that detection refuses.
pub(super) fn decide(options: &ClientAddress, edge: &EdgeHeaders, stream: &mut Stream) -> Result<Trust, u16> {
    let peer = stream.connection.remote;
    let headers = &mut stream.request.headers;
    let mut detected: Detected = None;
    let mut append = false;
    if options.use_remote_address {
        // Only a client that names nobody else can be an internal one.
        let alone = !headers.contains(Known::X_FORWARDED_FOR);
        let hops = options.trusted_hops as usize;
        let told = if hops > 0 { from_right(headers, hops - 1) } else { None };
        detected = Some((told.map_or(peer.ip(), |(ip, _)| ip), alone));
        append = !options.skip_xff_append;
    } else if options.detection.is_empty() {
        detected = from_right(headers, options.trusted_hops as usize);
    }
    for extension in options.detection.iter().filter(|_| !options.use_remote_address) {
        let (found, skip_append) = detect(extension, peer.ip(), headers)?;
        append |= !skip_append;
        if found.is_some() {
            detected = found;
            break;
        }
    }
    if append {
        append_peer(peer.ip(), edge.local_address, headers);
    }
    let internal = detected
        .is_some_and(|(ip, may_be)| may_be && options.internal_ranges.iter().any(|net| net.contains(&ip)));
    let remote = match detected {
        Some((ip, _)) if ip != peer.ip() => SocketAddr::new(ip, 0),
        _ => peer,
    };
    Ok(Trust { remote, internal, edge: options.use_remote_address && !internal })
}

/// Envoy names a peer at the loopback address, 127.0.0.1 and no other of its network, by the host's own.
fn append_peer(peer: IpAddr, own: Option<IpAddr>, headers: &mut Headers) {
    let is_loopback = peer == Ipv4Addr::LOCALHOST || peer == Ipv6Addr::LOCALHOST;
    let address = own.filter(|_| is_loopback).unwrap_or(peer);
    headers.join(Known::X_FORWARDED_FOR, b",", address.to_string().as_bytes());
}

/// The entry of X-Forwarded-For with `skip` entries to its right, and whether it is the only one. An entry
/// that is no plain address is none (`getLastAddressFromXFF`).
fn from_right(headers: &Headers, skip: usize) -> Detected {
    let value = headers.get(Known::X_FORWARDED_FOR)?;
    let entry = value.rsplit(|b| *b == b',').nth(skip)?;
    let single = skip == 0 && !value.contains(&b',');
    Some((address(entry)?, single))
}

/// The first entry of X-Forwarded-For from the right that is in none of the ranges, else the leftmost.
fn from_right_untrusted(headers: &Headers, trusted: &[IpNet]) -> Option<IpAddr> {
    let value = headers.get(Known::X_FORWARDED_FOR)?;
    let mut last = None;
    for entry in value.rsplit(|b| *b == b',') {
        let ip = address(entry)?;
        last = Some(ip);
        if !contains(trusted, ip) {
            break;
        }
    }
    last
}

fn detect(extension: &Detection, peer: IpAddr, headers: &Headers) -> Result<(Detected, bool), u16> {
    Ok(match extension {
        Detection::XffHops(hops, skip_append) => (from_right(headers, *hops as usize), *skip_append),
        Detection::XffTrusted(trusted, skip_append) if contains(trusted, peer) => {
            (from_right_untrusted(headers, trusted).map(|ip| (ip, false)), *skip_append)
        }
        Detection::XffTrusted(_, skip_append) => (None, *skip_append),
        Detection::Header { name, trusted, reject } => match (headers.get(name).and_then(address), reject) {
            (Some(ip), _) => (Some((ip, *trusted)), true),
            (None, Some(status)) => return Err(*status),
            (None, None) => (None, true),
        },
    })
}

pub(super) fn contains(nets: &[IpNet], ip: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&ip))
}

/// An address without a port, in white space.
fn address(text: &[u8]) -> Option<IpAddr> {
    std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok()
}
