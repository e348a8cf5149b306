//! A sidecar's listeners behind real redirection rules, in a network namespace of its own: each test runs itself
//! again under `unshare -n`. That takes root, iproute2 and iptables; without them a test says so and passes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;
use support::{Directory, Process};

/// Set in the namespace.
const INSIDE: &str = "SIXFOLD_TEST_NAMESPACE";
/// Where the application that is the client stands, in both families; the rules go by it.
const CLIENT: [&str; 2] = ["127.0.0.50", "fd00::50"];

/// Whether this is the namespace: outside of one the test is run again in one.
fn in_namespace(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        for command in [
            "ip link set lo up",
            "ip -6 address add fd00::50/128 dev lo nodad",
            "ip -6 address add fd00::1/128 dev lo nodad",
        ] {
            run(command);
        }
        return true;
    }
    let can = "command -v ip iptables ip6tables && unshare -n iptables -w -t nat -L && unshare -n ip6tables -w -t nat -L";
    if !Command::new("sh").args(["-c", can]).output().is_ok_and(|output| output.status.success()) {
        eprintln!(
            "{test} is skipped: it takes root, unshare, iproute2 and iptables with NAT of both families"
        );
        return false;
    }
    let this = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["-n", this.to_str().unwrap(), "--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An application that tells who connects and to where, and then what it was sent.
fn application(address: &str) {
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (peer, own) = (stream.peer_addr().unwrap().ip(), stream.local_addr().unwrap());
            let _ = write!(stream, "{peer} at {own} ");
            let mut said = [0; 4];
            if stream.read_exact(&mut said).is_ok() {
                let _ = stream.write_all(&said);
            }
        }
    });
}

/// What is answered to `ping`, from the client's address.
fn ping(address: &str) -> String {
    let address: SocketAddr = address.parse().unwrap();
    let own: IpAddr = CLIENT[usize::from(address.is_ipv6())].parse().unwrap();
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(own, 0).into()).unwrap();
    if socket.connect(&address.into()).is_err() {
        return "refused".to_owned();
    }
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = String::new();
    // Whoever closes at once may reset even this.
    let _ = stream.write_all(b"ping");
    match stream.read_to_string(&mut answer) {
        Ok(_) => answer,
        Err(error) => format!("{answer}{:?}", error.kind()),
    }
}

fn tcp(cluster: &str) -> String {
    format!(
        "[{{name: tcp, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: {cluster}}}}}]"
    )
}

fn says(text: &str) -> String {
    format!(
        "[{{name: says, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config, response: {{inline_string: {text}}}}}}}]"
    )
}

fn listener(name: &str, address: &str, port: u16, rest: &str) -> String {
    format!(
        "  - {{name: {name}, address: {{socket_address: {{address: '{address}', port_value: {port}}}}}, {rest}}}\n"
    )
}

/// The two listeners that a sidecar opens, and those of services, which own no socket.
fn sidecar() -> String {
    let original_dst = "{name: o, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}}";
    let inspector = "{name: t, filter_disabled: {not_match: {destination_port_range: {start: 8443, end: 8444}}}, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}";
    let mut listeners = String::new();
    for (address, name) in [("127.0.0.1", "four"), ("::1", "six")] {
        listeners += &listener(
            &format!("outbound-{name}"),
            address,
            15001,
            &format!(
                "use_original_dst: true, max_connections_to_accept_per_socket_event: 1, filter_chains: [{{filter_chain_match: {{destination_port: 15001}}, filters: {}}}, {{filters: {}}}]",
                tcp("blackhole"),
                tcp("passthrough")
            ),
        );
    }
    let unbound = |text: &str| format!("bind_to_port: false, filter_chains: [{{filters: {}}}]", says(text));
    listeners += &listener("port", "0.0.0.0", 80, &unbound("any-of-80"));
    listeners += &listener("port-six", "::", 80, &unbound("any-of-80-six"));
    listeners += &listener("service", "127.240.0.2", 80, &unbound("service"));
    listeners += &listener(
        "inbound",
        "127.0.0.1",
        15006,
        &format!(
            "listener_filters_timeout: 0s, listener_filters: [{original_dst}, {inspector}], filter_chains: [{{filter_chain_match: {{destination_port: 15006}}, filters: {}}}, {{filter_chain_match: {{destination_port: 8080}}, filters: {}}}, {{filters: {}}}]",
            tcp("blackhole"),
            tcp("inbound"),
            says("inbound-passthrough"),
        ),
    );
    let original = |name: &str, rest: &str| {
        format!(
            "  - {{name: {name}, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 5s{rest}}}\n"
        )
    };
    format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 15000}}}}}}\nstatic_resources:\n  listeners:\n{listeners}  clusters:\n  - {{name: blackhole, type: STATIC}}\n{}{}",
        original("passthrough", ""),
        original("inbound", ", upstream_bind_config: {source_address: {address: 127.0.0.6, port_value: 0}}"),
    )
}

fn redirect(from: &str, to: &str, port: u16) {
    let (program, target) = match to.contains(':') {
        true => ("ip6tables", format!("[{to}]:{port}")),
        false => ("iptables", format!("{to}:{port}")),
    };
    run(&format!("{program} -w -t nat -A OUTPUT -p tcp {from} -j DNAT --to-destination {target}"));
}

#[test]
fn redirected_connections_reach_the_listener_of_their_destination_and_go_on_where_they_were_going() {
    if !in_namespace(
        "redirected_connections_reach_the_listener_of_their_destination_and_go_on_where_they_were_going",
    ) {
        return;
    }
    let directory = Directory::new();
    let file = directory.write("envoy.yaml", &sidecar());
    let mut process = Process::start(&["-c", &file, "--concurrency", "2", "--use-dynamic-base-id"]);
    process.until("readiness", || support::get(15000, "/ready").filter(|response| response.status == 200));
    for address in
        ["127.240.0.3:9000", "127.240.0.3:80", "[fd00::1]:9000", "127.0.0.60:8080", "127.0.0.60:8443"]
    {
        application(address);
    }
    redirect("-d 127.0.0.60 -s 127.0.0.50", "127.0.0.1", 15006);
    redirect("-s 127.0.0.50 ! -d 127.0.0.1", "127.0.0.1", 15001);
    redirect("-s fd00::50 ! -d ::1", "::1", 15001);

    // The listener of address and port, else that of the port, else the one that took the connection.
    assert_eq!(ping("127.240.0.2:80"), "service");
    assert_eq!(ping("127.240.0.3:80"), "any-of-80");
    assert_eq!(ping("[fd00::1]:80"), "any-of-80-six");
    assert_eq!(ping("127.240.0.3:9000"), "127.0.0.1 at 127.240.0.3:9000 ping");
    assert_eq!(ping("[fd00::1]:9000"), "fd00::1 at [fd00::1]:9000 ping");
    // Inbound, the application sees the address that no rule redirects.
    assert_eq!(ping("127.0.0.60:8080"), "127.0.0.6 at 127.0.0.60:8080 ping");
    // Four bytes are too few for the inspector, which looks at one port alone.
    assert_eq!(ping("127.0.0.60:7000"), "inbound-passthrough");
    // Who connects to a sidecar's own port goes nowhere, least of all round in circles.
    for own in ["127.0.0.1:15001", "[::1]:15001", "127.0.0.1:15006"] {
        let answer = ping(own);
        assert!(["", "ConnectionReset"].contains(&answer.as_str()), "{own}: {answer}");
    }
    let clusters = support::get(15000, "/clusters").unwrap().body;
    process.until("the destination among the endpoints", || {
        let clusters = support::get(15000, "/clusters")?.body;
        clusters.contains("passthrough::127.240.0.3:9000::cx_total::1").then_some(())
    });
    assert!(!clusters.contains("blackhole::127"), "{clusters}");
}
