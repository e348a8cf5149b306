//! Stream routes of the real binary: TCP, TLS and UDP over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use support::{Directory, LIMIT, Process, free_port, get};

/// A gateway with stream routes in a file.
struct Gateway {
    directory: Directory,
    process: Process,
    status: u16,
}

impl Gateway {
    /// `streams` are `apisix.stream_proxy` and what stands beside it, `resources` those of apisix.yaml.
    fn start(streams: &str, resources: &str) -> Gateway {
        let (directory, status) = (Directory::new(), free_port());
        let config = directory.write("config.yaml", &config(streams, status));
        directory.write("apisix.yaml", &format!("{resources}\n#END\n"));
        let process = Process::start(&["run", "-c", &config]);
        let mut gateway = Gateway { directory, process, status };
        gateway.ready();
        gateway
    }

    fn ready(&mut self) {
        let status = self.status;
        self.process.until("readiness", || get(status, "/status/ready").filter(|r| r.status == 200));
    }

    fn change(&self, resources: &str) {
        self.directory.write("apisix.yaml", &format!("{resources}\n#END\n"));
    }
}

fn config(streams: &str, status: u16) -> String {
    format!(
        "deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n\
         apisix:\n  proxy_mode: stream\n  enable_control: false\n  status: {{ip: 127.0.0.1, port: {status}}}\n\
         {streams}plugin_attr: {{prometheus: {{export_addr: {{ip: 127.0.0.1, port: {}}}}}}}\n",
        free_port()
    )
}

/// An upstream that says who it is, and then whatever it hears.
fn echo(name: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            std::thread::spawn(move || {
                let _ = socket.write_all(name.as_bytes());
                let mut other = socket.try_clone().unwrap();
                let _ = std::io::copy(&mut socket, &mut other);
                let _ = other.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    port
}

/// An upstream that answers each datagram with its name before it.
fn echo_udp(name: &'static str) -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        loop {
            let (n, from) = socket.recv_from(&mut buffer).unwrap();
            let answer = [name.as_bytes(), &buffer[..n]].concat();
            // One that is too long is lost.
            let _ = socket.send_to(&answer, from);
        }
    });
    port
}

fn connect(port: u16) -> TcpStream {
    let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

/// So many bytes of what a connection says.
fn hears(socket: &mut TcpStream, bytes: usize) -> String {
    let mut heard = vec![0; bytes];
    socket.read_exact(&mut heard).unwrap();
    String::from_utf8(heard).unwrap()
}

/// What a connection says first; nothing if it is closed.
fn greeting(port: u16) -> String {
    let mut socket = connect(port);
    let _ = socket.write_all(b"x");
    let mut first = [0; 1];
    match socket.read(&mut first) {
        Ok(1) => String::from_utf8_lossy(&first).into_owned(),
        _ => String::new(),
    }
}

fn upstream(port: u16) -> String {
    format!("upstream: {{nodes: {{'127.0.0.1:{port}': 1}}}}")
}

#[test]
fn routes_change_and_open_connections_stay() {
    let (one, two, first, second) = (free_port(), free_port(), echo("a"), echo("b"));
    let streams = format!("  stream_proxy: {{tcp: ['127.0.0.1:{one}', '127.0.0.1:{two}']}}\n");
    let routes = |at_one: u16| {
        format!(
            "stream_routes:\n  - {{id: 1, server_port: {one}, {}}}\n  - {{id: 2, remote_addr: 127.0.0.0/8, \
             server_port: {two}, upstream_id: u}}\nupstreams:\n  - {{id: u, nodes: {{'127.0.0.1:{second}': 1}}}}",
            upstream(at_one)
        )
    };
    let mut gateway = Gateway::start(&streams, &routes(first));
    assert_eq!((greeting(one).as_str(), greeting(two).as_str()), ("a", "b"));
    let mut open = connect(one);
    open.write_all(b"ping").unwrap();
    assert_eq!(hears(&mut open, 5), "aping");
    gateway.change(&routes(second));
    gateway.process.until("the other route", || (greeting(one) == "b").then_some(()));
    open.write_all(b"still").unwrap();
    assert_eq!(hears(&mut open, 5), "still", "a change of routes ends no connection");
    // One side's end is the other's, and what was said before it comes through.
    open.write_all(b"end").unwrap();
    open.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = String::new();
    open.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "end");
    // An upstream that changes is another one at once; one without a route closes the connection.
    gateway.change(&routes(first).replace(&format!("127.0.0.1:{second}"), &format!("127.0.0.1:{first}")));
    gateway.process.until("the other upstream", || (greeting(two) == "a").then_some(()));
    gateway.change("stream_routes: []");
    gateway.process.until("no route", || greeting(one).is_empty().then_some(()));
    gateway.process.signal("TERM");
    assert_eq!(gateway.process.wait(), 0);
}

#[test]
fn dead_nodes_are_passed_over_and_services_lend_upstreams_and_plugins() {
    let (port, alive) = (free_port(), echo("a"));
    let streams = format!("  stream_proxy: {{tcp: ['127.0.0.1:{port}']}}\n");
    let nodes = format!(
        "[{{host: 127.0.0.1, port: {}, weight: 1, priority: 1}}, {{host: localhost, port: {alive}, weight: 1}}]",
        free_port()
    );
    let service = |plugins: &str| {
        format!(
            "services:\n  - {{id: s, plugins: {{{plugins}}}, upstream: {{nodes: {nodes}}}}}\n\
             stream_routes:\n  - {{id: 1, service_id: s}}"
        )
    };
    let mut gateway = Gateway::start(&streams, &service(""));
    gateway.process.until("the name", || (greeting(port) == "a").then_some(()));
    gateway.change(&service("ip-restriction: {blacklist: [127.0.0.1]}, cors: {}"));
    gateway.process.until("the plugin", || greeting(port).is_empty().then_some(()));
    // The route's own takes the place of the service's.
    let own = service("ip-restriction: {blacklist: [127.0.0.1]}")
        .replace("service_id: s", "service_id: s, plugins: {ip-restriction: {whitelist: [127.0.0.1]}}");
    gateway.change(&own);
    gateway.process.until("the route's plugin", || (greeting(port) == "a").then_some(()));
    gateway.change(&service("").replace("nodes: [", "retries: 0, nodes: ["));
    gateway.process.until("no retries", || greeting(port).is_empty().then_some(()));
}

#[test]
fn tls_ends_here_and_goes_on_from_here() {
    let (plain, secure, alive, named) = (free_port(), free_port(), echo("a"), echo("n"));
    let streams = format!(
        "  stream_proxy: {{tcp: ['127.0.0.1:{plain}', {{addr: '127.0.0.1:{secure}', tls: true}}]}}\n"
    );
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let issue = |name: &str| {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    let ((cert, key), (client_cert, client_key)) = (issue("apisix_backend"), issue("client"));
    // The gateway is its own client: what comes in by plain TCP goes on by TLS.
    let resources = |ca: Option<&str>, shows: bool, sni: &str| {
        let client = ca.map(|ca| format!(", client: {{ca: {ca:?}, depth: 1}}")).unwrap_or_default();
        let shown = if shows {
            format!(", tls: {{client_cert: {client_cert:?}, client_key: {client_key:?}}}")
        } else {
            String::new()
        };
        format!(
            "ssls:\n  - {{id: 1, sni: apisix_backend, cert: {cert:?}, key: {key:?}{client}}}\nstream_routes:\n  \
             - {{id: in, server_port: {plain}, upstream: {{scheme: tls, nodes: {{'127.0.0.1:{secure}': 1}}{shown}}}}}\n  \
             - {{id: named, sni: {sni}, {}}}\n  - {{id: any, {}}}",
            upstream(named),
            upstream(alive),
        )
    };
    let mut gateway = Gateway::start(
        &streams,
        &resources(None, false, "'apisix_*'").replace("'apisix_*'", "apisix_backend"),
    );
    assert_eq!(greeting(plain), "n", "the route for the name that was asked for");
    gateway.change(&resources(None, false, "other.test"));
    gateway.process.until("the route without a name", || (greeting(plain) == "a").then_some(()));
    gateway.change(&resources(Some(&ca), false, "other.test"));
    gateway.process.until("clients without a certificate", || greeting(plain).is_empty().then_some(()));
    gateway.change(&resources(Some(&ca), true, "other.test"));
    gateway.process.until("clients with a certificate", || (greeting(plain) == "a").then_some(()));
    // Plain text on a port for TLS is closed.
    assert_eq!(greeting(secure), "");
}

#[test]
fn the_proxy_protocol_is_read_and_written() {
    let (outer, inner, seen) = (free_port(), free_port(), TcpListener::bind("127.0.0.1:0").unwrap());
    let streams = format!(
        "  proxy_protocol: {{enable_tcp_pp_to_upstream: true}}\n  stream_proxy:\n    tcp:\n      - '127.0.0.1:{outer}'\n      \
         - {{addr: '127.0.0.1:{inner}', proxy_protocol: true, proxy_protocol_to_upstream: false}}\n"
    );
    let to = seen.local_addr().unwrap().port();
    let routes = format!(
        "stream_routes:\n  - {{id: out, server_port: {outer}, {}}}\n  - {{id: in, server_port: {inner}, {}}}",
        upstream(to),
        upstream(to),
    );
    let _gateway = Gateway::start(&streams, &routes);
    let mut client = connect(outer);
    client.write_all(b"hello").unwrap();
    let mut received = seen.accept().unwrap().0;
    let own = client.local_addr().unwrap().port();
    let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {own} {outer}\r\nhello");
    assert_eq!(hears(&mut received, expected.len()), expected);
    let mut client = connect(inner);
    client.write_all(b"PROXY TCP4 10.1.2.3 10.0.0.1 1000 2000\r\nhello").unwrap();
    let mut received = seen.accept().unwrap().0;
    assert_eq!(hears(&mut received, 5), "hello");
    // Without it nobody gets in.
    assert_eq!(greeting(inner), "");
}

#[test]
fn datagrams_go_to_one_node_and_answers_come_back_from_where_they_were_asked() {
    let (port, any) = (free_port(), free_port());
    let nodes = [echo_udp("a"), echo_udp("b")];
    let streams = format!("  stream_proxy: {{udp: ['127.0.0.1:{port}', {any}]}}\n");
    let routes = |ports: &[u16], more: &str| {
        let nodes: Vec<String> = ports.iter().map(|port| format!("'127.0.0.1:{port}': 1")).collect();
        format!(
            "stream_routes:\n  - {{id: 1, upstream: {{scheme: udp{more}, nodes: {{{}}}}}}}",
            nodes.join(", ")
        )
    };
    let mut gateway = Gateway::start(&streams, &routes(&nodes, ""));
    let client = |from: &str, to: (&str, u16)| {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        // Only answers from there are let in.
        socket.connect(to).unwrap();
        socket
    };
    let ask = |socket: &UdpSocket, text: &[u8]| {
        socket.send(text).unwrap();
        let mut answer = vec![0; 65_536];
        let n = socket.recv(&mut answer).unwrap();
        answer.truncate(n);
        answer
    };
    let mut names = std::collections::BTreeSet::new();
    let clients: Vec<UdpSocket> = (0..4).map(|_| client("127.0.0.1", ("127.0.0.1", port))).collect();
    for socket in &clients {
        let first = ask(socket, b"ping");
        for _ in 0..3 {
            assert_eq!(ask(socket, b"ping"), first, "a client stays with its node");
        }
        names.insert(first);
    }
    assert_eq!(names.len(), 2, "clients are spread");
    // To an address of many the answer comes from the one that was asked.
    assert!(ask(&client("127.0.0.1", ("127.0.0.9", any)), b"ping").ends_with(b"ping"));
    // Longer than a packet of most networks.
    let long = vec![b'x'; 9000];
    assert_eq!(ask(&clients[0], &long).len(), 9001);
    // Sessions outlive a change of the route; new ones see it.
    let kept = ask(&clients[0], b"?");
    gateway.change(&routes(&[echo_udp("c")], ""));
    gateway.process.until("the other upstream", || {
        (ask(&client("127.0.0.1", ("127.0.0.1", port)), b"?") == b"c?").then_some(())
    });
    assert_eq!(ask(&clients[0], b"?"), kept);
    // What is silent for as long as the upstream says ends, and begins anew.
    let short = routes(&[echo_udp("d")], ", timeout: {connect: 1, send: 2, read: 2}");
    gateway.change(&short);
    let timed = client("127.0.0.1", ("127.0.0.1", port));
    gateway.process.until("the timeout", || {
        (ask(&client("127.0.0.1", ("127.0.0.1", port)), b"?") == b"d?").then_some(())
    });
    assert_eq!(ask(&timed, b"?"), b"d?");
    gateway.change(&routes(&[echo_udp("e")], ""));
    gateway.process.until("the end of the session", || {
        (ask(&timed, b"?") == b"e?").then_some(()).or_else(|| {
            std::thread::sleep(Duration::from_secs(3));
            None
        })
    });
}

#[test]
fn plugins_of_streams_let_in_limit_and_count() {
    let (port, page, alive) = (free_port(), free_port(), echo("a"));
    let (directory, status) = (Directory::new(), free_port());
    let streams = format!(
        "  stream_proxy: {{tcp: ['127.0.0.1:{port}']}}\nstream_plugins: [ip-restriction, limit-conn, prometheus, traffic-split]\n"
    );
    let config = config(&streams, status);
    let addr = config.rfind("port: ").unwrap();
    let config = format!("{}port: {page}}}}}}}\n", &config[..addr]);
    let config = directory.write("config.yaml", &config);
    let routes = |plugins: &str| {
        format!(
            "stream_routes:\n  - {{id: 1, name: one, plugins: {{prometheus: {{}}, {plugins}}}, {}}}\n#END\n",
            upstream(alive)
        )
    };
    directory.write(
        "apisix.yaml",
        &routes("limit-conn: {conn: 1, burst: 0, default_conn_delay: 0.1, key: remote_addr}"),
    );
    let mut process = Process::start(&["run", "-c", &config]);
    process.until("readiness", || get(status, "/status/ready").filter(|r| r.status == 200));
    let mut first = connect(port);
    first.write_all(b"x").unwrap();
    assert_eq!(hears(&mut first, 2), "ax");
    assert_eq!(greeting(port), "", "one is enough");
    let metrics = || get(page, "/apisix/prometheus/metrics").unwrap().body;
    let active = format!("apisix_stream_active_connections{{listen_addr=\"127.0.0.1:{port}\"}} 1\n");
    assert!(metrics().contains(&active), "{}", metrics());
    drop(first);
    process.until("its end", || (greeting(port) == "a").then_some(()));
    let node = format!("listen_addr=\"127.0.0.1:{port}\",node=\"127.0.0.1:{alive}\"");
    process.until("the figures", || {
        let page = metrics();
        let all = [
            "apisix_stream_connection_total{route=\"1\"} ".to_owned(),
            format!("apisix_stream_status{{code=\"503\",listen_addr=\"127.0.0.1:{port}\",node=\"\"}} "),
            format!("apisix_stream_status{{code=\"200\",{node}}} "),
            format!("apisix_stream_bandwidth{{listen_addr=\"127.0.0.1:{port}\",type=\"egress\",side=\"downstream\"}} "),
            format!("apisix_stream_active_connections{{listen_addr=\"127.0.0.1:{port}\"}} 0\n"),
        ];
        all.iter().all(|line| page.contains(line)).then_some(())
    });
    // Half of them go elsewhere.
    let split = format!(
        "traffic-split: {{rules: [{{weighted_upstreams: [{{weight: 1}}, {{weight: 1, upstream: {{nodes: {{'127.0.0.1:{}': 1}}}}}}]}}]}}",
        echo("b")
    );
    directory.write("apisix.yaml", &routes(&split));
    process.until("the other upstream", || (greeting(port) == "b").then_some(()));
    // Each worker takes turns of its own, and the kernel says which has how many of them.
    let told: String = (0..64).map(|_| greeting(port)).collect();
    assert!(told.matches('a').count().min(told.matches('b').count()) >= 16, "{told}");
}

#[test]
fn streams_are_logged_and_who_is_believed_says_who_the_client_is() {
    let (port, udp, alive) = (free_port(), free_port(), echo("a"));
    let (directory, status) = (Directory::new(), free_port());
    let log = directory.path("streams.log");
    let streams = format!(
        "  stream_proxy:\n    tcp: [{{addr: '127.0.0.1:{port}', proxy_protocol: true}}]\n    udp: ['127.0.0.1:{udp}']\n\
         nginx_config:\n  stream:\n    enable_access_log: true\n    access_log: {log}\n    \
         access_log_format: '$remote_addr $proxy_protocol_addr $protocol $status $bytes_sent $bytes_received $route_id $upstream_addr'\n    \
         real_ip_from: [127.0.0.1]\n"
    );
    let config = directory.write("config.yaml", &config(&streams, status));
    let routes = format!(
        "stream_routes:\n  - {{id: far, remote_addr: 10.0.0.0/8, {}}}\n  - {{id: near, upstream: {{scheme: udp, nodes: \
         {{'127.0.0.1:{}': 1}}, timeout: {{connect: 1, send: 2, read: 2}}}}}}\n#END\n",
        upstream(alive),
        echo_udp("u"),
    );
    directory.write("apisix.yaml", &routes);
    let mut process = Process::start(&["run", "-c", &config]);
    process.until("readiness", || get(status, "/status/ready").filter(|r| r.status == 200));
    let mut client = connect(port);
    client.write_all(b"PROXY TCP4 10.1.2.3 10.0.0.1 1000 2000\r\nhello").unwrap();
    assert_eq!(hears(&mut client, 6), "ahello");
    drop(client);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(("127.0.0.1", udp)).unwrap();
    socket.send(b"ping").unwrap();
    let text = process.until("the log", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        (text.lines().count() == 2).then_some(text)
    });
    assert!(text.contains(&format!("10.1.2.3 10.1.2.3 TCP 200 6 5 far 127.0.0.1:{alive}\n")), "{text}");
    assert!(text.contains("127.0.0.1 - UDP 200 5 4 near 127.0.0.1:"), "{text}");
}

/// A gateway of UDP whose sessions last, with a node that answers late, and what the node hears.
fn udp_gateway(
    late: Duration,
    start: impl FnOnce(&[&str]) -> Process,
) -> (Gateway, u16, u16, Receiver<usize>) {
    let (hears, heard) = channel();
    let node = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = node.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        loop {
            let (n, from) = node.recv_from(&mut buffer).unwrap();
            let _ = hears.send(n);
            std::thread::sleep(late);
            let _ = node.send_to(&buffer[..n], from);
        }
    });
    let (udp, tcp, directory, status) = (free_port(), free_port(), Directory::new(), free_port());
    let streams = format!("  stream_proxy: {{udp: ['127.0.0.1:{udp}'], tcp: ['127.0.0.1:{tcp}']}}\n");
    let config = directory.write("config.yaml", &config(&streams, status));
    let routes = format!(
        "stream_routes:\n  - {{id: u, server_port: {udp}, upstream: {{scheme: udp, nodes: {{'127.0.0.1:{to}': 1}}}}}}\n  \
         - {{id: t, server_port: {tcp}, {}}}\n#END\n",
        upstream(echo("a"))
    );
    directory.write("apisix.yaml", &routes);
    let process = start(&["run", "-c", &config]);
    let mut gateway = Gateway { directory, process, status };
    gateway.ready();
    (gateway, udp, tcp, heard)
}

fn asking(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.send_to(b"ping", ("127.0.0.1", port)).unwrap();
    socket
}

#[test]
fn answers_on_their_way_are_waited_for_at_the_end_and_no_more() {
    let (mut gateway, udp, _, heard) = udp_gateway(Duration::from_millis(500), Process::start);
    let asked = asking(udp);
    assert_eq!(heard.recv_timeout(LIMIT), Ok(4));
    gateway.process.signal("TERM");
    assert_eq!(asked.recv(&mut [0; 64]).unwrap(), 4);
    assert_eq!(gateway.process.wait(), 0);
    // Sessions that were answered keep nobody.
    let (mut gateway, udp, _, _heard) = udp_gateway(Duration::ZERO, Process::start);
    assert_eq!(asking(udp).recv(&mut [0; 64]).unwrap(), 4);
    let told = std::time::Instant::now();
    gateway.process.signal("TERM");
    assert_eq!(gateway.process.wait(), 0);
    assert!(told.elapsed() < LIMIT / 2, "{:?}", told.elapsed());
}

#[test]
fn sessions_of_udp_leave_descriptors_for_the_rest() {
    let start = |arguments: &[&str]| Process::start_with_descriptors(256, arguments);
    let (mut gateway, udp, tcp, _heard) = udp_gateway(Duration::ZERO, start);
    for _ in 0..400 {
        assert_eq!(asking(udp).recv(&mut [0; 64]).unwrap(), 4);
    }
    assert_eq!(greeting(tcp), "a");
    gateway.process.signal("TERM");
    assert_eq!(gateway.process.wait(), 0);
}

#[test]
fn what_streams_can_not_have_is_refused_by_name() {
    let (directory, port) = (Directory::new(), free_port());
    let streams = format!("  stream_proxy: {{tcp: ['127.0.0.1:{port}']}}\n");
    let config = directory.write("config.yaml", &config(&streams, free_port()));
    let resources = "stream_routes:\n  - {id: 1, protocol: {name: redis}, upstream: {nodes: {'127.0.0.1:1': 1}}}\n  \
                     - {id: 2, remote_addr: ':/8', upstream_id: none}\n  - {id: 3, plugins: {mqtt-proxy: {protocol_level: 4}}}\n  \
                     - {id: 4, plugins: {cors: {}}}\n  - {id: 5, plugins: {ip-restriction: {}}}\n#END\n";
    directory.write("apisix.yaml", resources);
    let output = support::output(&["validate", "-c", &config]);
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    for said in [
        "unknown protocol [redis]; protocols over streams (xRPC) are not part of the gateway",
        "invalid remote_addr: :/8",
        "there is no upstream \"none\"",
        "unknown plugin [mqtt-proxy]; not supported yet in streams",
        "unknown plugin [cors]; it does not work on streams",
        "failed to check the configuration of stream plugin [ip-restriction]: value should match only one schema",
    ] {
        assert!(text.contains(said), "{said} is not in {text}");
    }
}
