//! Peers whose certificates webpki does not take.

use super::*;
use rcgen::SigningKey;
use x509_parser::prelude::{FromDer, X509Certificate};

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    let length = match (high, low) {
        (0, ..0x80) => vec![low],
        (0, _) => vec![0x81, low],
        _ => vec![0x82, high, low],
    };
    [&[tag][..], &length, content].concat()
}

/// The certificate again in version 1: without version and extensions.
fn old(ca: &Authority, of: &Identity) -> Identity {
    let der = of.chain.certificates().unwrap().remove(0);
    let (_, x509) = X509Certificate::from_der(&der).unwrap();
    let ecdsa_with_sha256 = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    let validity = [element(0x17, b"200101000000Z"), element(0x18, b"40960101000000Z")].concat();
    let body = [
        &[0x02, 0x01, 0x07][..],
        &ecdsa_with_sha256,
        x509.issuer().as_raw(),
        &element(0x30, &validity),
        x509.subject().as_raw(),
        x509.public_key().raw,
    ];
    let body = element(0x30, &body.concat());
    let signature = element(0x03, &[&[0][..], &ca.issuer.key().sign(&body).unwrap()].concat());
    let whole = element(0x30, &[&body[..], &ecdsa_with_sha256, &signature].concat());
    Identity { chain: encoded(&whole), key: of.key.clone() }
}

fn encoded(der: &[u8]) -> Pem {
    labelled("CERTIFICATE", der)
}

fn labelled(label: &str, der: &[u8]) -> Pem {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    pem(&format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n")))
}

/// Both ways to check, by both versions of the protocol: as a server and as a client.
fn believed(peer: &Identity, validation: &dyn Fn() -> Option<Validation>) -> [bool; 4] {
    let ca = authority("Elsewhere", None);
    let other = identity(&ca, &["a"], &[]);
    let mut answers = Vec::new();
    for version in [TlsVersion::V12, TlsVersion::V13] {
        let protocols = || Protocols { min: Some(version), max: Some(version), ..Protocols::default() };
        let as_server = server(ServerSettings {
            identities: vec![peer.clone()],
            protocols: protocols(),
            ..ServerSettings::default()
        });
        let asks = client(ClientSettings { validation: validation(), ..ClientSettings::default() });
        answers.push(handshake(&as_server, &asks, "server.test", AlpnOffer::None).is_ok());
        let asks = server(ServerSettings {
            identities: vec![other.clone()],
            validation: validation(),
            require_client_certificate: true,
            protocols: protocols(),
            ..ServerSettings::default()
        });
        let as_client = client(ClientSettings { identity: Some(peer.clone()), ..ClientSettings::default() });
        answers.push(handshake(&asks, &as_client, "server.test", AlpnOffer::None).is_ok());
    }
    answers.try_into().unwrap()
}

/// Envoy speaks with all of them; here nobody could, whatever was asked of certificates.
#[test]
fn peers_with_certificates_of_version_1_are_believed() {
    let (ca, other) = (authority("Test CA", None), authority("Other CA", None));
    let peer = old(&ca, &identity(&ca, &["server.test"], &[]));
    let der = peer.chain.certificates().unwrap().remove(0);
    let (_, x509) = X509Certificate::from_der(&der).unwrap();
    assert_eq!((x509.version().0, x509.extensions().len()), (0, 0));
    let none = Validation::default;
    let all = [true; 4];
    assert_eq!(believed(&peer, &|| trust(&ca)), all);
    assert_eq!(believed(&peer, &|| Some(Validation { hashes: vec![sha256_hex(&der)], ..none() })), all);
    assert_eq!(believed(&peer, &|| Some(Validation { trusted_ca: Some(peer.chain.clone()), ..none() })), all);
    assert_eq!(
        believed(&peer, &|| Some(Validation { accept_untrusted: true, ..trust(&other).unwrap() })),
        all
    );
    // Somebody else signed it, by name or in truth.
    assert_eq!(believed(&peer, &|| trust(&other)), [false; 4]);
    assert_eq!(believed(&peer, &|| trust(&authority("Test CA", None))), [false; 4]);
    let forged = old(&other, &identity(&ca, &["server.test"], &[]));
    assert_eq!(believed(&forged, &|| trust(&ca)), [false; 4]);
    // It has no names.
    let named = || {
        let sans = vec![SanMatcher { kind: SanKind::Dns, matcher: StringMatcher::exact("server.test") }];
        Some(Validation { sans, ..trust(&ca).unwrap() })
    };
    assert_eq!(believed(&peer, &named), [false; 4]);
    // Somebody else's key.
    let stolen = Identity { key: identity(&ca, &["a"], &[]).key, ..peer };
    assert!(
        ServerContext::new(ServerSettings { identities: vec![stolen], ..ServerSettings::default() }).is_err()
    );
}

/// What may sign others may speak for itself, as BoringSSL has it: `openssl req -x509` writes such certificates, too.
#[test]
fn peers_that_may_sign_others_are_believed_as_leaves() {
    let ca = authority("Test CA", None);
    let peer = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = leaf_params(&["server.test"], &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        issue(&ca, &params, &KeyPair::generate().unwrap())
    };
    assert_eq!(believed(&peer(&|_| ()), &|| trust(&ca)), [true; 4]);
    assert_eq!(believed(&peer(&|_| ()), &|| trust(&authority("Other CA", None))), [false; 4]);
    let for_clients = peer(&|it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    assert_eq!(believed(&for_clients, &|| trust(&ca)), [false, true, false, true]);
    let signs_only = peer(&|it| it.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
    assert_eq!(believed(&signs_only, &|| trust(&ca)), [false; 4]);
    let over = peer(&|it| it.not_after = rcgen::date_time_ymd(2020, 1, 1));
    assert_eq!(believed(&over, &|| trust(&ca)), [false; 4]);
    // A leaf that is none vouches for nobody.
    let end = identity(&ca, &["server.test"], &[]);
    let below = Authority {
        issuer: Issuer::new(leaf_params(&["server.test"], &[]), KeyPair::from_pem(&text(&end.key)).unwrap()),
        pem: end.chain.clone(),
    };
    let under = old(&below, &identity(&below, &["a"], &[]));
    assert_eq!(
        believed(&under, &|| Some(Validation {
            trusted_ca: Some(end.chain.clone()),
            ..Validation::default()
        })),
        [false; 4]
    );
}

fn text(pem: &Pem) -> String {
    let Pem::Inline(text) = pem else { panic!() };
    String::from_utf8(text.clone()).unwrap()
}

/// It was "could not be parsed: ParseError".
#[test]
fn a_revocation_list_of_version_1_is_called_that() {
    let ca = authority("Test CA", None);
    let own = ca.pem.certificates().unwrap().remove(0);
    let (_, x509) = X509Certificate::from_der(&own).unwrap();
    let ecdsa_with_sha256 = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    let (from, to) = (element(0x17, b"200101000000Z"), element(0x18, b"40960101000000Z"));
    let body = element(0x30, &[&ecdsa_with_sha256[..], x509.issuer().as_raw(), &from, &to].concat());
    let signature = element(0x03, &[&[0][..], &ca.issuer.key().sign(&body).unwrap()].concat());
    let list = element(0x30, &[&body[..], &ecdsa_with_sha256, &signature].concat());
    let validation = Validation { crl: Some(labelled("X509 CRL", &list)), ..trust(&ca).unwrap() };
    let error = validation.check().unwrap_err().to_string();
    let reason =
        "inline PEM: revocation list 1 must be of version 2 and have a CRL number (RFC 5280 section 5.2.3)";
    assert_eq!(error, format!("crl: {reason}"));
}
