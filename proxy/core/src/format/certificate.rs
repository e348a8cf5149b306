//! Operators about TLS and its certificates.

use super::read::{Read, join};
use super::time::TimeFormat;
use crate::connection::{Certificate, PEM_ENCODED, TlsInfo};
use crate::stream::Stream;
use percent_encoding::percent_encode;

/// A bound of a certificate's validity.
#[derive(Clone, Copy, Debug)]
pub(super) struct Validity {
    of: Whose,
    end: bool,
}

/// Whose certificate is meant.
#[derive(Clone, Copy, Debug)]
enum Whose {
    Client,
    Ours,
    Endpoint,
}

/// The bound that an operator's name means.
pub(super) fn validity(name: &str) -> Option<Validity> {
    let (whose, rest) = name.rsplit_once("_CERT_V_")?;
    let of = match whose {
        "DOWNSTREAM_PEER" => Whose::Client,
        "DOWNSTREAM_LOCAL" => Whose::Ours,
        "UPSTREAM_PEER" => Whose::Endpoint,
        _ => return None,
    };
    let end = match rest {
        "START" => false,
        "END" => true,
        _ => return None,
    };
    Some(Validity { of, end })
}

impl Validity {
    pub(super) fn write(self, stream: &Stream, format: &TimeFormat, out: &mut Vec<u8>) -> bool {
        let certificate = match self.of {
            Whose::Client => peer(stream),
            Whose::Ours => local(stream),
            Whose::Endpoint => endpoint(stream),
        };
        let Some(certificate) = certificate else { return false };
        format.write_seconds(if self.end { certificate.not_after } else { certificate.not_before }, out);
        true
    }
}

pub(super) fn tls(stream: &Stream) -> Option<&TlsInfo> {
    stream.connection.tls.as_ref()
}

pub(super) fn peer(stream: &Stream) -> Option<&Certificate> {
    tls(stream)?.peer.as_deref()
}

fn local(stream: &Stream) -> Option<&Certificate> {
    tls(stream)?.local.as_deref()
}

/// TLS of the upstream connection.
fn upstream(stream: &Stream) -> Option<&TlsInfo> {
    stream.upstream.connection.as_ref()?.tls.as_ref()
}

fn endpoint(stream: &Stream) -> Option<&Certificate> {
    upstream(stream)?.peer.as_deref()
}

fn shown(stream: &Stream) -> Option<&Certificate> {
    upstream(stream)?.local.as_deref()
}

fn some(text: &str) -> Option<&[u8]> {
    (!text.is_empty()).then_some(text.as_bytes())
}

fn list(out: &mut Vec<u8>, names: Option<&Vec<String>>) -> bool {
    join(out, b",", names.into_iter().flatten())
}

/// Operators of one certificate: `$prefix` is the name's beginning, `$of` the function that finds it.
macro_rules! certificate_operators {
    ($prefix:literal, $of:ident) => {
        [
            (concat!($prefix, "SUBJECT"), Read::Text(|s| some(&$of(s)?.subject))),
            (concat!($prefix, "ISSUER"), Read::Text(|s| some(&$of(s)?.issuer))),
            (concat!($prefix, "SERIAL"), Read::Text(|s| some(&$of(s)?.serial))),
            (concat!($prefix, "FINGERPRINT_1"), Read::Text(|s| some(&$of(s)?.sha1))),
            (concat!($prefix, "FINGERPRINT_256"), Read::Text(|s| some(&$of(s)?.sha256))),
            (concat!($prefix, "URI_SAN"), Read::Make(|s, out| list(out, $of(s).map(|c| &c.uri_sans)))),
            (concat!($prefix, "DNS_SAN"), Read::Make(|s, out| list(out, $of(s).map(|c| &c.dns_sans)))),
            (concat!($prefix, "IP_SAN"), Read::Make(|s, out| list(out, $of(s).map(|c| &c.ip_sans)))),
            (concat!($prefix, "EMAIL_SAN"), Read::Make(|s, out| list(out, $of(s).map(|c| &c.email_sans)))),
            (concat!($prefix, "CERT"), Read::Make(|s, out| pem(out, $of(s)))),
        ]
    };
}

/// Appends the certificate as Envoy encodes PEM.
fn pem(out: &mut Vec<u8>, certificate: Option<&Certificate>) -> bool {
    let Some(certificate) = certificate.filter(|c| !c.pem.is_empty()) else { return false };
    out.extend(percent_encode(certificate.pem.as_bytes(), PEM_ENCODED).flat_map(str::bytes));
    true
}

pub(super) const PEER: [(&str, Read); 10] = certificate_operators!("DOWNSTREAM_PEER_", peer);
pub(super) const LOCAL: [(&str, Read); 10] = certificate_operators!("DOWNSTREAM_LOCAL_", local);

/// Of the upstream connection: those that Envoy has.
pub(super) const UPSTREAM: [(&str, Read); 12] = [
    ("UPSTREAM_TLS_VERSION", Read::Text(|s| some(upstream(s)?.version))),
    ("UPSTREAM_TLS_CIPHER", Read::Text(|s| some(upstream(s)?.cipher))),
    ("UPSTREAM_SERVER_NAME", Read::Text(|s| some(upstream(s)?.server_name.as_deref()?))),
    ("UPSTREAM_PEER_SUBJECT", Read::Text(|s| some(&endpoint(s)?.subject))),
    ("UPSTREAM_PEER_ISSUER", Read::Text(|s| some(&endpoint(s)?.issuer))),
    ("UPSTREAM_PEER_URI_SAN", Read::Make(|s, out| list(out, endpoint(s).map(|c| &c.uri_sans)))),
    ("UPSTREAM_PEER_DNS_SAN", Read::Make(|s, out| list(out, endpoint(s).map(|c| &c.dns_sans)))),
    ("UPSTREAM_PEER_IP_SAN", Read::Make(|s, out| list(out, endpoint(s).map(|c| &c.ip_sans)))),
    ("UPSTREAM_PEER_CERT", Read::Make(|s, out| pem(out, endpoint(s)))),
    ("UPSTREAM_LOCAL_URI_SAN", Read::Make(|s, out| list(out, shown(s).map(|c| &c.uri_sans)))),
    ("UPSTREAM_LOCAL_DNS_SAN", Read::Make(|s, out| list(out, shown(s).map(|c| &c.dns_sans)))),
    ("UPSTREAM_LOCAL_IP_SAN", Read::Make(|s, out| list(out, shown(s).map(|c| &c.ip_sans)))),
];
