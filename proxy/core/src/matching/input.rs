//! What trees look at.

use crate::connection::Certificate;
use crate::headers::HeaderName;
use crate::listener::MatchInput;
use crate::matcher::HeaderTarget;
use crate::metadata;
use crate::stream::Stream;
use serde_json::Value;
use smallvec::SmallVec;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

/// Whom a tree is asked about.
#[derive(Clone, Copy)]
pub enum Subject<'a> {
    /// A request, or a connection in whose context there is none.
    Stream(&'a Stream),
    /// A connection whose filter chain is being chosen.
    Socket(&'a MatchInput<'a>),
}

/// Something that is known of a [`Subject`], as text. What is not known passes no test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A request header; several values are one, with commas between them.
    Header(HeaderTarget),
    /// A header of the response; several values are one.
    ResponseHeader(HeaderName),
    /// The response's status.
    ResponseStatus,
    /// Its class: `5xx`.
    ResponseClass,
    /// The address that the client meant.
    DestinationIp,
    /// Its port.
    DestinationPort,
    /// The client's address, of a request as far as forwarded headers are trusted.
    SourceIp,
    /// Its port.
    SourcePort,
    /// The peer of the socket.
    DirectSourceIp,
    /// `local` for clients on this host.
    SourceType,
    /// The server name that the TLS inspector saw.
    ServerName,
    /// `tls` or `raw_buffer`, as the TLS inspector saw it.
    Transport,
    /// What the client offers, each in quotes, with commas between them.
    ApplicationProtocol,
    /// An object of the filter state.
    FilterState(Box<str>),
    /// What was noted of a request, by namespace, key and what lies below: no text, [`Test::Value`](super::Test::Value)
    /// is for it.
    Metadata(Box<str>, Box<str>, Box<[Box<str>]>),
    /// URI names of the client's certificate, with commas between them.
    UriSan,
    /// Its DNS names.
    DnsSan,
    /// Its subject.
    Subject,
    /// What is known before: a variable of the environment.
    Constant(Option<Box<str>>),
    /// All that expressions can see.
    Attributes,
}

impl Input {
    /// Has `take` take the text, if there is one.
    pub(super) fn with<T>(&self, subject: Subject<'_>, take: impl FnOnce(Option<&[u8]>) -> T) -> T {
        match self {
            Input::Header(target) => with_header(target, subject, take),
            Input::ResponseHeader(name) => match stream(subject) {
                Some(stream) => with_values(stream.response.headers.get_all(name), take),
                None => take(None),
            },
            Input::ResponseStatus => take(stream(subject).map(|s| printed(s.response.status)).as_deref()),
            Input::ResponseClass => match stream(subject).map(|s| s.response.status / 100) {
                Some(class @ 1..=5) => take(Some(&[b'0' + class as u8, b'x', b'x'])),
                _ => take(None),
            },
            Input::DestinationIp | Input::SourceIp | Input::DirectSourceIp => match self.ip(subject) {
                Some(ip) => take(Some(&printed(ip))),
                None => take(None),
            },
            Input::DestinationPort => take(destination(subject).map(|a| printed(a.port())).as_deref()),
            Input::SourcePort => take(source(subject).map(|a| printed(a.port())).as_deref()),
            Input::SourceType => take(is_local(subject).then_some(b"local")),
            Input::ServerName => take(server_name(subject).map(str::as_bytes)),
            Input::Transport => take(Some(if is_tls(subject) { b"tls" } else { b"raw_buffer" })),
            Input::ApplicationProtocol => with_protocols(subject, take),
            Input::FilterState(key) => {
                take(stream(subject).and_then(|s| s.filter_object(key)).map(|object| &object.value[..]))
            }
            Input::UriSan => with_names(certificate(subject).map(|c| &c.uri_sans), take),
            Input::DnsSan => with_names(certificate(subject).map(|c| &c.dns_sans), take),
            Input::Subject => {
                take(certificate(subject).map(|c| c.subject.as_bytes()).filter(|subject| !subject.is_empty()))
            }
            Input::Constant(value) => take(value.as_deref().map(str::as_bytes)),
            Input::Metadata(..) | Input::Attributes => take(None),
        }
    }

    /// The address, if it is one.
    pub(super) fn ip(&self, subject: Subject<'_>) -> Option<IpAddr> {
        match self {
            Input::DestinationIp => destination(subject).map(|address| address.ip()),
            Input::SourceIp => source(subject).map(|address| address.ip()),
            Input::DirectSourceIp => match subject {
                Subject::Stream(stream) => Some(stream.connection.direct_remote.ip()),
                Subject::Socket(socket) => socket.direct_source.map(|address| address.ip()),
            },
            other => other.with(subject, |text| std::str::from_utf8(text?).ok()?.parse().ok()),
        }
    }

    /// The metadata, if it is that.
    pub(super) fn value<'a>(&self, subject: Subject<'a>) -> Option<&'a Value> {
        let Input::Metadata(namespace, key, path) = self else { return None };
        metadata::below(metadata::noted(&stream(subject)?.metadata, namespace, key)?, path)
    }
}

fn stream(subject: Subject<'_>) -> Option<&Stream> {
    match subject {
        Subject::Stream(stream) => Some(stream),
        Subject::Socket(_) => None,
    }
}

fn with_header<T>(target: &HeaderTarget, subject: Subject<'_>, take: impl FnOnce(Option<&[u8]>) -> T) -> T {
    match stream(subject) {
        Some(stream) => with_values(target.values(&stream.request), take),
        None => take(None),
    }
}

/// Values of one header.
fn with_values<'a, T>(
    mut values: impl Iterator<Item = &'a [u8]>,
    take: impl FnOnce(Option<&[u8]>) -> T,
) -> T {
    match (values.next(), values.next()) {
        (one, None) => take(one),
        (Some(one), Some(other)) => take(Some(&joined([one, other].into_iter().chain(values)))),
        (None, Some(_)) => take(None),
    }
}

/// Texts with commas between them.
fn joined<'a>(texts: impl Iterator<Item = &'a [u8]>) -> SmallVec<[u8; 64]> {
    let mut all = SmallVec::new();
    for (at, text) in texts.enumerate() {
        if at > 0 {
            all.push(b',');
        }
        all.extend_from_slice(text);
    }
    all
}

fn with_names<T>(names: Option<&Vec<String>>, take: impl FnOnce(Option<&[u8]>) -> T) -> T {
    match names.map(Vec::as_slice) {
        None | Some([]) => take(None),
        Some([one]) => take(Some(one.as_bytes())),
        Some(several) => take(Some(&joined(several.iter().map(String::as_bytes)))),
    }
}

fn with_protocols<T>(subject: Subject<'_>, take: impl FnOnce(Option<&[u8]>) -> T) -> T {
    let protocols = match subject {
        Subject::Socket(socket) if !socket.application_protocols.is_empty() => socket.application_protocols,
        // Of a request only what was agreed on is known.
        _ => return take(None),
    };
    let mut all: SmallVec<[u8; 64]> = SmallVec::new();
    for (at, protocol) in protocols.iter().enumerate() {
        all.extend_from_slice(if at > 0 { b",'" } else { b"'" });
        all.extend_from_slice(protocol);
        all.push(b'\'');
    }
    take(Some(&all))
}

/// A short text that costs no allocation.
#[derive(Default)]
struct Printed(SmallVec<[u8; 48]>);

impl std::fmt::Write for Printed {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

fn printed(value: impl std::fmt::Display) -> SmallVec<[u8; 48]> {
    let mut text = Printed::default();
    // A list in memory takes all that is written.
    let _ = write!(text, "{value}");
    text.0
}

fn destination(subject: Subject<'_>) -> Option<SocketAddr> {
    match subject {
        Subject::Stream(stream) => Some(stream.connection.local),
        Subject::Socket(socket) => socket.destination,
    }
}

fn source(subject: Subject<'_>) -> Option<SocketAddr> {
    match subject {
        Subject::Stream(stream) => Some(stream.remote),
        Subject::Socket(socket) => socket.source,
    }
}

fn is_local(subject: Subject<'_>) -> bool {
    match (source(subject), destination(subject)) {
        (None, _) => true,
        (Some(source), destination) => {
            source.ip().is_loopback() || destination.is_some_and(|d| d.ip() == source.ip())
        }
    }
}

fn server_name(subject: Subject<'_>) -> Option<&str> {
    let name = match subject {
        Subject::Stream(stream) => stream.connection.requested_server_name.as_deref(),
        Subject::Socket(socket) => socket.server_name,
    };
    name.filter(|name| !name.is_empty())
}

fn is_tls(subject: Subject<'_>) -> bool {
    match subject {
        Subject::Stream(stream) => stream.connection.tls.is_some(),
        Subject::Socket(socket) => socket.tls,
    }
}

fn certificate(subject: Subject<'_>) -> Option<&Certificate> {
    stream(subject)?.connection.tls.as_ref()?.peer.as_deref()
}
