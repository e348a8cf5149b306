//! TLS on listeners and towards endpoints.

use super::*;
use crate::connect::{Alpn, ConnectError, Handshake, connect};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use sixfold_core::hcm::{HttpConnectionManager, Profile};
use sixfold_core::matcher::StringMatcher;
use sixfold_core::router::{RouteTable, RouteTableCell, TableKey, TableOptions};
use sixfold_core::tls::{
    ClientContext, ClientSettings, ClientTls, Identity, NamedContexts, Pem, SanKind, SanMatcher,
    ServerContext, ServerSettings, ServerTls, Validation, sha256_hex,
};

struct Authority(Issuer<'static, KeyPair>, Pem);

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = Pem::Inline(params.self_signed(&key).unwrap().pem().into_bytes());
    Authority(Issuer::new(params, key), pem)
}

impl Authority {
    fn identity(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let chain = params.signed_by(&key, &self.0).unwrap().pem();
        Identity {
            chain: Pem::Inline(chain.into_bytes()),
            key: Pem::Inline(key.serialize_pem().into_bytes()),
        }
    }

    fn validation(&self) -> Option<Validation> {
        Some(Validation { trusted_ca: Some(self.1.clone()), ..Validation::default() })
    }

    fn context(&self, name: &str) -> Arc<ServerContext> {
        let identities = vec![self.identity(name)];
        ServerContext::new(ServerSettings { identities, ..ServerSettings::default() }).unwrap()
    }
}

fn hash_of(identity: &Identity) -> String {
    sha256_hex(&identity.chain.certificates().unwrap()[0])
}

/// A TLS connection of a client that takes any certificate.
async fn dial(
    address: SocketAddr,
    name: &str,
    settings: ClientSettings,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let context = ClientContext::new(settings).unwrap();
    let connector = tokio_rustls::TlsConnector::from(context.config(Alpn::None));
    let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
    connector.connect(name, TcpStream::connect(address).await?).await
}

fn seen(stream: &tokio_rustls::client::TlsStream<TcpStream>) -> String {
    sha256_hex(&stream.get_ref().1.peer_certificates().unwrap()[0])
}

fn with_tls(listener: Listener, tls: &Arc<ServerTls>) -> Listener {
    behind_tls(listener, tls, || says("secret"))
}

fn behind_tls(listener: Listener, tls: &Arc<ServerTls>, filter: impl Fn() -> NetworkFilter) -> Listener {
    let chains = listener
        .chains
        .iter()
        .map(|c| {
            Arc::new(FilterChain {
                name: c.name.clone(),
                matches: c.matches.clone(),
                tls: Some(tls.clone()),
                handshake_timeout: Duration::from_millis(500),
                filters: Arc::default(),
                metadata: Arc::default(),
                filter: filter(),
                fingerprint: c.fingerprint,
            })
        })
        .collect();
    let chains = FilterChains::new(chains).unwrap();
    Listener { chains, ..listener }
}

#[tokio::test]
async fn a_rotated_certificate_touches_new_handshakes_alone() {
    let fixture = Fixture::start();
    fixture.cluster("echo", &[echo().await]).await;
    let ca = authority();
    let (old, new) = (ca.identity("a.test"), ca.identity("a.test"));
    let context = |identity: &Identity| {
        let identities = vec![identity.clone()];
        ServerContext::new(ServerSettings { identities, ..ServerSettings::default() }).unwrap()
    };
    let tls = ServerTls::single(context(&old));
    let proxy = NetworkFilter::Tcp(Arc::new(fixture.tcp_proxy("echo", Vec::new())));
    let secure =
        FilterChain { tls: Some(tls.clone()), ..chain("only", FilterChainMatch::default(), 1, proxy) };
    let listener = Listener { chains: FilterChains::one(secure), ..fixture.listener("a", says("")) };
    let address = fixture.apply(listener).await;
    let mut first = dial(address, "a.test", ClientSettings::default()).await.unwrap();
    assert_eq!(seen(&first), hash_of(&old));
    assert!(ping(&mut first).await);
    tls.replace(Some(context(&new)), NamedContexts::new());
    let mut second = dial(address, "a.test", ClientSettings::default()).await.unwrap();
    assert_eq!(seen(&second), hash_of(&new));
    assert!(ping(&mut second).await && ping(&mut first).await);
    fixture.end().await;
}

#[tokio::test]
async fn clients_that_do_not_speak_tls_are_closed_without_a_word() {
    let fixture = Fixture::start();
    let tls = ServerTls::single(authority().context("a.test"));
    let listener = with_tls(fixture.listener("a", says("")), &tls);
    let stats = listener.stats.clone();
    let address = fixture.apply(listener).await;
    assert_eq!(exchange(address, b"GET / HTTP/1.1\r\n\r\n").await, "");
    let start = std::time::Instant::now();
    assert_eq!(exchange(address, b"\x16\x03\x01").await, "", "half a handshake ends at its timeout");
    assert!(start.elapsed() >= Duration::from_millis(400));
    // As in Envoy, where one that takes too long is no error of TLS.
    let counted = || {
        (
            stats.tls().counts().connection_error().get(),
            stats.downstream_cx_transport_socket_connect_timeout().get(),
        )
    };
    eventually(|| counted() == (1, 1)).await;
    let mut good = dial(address, "a.test", ClientSettings::default()).await.unwrap();
    let mut text = String::new();
    good.read_to_string(&mut text).await.unwrap();
    assert_eq!((text.as_str(), stats.tls().counts().handshake().get()), ("secret", 1));
    fixture.end().await;
}

/// Both were as from Envoy: the connection ended, which looks like a broken network.
#[tokio::test]
async fn clients_of_apisix_are_told_why_they_are_not_served() {
    let fixture = Fixture::start();
    let hcm = |profile| {
        let hcm = crate::http::edge::tests::hcm(Default::default(), Default::default());
        let table = RouteTable::new("t", TableOptions::default(), Vec::new()).unwrap();
        let routes = RouteTableCell::new(TableKey::named("t"), Some(Arc::new(table)));
        NetworkFilter::Http(Arc::new(HttpConnectionManager { profile, routes, ..hcm }))
    };
    let tls = ServerTls::new(None, vec![("a.test".into(), authority().context("a.test"))]);
    let [apisix, envoy] = [("a", Profile::Apisix), ("b", Profile::Envoy)]
        .map(|(name, profile)| behind_tls(fixture.listener(name, says("")), &tls, || hcm(profile)));
    let apisix = fixture.apply(apisix).await;
    let envoy = fixture.apply(envoy).await;
    let failure = async |address| dial(address, "other.test", ClientSettings::default()).await.unwrap_err();
    assert_eq!(failure(apisix).await.to_string(), "received fatal alert: UnrecognisedName");
    assert_eq!(failure(envoy).await.kind(), std::io::ErrorKind::UnexpectedEof);
    let plain = b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let page = exchange(apisix, plain).await;
    assert!(page.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{page}");
    for part in [
        "<title>400 The plain HTTP request was sent to HTTPS port</title>",
        "<center><h1>400 Bad Request</h1></center>\r\n<center>The plain HTTP request was sent to HTTPS port</center>",
        "Content-Type: text/html; charset=utf-8\r\n",
        "Connection: close\r\n",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    assert_eq!(exchange(envoy, plain).await, "");
    fixture.end().await;
}

#[tokio::test]
async fn client_certificates_are_asked_for_and_counted() {
    let fixture = Fixture::start();
    let ca = authority();
    let context = ServerContext::new(ServerSettings {
        identities: vec![ca.identity("a.test")],
        validation: ca.validation(),
        require_client_certificate: true,
        ..ServerSettings::default()
    });
    let listener = with_tls(fixture.listener("a", says("")), &ServerTls::single(context.unwrap()));
    let stats = listener.stats.clone();
    let address = fixture.apply(listener).await;
    let talk = async |identity: Option<Identity>| {
        let settings = ClientSettings { identity, ..ClientSettings::default() };
        let mut text = String::new();
        // Over TLS 1.3 a client hears of the refusal with its first read.
        if let Ok(mut stream) = dial(address, "a.test", settings).await {
            let _ = stream.read_to_string(&mut text).await;
        }
        text
    };
    assert_eq!(talk(Some(ca.identity("client.test"))).await, "secret");
    assert_eq!(talk(None).await, "");
    assert_eq!(talk(Some(authority().identity("client.test"))).await, "");
    eventually(|| {
        stats.tls().counts().fail_verify_no_cert().get() == 1
            && stats.tls().counts().fail_verify_error().get() == 1
    })
    .await;
    fixture.end().await;
}

#[tokio::test]
async fn chains_are_chosen_by_server_name_and_tls_may_pass_through() {
    let fixture = Fixture::start();
    let ca = authority();
    let inner = ServerTls::single(ca.context("inner.test"));
    let inner = fixture.apply(with_tls(fixture.listener("inner", says("")), &inner)).await;
    fixture.cluster("inner", &[inner]).await;
    let names = |names: &[&str]| FilterChainMatch {
        server_names: names.iter().map(|n| (*n).into()).collect(),
        ..FilterChainMatch::default()
    };
    let pass = NetworkFilter::Tcp(Arc::new(fixture.tcp_proxy("inner", Vec::new())));
    let own = FilterChain {
        tls: Some(ServerTls::single(ca.context("own.test"))),
        ..chain("own", names(&["*.own.test"]), 1, says("own"))
    };
    let listener = Listener {
        listener_filters: vec![ListenerFilter::TlsInspector],
        chains: FilterChains::new(vec![
            Arc::new(chain("pass", names(&["pass.test"]), 1, pass)),
            Arc::new(own),
        ])
        .unwrap(),
        ..fixture.listener("a", says(""))
    };
    let address = fixture.apply(listener).await;
    let talk = async |name: &str| {
        let mut text = String::new();
        let mut stream = dial(address, name, ClientSettings::default()).await.ok()?;
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    };
    assert_eq!(talk("pass.test").await.as_deref(), Some("secret"));
    assert_eq!(talk("x.Own.test").await.as_deref(), Some("own"));
    assert_eq!(talk("other.test").await, None);
    fixture.end().await;
}

#[tokio::test]
async fn endpoints_are_connected_over_tls_as_the_cluster_says() {
    let fixture = Fixture::start();
    let ca = authority();
    let tls = ServerTls::single(ca.context("server.test"));
    let address = fixture.apply(with_tls(fixture.listener("a", says("")), &tls)).await;
    let open = async |settings: ClientSettings, server_name: Option<&str>| {
        let tls = Some(ClientTls::new(Some(ClientContext::new(settings).unwrap())));
        let config = ClusterConfig { tls, ..cluster_config("tls") };
        let hosts = vec![HostConfig::new(Address::Ip(address))];
        let cluster = Cluster::new(config, hosts, None, &fixture.registry).unwrap();
        let host = cluster.hosts.load().iter().next().unwrap().host.clone();
        let (tls, alpn) = (cluster.config.tls.as_ref(), Alpn::Http1);
        let handshake = Handshake { tls, server_name, alpn, ..Handshake::default() };
        let mut connected = connect(&cluster, &host, handshake, Duration::from_secs(5)).await?;
        let text = crate::io::text(&mut connected.io).await;
        Ok::<_, ConnectError>((text, connected.tls.unwrap().version))
    };
    let auto = || ClientSettings {
        auto_sni: true,
        auto_san_validation: true,
        validation: ca.validation(),
        ..ClientSettings::default()
    };
    assert_eq!(open(auto(), Some("server.test")).await, Ok(("secret".into(), "TLSv1.3")));
    let error = open(auto(), Some("evil.test")).await.unwrap_err().to_string();
    assert!(error.starts_with("TLS_error:|") && error.ends_with(":TLS_error_end"), "{error}");
    let sans = vec![SanMatcher { kind: SanKind::Dns, matcher: StringMatcher::exact("other.test") }];
    let strict = Validation { sans, ..ca.validation().unwrap() };
    let settings = ClientSettings { validation: Some(strict), ..ClientSettings::default() };
    assert!(matches!(open(settings, None).await, Err(ConnectError::Tls(_))));
    assert!(open(ClientSettings::default(), None).await.is_ok());
    fixture.end().await;
}

/// They came in the order of their places in memory.
#[tokio::test]
async fn certificates_are_told_once_in_the_order_of_listeners() {
    let fixture = Fixture::start();
    assert_eq!(fixture.server.first_expiry(), None);
    let ends = |year: i32| {
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let chain = Pem::Inline(params.self_signed(&key).unwrap().pem().into_bytes());
        let identity = Identity { chain, key: Pem::Inline(key.serialize_pem().into_bytes()) };
        let settings = ServerSettings { identities: vec![identity], ..ServerSettings::default() };
        ServerTls::single(ServerContext::new(settings).unwrap())
    };
    let contexts = [2060, 2040, 2050, 2070].map(ends);
    for (name, context) in [("a", 0), ("b", 1), ("c", 0), ("d", 2), ("e", 3), ("f", 1)] {
        fixture.apply(with_tls(fixture.listener(name, says("secret")), &contexts[context])).await;
    }
    let held = fixture.server.certificates();
    let ends: Vec<i64> = held.iter().map(|held| held.own[0].certificate.not_after).collect();
    let year = |year| rcgen::date_time_ymd(year, 1, 1).unix_timestamp();
    assert_eq!(ends, [2060, 2040, 2050, 2070].map(year));
    assert_eq!(fixture.server.first_expiry(), Some(year(2040)));
    fixture.end().await;
}

/// Tickets lay unread in the socket of a client that only sends. Its system ended the connection by a reset, and threw away what
/// the proxy had not taken yet.
#[tokio::test]
async fn a_client_that_sends_and_closes_without_a_read_loses_nothing() {
    const SENT: usize = 2 << 20;
    let fixture = Fixture::start();
    let upstream = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    fixture.cluster("slow", &[upstream.local_addr().unwrap()]).await;
    let tls = ServerTls::single(authority().context("a.test"));
    let proxy = || NetworkFilter::Tcp(Arc::new(fixture.tcp_proxy("slow", Vec::new())));
    let address = fixture.apply(behind_tls(fixture.listener("a", says("")), &tls, proxy)).await;
    let mut client = dial(address, "a.test", ClientSettings::default()).await.unwrap();
    let (mut taken, _) = upstream.accept().await.unwrap();
    let reading = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut got = Vec::new();
        taken.read_to_end(&mut got).await.map(|_| got.len())
    });
    client.write_all(&vec![7; SENT]).await.unwrap();
    client.flush().await.unwrap();
    drop(client);
    assert_eq!(reading.await.unwrap().unwrap(), SENT);
    // They come with the first that the client is sent.
    fixture.cluster("echo", &[echo().await]).await;
    let proxy = || NetworkFilter::Tcp(Arc::new(fixture.tcp_proxy("echo", Vec::new())));
    let address = fixture.apply(behind_tls(fixture.listener("b", says("")), &tls, proxy)).await;
    let mut client = dial(address, "a.test", ClientSettings::default()).await.unwrap();
    assert!(ping(&mut client).await);
    assert!(client.get_ref().1.tls13_tickets_received() > 0);
    fixture.end().await;
}
