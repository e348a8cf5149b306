//! The three ways a value is read off a stream.

use crate::stream::Stream;
use std::borrow::Cow;

/// A function that reads one value.
#[derive(Clone, Copy)]
pub(super) enum Read {
    /// Text that the stream holds.
    Text(for<'a> fn(&'a Stream) -> Option<&'a [u8]>),
    /// A whole number.
    Number(fn(&Stream) -> Option<u64>),
    /// Text that is made; `false` means it is not there, and then nothing was written.
    Make(fn(&Stream, &mut Vec<u8>) -> bool),
}

impl Read {
    /// Appends the value; tells whether there is one.
    #[inline]
    pub(super) fn write(self, stream: &Stream, out: &mut Vec<u8>) -> bool {
        match self {
            Read::Text(get) => get(stream).map(|text| out.extend_from_slice(text)).is_some(),
            Read::Number(get) => get(stream).map(|n| number(out, n)).is_some(),
            Read::Make(make) => make(stream, out),
        }
    }

    /// The value.
    pub(super) fn get(self, stream: &Stream) -> Option<Cow<'_, [u8]>> {
        if let Read::Text(get) = self {
            return get(stream).map(Cow::Borrowed);
        }
        let mut out = Vec::new();
        self.write(stream, &mut out).then_some(Cow::Owned(out))
    }
}

impl std::fmt::Debug for Read {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Read::Text(_) => "Text",
            Read::Number(_) => "Number",
            Read::Make(_) => "Make",
        })
    }
}

/// Appends a number.
#[inline]
pub(super) fn number(out: &mut Vec<u8>, n: u64) {
    match n {
        // Durations, and bodies that are not there.
        0..=9 => out.push(b'0' + n as u8),
        _ => out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes()),
    }
}

/// Appends an address without its port.
pub(super) fn ip(out: &mut Vec<u8>, ip: std::net::IpAddr) {
    match ip {
        std::net::IpAddr::V4(v4) => {
            for (i, octet) in v4.octets().into_iter().enumerate() {
                if i > 0 {
                    out.push(b'.');
                }
                number(out, octet.into());
            }
        }
        std::net::IpAddr::V6(v6) => {
            use std::io::Write;
            // Writing to a vector never fails.
            let _ = write!(out, "{v6}");
        }
    }
}

/// Appends `ip:port`, an IPv6 address in brackets.
pub(super) fn socket(out: &mut Vec<u8>, address: std::net::SocketAddr) {
    let brackets = address.is_ipv6();
    if brackets {
        out.push(b'[');
    }
    ip(out, address.ip());
    if brackets {
        out.push(b']');
    }
    out.push(b':');
    number(out, address.port().into());
}

/// Appends the texts with `separator` between; tells whether there was one.
pub(super) fn join<'a>(
    out: &mut Vec<u8>,
    separator: &[u8],
    texts: impl Iterator<Item = impl AsRef<[u8]> + 'a>,
) -> bool {
    let mut any = false;
    for text in texts {
        if any {
            out.extend_from_slice(separator);
        }
        out.extend_from_slice(text.as_ref());
        any = true;
    }
    any
}

/// Appends text with every space as an underscore, as Envoy prints details.
pub(super) fn underscored(out: &mut Vec<u8>, text: &str) {
    out.extend(text.bytes().map(|b| if b == b' ' { b'_' } else { b }));
}
