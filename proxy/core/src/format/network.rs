//! Addresses without their ports, cut to the network that they are in (`MASK_PREFIX_LEN`).

use super::fixed::connected_to;
use super::read::{ip, number};
use crate::stream::Stream;
use std::net::{IpAddr, SocketAddr};

/// Reads an address.
pub(super) type AddressOf = fn(&Stream) -> Option<SocketAddr>;

/// The operators that take the bits of a network.
const OPERATORS: [(&str, AddressOf); 6] = [
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", |stream| Some(stream.remote)),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", |stream| Some(stream.connection.direct_remote)),
    ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", |stream| Some(stream.connection.local)),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT", |stream| Some(stream.connection.direct_local)),
    ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", connected_to),
    ("UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", |stream| stream.upstream.local),
];

/// The network of an address.
#[derive(Debug)]
pub(super) struct Network {
    of: AddressOf,
    /// `None` for fewer than none, of which Envoy prints nothing.
    bits: Option<u8>,
}

impl Network {
    /// What an operator's arguments ask for; `None` for another operator, and for what is no number, which Envoy passes
    /// over.
    pub(super) fn parse(name: &str, arguments: &str) -> Option<Network> {
        let (_, of) = OPERATORS.iter().find(|(known, _)| *known == name)?;
        let bits: i32 = arguments.trim_ascii().parse().ok()?;
        let bits = (bits >= 0).then(|| u8::try_from(bits).unwrap_or(u8::MAX));
        Some(Network { of: *of, bits })
    }

    /// Whether an operator may have arguments of any kind.
    pub(super) fn is_of(name: &str) -> bool {
        OPERATORS.iter().any(|(known, _)| *known == name)
    }

    /// Appends `address/bits`; tells whether there is an address. More bits than an address has are all of them.
    pub(super) fn write(&self, stream: &Stream, out: &mut Vec<u8>) -> bool {
        let Some(address) = (self.of)(stream).map(|address| address.ip()) else { return false };
        let Some(bits) = self.bits.map(u32::from) else { return true };
        let (first, bits) = match address {
            IpAddr::V4(address) => {
                let bits = bits.min(32);
                let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
                (IpAddr::V4((u32::from(address) & mask).into()), bits)
            }
            IpAddr::V6(address) => {
                let bits = bits.min(128);
                let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
                (IpAddr::V6((u128::from(address) & mask).into()), bits)
            }
        };
        ip(out, first);
        out.push(b'/');
        number(out, bits.into());
        true
    }
}
