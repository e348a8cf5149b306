//! What is shown of a certificate.

use crate::connection::Certificate;
use aws_lc_rs::digest;
use base64::Engine;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

/// A certificate in use, and where it comes from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// A file, or `<inline>`.
    pub path: Box<str>,
    /// What is shown of it.
    pub certificate: Arc<Certificate>,
}

/// The certificates of one context.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Of those that vouch for the other side the first, as in Envoy.
    pub authority: Option<Origin>,
    /// Those that are shown to the other side.
    pub own: Vec<Origin>,
}

/// SHA-256 in lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A certificate from its DER form; `None` when it is not one.
pub fn describe(der: &[u8]) -> Option<Certificate> {
    let (_, x509) = X509Certificate::from_der(der).ok()?;
    let mut certificate = Certificate {
        subject: rfc2253(x509.subject()),
        issuer: rfc2253(x509.issuer()),
        serial: serial(x509.raw_serial()),
        sha256: sha256_hex(der),
        sha1: hex(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, der).as_ref()),
        not_before: x509.validity().not_before.timestamp(),
        not_after: x509.validity().not_after.timestamp(),
        pem: to_pem(der),
        ..Certificate::default()
    };
    for name in alternative_names(&x509) {
        match name {
            GeneralName::URI(uri) => certificate.uri_sans.push((*uri).to_owned()),
            GeneralName::DNSName(dns) => certificate.dns_sans.push((*dns).to_owned()),
            GeneralName::RFC822Name(mail) => certificate.email_sans.push((*mail).to_owned()),
            GeneralName::IPAddress(bytes) => certificate.ip_sans.extend(ip(bytes).map(|ip| ip.to_string())),
            _ => {}
        }
    }
    Some(certificate)
}

/// The subject alternative names of a certificate; none when the extension is missing or malformed.
pub(super) fn alternative_names<'a>(x509: &'a X509Certificate<'_>) -> &'a [GeneralName<'a>] {
    match x509.subject_alternative_name() {
        Ok(Some(extension)) => &extension.value.general_names,
        _ => &[],
    }
}

pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Bytes of a serial number without the zero that keeps it positive.
fn serial(raw: &[u8]) -> String {
    match raw {
        [0, rest @ ..] if !rest.is_empty() => hex(rest),
        all => hex(all),
    }
}

/// A certificate in PEM.
pub(super) fn to_pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 60);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line).unwrap_or_default());
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// A name as RFC 2253 writes it: last part first.
fn rfc2253(name: &X509Name<'_>) -> String {
    let parts: Vec<_> = name.iter_rdn().collect();
    let mut text = String::new();
    for (i, part) in parts.into_iter().rev().enumerate() {
        if i > 0 {
            text.push(',');
        }
        for (j, attribute) in part.iter().enumerate() {
            if j > 0 {
                text.push('+');
            }
            let oid = attribute.attr_type().to_id_string();
            match attribute.as_str() {
                Ok(value) => {
                    text.push_str(short_name(&oid));
                    text.push('=');
                    escape(value, &mut text);
                }
                Err(_) => {
                    text.push_str(short_name(&oid));
                    text.push_str("=#");
                    text.push_str(&hex(attribute.as_slice()));
                }
            }
        }
    }
    text
}

/// The short name of an attribute type, else its OID.
fn short_name(oid: &str) -> &str {
    match oid {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.42" => "GN",
        "1.2.840.113549.1.9.1" => "emailAddress",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        other => other,
    }
}

/// RFC 2253 section 2.4. Bytes beyond ASCII are escaped as well, as BoringSSL and OpenSSL have it: a header field may not
/// hold them.
fn escape(value: &str, out: &mut String) {
    let last = value.len().saturating_sub(1);
    for (i, c) in value.char_indices() {
        match c {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => {
                out.push('\\');
                out.push(c);
            }
            '#' | ' ' if i == 0 => {
                out.push('\\');
                out.push(c);
            }
            ' ' if i == last => out.push_str("\\ "),
            // Control characters must not reach logs and headers.
            c if (c as u32) < 0x20 || c == '\u{7f}' => {
                let _ = write!(out, "\\{:02X}", c as u32);
            }
            c if c.is_ascii() => out.push(c),
            c => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    let _ = write!(out, "\\{byte:02X}");
                }
            }
        }
    }
}
