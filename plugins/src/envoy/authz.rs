//! What authorisation services are told of connections, over HTTP and below it
//! (source/extensions/filters/common/ext_authz/check_request_utils.cc `setAttrContextPeer`).

use sixfold_core::connection::{Certificate, Connection};
use sixfold_core::format::Format;
use sixfold_core::plugin::BuildContext;
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::config::core::v3::address::Address as Kind;
use sixfold_xds_api::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use sixfold_xds_api::pb::envoy::config::core::v3::{Address, SocketAddress};
use sixfold_xds_api::pb::envoy::service::auth::v3::attribute_context;
use sixfold_xds_api::pb::google::protobuf::Timestamp;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

/// What is asked over gRPC.
pub(crate) const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
/// How long an answer may take where the configuration does not say.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(200);

/// Which end of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Client,
    Proxy,
}

/// The certificate that the client has shown.
pub(crate) fn peer_certificate(connection: &Connection) -> Option<&Certificate> {
    connection.tls.as_ref()?.peer.as_deref()
}

/// Texts of this proxy's own metadata under a key (`bootstrap_metadata_labels_key`).
pub(crate) fn labels(context: &BuildContext, key: &str) -> HashMap<String, String> {
    let labels = context.node.metadata.get(key).filter(|_| !key.is_empty());
    let labels = labels.and_then(serde_json::Value::as_object).into_iter().flatten();
    labels.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

/// The client's certificate as `format` writes it; empty where it is not told, or there is none.
pub(crate) fn certificate(format: Option<&Format>, stream: &Stream) -> String {
    let shown = peer_certificate(&stream.connection).is_some_and(|peer| !peer.pem.is_empty());
    let mut certificate = Vec::new();
    if let Some(format) = format.filter(|_| shown) {
        format.write_header(stream, &mut certificate);
    }
    sanitized(&certificate)
}

/// One end of a connection: its address, and who its certificate says it is.
pub(crate) fn peer(connection: &Connection, which: Peer) -> attribute_context::Peer {
    let (address, certificate) = match which {
        Peer::Client => (connection.remote, peer_certificate(connection)),
        Peer::Proxy => (connection.local, connection.tls.as_ref().and_then(|tls| tls.local.as_deref())),
    };
    attribute_context::Peer {
        address: Some(self::address(address)),
        principal: certificate.map(principal).unwrap_or_default(),
        ..attribute_context::Peer::default()
    }
}

/// Whom a certificate is for: its first URI, else its first DNS name, else its subject.
fn principal(certificate: &Certificate) -> String {
    let name = certificate.uri_sans.first().or(certificate.dns_sans.first());
    sanitized(name.unwrap_or(&certificate.subject).as_bytes())
}

fn address(of: SocketAddr) -> Address {
    let socket = SocketAddress {
        address: of.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(u32::from(of.port()))),
        ..SocketAddress::default()
    };
    Address { address: Some(Kind::SocketAddress(socket)) }
}

/// A moment as a message.
pub(crate) fn timestamp(of: SystemTime) -> Option<Timestamp> {
    let since = of.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(Timestamp {
        seconds: i64::try_from(since.as_secs()).ok()?,
        nanos: i32::try_from(since.subsec_nanos()).ok()?,
    })
}

/// Bytes as text: each that is none becomes an exclamation mark (`MessageUtil::sanitizeUtf8String`).
pub(crate) fn sanitized(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|_| text.push('!'));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_marked() {
        assert_eq!(sanitized(b"a\xffb\xc3"), "a!b!");
        assert_eq!(sanitized("\u{e4}".as_bytes()), "\u{e4}");
    }

    #[test]
    fn certificates_name_by_uri_then_dns_then_subject() {
        let mut certificate = Certificate { subject: "CN=s".into(), ..Certificate::default() };
        assert_eq!(principal(&certificate), "CN=s");
        certificate.dns_sans.push("d".into());
        assert_eq!(principal(&certificate), "d");
        certificate.uri_sans.push("spiffe://u".into());
        assert_eq!(principal(&certificate), "spiffe://u");
    }
}
