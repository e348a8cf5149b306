//! Sets of client addresses, from lists of addresses and networks.

use sixfold_core::error::{ConfigContext, ConfigError, collect};
use std::net::IpAddr;

/// Addresses as ranges that do not meet, in order: to look one up takes a few steps, however long the list was.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

/// The first and the last address of an entry of a list.
#[derive(Clone, Copy)]
enum Network {
    V4(u32, u32),
    V6(u128, u128),
}

impl Addresses {
    /// From addresses and networks (`10.0.0.0/8`); what a network has beyond its mask does not matter.
    ///
    /// # Errors
    /// Each that is neither, in APISIX's words.
    pub(crate) fn new(texts: &[String]) -> Result<Addresses, ConfigError> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let network = |(index, text): (usize, &String)| {
            let invalid = || ConfigError::new(format!("invalid ip address: {text}"));
            network(text).ok_or_else(invalid).in_index(index)
        };
        for network in collect(texts.iter().enumerate().map(network))? {
            match network {
                Network::V4(first, last) => v4.push((first, last)),
                Network::V6(first, last) => v6.push((first, last)),
            }
        }
        Ok(Addresses { v4: joined(v4), v6: joined(v6) })
    }

    /// Whether the address is one of them.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(v4) => within(&self.v4, v4.to_bits()),
            IpAddr::V6(v6) => within(&self.v6, v6.to_bits()),
        }
    }
}

fn network(text: &str) -> Option<Network> {
    let (address, mask) = match text.split_once('/') {
        Some((address, mask)) => (address, Some(mask.parse::<u32>().ok()?)),
        None => (text, None),
    };
    Some(match address.parse().ok()? {
        IpAddr::V4(v4) => {
            let free = 32_u32.checked_sub(mask.unwrap_or(32))?;
            let rest = u32::MAX.checked_shr(32 - free).unwrap_or(0);
            Network::V4(v4.to_bits() & !rest, v4.to_bits() | rest)
        }
        IpAddr::V6(v6) => {
            let free = 128_u32.checked_sub(mask.unwrap_or(128))?;
            let rest = u128::MAX.checked_shr(128 - free).unwrap_or(0);
            Network::V6(v6.to_bits() & !rest, v6.to_bits() | rest)
        }
    })
}

fn joined<N: Ord + Copy>(mut ranges: Vec<(N, N)>) -> Box<[(N, N)]> {
    ranges.sort_unstable();
    let mut joined: Vec<(N, N)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(before) if first <= before.1 => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined.into()
}

fn within<N: Ord + Copy>(ranges: &[(N, N)], address: N) -> bool {
    let behind = ranges.partition_point(|(first, _)| *first <= address);
    behind.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, last)| address <= *last)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn addresses(texts: &[&str]) -> Result<Addresses, String> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        Addresses::new(&texts).map_err(|error| error.to_string())
    }

    #[test]
    fn networks_and_addresses_are_found() {
        let list = ["10.1.2.3/8", "10.2.0.0/16", "127.0.0.1", "2001:db8::/32", "::1", "192.168.1.0/31"];
        let set = addresses(&list).unwrap();
        for inside in ["10.0.0.0", "10.255.255.255", "10.2.3.4", "127.0.0.1", "2001:db8:1::", "::1"] {
            assert!(set.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["9.255.255.255", "11.0.0.0", "127.0.0.2", "2001:db9::", "::2", "192.168.1.2", "::"] {
            assert!(!set.contains(outside.parse().unwrap()), "{outside}");
        }
        // A socket of both families tells of clients of the older one like this.
        assert!(set.contains("::ffff:10.0.0.1".parse().unwrap()));
        let all = addresses(&["0.0.0.0/0", "::/0"]).unwrap();
        assert!(all.contains("255.255.255.255".parse().unwrap()) && all.contains("ffff::".parse().unwrap()));
        assert!(!Addresses::default().contains("0.0.0.0".parse().unwrap()));
    }

    #[test]
    fn what_is_no_address_is_told() {
        for (bad, place) in
            [("10.0.0.0/33", 1), ("::/129", 1), ("localhost", 1), ("10.0.0.256", 1), ("1.2.3.4/", 1)]
        {
            assert_eq!(
                addresses(&["::1", bad]).err().unwrap(),
                format!("[{place}]: invalid ip address: {bad}")
            );
        }
    }
}
