//! Handshakes in memory between the two sides, with certificates made here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::verify::{Authorities, ClientVerifier, Peer, PeerCheck};
use super::*;
use crate::connection::TlsInfo;
use crate::matcher::StringMatcher;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConnection, Error, ServerConnection};
use std::sync::Arc;

mod asked;
mod direct;
mod resumption;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: Pem,
}

fn pem(text: &str) -> Pem {
    Pem::Inline(text.as_bytes().to_vec())
}

fn authority(name: &str, above: Option<&Authority>) -> Authority {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let certificate = match above {
        Some(above) => params.signed_by(&key, &above.issuer).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    Authority { pem: pem(&certificate.pem()), issuer: Issuer::new(params, key) }
}

fn leaf_params(dns: &[&str], uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(dns.iter().map(|d| (*d).to_owned()).collect::<Vec<_>>()).unwrap();
    params.subject_alt_names.extend(uris.iter().map(|u| SanType::URI((*u).try_into().unwrap())));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Acme, Inc.");
    params.distinguished_name.push(DnType::CommonName, dns.first().copied().unwrap_or("nobody"));
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.serial_number = Some(SerialNumber::from(4660u64));
    params
}

fn issue(ca: &Authority, params: &CertificateParams, key: &KeyPair) -> Identity {
    Identity { chain: pem(&params.signed_by(key, &ca.issuer).unwrap().pem()), key: pem(&key.serialize_pem()) }
}

fn identity(ca: &Authority, dns: &[&str], uris: &[&str]) -> Identity {
    issue(ca, &leaf_params(dns, uris), &KeyPair::generate().unwrap())
}

fn server(settings: ServerSettings) -> Arc<ServerContext> {
    ServerContext::new(settings).unwrap()
}

fn client(settings: ClientSettings) -> Arc<ClientContext> {
    ClientContext::new(settings).unwrap()
}

fn trust(ca: &Authority) -> Option<Validation> {
    Some(Validation { trusted_ca: Some(ca.pem.clone()), ..Validation::default() })
}

/// Runs one handshake; the first error of either side, the server's first.
fn handshake(
    server: &ServerContext,
    client: &ClientContext,
    name: &str,
    offer: AlpnOffer,
) -> Result<(TlsInfo, TlsInfo), Error> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut ours = ClientConnection::new(client.config(offer), name).unwrap();
    let mut acceptor = rustls::server::Acceptor::default();
    let mut bytes = Vec::new();
    ours.write_tls(&mut bytes).unwrap();
    acceptor.read_tls(&mut &bytes[..]).unwrap();
    let accepted = acceptor.accept().map_err(|(e, _)| e)?.expect("a whole ClientHello");
    let (config, local) = server.choose(&accepted.client_hello());
    let mut theirs: ServerConnection = accepted.into_connection(config).map_err(|(e, _)| e)?;
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while theirs.wants_write() {
            theirs.write_tls(&mut bytes).unwrap();
        }
        feed(&bytes, |rd| ours.read_tls(rd).map(|n| (n, ours.process_new_packets())))?;
        let mut bytes = Vec::new();
        while ours.wants_write() {
            ours.write_tls(&mut bytes).unwrap();
        }
        feed(&bytes, |rd| theirs.read_tls(rd).map(|n| (n, theirs.process_new_packets())))?;
    }
    assert!(!ours.is_handshaking() && !theirs.is_handshaking());
    Ok((server.info(&theirs, local), client.info(&ours)))
}

fn feed<T>(
    mut bytes: &[u8],
    mut read: impl FnMut(&mut dyn std::io::Read) -> std::io::Result<(usize, Result<T, Error>)>,
) -> Result<(), Error> {
    while !bytes.is_empty() {
        read(&mut bytes).unwrap().1?;
    }
    Ok(())
}

#[test]
fn mutual_tls_tells_who_the_peer_is() {
    let ca = authority("Test CA", None);
    let server = server(ServerSettings {
        identities: vec![identity(&ca, &["server.test"], &["spiffe://a/server"])],
        alpn: vec!["h2".into(), "http/1.1".into()],
        validation: trust(&ca),
        require_client_certificate: true,
        ..ServerSettings::default()
    });
    let client = client(ClientSettings {
        identity: Some(identity(&ca, &["client.test", "alt.test"], &["spiffe://a/client"])),
        validation: trust(&ca),
        auto_san_validation: true,
        ..ClientSettings::default()
    });
    let (seen, _) = handshake(&server, &client, "server.test", AlpnOffer::Auto).unwrap();
    let peer = seen.peer.unwrap();
    assert_eq!((seen.version, seen.alpn.as_deref()), ("TLSv1.3", Some(&b"h2"[..])));
    assert!(seen.cipher.starts_with("TLS_"), "{}", seen.cipher);
    assert!(seen.peer_validated && !seen.resumed);
    assert_eq!(peer.subject, "CN=client.test,O=Acme\\, Inc.");
    assert_eq!((&*peer.issuer, &*peer.serial), ("CN=Test CA", "1234"));
    assert_eq!(peer.dns_sans, ["client.test", "alt.test"]);
    assert_eq!(peer.uri_sans, ["spiffe://a/client"]);
    assert_eq!((peer.sha256.len(), peer.sha1.len()), (64, 40));
    assert_eq!(seen.peer_chain_pem.as_deref(), Some(&*peer.pem));
    assert_eq!(seen.local.unwrap().uri_sans, ["spiffe://a/server"]);
    let (again, _) = handshake(&server, &client, "server.test", AlpnOffer::Http1).unwrap();
    assert!(again.resumed && again.peer.is_some(), "the second handshake resumes with its identity");
}

/// Letters beyond ASCII were bytes of a header field as they are.
#[test]
fn subjects_are_ascii_whatever_they_say() {
    let key = KeyPair::generate().unwrap();
    let mut params = leaf_params(&[], &[]);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "\u{e9}\u{4e2d};");
    let own = params.self_signed(&key).unwrap();
    assert_eq!(describe(own.der()).unwrap().subject, "CN=\\C3\\A9\\E4\\B8\\AD\\;");
}

#[test]
fn clients_without_the_wanted_certificate_are_refused() {
    let (ca, other) = (authority("Test CA", None), authority("Other CA", None));
    let matcher = || SanMatcher {
        kind: SanKind::Uri,
        matcher: StringMatcher::Prefix(b"spiffe://a/ns/foo/"[..].into(), false),
    };
    let server = server(ServerSettings {
        identities: vec![identity(&ca, &["server.test"], &[])],
        validation: Some(Validation { sans: vec![matcher()], ..trust(&ca).unwrap() }),
        require_client_certificate: true,
        ..ServerSettings::default()
    });
    let with = |identity| client(ClientSettings { identity, ..ClientSettings::default() });
    let outcome = |identity| handshake(&server, &with(identity), "server.test", AlpnOffer::None).map(|_| ());
    assert_eq!(outcome(None), Err(Error::NoCertificatesPresented));
    outcome(Some(identity(&ca, &[], &["spiffe://a/ns/foo/sa/x"]))).unwrap();
    let wrong_name = outcome(Some(identity(&ca, &[], &["spiffe://a/ns/bar/sa/x"]))).unwrap_err();
    assert!(wrong_name.to_string().contains("San"), "{wrong_name}");
    // The name inside a DNS entry is no URI.
    assert!(outcome(Some(identity(&ca, &["spiffe.a.ns.foo"], &[]))).is_err());
    let stranger = outcome(Some(identity(&other, &[], &["spiffe://a/ns/foo/sa/x"])));
    assert!(matches!(stranger, Err(Error::InvalidCertificate(_))), "{stranger:?}");
}

#[test]
fn untrusted_clients_get_in_but_are_not_called_valid() {
    let ca = authority("Test CA", None);
    let server = server(ServerSettings {
        identities: vec![identity(&ca, &["server.test"], &[])],
        validation: Some(Validation { accept_untrusted: true, ..trust(&ca).unwrap() }),
        ..ServerSettings::default()
    });
    let validated = |ca: &Authority| {
        let identity = Some(identity(ca, &["c.test"], &[]));
        let client = client(ClientSettings { identity, ..ClientSettings::default() });
        let (seen, _) = handshake(&server, &client, "server.test", AlpnOffer::None).unwrap();
        assert!(seen.peer.is_some());
        seen.peer_validated
    };
    assert!(validated(&ca));
    assert!(!validated(&authority("Test CA", None)), "same name, another key");
    let anonymous = client(ClientSettings::default());
    let (seen, _) = handshake(&server, &anonymous, "server.test", AlpnOffer::None).unwrap();
    assert!(seen.peer.is_none() && !seen.peer_validated);
}

#[test]
fn pins_take_the_place_of_authorities() {
    let ca = authority("Test CA", None);
    let params = leaf_params(&["server.test"], &[]);
    let key = KeyPair::generate().unwrap();
    let theirs = issue(&ca, &params, &key);
    let der = theirs.chain.certificates().unwrap().remove(0);
    let server = server(ServerSettings { identities: vec![theirs], ..ServerSettings::default() });
    let colons = |hash: &str| {
        hash.as_bytes().chunks(2).map(|c| std::str::from_utf8(c).unwrap()).collect::<Vec<_>>().join(":")
    };
    let reaches = |hashes: Vec<String>| {
        let validation = Some(Validation { hashes, ..Validation::default() });
        let client = client(ClientSettings { validation, ..ClientSettings::default() });
        handshake(&server, &client, "server.test", AlpnOffer::None).is_ok()
    };
    assert!(reaches(vec![sha256_hex(&der)]));
    assert!(reaches(vec![sha256_hex(b"x"), colons(&sha256_hex(&der)).to_uppercase()]));
    assert!(!reaches(vec![sha256_hex(b"x")]));
    let bad = Validation { hashes: vec!["12".into()], ..Validation::default() };
    let error = ClientContext::new(ClientSettings { validation: Some(bad), ..ClientSettings::default() });
    assert!(error.unwrap_err().to_string().starts_with("verify_certificate_hash: "));
}

#[test]
fn endpoints_are_checked_by_chain_and_name() {
    let (ca, other) = (authority("Test CA", None), authority("Other CA", None));
    let theirs = identity(&ca, &["server.test", "*.server.test"], &[]);
    let server = server(ServerSettings { identities: vec![theirs], ..ServerSettings::default() });
    let reaches = |validation, name: &str, auto_san_validation| {
        let client = client(ClientSettings { validation, auto_san_validation, ..ClientSettings::default() });
        handshake(&server, &client, name, AlpnOffer::None).map(|_| ())
    };
    let exact = |name: &str| {
        let sans = vec![SanMatcher { kind: SanKind::Dns, matcher: StringMatcher::exact(name) }];
        Some(Validation { sans, ..trust(&ca).unwrap() })
    };
    reaches(None, "server.test", false).unwrap();
    reaches(trust(&ca), "evil.test", false).unwrap();
    reaches(trust(&ca), "x.server.test", true).unwrap();
    reaches(exact("a.server.test"), "evil.test", false).unwrap();
    assert!(reaches(trust(&ca), "evil.test", true).is_err());
    assert!(reaches(trust(&ca), "a.b.server.test", true).is_err());
    assert!(reaches(exact("a.b.server.test"), "server.test", false).is_err());
    assert!(reaches(trust(&other), "server.test", false).is_err());
    // The name that is sent stands in the place of those that are listed, which were looked at as well; where none is sent
    // they serve, and the address of the endpoint was looked for among the certificate's names.
    let in_place = |validation, name: &str| {
        let settings =
            ClientSettings { validation, auto_sni_san_validation: true, ..ClientSettings::default() };
        handshake(&server, &client(settings), name, AlpnOffer::None).is_ok()
    };
    assert!(in_place(exact("nobody.test"), "x.server.test"));
    assert!(!in_place(exact("server.test"), "evil.test"));
    assert!(in_place(trust(&ca), "127.0.0.1") && !in_place(exact("nobody.test"), "127.0.0.1"));
    assert!(in_place(exact("server.test"), "127.0.0.1"));
}

/// They were told as `Other(OtherError(San))`, and as `DnsName("server.test")` where the name that was sent is looked for.
#[test]
fn a_refused_certificate_is_told_with_its_names_and_those_asked_for() {
    let ca = authority("Test CA", None);
    let theirs = identity(&ca, &["server.test", "*.w.test", "127.0.0.1"], &["spiffe://a/server"]);
    let der = theirs.chain.certificates().unwrap()[0].clone();
    let server = server(ServerSettings { identities: vec![theirs], ..ServerSettings::default() });
    let told = |validation: Validation, auto_san_validation| {
        let validation = Some(Validation { trusted_ca: Some(ca.pem.clone()), ..validation });
        let client = client(ClientSettings { validation, auto_san_validation, ..ClientSettings::default() });
        reason(&handshake(&server, &client, "evil.test", AlpnOffer::None).unwrap_err())
    };
    let there = "verify cert failed: SAN matcher, certificate SANs are [server.test, *.w.test, 127.0.0.1, spiffe://a/server]";
    let san = |matcher| SanMatcher { kind: SanKind::Dns, matcher };
    let sans = vec![san(StringMatcher::exact("b.test")), san(StringMatcher::contains("c", false))];
    let validation = Validation { sans, ..Validation::default() };
    assert_eq!(told(validation, false), format!("{there}, expected [b.test, part c]"));
    assert_eq!(told(Validation::default(), true), format!("{there}, expected [evil.test]"));
    let validation = Validation { hashes: vec![sha256_hex(b"x")], ..Validation::default() };
    let hash = sha256_hex(&der);
    assert!(told(validation, false).ends_with(&format!("certificate's SHA-256 is {hash}")));
}

/// Envoy looks at names before it looks at pins, and counts the first that fails.
#[test]
fn names_are_looked_at_before_pins() {
    let ca = authority("Test CA", None);
    let theirs = identity(&ca, &["server.test"], &[]);
    let server = server(ServerSettings { identities: vec![theirs], ..ServerSettings::default() });
    let failure = |name: &str, hashes: &[String]| {
        let validation = Some(Validation { hashes: hashes.to_vec(), ..trust(&ca).unwrap() });
        let client =
            client(ClientSettings { validation, auto_san_validation: true, ..ClientSettings::default() });
        handshake(&server, &client, name, AlpnOffer::None).map(drop).map_err(|e| HandshakeFailure::of(&e))
    };
    let none = [sha256_hex(b"x")];
    assert_eq!(failure("server.test", &[]), Ok(()));
    assert_eq!(failure("server.test", &none), Err(HandshakeFailure::Pins));
    assert_eq!(failure("evil.test", &none), Err(HandshakeFailure::Names));
    assert_eq!(failure("evil.test", &[]), Err(HandshakeFailure::Names));
}

#[test]
fn an_authority_may_serve_itself_when_it_is_trusted_itself() {
    let key = KeyPair::generate().unwrap();
    let mut params = leaf_params(&["server.test"], &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = pem(&params.self_signed(&key).unwrap().pem());
    let identities = vec![Identity { chain: own.clone(), key: pem(&key.serialize_pem()) }];
    let server = server(ServerSettings { identities, ..ServerSettings::default() });
    let reaches = |ca: &Pem| {
        let validation = Some(Validation { trusted_ca: Some(ca.clone()), ..Validation::default() });
        let client = client(ClientSettings { validation, ..ClientSettings::default() });
        handshake(&server, &client, "server.test", AlpnOffer::None).is_ok()
    };
    assert!(reaches(&own));
    assert!(!reaches(&authority("Test CA", None).pem));
}

#[test]
fn depth_bounds_the_intermediates_and_lists_revoke() {
    let root = authority("Root", None);
    let middle = authority("Middle", Some(&root));
    let leaf = identity(&middle, &["client.test"], &[]);
    let (Pem::Inline(mut chain), Pem::Inline(above)) = (leaf.chain.clone(), middle.pem.clone()) else {
        panic!()
    };
    chain.extend(above);
    let theirs = Identity { chain: Pem::Inline(chain), key: leaf.key };
    let ours = identity(&root, &["server.test"], &[]);
    let gets_in = |validation: Validation| {
        let server = server(ServerSettings {
            identities: vec![ours.clone()],
            validation: Some(validation),
            require_client_certificate: true,
            ..ServerSettings::default()
        });
        let client = client(ClientSettings { identity: Some(theirs.clone()), ..ClientSettings::default() });
        handshake(&server, &client, "server.test", AlpnOffer::None).is_ok()
    };
    assert!(gets_in(trust(&root).unwrap()));
    assert!(gets_in(Validation { max_depth: Some(1), ..trust(&root).unwrap() }));
    assert!(!gets_in(Validation { max_depth: Some(0), ..trust(&root).unwrap() }));
    let list = |serial: u64| {
        let now = rcgen::date_time_ymd(2024, 1, 1);
        let params = CertificateRevocationListParams {
            this_update: now,
            next_update: rcgen::date_time_ymd(2120, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        pem(&params.signed_by(&middle.issuer).unwrap().pem().unwrap())
    };
    let with_list =
        |serial| Validation { crl: Some(list(serial)), only_leaf_crl: true, ..trust(&root).unwrap() };
    assert!(gets_in(with_list(1)));
    assert!(!gets_in(with_list(4660)));
}

#[test]
fn certificates_are_chosen_by_name_and_kind_of_key() {
    let ca = authority("Test CA", None);
    let rsa = KeyPair::from_pem(RSA_KEY).unwrap();
    let identities = vec![
        identity(&ca, &["first.test"], &[]),
        issue(&ca, &leaf_params(&["both.test"], &["x:rsa"]), &rsa),
        identity(&ca, &["both.test"], &["x:ecdsa"]),
        identity(&ca, &["*.wild.test"], &["x:wild"]),
    ];
    let server = server(ServerSettings { identities, ..ServerSettings::default() });
    let shown = |name: &str, protocols: Protocols| {
        let client = client(ClientSettings { protocols, ..ClientSettings::default() });
        let (seen, at_client) = handshake(&server, &client, name, AlpnOffer::None).unwrap();
        let local = seen.local.unwrap();
        assert_eq!(local.sha256, at_client.peer.unwrap().sha256, "what we say is what the client saw");
        local.uri_sans.first().or(local.dns_sans.first()).unwrap().clone()
    };
    let any = Protocols::default;
    assert_eq!(shown("both.test", any()), "x:ecdsa");
    assert_eq!(shown("a.wild.test", any()), "x:wild");
    assert_eq!(shown("a.b.wild.test", any()), "first.test");
    assert_eq!(shown("unknown.test", any()), "first.test");
    // Over TLS 1.2 a client without ECDSA suites still says that it can verify ECDSA.
    let only_rsa = Protocols {
        max: Some(TlsVersion::V12),
        cipher_suites: vec!["ECDHE-RSA-AES128-GCM-SHA256".into()],
        ..Protocols::default()
    };
    assert_eq!(shown("both.test", only_rsa), "x:rsa");
}

#[test]
fn contexts_are_found_by_name_and_replaced_while_serving() {
    let ca = authority("Test CA", None);
    let context = |uri: &str| {
        let identities = vec![identity(&ca, &["x.test"], &[uri])];
        server(ServerSettings { identities, ..ServerSettings::default() })
    };
    let tls =
        ServerTls::new(None, vec![("a.test".into(), context("x:a")), ("*.a.test".into(), context("x:sub"))]);
    let uri = |name| tls.context(name).map(|c| c.certificates().next().unwrap().uri_sans[0].clone());
    assert_eq!(uri(Some("A.test")).as_deref(), Some("x:a"));
    assert_eq!(uri(Some("b.a.test")).as_deref(), Some("x:sub"));
    assert_eq!((uri(Some("c.b.a.test")), uri(None)), (None, None));
    tls.replace(Some(context("x:new")), Vec::new());
    assert_eq!(uri(Some("a.test")).as_deref(), Some("x:new"));
}

#[test]
fn a_client_whose_protocols_are_all_foreign_gets_none() {
    let ca = authority("Test CA", None);
    let server = server(ServerSettings {
        identities: vec![identity(&ca, &["x.test"], &[])],
        alpn: vec!["h2".into()],
        ..ServerSettings::default()
    });
    let client = client(ClientSettings::default());
    let (seen, _) = handshake(&server, &client, "x.test", AlpnOffer::Http1).unwrap();
    assert_eq!(seen.alpn, None);
    let (seen, _) = handshake(&server, &client, "x.test", AlpnOffer::Http2).unwrap();
    assert_eq!(seen.alpn.as_deref(), Some(&b"h2"[..]));
}

#[test]
fn server_names_follow_the_settings() {
    let auto =
        client(ClientSettings { auto_sni: true, sni: Some("fixed".into()), ..ClientSettings::default() });
    let name = |authority: &str| {
        let of_request = auto.name_of_request(authority.as_bytes());
        auto.server_name(of_request.as_deref(), "host").map(str::to_owned)
    };
    // Each of them once had connections of its own.
    for spelled in ["X.server.test:8443", "x.server.test:1", "x.SERVER.test"] {
        assert_eq!(name(spelled).as_deref(), Some("x.server.test"));
    }
    assert_eq!(name("[::1]:80").as_deref(), Some("::1"));
    assert_eq!((name(""), name(":80")), (None, None));
    assert!(auto.name_of_request(&[b'a'; 60_000]).is_some_and(|name| name.len() == 256));
    let host = client(ClientSettings { auto_host_sni: true, ..ClientSettings::default() });
    assert_eq!(host.name_of_request(b"a"), None);
    assert_eq!(host.server_name(None, "host"), Some("host"));
    assert_eq!(host.server_name(None, ""), None);
}

/// rustls refuses such certificates from others, but old ones are still served (`openssl req -x509` without extensions
/// made them for long).
#[test]
fn certificates_of_version_1_are_served() {
    let chain = pem("-----BEGIN CERTIFICATE-----\n\
         MIIBITCBxwIUVds3vKNaNyiF9txYcjm1QhXtn9owCgYIKoZIzj0EAwIwEzERMA8G\n\
         A1UEAwwIb2xkLnRlc3QwHhcNMjYxMTI5MTExNDE1WhcNMzYxMTI2MTExNDE1WjAT\n\
         MREwDwYDVQQDDAhvbGQudGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABJHR\n\
         5npuhmQxm5S2Yupb/2bsZjU3fkmqVZUSPa8v43PVDLy5qwfGB/INTIGzXxHUTVty\n\
         5xOIjXt+HuBA2nQD0pswCgYIKoZIzj0EAwIDSQAwRgIhAJhEBbYaVA5E3/BFWSPo\n\
         y4GHz4XIR2XECZB0CYzHHYMXAiEA5fb/xNEdZF1+oYTqP7OQbgl3ualM9aUCiXg3\n\
         yJ6pzDU=\n\
         -----END CERTIFICATE-----\n");
    let key = pem("-----BEGIN PRIVATE KEY-----\n\
         MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgigde7F2nJRdBRXFM\n\
         i34W3A6I2n5QkaCXZrlxxF9B4bmhRANCAASR0eZ6boZkMZuUtmLqW/9m7GY1N35J\n\
         qlWVEj2vL+Nz1Qy8uasHxgfyDUyBs18R1E1bcucTiI17fh7gQNp0A9Kb\n\
         -----END PRIVATE KEY-----\n");
    let own = Identity { chain: chain.clone(), key };
    server(ServerSettings { identities: vec![own], ..ServerSettings::default() });
    let other = Identity { chain, key: identity(&authority("Test CA", None), &["a"], &[]).key };
    let settings = ServerSettings { identities: vec![other], ..ServerSettings::default() };
    let said = ServerContext::new(settings).unwrap_err().to_string();
    assert!(said.contains("private_key") && said.contains("does not belong"), "{said}");
}

#[test]
fn errors_name_field_file_and_reason() {
    let ca = authority("Test CA", None);
    let (one, two) = (identity(&ca, &["a"], &[]), identity(&ca, &["b"], &[]));
    let error = |chain: &Pem, key: &Pem| {
        let identities = vec![one.clone(), Identity { chain: chain.clone(), key: key.clone() }];
        ServerContext::new(ServerSettings { identities, ..ServerSettings::default() })
            .unwrap_err()
            .to_string()
    };
    let missing = Pem::File("/nowhere/cert.pem".into());
    let text = error(&missing, &one.key);
    assert!(
        text.starts_with("tls_certificates[1].certificate_chain: can't read /nowhere/cert.pem: "),
        "{text}"
    );
    let text = error(&one.chain, &two.key);
    assert!(
        text.starts_with("tls_certificates[1].private_key: ") && text.contains("does not belong"),
        "{text}"
    );
    assert!(error(&pem("hello"), &one.key).contains("no certificate in PEM form"));
    assert!(error(&one.chain, &one.chain).contains("no private key in PEM form"));
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    assert!(error(&one.chain, &pem(encrypted)).contains("encrypted"));
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(error(&pem(garbage), &one.key).contains("certificate 1: "));
    let protocols = Protocols { cipher_suites: vec!["DES-CBC3-SHA".into()], ..Protocols::default() };
    let settings = ServerSettings { identities: vec![one.clone()], protocols, ..ServerSettings::default() };
    let text = ServerContext::new(settings).unwrap_err().to_string();
    assert!(text.starts_with("cipher_suites: cipher suite \"DES-CBC3-SHA\" is not supported"), "{text}");
    assert!(ServerContext::new(ServerSettings::default()).is_err());
    assert!(TlsVersion::parse("TLSv1.1").is_err());
}

#[test]
fn private_keys_do_not_show() {
    let ca = authority("Test CA", None);
    let shown = format!("{:?}", identity(&ca, &["a"], &[]));
    assert!(!shown.contains("PRIVATE") && shown.contains("inline PEM"), "{shown}");
}

/// Made for this test: rcgen makes no RSA keys of its own here.
const RSA_KEY: &str = "\
-----BEGIN PRIVATE KEY-----\n\
MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQDdMSdyNN2ezVJ2\n\
M6ATmErS9b/OvZ5mC9MUNS3hJkRCZibkQfqq9aYjYsRdVZ40q0KnTMtJ8VVDoHZt\n\
Fe7zag1clQnRzic+EMiQB7j4bjmW6RRhVBrkETgsdUSdKzBhur5roKelTddoJEa+\n\
M0INSi5pUuzEcU6JOmRpKxs4H39Nfckf8PYRlzKOrpNcx62kS8HlvRXx85fAr64g\n\
dVKZuZQn6OqtZ4QB439MZVqQf3YZjXbM9Js4Skkgi2TK8kHNJPHr9P0aYbHf9LIA\n\
JqQ37e8bJ70j5WKAwlaXkRnpoI/W6f7mfzqUY0Btut0hNkGIsynGpBGpGYjD25AX\n\
b1Y1VcJvAgMBAAECggEAZf4x5bgZzw13Ljjs4cwyCGe4C7Ek1oIyURmab7zQ8dsf\n\
qNYBq449DwkOack+e6PSxski3hQxkE7v/KoF9mjbA2tXzU4lizl6+esNsERHOt57\n\
/ssk4TBNejaSrnRJSW8uOfupAhDMOGGt2ytQlEc18mwB8C0dHSr3PQVa9jyT21s+\n\
3uY7zw0/V+yOSFRvfBYgU+a22mEU5AdyEXrYV+wvQrAqsNl71PtiwK/a4dCMM/K2\n\
+5RJWGWbbBjvNpL3yisWLspbiDUdQovMtvvt8j2HBcgH5Thn/V8XBgSovB0z5Lfl\n\
jKeTx+E17rJfTzsLm6Zpcm9ziQl4d3cMtcSEmRSYxQKBgQD3r5TL8xifUEvuprrn\n\
QjbQjuLyxiBUOJ3dWFEE4Z8O2EbKbzTeZvjjIfjxTj0HBq4JAI3usNUBnAmZwyqp\n\
DBqd8u7P9xJD77gBmtH81aB+U9WG4ZNoX9EZaEtxuJNiQMOLThc9BRn/IiO/pZWX\n\
lmud5mTlINO4AHAZ7RWnbHWmiwKBgQDknefFSD65JssglrMnYlfuQFBPgmuCNcnr\n\
Glk5wiVp0YEERk/Zr/LvdJbZCoXZR3JZHyJdp7I9oTr3ObD7y7PcuPr5dk6d0TBm\n\
Lh4PkUWqdRkGS9+UAigiXiAm9XXVROUQKqm7obygw5JardjUjSk47QBSLdl2bxMa\n\
maLz3iH0LQKBgC9jlamL4msg1tZbaiky/v/aRsvCYo8aogGmkyHG9ULG2IyEyG3A\n\
79+tMU8h9AUzHvsz8vP3O1nqe9/CepgLa9BKmayKjiEXbXJJJ+IjEWj6K0F6SVTP\n\
+FbPIJgqg3BqCb/Oeh2/qyCobISPbtao/gAhA67fIAL1en1LYjg9RSlPAoGBAJEF\n\
jfG6m3dOIYqhrjHsk4TiLU/Slqo5vsWxqCoYey0+Jg51H9AiagP2PH6fyzqCtQnN\n\
0zn/1/R6Y3JSmW+Qz57ThPlcUBCSk5Yt6QnNCJlRwLcayFAWciki9lhgWwgXtQrl\n\
VVheB88fYKa/Iw3qId0nko2O4iTb3w1/qjvyjC1dAoGAehwY9L/e0WgEKQ+XFTDI\n\
39Y312hKoiuHGvGkSWX3A5SeLhl1MrVXI5j35ZQ1vcJ9tr7fC05XgKrWK5IBso+5\n\
La4Vrlsgn5B0AhzylVgEQxTwfoM+JPcUi/C2tHK0wIqGhVsae9Vni/KrtBYSPK/u\n\
MyrC6oOJjlnUuDvhPhedVL4=\n\
-----END PRIVATE KEY-----\n\
";

// They were told all the same.
#[test]
fn clients_are_told_of_authorities_unless_these_are_hidden() {
    let (ca, provider) = (authority("Test CA", None), Arc::new(aws_lc_rs::default_provider()));
    let told = |hides_authorities| {
        let validation = Validation { hides_authorities, ..trust(&ca).unwrap() };
        let check = PeerCheck::new(validation, |of| Authorities::new(of, Peer::Client, &provider)).unwrap();
        let algorithms = provider.signature_verification_algorithms;
        ClientVerifier { check: Arc::new(check), required: true, algorithms }.root_hint_subjects().len()
    };
    assert_eq!((told(false), told(true)), (1, 0));
}
