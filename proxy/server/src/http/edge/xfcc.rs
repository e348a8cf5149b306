//! `x-forwarded-client-cert` (docs: configuration/http/http_conn_man/headers.rst).

use percent_encoding::utf8_percent_encode;
use sixfold_core::connection::{Certificate, PEM_ENCODED, TlsInfo};
use sixfold_core::hcm::{EdgeHeaders, ForwardClientCert, XfccDetails};
use sixfold_core::headers::Known;
use sixfold_core::stream::Stream;

/// Removes, keeps, extends or replaces the header. Without a client certificate only `ALWAYS_FORWARD_ONLY`
/// keeps it.
pub(super) fn apply(options: &EdgeHeaders, stream: &mut Stream) {
    let headers = &mut stream.request.headers;
    let mutual = stream.connection.tls.as_ref().and_then(|tls| Some((tls, tls.peer.as_deref()?)));
    match (options.xfcc, mutual) {
        (ForwardClientCert::AlwaysForwardOnly, _) | (ForwardClientCert::ForwardOnly, Some(_)) => {}
        (ForwardClientCert::AppendForward, Some((tls, peer))) => {
            headers.join(Known::X_FORWARDED_CLIENT_CERT, b",", &element(options.xfcc_details, tls, peer));
        }
        (ForwardClientCert::SanitizeSet, Some((tls, peer))) => {
            headers.set(Known::X_FORWARDED_CLIENT_CERT, &element(options.xfcc_details, tls, peer));
        }
        _ => {
            headers.remove(Known::X_FORWARDED_CLIENT_CERT);
        }
    }
}

/// One element: `By`, `Hash`, then the details that are asked for, in Envoy's order.
fn element(details: XfccDetails, tls: &TlsInfo, peer: &Certificate) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    let mut put = |key: &str, quote: &str, value: &str| {
        for text in [if out.is_empty() { "" } else { ";" }, key, "=", quote, value, quote] {
            out.extend_from_slice(text.as_bytes());
        }
    };
    for by in tls.local.iter().flat_map(|own| &own.uri_sans) {
        put("By", "", by);
    }
    put("Hash", "", &peer.sha256);
    if details.cert && !peer.pem.is_empty() {
        put("Cert", "\"", &encoded(&peer.pem));
    }
    if let Some(chain) = tls.peer_chain_pem.as_deref().filter(|_| details.chain) {
        put("Chain", "\"", &encoded(chain));
    }
    if details.subject {
        put("Subject", "\"", &peer.subject);
    }
    if details.uri && peer.uri_sans.is_empty() {
        put("URI", "", "");
    }
    for uri in peer.uri_sans.iter().filter(|_| details.uri) {
        put("URI", "", uri);
    }
    for name in peer.dns_sans.iter().filter(|_| details.dns) {
        put("DNS", "", name);
    }
    out
}

fn encoded(pem: &str) -> String {
    utf8_percent_encode(pem, PEM_ENCODED).collect()
}
