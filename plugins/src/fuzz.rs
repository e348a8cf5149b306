//! What must hold for any bytes at all that somebody sends for a token, a set of keys, JSON of a call, or for what it is in its mesh. The fuzz
//! targets in `proxy/fuzz` call this, and so do tests on stable; a broken promise is a failed assertion.

use crate::envoy::grpc_json_transcoder;
use crate::shared::json;
use crate::shared::jwt::{KeySet, Token, from_base64url};
use serde_json::Value;
use sixfold_core::peer_exchange::{Heard, Progress};
use sixfold_core::plugin::BuildContext;
use sixfold_xds_api::istio_pb::envoy::tcp::metadataexchange::config::MetadataExchange;
use sixfold_xds_api::workload;

/// The bytes as a token and as a set of keys.
///
/// A token that is taken has three parts of base64url, with spaces and empty parts that count for nothing, and is what its parts
/// say; nothing that was not signed is verified.
pub fn jwt(data: &[u8]) {
    let keys = KeySet::parse(data).ok();
    let Ok(token) = Token::parse(data) else { return };
    let parts: Vec<&[u8]> = data.split(|byte| *byte == b'.').filter(|part| !part.is_empty()).collect();
    assert_eq!(parts.len(), 3);
    let spaceless = |part: &[u8]| {
        part.iter().copied().filter(|byte| !b" \t\n\x0b\x0c\r".contains(byte)).collect::<Vec<u8>>()
    };
    let object = |part: &[u8]| from_base64url(spaceless(part)).and_then(|text| json::object(&text));
    assert_eq!(object(parts[0]).as_ref(), Some(&token.header));
    assert_eq!(object(parts[1]).as_ref(), Some(&token.payload));
    assert_eq!(token.encoded_payload().as_bytes(), parts[1]);
    let text = |name: &str| token.payload.get(name).and_then(Value::as_str).unwrap_or_default();
    assert_eq!((&*token.issuer, &*token.subject), (text("iss"), text("sub")));
    assert_ne!(token.header.get("alg").and_then(Value::as_str), Some("none"));
    // At no moment it both does not hold yet and holds no longer.
    let _ = token.check_time(u64::MAX, u64::MAX);
    assert!(keys.is_none_or(|keys| keys.verify(&token).is_err()), "a text is no key of itself");
}

/// The bytes as JSON that a client sends for a call of gRPC.
pub fn transcoder_json(data: &[u8]) {
    grpc_json_transcoder::fuzz::check(data);
}

/// The bytes as what a peer sends over TCP, where both ends tell each other who they are.
///
/// Cut anywhere it is the same peer that is heard, and the same bytes are left. What is left is what was sent last, and all of it
/// where no frame was sent; a peer that is heard is heard again when it is told of in our words.
pub fn peer_exchange(data: &[u8]) {
    let context = BuildContext::detached();
    let config = MetadataExchange { protocol: "p".to_owned(), ..MetadataExchange::default() };
    let Ok(exchange) = workload::exchange(&config, &context) else { return };
    let hear = |pieces: &[&[u8]]| {
        let (mut progress, mut received, mut found) = (Progress::default(), Vec::new(), None);
        for (index, piece) in pieces.iter().enumerate() {
            received.extend_from_slice(piece);
            if found.is_none()
                && let Heard::All(peer) =
                    exchange.hear(&mut progress, &mut received, index + 1 == pieces.len())
            {
                found = Some(peer.map(|peer| (*peer.workload).clone()));
            }
        }
        (found.flatten(), received)
    };
    let whole = hear(&[data]);
    assert!(data.ends_with(&whole.1));
    if !data.starts_with(&[0x3d, 0x23, 0x04, 0x67]) {
        assert_eq!(whole, (None, data.to_vec()));
    }
    for at in [1, 4, 8, data.len() / 2, data.len().saturating_sub(1)] {
        let (first, second) = data.split_at(at.min(data.len()));
        assert_eq!(hear(&[first, second]), whole, "cut at {at}");
    }
    if let Some(peer) = whole.0 {
        assert_eq!(workload::decode(&workload::encode(&peer), &[]), Some(peer));
    }
}

#[cfg(test)]
#[path = "../../proxy/fuzz/stable.rs"]
mod stable;

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: &[&str] = &[
        ".",
        "eyJhbGciOiJIUzI1NiJ9",
        "eyJhbGciOiJub25lIn0",
        "e30",
        "{\"keys\": [",
        "\"kty\": \"RSA\"",
        "\"kty\": \"EC\"",
        "\"crv\": \"P-521\"",
        "\"x\": \"AQAB\"",
        "\"e\": \"Aw\"",
        "=",
        "-----BEGIN CERTIFICATE-----\\n",
        "]}",
        "null",
    ];

    #[test]
    fn bytes_that_anybody_sends() {
        stable::run("jwt", WORDS, jwt);
    }

    #[test]
    fn bytes_that_clients_of_calls_send() {
        let words = [
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "'",
            "\\",
            "\\u",
            "d83d",
            "\\ude00",
            "null",
            "true",
            "-0",
            "1e",
            ".5",
            "0x",
            "@type",
            "value",
            "type.googleapis.com/google.protobuf.Any",
            "type.googleapis.com/google.protobuf.Value",
            "options",
            "fields",
            "kind",
            "s\"",
        ];
        stable::run("transcoder_json", &words, transcoder_json);
    }

    #[test]
    fn bytes_that_peers_send() {
        let words = [
            "=#\u{4}g",
            "\0\0\0",
            "type.googleapis.com/google.protobuf.Struct",
            "x-envoy-peer-metadata",
            "LABELS",
            "OWNER",
        ];
        stable::run("peer_exchange", &words, peer_exchange);
    }
}
