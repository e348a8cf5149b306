#![allow(clippy::unwrap_used)]
use super::*;
use sixfold_core::connection::{Certificate, Connection, TlsInfo};
use sixfold_core::flags::Flag;
use sixfold_core::hcm::{
    ClientAddress, CodecType, ConnectionTimeouts, Detection, EdgeHeaders, ForwardClientCert, HttpStats,
    LocalReplyConfig, PathOptions, ProxyStatus, RouterOptions, ServerHttp1, XfccDetails,
};
use sixfold_core::headers::HeaderName;
use sixfold_core::metrics::Registry;
use sixfold_core::router::{RouteTableCell, TableKey, TableOptions};
use std::sync::Arc;
use tokio::time::Instant;

pub(crate) fn hcm(client_address: ClientAddress, headers: EdgeHeaders) -> HttpConnectionManager {
    HttpConnectionManager {
        profile: Profile::Envoy,
        stat_prefix: "t".into(),
        stats: Arc::new(HttpStats::new(&Registry::default(), "http.t.")),
        codec: CodecType::Auto,
        routes: RouteTableCell::new(TableKey::named("t"), None),
        chain: sixfold_core::plugin::Chain::empty(),
        http1: ServerHttp1::default(),
        http2: Default::default(),
        header_rules: sixfold_core::headers::HeaderRules::ENVOY,
        path: PathOptions::default(),
        client_address,
        headers,
        timeouts: ConnectionTimeouts::default(),
        upgrades: Box::default(),
        access_logs: Vec::new(),
        local_reply: LocalReplyConfig::default(),
        router: RouterOptions::default(),
        first_table: None,
        max_requests_per_connection: None,
        buffer_limit: 1 << 20,
        max_body: None,
        show_upstream_status: false,
        charset: Some("utf-8".into()),
        tracing: None,
    }
}

/// A request from 127.0.0.1 on a host whose own address is 192.0.2.1.
fn stream(headers: &[(&str, &str)], tls: Option<TlsInfo>) -> Stream {
    let peer = "127.0.0.1:4000".parse().unwrap();
    let own = "127.0.0.1:9080".parse().unwrap();
    let mut stream = Stream::new(Arc::new(Connection { tls, ..Connection::plain(peer, own) }));
    stream.request.authority = b"Oracle.test:81".to_vec();
    stream.request.target.set(b"/");
    for (name, value) in headers {
        stream.request.headers.push(name.as_bytes(), value.as_bytes());
    }
    stream
}

fn own_headers() -> EdgeHeaders {
    EdgeHeaders { local_address: Some("192.0.2.1".parse().unwrap()), ..EdgeHeaders::default() }
}

/// Headers after the edge, sorted, a made request id as `<uuid>`; and the client's address.
fn run(hcm: &HttpConnectionManager, stream: &mut Stream) -> (Vec<String>, String) {
    assert!(request(hcm, None, stream).is_none());
    let made = |v: &str| v.len() == 36 && v.as_bytes()[14] == b'4';
    let mut lines: Vec<String> = stream
        .request
        .headers
        .iter()
        .map(|(n, v)| {
            let v = String::from_utf8_lossy(v);
            format!("{}: {}", String::from_utf8_lossy(n), if made(&v) { "<uuid>" } else { &v })
        })
        .collect();
    lines.sort();
    (lines, stream.remote.ip().to_string())
}

#[track_caller]
fn check(address: &ClientAddress, sent: &[(&str, &str)], client: &str, want: &[&str]) {
    let hcm = hcm(address.clone(), own_headers());
    let (lines, remote) = run(&hcm, &mut stream(sent, None));
    assert_eq!((lines, remote.as_str()), (want.iter().map(|l| (*l).to_owned()).collect(), client));
}

fn edge() -> ClientAddress {
    ClientAddress { use_remote_address: true, ..ClientAddress::default() }
}

#[test]
fn an_edge_appends_the_peer_and_trusts_nothing() {
    let own = "x-forwarded-for: 192.0.2.1";
    let external = "x-envoy-external-address: 127.0.0.1";
    check(&edge(), &[], "127.0.0.1", &[external, own, "x-forwarded-proto: http", "x-request-id: <uuid>"]);
    let sent = [
        ("x-request-id", "mine"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-proto", "https"),
        ("x-envoy-internal", "true"),
        ("x-envoy-external-address", "9.9.9.9"),
        ("x-envoy-downstream-service-cluster", "c"),
        ("x-envoy-decorator-operation", "op"),
        ("x-envoy-original-path", "/spoof"),
        ("x-envoy-expected-rq-timeout-ms", "1"),
    ];
    let want =
        [external, "x-forwarded-for: 1.2.3.4,192.0.2.1", "x-forwarded-proto: http", "x-request-id: <uuid>"];
    check(&edge(), &sent, "127.0.0.1", &want);
}

/// Any peer of the loopback network was named by the host's own address.
#[test]
fn only_a_peer_at_the_loopback_address_has_the_hosts_own() {
    let hcm = hcm(edge(), own_headers());
    for (peer, told) in [("127.0.0.1", "192.0.2.1"), ("[::1]", "192.0.2.1"), ("127.0.0.200", "127.0.0.200")] {
        let peer = format!("{peer}:4000").parse().unwrap();
        let mut stream = Stream::new(Arc::new(Connection::plain(peer, "127.0.0.1:9080".parse().unwrap())));
        stream.request.target.set(b"/");
        let (lines, _) = run(&hcm, &mut stream);
        assert!(lines.contains(&format!("x-forwarded-for: {told}")), "{lines:?}");
    }
}

#[test]
fn trusted_hops_are_counted_from_the_right() {
    let hops = |n, use_remote_address| ClientAddress {
        trusted_hops: n,
        use_remote_address,
        ..ClientAddress::default()
    };
    let list = "1.1.1.1, 2.2.2.2, 3.3.3.3";
    let want = [
        "x-envoy-external-address: 2.2.2.2",
        "x-forwarded-for: 1.1.1.1, 2.2.2.2, 3.3.3.3,192.0.2.1",
        "x-forwarded-proto: https",
        "x-request-id: <uuid>",
    ];
    check(&hops(2, true), &[("x-forwarded-for", list), ("x-forwarded-proto", "https")], "2.2.2.2", &want);
    let want = [
        "x-envoy-external-address: 127.0.0.1",
        "x-forwarded-for: 3.3.3.3,192.0.2.1",
        "x-forwarded-proto: http",
        "x-request-id: <uuid>",
    ];
    check(&hops(2, true), &[("x-forwarded-for", "3.3.3.3")], "127.0.0.1", &want);
    let inner = |sent: &str, client: &str| {
        let line = format!("x-forwarded-for: {sent}");
        let want = [line.as_str(), "x-forwarded-proto: http", "x-request-id: <uuid>"];
        check(&hops(1, false), &[("x-forwarded-for", sent)], client, &want);
    };
    inner(list, "2.2.2.2");
    inner("3.3.3.3", "127.0.0.1");
    inner("bogus, 3.3.3.3", "127.0.0.1");
}

#[test]
fn the_last_address_is_the_client_if_it_is_one() {
    for (sent, client) in [
        ("1.1.1.1, 2.2.2.2", "2.2.2.2"),
        ("1.1.1.1, bogus", "127.0.0.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("1.1.1.1:80", "127.0.0.1"),
        ("", "127.0.0.1"),
    ] {
        let line = format!("x-forwarded-for: {sent}");
        let want = [line.as_str(), "x-forwarded-proto: http", "x-request-id: <uuid>"];
        check(&ClientAddress::default(), &[("x-forwarded-for", sent)], client, &want);
    }
}

#[test]
fn internal_clients_keep_their_headers() {
    let ranges = ["10.0.0.0/8", "127.0.0.0/8"].map(|n| n.parse().unwrap()).to_vec();
    let options = ClientAddress { internal_ranges: ranges, ..edge() };
    let sent = [("x-envoy-retry-on", "5xx"), ("x-request-id", "mine")];
    let want = [
        "x-envoy-internal: true",
        "x-envoy-retry-on: 5xx",
        "x-forwarded-for: 192.0.2.1",
        "x-forwarded-proto: http",
        "x-request-id: mine",
    ];
    check(&options, &sent, "127.0.0.1", &want);
    let want = [
        "x-envoy-external-address: 127.0.0.1",
        "x-forwarded-for: 1.1.1.1,192.0.2.1",
        "x-forwarded-proto: http",
        "x-request-id: <uuid>",
    ];
    check(&options, &[("x-forwarded-for", "1.1.1.1"), sent[0], sent[1]], "127.0.0.1", &want);
    let mesh = ClientAddress { use_remote_address: false, ..options };
    let mut s = stream(&[("x-forwarded-for", "10.0.0.1")], None);
    run(&hcm(mesh, own_headers()), &mut s);
    assert!(s.internal);
}

#[test]
fn detection_extensions_find_or_refuse_the_client() {
    let by_header = ClientAddress {
        detection: vec![Detection::Header {
            name: HeaderName::from(Known::X_REAL_IP),
            trusted: true,
            reject: Some(403),
        }],
        ..ClientAddress::default()
    };
    let want = ["x-forwarded-proto: http", "x-real-ip: 7.7.7.7", "x-request-id: <uuid>"];
    check(&by_header, &[("x-real-ip", "7.7.7.7")], "7.7.7.7", &want);
    let manager = hcm(by_header, own_headers());
    let reply = request(&manager, None, &mut stream(&[], None)).unwrap();
    assert_eq!((reply.status, &*reply.details), (403, "rejecting_because_detection_failed"));
    assert_eq!(manager.stats.downstream_rq_rejected_via_ip_detection().get(), 1);
    let nets = ["127.0.0.0/8", "2.0.0.0/8"].map(|n| n.parse().unwrap()).to_vec();
    let by_range =
        ClientAddress { detection: vec![Detection::XffTrusted(nets, true)], ..ClientAddress::default() };
    for (sent, client) in [("1.1.1.1, 3.3.3.3, 2.2.2.2", "3.3.3.3"), ("2.1.1.1,2.2.2.2", "2.1.1.1")] {
        let mut s = stream(&[("x-forwarded-for", sent)], None);
        assert_eq!(run(&hcm(by_range.clone(), own_headers()), &mut s).1, client);
    }
}

#[test]
fn ids_ports_agents_and_via_follow_their_options() {
    let with = |change: fn(&mut EdgeHeaders), sent: &[(&str, &str)]| {
        let mut headers = own_headers();
        change(&mut headers);
        run(&hcm(ClientAddress::default(), headers), &mut stream(sent, None)).0
    };
    assert_eq!(with(|h| h.generate_request_id = false, &[]), ["x-forwarded-proto: http"]);
    let port = with(|h| h.append_forwarded_port = true, &[]);
    assert!(port.contains(&"x-forwarded-port: 9080".to_owned()), "{port:?}");
    let port = with(|h| h.append_forwarded_port = true, &[("x-forwarded-port", "99")]);
    assert!(port.contains(&"x-forwarded-port: 99".to_owned()), "{port:?}");
    let agent = with(|h| h.add_user_agent = Some(("c".into(), "n".into())), &[("user-agent", "mine")]);
    for line in
        ["user-agent: mine", "x-envoy-downstream-service-cluster: c", "x-envoy-downstream-service-node: n"]
    {
        assert!(agent.contains(&line.to_owned()), "{agent:?}");
    }
    let via = with(|h| h.via = "six".into(), &[("via", "1.1 a")]);
    assert!(via.contains(&"via: 1.1 a, six".to_owned()), "{via:?}");
}

#[test]
fn hop_by_hop_headers_go() {
    let sent = [
        ("Connection", "keep-alive"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "trailers, deflate"),
        ("Upgrade-Insecure-Requests", "1"),
    ];
    let want =
        ["TE: trailers", "Upgrade-Insecure-Requests: 1", "x-forwarded-proto: http", "x-request-id: <uuid>"];
    check(&ClientAddress::default(), &sent, "127.0.0.1", &want);
    let mut upgrade = stream(&[("Connection", "Upgrade"), ("Upgrade", "websocket")], None);
    run(&hcm(ClientAddress::default(), own_headers()), &mut upgrade);
    assert!(upgrade.request.headers.contains(Known::UPGRADE));
}

#[test]
fn the_scheme_follows_a_forwarded_proto_that_is_one() {
    for (sent, want) in [("https", Scheme::Https), ("bogus", Scheme::Http)] {
        let mut s = stream(&[("x-forwarded-proto", sent)], None);
        run(&hcm(ClientAddress::default(), own_headers()), &mut s);
        assert_eq!(s.request.scheme, want);
    }
}

/// One that is no `http` or `https` was overwritten, though the client in front is trusted.
#[test]
fn a_trusted_forwarded_proto_stays_whatever_it_names() {
    let hops = ClientAddress { trusted_hops: 1, ..edge() };
    for (address, kept) in [(ClientAddress::default(), true), (hops, true), (edge(), false)] {
        for sent in ["http", "https", "wss", "ftp"] {
            let mut s = stream(&[("x-forwarded-proto", sent)], None);
            run(&hcm(address.clone(), own_headers()), &mut s);
            let want = if kept { sent } else { "http" };
            assert_eq!(s.request.headers.get(Known::X_FORWARDED_PROTO), Some(want.as_bytes()), "{kept}");
        }
    }
}

/// A field without a value counted as one that the client had given.
#[test]
fn what_is_made_where_nothing_was_sent_is_made_for_an_empty_field_too() {
    let agent = Some(("c".into(), "".into()));
    let hcm = hcm(ClientAddress::default(), EdgeHeaders { add_user_agent: agent, ..own_headers() });
    let (lines, _) = run(&hcm, &mut stream(&[("x-request-id", ""), ("user-agent", "")], None));
    for line in ["x-request-id: <uuid>", "user-agent: c"] {
        assert!(lines.contains(&line.to_owned()), "{lines:?}");
    }
}

fn mutual() -> TlsInfo {
    let local = Certificate { uri_sans: vec!["spiffe://own".to_owned()], ..Certificate::default() };
    let peer = Certificate {
        subject: "CN=client.test,O=Oracle".to_owned(),
        sha256: "abcd".to_owned(),
        uri_sans: vec!["spiffe://client".to_owned()],
        dns_sans: vec!["client.test".to_owned(), "alt.client.test".to_owned()],
        pem: "-----BEGIN A+/=\n".to_owned(),
        ..Certificate::default()
    };
    TlsInfo { peer: Some(Arc::new(peer)), local: Some(Arc::new(local)), ..TlsInfo::default() }
}

/// Of several URIs the first alone was told.
#[test]
fn every_uri_of_both_certificates_is_forwarded() {
    let uris = |names: &[&str]| -> Vec<String> { names.iter().map(|name| (*name).to_owned()).collect() };
    let local = Certificate { uri_sans: uris(&["own:1", "own:2"]), ..Certificate::default() };
    let forwarded = |names: &[&str]| {
        let peer = Certificate { sha256: "ab".to_owned(), uri_sans: uris(names), ..Certificate::default() };
        let tls = TlsInfo {
            peer: Some(Arc::new(peer)),
            local: Some(Arc::new(local.clone())),
            ..TlsInfo::default()
        };
        let details = XfccDetails { uri: true, ..XfccDetails::default() };
        let headers =
            EdgeHeaders { xfcc: ForwardClientCert::SanitizeSet, xfcc_details: details, ..own_headers() };
        let mut s = stream(&[], Some(tls));
        request(&hcm(ClientAddress::default(), headers), None, &mut s);
        let value = s.request.headers.get(Known::X_FORWARDED_CLIENT_CERT);
        value.map(|v| String::from_utf8_lossy(v).into_owned()).unwrap()
    };
    assert_eq!(forwarded(&["u:1", "u:2", "u:3"]), "By=own:1;By=own:2;Hash=ab;URI=u:1;URI=u:2;URI=u:3");
    assert_eq!(forwarded(&[]), "By=own:1;By=own:2;Hash=ab;URI=");
}

#[test]
fn client_certificates_are_forwarded_as_configured() {
    use ForwardClientCert::{AlwaysForwardOnly, AppendForward, ForwardOnly, Sanitize, SanitizeSet};
    let sent = "By=x;Hash=y";
    let all = XfccDetails { subject: true, cert: true, chain: false, dns: true, uri: true };
    let run = |mode, details, tls| {
        let headers = EdgeHeaders { xfcc: mode, xfcc_details: details, ..own_headers() };
        let mut s = stream(&[("x-forwarded-client-cert", sent)], tls);
        request(&hcm(ClientAddress::default(), headers), None, &mut s);
        let value = s.request.headers.get(Known::X_FORWARDED_CLIENT_CERT);
        value.map(|v| String::from_utf8_lossy(v).into_owned())
    };
    let none = XfccDetails::default();
    let own = "By=spiffe://own;Hash=abcd";
    let full = format!(
        "{own};Cert=\"-----BEGIN%20A%2B%2F%3D%0A\";Subject=\"CN=client.test,O=Oracle\";URI=spiffe://client;\
         DNS=client.test;DNS=alt.client.test"
    );
    assert_eq!(run(SanitizeSet, all, Some(mutual())), Some(full));
    assert_eq!(run(AppendForward, none, Some(mutual())), Some(format!("{sent},{own}")));
    assert_eq!(run(ForwardOnly, none, Some(mutual())), Some(sent.to_owned()));
    assert_eq!(run(Sanitize, none, Some(mutual())), None);
    assert_eq!(run(AlwaysForwardOnly, none, None), Some(sent.to_owned()));
    for mode in [ForwardOnly, AppendForward, SanitizeSet, Sanitize] {
        assert_eq!(run(mode, all, None), None);
        assert_eq!(run(mode, all, Some(TlsInfo::default())), None);
    }
}

#[test]
fn responses_carry_server_id_and_proxy_status() {
    let respond = |headers: EdgeHeaders, upstream: &[(&str, &str)], flag: Option<Flag>| {
        let mut s = stream(&[("x-request-id", "mine")], None);
        s.response.status = if flag.is_some() { 404 } else { 200 };
        if let Some(flag) = flag {
            s.flags.insert(flag);
            s.details = Some("route_not_found".into());
        }
        for (name, value) in upstream {
            s.response.headers.push(name.as_bytes(), value.as_bytes());
        }
        response(&hcm(ClientAddress::default(), headers), Instant::now(), &mut s);
        s
    };
    let app = [("server", "app"), ("connection", "close"), ("keep-alive", "timeout=1")];
    let s = respond(own_headers(), &app, None);
    assert_eq!(s.response.headers.len(), 2);
    assert_eq!(s.response.headers.get(Known::SERVER), Some(&b"envoy"[..]));
    assert!(s.response.headers.get(Known::DATE).is_some_and(|date| date.ends_with(b" GMT")));
    let repeated = [
        ("date", "its own"),
        ("www-authenticate", "Basic"),
        ("vary", "a"),
        ("www-authenticate", "Bearer"),
        ("vary", "b"),
    ];
    let s = respond(own_headers(), &repeated, None);
    assert_eq!(s.response.headers.get_all(Known::WWW_AUTHENTICATE).count(), 2);
    assert_eq!(s.response.headers.get_all(Known::VARY).collect::<Vec<_>>(), [b"a,b"]);
    assert_eq!(s.response.headers.get_all(Known::DATE).collect::<Vec<_>>(), [b"its own"]);
    for (mode, sent, want) in [
        (ServerHeader::AppendIfAbsent, &app[..], Some(&b"app"[..])),
        (ServerHeader::AppendIfAbsent, &[], Some(b"envoy")),
        (ServerHeader::PassThrough, &[], None),
    ] {
        let s = respond(EdgeHeaders { server: mode, ..own_headers() }, sent, None);
        assert_eq!(s.response.headers.get(Known::SERVER), want);
    }
    let s = respond(EdgeHeaders { request_id_in_response: true, ..own_headers() }, &[], None);
    assert_eq!(s.response.headers.get(Known::X_REQUEST_ID), Some(&b"mine"[..]));
    let status = |config: ProxyStatus, flag| {
        let s = respond(EdgeHeaders { proxy_status: Some(config), ..own_headers() }, &[], flag);
        let value =
            s.response.headers.get(Known::PROXY_STATUS).map(|v| String::from_utf8_lossy(v).into_owned());
        (value, s.response.status)
    };
    let config = ProxyStatus { name: "node".into(), ..ProxyStatus::default() };
    let full = "node; error=destination_not_found; details=\"route_not_found; NR\"".to_owned();
    assert_eq!(status(config.clone(), Some(Flag::NR)), (Some(full), 404));
    assert_eq!(status(config.clone(), None), (None, 200));
    let short = ProxyStatus { remove_details: true, set_status: true, ..config };
    assert_eq!(status(short, Some(Flag::NR)), (Some("node; error=destination_not_found".to_owned()), 500));
}

/// The client was told that its request was bad, or had no answer at all.
#[test]
fn a_length_that_is_none_is_left_out() {
    for (lengths, kept) in
        [(&["5"][..], 1), (&["5", "0"], 0), (&["5", "5"], 0), (&["5,0"], 0), (&["abc"], 0), (&[""], 0)]
    {
        for profile in [Profile::Envoy, Profile::Apisix] {
            let mut s = stream(&[], None);
            s.response.status = 200;
            for length in lengths {
                s.response.headers.append("content-length", length.as_bytes());
            }
            let hcm = HttpConnectionManager { profile, ..hcm(ClientAddress::default(), own_headers()) };
            response(&hcm, Instant::now(), &mut s);
            assert_eq!(s.response.headers.get_all(Known::CONTENT_LENGTH).count(), kept, "{lengths:?}");
        }
    }
}

#[test]
fn internal_only_headers_are_taken_off_outside_requests() {
    let options = TableOptions {
        internal_only_headers: vec![HeaderName::new("x-secret").unwrap()],
        ..TableOptions::default()
    };
    let mut s = stream(&[("x-secret", "1")], None);
    request(&hcm(ClientAddress::default(), own_headers()), Some(&options), &mut s);
    assert!(!s.request.headers.contains("x-secret"));
}

fn apisix(client_address: ClientAddress, sent: &[(&str, &str)]) -> Stream {
    let manager =
        HttpConnectionManager { profile: Profile::Apisix, ..hcm(client_address, EdgeHeaders::default()) };
    let mut s = stream(sent, None);
    assert!(request(&manager, None, &mut s).is_none());
    s
}

#[test]
fn apisix_overwrites_what_untrusted_peers_forward() {
    let sent = [
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "spoof"),
        ("X-Forwarded-Port", "1"),
        ("X-Forwarded-For", "1.1.1.1"),
        ("Forwarded", "for=1.1.1.1"),
    ];
    let get = |s: &Stream, name: Known| {
        s.request.headers.get(name).map(|v| String::from_utf8_lossy(v).into_owned()).unwrap_or_default()
    };
    let names = [Known::X_FORWARDED_PROTO, Known::X_FORWARDED_HOST, Known::X_FORWARDED_PORT];
    let s = apisix(ClientAddress::default(), &sent);
    assert_eq!(names.map(|n| get(&s, n)), ["http", "Oracle.test:81", "81"]);
    assert_eq!(
        (get(&s, Known::X_FORWARDED_FOR), get(&s, Known::FORWARDED)),
        ("1.1.1.1".to_owned(), String::new())
    );
    assert_eq!(s.var("original_x_forwarded_host"), Some(&b"spoof"[..]));
    let trusting = |net: &str| ClientAddress {
        trusted_addresses: Some(vec![net.parse().unwrap()]),
        ..ClientAddress::default()
    };
    let s = apisix(trusting("127.0.0.0/8"), &sent);
    assert_eq!(names.map(|n| get(&s, n)), ["https", "spoof", "1"]);
    let s = apisix(trusting("10.0.0.0/8"), &sent);
    assert_eq!(names.map(|n| get(&s, n)), ["http", "Oracle.test:81", "81"]);
    assert!(!s.request.headers.contains(Known::X_FORWARDED_FOR));
}

#[test]
fn apisix_believes_the_real_ip_header_of_trusted_peers() {
    let options = |header: Known, from: &str, recursive| ClientAddress {
        real_ip_header: Some(header.into()),
        real_ip_from: vec![from.parse().unwrap()],
        real_ip_recursive: recursive,
        ..ClientAddress::default()
    };
    let client = |options, sent: (&str, &str)| apisix(options, &[sent]).remote.ip().to_string();
    let local = "127.0.0.0/8";
    assert_eq!(client(options(Known::X_REAL_IP, local, false), ("X-Real-IP", "7.7.7.7")), "7.7.7.7");
    assert_eq!(client(options(Known::X_REAL_IP, "10.0.0.0/8", false), ("X-Real-IP", "7.7.7.7")), "127.0.0.1");
    assert_eq!(client(options(Known::X_REAL_IP, local, false), ("X-Real-IP", "bogus")), "127.0.0.1");
    let list = ("X-Forwarded-For", "7.7.7.7, 8.8.8.8, 127.0.0.2");
    assert_eq!(client(options(Known::X_FORWARDED_FOR, local, false), list), "127.0.0.2");
    assert_eq!(client(options(Known::X_FORWARDED_FOR, local, true), list), "8.8.8.8");
}

#[test]
fn apisix_names_itself_and_the_charset() {
    let headers = EdgeHeaders { server_name: "APISIX/3.18.0".into(), ..EdgeHeaders::default() };
    let manager =
        HttpConnectionManager { profile: Profile::Apisix, ..hcm(ClientAddress::default(), headers) };
    let mut s = stream(&[], None);
    s.response.headers.push(b"Server", b"app");
    s.response.headers.push(b"Content-Type", b"text/plain");
    name_gateway(&manager, &mut s);
    response(&manager, Instant::now(), &mut s);
    assert_eq!(s.response.headers.get(Known::SERVER), Some(&b"APISIX/3.18.0"[..]));
    assert_eq!(s.response.headers.get(Known::CONTENT_TYPE), Some(&b"text/plain; charset=utf-8"[..]));
    assert!(!s.response.headers.contains(Known::X_APISIX_UPSTREAM_STATUS));
    assert!(s.response.headers.contains(Known::DATE), "an answer of our own");
    // `charset off`.
    let mut s = stream(&[], None);
    s.source = ResponseSource::Upstream;
    s.response.headers.push(b"Content-Type", b"text/plain");
    response(&HttpConnectionManager { charset: None, ..manager }, Instant::now(), &mut s);
    assert!(!s.response.headers.contains(Known::DATE), "the upstream said nothing of the time");
    assert_eq!(s.response.headers.get(Known::CONTENT_TYPE), Some(&b"text/plain"[..]));
}
