//! Finds server name and ALPN protocols in a ClientHello (RFC 8446 section 4.1.2, RFC 6066 section 3,
//! RFC 7301).

use std::borrow::Cow;

/// Bytes of a ClientHello that are read (Envoy's `max_client_hello_size`).
const MAX: usize = 16 << 10;
/// Bytes that the headers of its records may take.
const RECORD_HEADERS: usize = 2 << 10;
const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

/// What a ClientHello says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hello {
    /// Server name in lower case, if one is given.
    pub server_name: Option<String>,
    /// ALPN protocols in the client's order.
    pub protocols: Vec<Box<[u8]>>,
}

/// What the bytes of a connection's beginning are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A ClientHello.
    Tls(Hello),
    /// The beginning of one.
    NeedsMore,
    /// Something else, or a ClientHello that breaks the rules.
    NotTls,
    /// A ClientHello beyond what is read.
    TooLarge,
}

/// Looks at the first bytes of a connection.
pub fn inspect(bytes: &[u8]) -> Outcome {
    match handshake(bytes) {
        // In records of a few bytes each it would cost as much to look at again and again.
        Err(Outcome::NeedsMore) if bytes.len() > MAX + RECORD_HEADERS => Outcome::TooLarge,
        Err(outcome) => outcome,
        Ok(message) => match parse(&message) {
            Some(hello) => Outcome::Tls(hello),
            None => Outcome::NotTls,
        },
    }
}

/// The body of the first handshake message, put together if it comes in several records.
fn handshake(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Outcome> {
    let mut message: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    let mut rest = bytes;
    loop {
        if let [CLIENT_HELLO, a, b, c, body @ ..] = &*message {
            let len = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if len > MAX {
                return Err(Outcome::TooLarge);
            }
            if body.len() >= len {
                return Ok(slice(message, 4, 4 + len));
            }
        } else if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(Outcome::NotTls);
        }
        let fragment = record(rest)?;
        rest = rest.get(5 + fragment.len()..).unwrap_or_default();
        match message.is_empty() {
            true => message = Cow::Borrowed(fragment),
            false => message.to_mut().extend_from_slice(fragment),
        }
    }
}

fn slice(message: Cow<'_, [u8]>, from: usize, to: usize) -> Cow<'_, [u8]> {
    match message {
        Cow::Borrowed(bytes) => Cow::Borrowed(bytes.get(from..to).unwrap_or_default()),
        Cow::Owned(mut bytes) => {
            bytes.truncate(to);
            bytes.drain(..from.min(bytes.len()));
            Cow::Owned(bytes)
        }
    }
}

/// The content of the handshake record at the start of `bytes`.
fn record(bytes: &[u8]) -> Result<&[u8], Outcome> {
    // As in Envoy nothing is known of fewer bytes, whatever they are.
    let Some(&[kind, major, _, high, low]) = bytes.get(..5) else { return Err(Outcome::NeedsMore) };
    if kind != HANDSHAKE_RECORD || major != 3 {
        return Err(Outcome::NotTls);
    }
    let len = usize::from(u16::from_be_bytes([high, low]));
    if len == 0 || len > MAX {
        return Err(Outcome::NotTls);
    }
    bytes.get(5..5 + len).ok_or(Outcome::NeedsMore)
}

/// The parts of a ClientHello that matter; `None` when it is malformed.
fn parse(body: &[u8]) -> Option<Hello> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?; // version and random
    reader.vector8()?; // session id
    reader.vector16()?; // cipher suites
    reader.vector8()?; // compression methods
    let mut hello = Hello::default();
    if reader.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Reader(reader.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = extensions.vector16()?;
        match kind {
            SERVER_NAME => hello.server_name = server_name(content)?,
            ALPN => hello.protocols = protocols(content)?,
            _ => {}
        }
    }
    Some(hello)
}

/// The host name of a server_name extension. The outer `None` is malformed.
fn server_name(content: &[u8]) -> Option<Option<String>> {
    let mut names = Reader(Reader(content).vector16()?);
    while !names.0.is_empty() {
        let kind = names.take(1)?;
        let name = names.vector16()?;
        if kind == [0] {
            let text = std::str::from_utf8(name).ok().filter(|t| t.is_ascii() && !t.contains('\0'))?;
            return Some(Some(text.to_ascii_lowercase()).filter(|t| !t.is_empty()));
        }
    }
    Some(None)
}

fn protocols(content: &[u8]) -> Option<Vec<Box<[u8]>>> {
    let mut list = Reader(Reader(content).vector16()?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        protocols.push(list.vector8()?.into());
    }
    Some(protocols)
}

/// Reads TLS's presentation language.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(*self.take(1)?.first()?);
        self.take(len)
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.u16()?);
        self.take(len)
    }
}

/// For the fuzzer: what is found stays the same with more bytes after it, and a cut never finds less than all.
pub fn fuzz(data: &[u8]) {
    let whole = inspect(data);
    if let Outcome::Tls(hello) = &whole {
        assert!(data.len() >= 9);
        let more = [data, &[0, 1, 2]].concat();
        assert_eq!(inspect(&more), whole);
        assert!(hello.server_name.as_ref().is_none_or(|n| !n.bytes().any(|b| b.is_ascii_uppercase())));
        for end in 0..data.len().min(64) {
            let cut = inspect(data.get(..end).unwrap_or_default());
            assert!(cut == Outcome::NeedsMore || cut == whole, "cut at {end}: {cut:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;
    use sixfold_core::tls::{AlpnOffer, ClientContext, ClientSettings};

    /// What rustls sends.
    fn hello(name: &'static str, offer: AlpnOffer) -> Vec<u8> {
        let context = ClientContext::new(ClientSettings::default()).unwrap();
        let name = rustls_pki_types::ServerName::try_from(name).unwrap();
        let mut client = rustls::ClientConnection::new(context.config(offer), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn found(bytes: &[u8]) -> Hello {
        match inspect(bytes) {
            Outcome::Tls(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn name_and_protocols_are_found() {
        let bytes = hello("A.Server.test", AlpnOffer::Auto);
        let want = Hello {
            server_name: Some("a.server.test".into()),
            protocols: vec![b"h2"[..].into(), b"http/1.1"[..].into()],
        };
        assert_eq!(found(&bytes), want);
        for end in 0..bytes.len() {
            assert_eq!(inspect(&bytes[..end]), Outcome::NeedsMore, "{end}");
        }
        assert_eq!(found(&hello("127.0.0.1", AlpnOffer::None)), Hello::default());
    }

    #[test]
    fn a_hello_in_many_records_is_put_together() {
        let bytes = hello("a.test", AlpnOffer::Http2);
        let mut split = Vec::new();
        for piece in bytes[5..].chunks(7) {
            split.extend([22, 3, 1, 0, piece.len() as u8]);
            split.extend(piece);
        }
        assert_eq!(found(&split), found(&bytes));
    }

    #[test]
    fn other_bytes_are_not_tls_and_large_ones_are_refused() {
        assert_eq!(inspect(b"GET / HTTP/1.1\r\n"), Outcome::NotTls);
        assert_eq!(inspect(b"\x16\x02\x00\x00\x01"), Outcome::NotTls);
        assert_eq!(inspect(b"raw"), Outcome::NeedsMore);
        assert_eq!(inspect(b""), Outcome::NeedsMore);
        assert_eq!(inspect(b"\x16\x03\x01\x02\x03"), Outcome::NeedsMore);
        assert_eq!(inspect(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"), Outcome::NotTls, "a ServerHello");
        assert_eq!(inspect(b"\x16\x03\x01\x00\x04\x01\x01\x00\x00"), Outcome::TooLarge);
        let mut tiny = b"\x16\x03\x01\x00\x04\x01\x00\x3f\x00".to_vec();
        tiny.extend(b"\x16\x03\x01\x00\x01\x00".repeat(3400));
        assert_eq!(inspect(&tiny), Outcome::TooLarge);
        assert_eq!(inspect(b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03"), Outcome::NotTls);
    }

    #[test]
    fn the_fuzz_target_holds() {
        crate::stable::run("tls_inspector", &["\x16\x03\x01\x02\x00", "\x01\x00\x01\x00", "a.test"], fuzz);
    }

    proptest! {
        #[test]
        fn nothing_panics(at in 0usize..300, with: u8, data in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut bytes = hello("a.test", AlpnOffer::Auto);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = with;
            }
            fuzz(&bytes);
            fuzz(&[&b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c"[..], &data].concat());
        }
    }
}
