//! Which sessions are taken up, and which never are.

use super::*;

fn keys(bytes: &[u8]) -> Tickets {
    Tickets::Keys(bytes.iter().map(|byte| Pem::Inline(vec![*byte; 80])).collect())
}

struct Mesh {
    servers: Authority,
    clients: Authority,
    others: Authority,
}

impl Mesh {
    fn new() -> Mesh {
        let [servers, clients, others] = ["servers", "clients", "others"].map(|name| authority(name, None));
        Mesh { servers, clients, others }
    }

    /// A context that verifies clients by `ca`.
    fn server(&self, ca: Option<&Authority>, tickets: Tickets) -> Arc<ServerContext> {
        server(ServerSettings {
            identities: vec![identity(&self.servers, &["server.test"], &[])],
            validation: ca.and_then(trust),
            require_client_certificate: ca.is_some(),
            tickets,
            ..ServerSettings::default()
        })
    }

    /// A client with a certificate of the authority for clients.
    fn client(&self, max: TlsVersion) -> Arc<ClientContext> {
        let protocols = Protocols { max: Some(max), ..Protocols::default() };
        let identity = Some(identity(&self.clients, &["client.test"], &[]));
        client(ClientSettings {
            identity,
            protocols,
            validation: trust(&self.servers),
            ..ClientSettings::default()
        })
    }
}

/// Whether the second handshake takes up the session of the first.
fn resumes(client: &ClientContext, first: &ServerContext, second: &ServerContext) -> Result<bool, Error> {
    let (begun, _) = handshake(first, client, "server.test", AlpnOffer::Http1)?;
    assert!(!begun.resumed, "it is the first");
    handshake(second, client, "server.test", AlpnOffer::Http1).map(|(seen, _)| seen.resumed)
}

#[test]
fn contexts_with_the_same_keys_take_up_each_others_sessions_and_keys_can_change() {
    let mesh = Mesh::new();
    let of = |bytes: &[u8]| mesh.server(Some(&mesh.clients), keys(bytes));
    for version in [TlsVersion::V12, TlsVersion::V13] {
        let resumes = |a: &[u8], b: &[u8]| resumes(&mesh.client(version), &of(a), &of(b)).unwrap();
        assert!(resumes(&[1], &[1]), "a certificate with the same names, made anew, keeps sessions");
        assert!(resumes(&[1], &[2, 1]), "the key before seals no more and opens still");
        assert!(!resumes(&[2, 1], &[1]));
        assert!(!resumes(&[1], &[2]));
    }
}

/// A session tells who the client is without looking: a context that trusts other authorities must not take it.
#[test]
fn a_session_is_never_taken_up_under_another_validation() {
    let mesh = Mesh::new();
    for version in [TlsVersion::V12, TlsVersion::V13] {
        let strict = mesh.server(Some(&mesh.clients), keys(&[1]));
        let foreign = mesh.server(Some(&mesh.others), keys(&[1]));
        let open = mesh.server(None, keys(&[1]));
        let pinned = server(ServerSettings {
            identities: vec![identity(&mesh.servers, &["server.test"], &[])],
            validation: Some(Validation {
                sans: vec![SanMatcher { kind: SanKind::Dns, matcher: StringMatcher::exact("client.test") }],
                ..trust(&mesh.clients).unwrap()
            }),
            require_client_certificate: true,
            tickets: keys(&[1]),
            ..ServerSettings::default()
        });
        assert!(resumes(&mesh.client(version), &strict, &foreign).is_err(), "it does not trust the client");
        assert!(!resumes(&mesh.client(version), &strict, &open).unwrap());
        assert!(!resumes(&mesh.client(version), &open, &strict).unwrap());
        assert!(!resumes(&mesh.client(version), &strict, &pinned).unwrap());
        // Without configured keys nothing goes from one context to another.
        let own = || mesh.server(Some(&mesh.clients), Tickets::Own);
        assert!(!resumes(&mesh.client(version), &own(), &own()).unwrap());
    }
}

/// What the client was shown of the server is not shown again either.
#[test]
fn a_session_is_never_taken_up_under_other_names() {
    let mesh = Mesh::new();
    let of = |issuer: &Authority, dns: &[&str], ip: Option<[u8; 4]>| {
        let mut params = leaf_params(&["server.test"], &[]);
        params.subject_alt_names.extend(dns.iter().map(|name| SanType::DnsName((*name).try_into().unwrap())));
        params.subject_alt_names.extend(ip.map(|ip| SanType::IpAddress(ip.into())));
        server(ServerSettings {
            identities: vec![issue(issuer, &params, &KeyPair::generate().unwrap())],
            tickets: keys(&[1]),
            ..ServerSettings::default()
        })
    };
    let trusting = |version| {
        let mut both = mesh.servers.pem.read().unwrap().to_vec();
        both.extend_from_slice(&mesh.others.pem.read().unwrap());
        let protocols = Protocols { max: Some(version), ..Protocols::default() };
        let validation = Validation { trusted_ca: Some(Pem::Inline(both)), ..Validation::default() };
        client(ClientSettings { protocols, validation: Some(validation), ..ClientSettings::default() })
    };
    for version in [TlsVersion::V12, TlsVersion::V13] {
        let first = || of(&mesh.servers, &["a.test"], Some([10, 0, 0, 1]));
        let to = |second: Arc<ServerContext>| resumes(&trusting(version), &first(), &second).unwrap();
        assert!(to(first()));
        assert!(!to(of(&mesh.servers, &["b.test"], Some([10, 0, 0, 1]))), "another DNS name");
        assert!(!to(of(&mesh.servers, &["a.test"], Some([10, 0, 0, 2]))), "another address");
        assert!(!to(of(&mesh.servers, &["a.test"], None)), "no address");
        let named = |name: &str| {
            server(ServerSettings {
                identities: vec![identity(&mesh.servers, &["server.test"], &[])],
                tickets: keys(&[1]),
                server_names: vec![name.to_owned()],
                ..ServerSettings::default()
            })
        };
        let between = |a, b| resumes(&trusting(version), &named(a), &named(b)).unwrap();
        assert!(between("a", "a") && !between("a", "b"), "another filter chain");
        assert!(!to(of(&mesh.others, &["a.test"], Some([10, 0, 0, 1]))), "another issuer");
    }
}

#[test]
fn each_way_of_resuming_can_be_turned_off() {
    let mesh = Mesh::new();
    let of = |tickets, session_ids, version| {
        let context = server(ServerSettings {
            identities: vec![identity(&mesh.servers, &["server.test"], &[])],
            tickets,
            session_ids,
            ..ServerSettings::default()
        });
        resumes(&mesh.client(version), &context, &context).unwrap()
    };
    use TlsVersion::{V12, V13};
    assert!(of(Tickets::Own, true, V12) && of(Tickets::Own, true, V13));
    assert!(of(Tickets::Own, false, V12) && of(Tickets::Own, false, V13), "tickets need nothing kept");
    assert!(of(Tickets::Off, true, V12), "by the number of the session");
    assert!(!of(Tickets::Off, true, V13) && !of(Tickets::Off, false, V12) && !of(Tickets::Off, false, V13));
}
