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

/// A namespace beside this one, linked by a pair of interfaces; it ends with this.
struct Neighbour(std::process::Child);

impl Neighbour {
    fn start() -> Neighbour {
        let child = Command::new("unshare").args(["-n", "sleep", "120"]).spawn().unwrap();
        let neighbour = Neighbour(child);
        let id = neighbour.0.id().to_string();
        run("ip link add name near type veth peer name far");
        // It has a namespace of its own once it runs `sleep`.
        let moved = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            let of = |id: &str| std::fs::read_link(format!("/proc/{id}/ns/net")).unwrap();
            of(&id) != of("self")
        });
        assert!(moved);
        run(&format!("ip link set far netns {id}"));
        for command in ["ip address add 10.9.0.1/24 dev near", "ip link set near up"] {
            run(command);
        }
        for command in ["ip link set lo up", "ip address add 10.9.0.2/24 dev far", "ip link set far up"] {
            run(&format!("nsenter -t {id} -n {command}"));
        }
        neighbour
    }

    /// What is answered there to `ping`.
    fn ping(&self, host: &str, port: u16) -> String {
        let script = format!("exec 3<>/dev/tcp/{host}/{port} && printf ping >&3 && timeout 20 cat <&3");
        let id = self.0.id().to_string();
        let output = Command::new("nsenter").args(["-t", &id, "-n", "bash", "-c", &script]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As Istio's TPROXY mode has it: the sidecar takes connections to the application with their addresses as they are, and the
/// application sees the client's.
#[test]
fn an_application_behind_a_transparent_sidecar_sees_its_client() {
    const TEST: &str = "an_application_behind_a_transparent_sidecar_sees_its_client";
    if std::env::var_os(INSIDE).is_none() {
        let can = "command -v nsenter bash && unshare -n sh -c 'ip link add name near type veth peer name far && iptables -w -t mangle -A PREROUTING -p tcp -j TPROXY --on-port 1 --tproxy-mark 1 && iptables -w -t mangle -A PREROUTING -p tcp -m conntrack --ctstate ESTABLISHED -m connmark --mark 1 -j CONNMARK --save-mark'";
        if !Command::new("sh").args(["-c", can]).output().is_ok_and(|output| output.status.success()) {
            return eprintln!("{TEST} is skipped: it takes root, nsenter, veth and iptables with TPROXY");
        }
    }
    if !in_namespace(TEST) {
        return;
    }
    let neighbour = Neighbour::start();
    for (key, value) in
        [("all/rp_filter", "0"), ("lo/rp_filter", "0"), ("near/rp_filter", "0"), ("lo/accept_local", "1")]
    {
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{key}"), value).unwrap();
    }
    let extension = |name: &str, kind: &str, rest: &str| {
        format!(
            "{{name: {name}, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.listener.{kind}{rest}}}}}"
        )
    };
    let http = "[{name: http, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: h, route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: inbound}}]}]}, http_filters: [{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]";
    let inbound = listener(
        "virtualInbound",
        "0.0.0.0",
        15006,
        &format!(
            "transparent: true, listener_filters: [{}, {}], filter_chains: [{{filter_chain_match: {{destination_port: 8080}}, filters: {http}}}, {{filters: {}}}]",
            extension("d", "original_dst.v3.OriginalDst", ""),
            extension("s", "original_src.v3.OriginalSrc", ", mark: 1337"),
            tcp("inbound"),
        ),
    );
    let bootstrap = format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 15000}}}}}}\nstatic_resources:\n  listeners:\n{inbound}{}  clusters:\n  - {{name: inbound, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 5s}}\n",
        listener(
            "early",
            "10.77.0.1",
            15021,
            &format!("freebind: true, filter_chains: [{{filters: {}}}]", says("early"))
        ),
    );
    let directory = Directory::new();
    let file = directory.write("envoy.yaml", &bootstrap);
    let mut process = Process::start(&["-c", &file, "--concurrency", "2", "--use-dynamic-base-id"]);
    process.until("readiness", || support::get(15000, "/ready").filter(|response| response.status == 200));
    application("10.9.0.1:9000");
    let web = TcpListener::bind("10.9.0.1:8080").unwrap();
    std::thread::spawn(move || {
        for stream in web.incoming() {
            let mut stream = stream.unwrap();
            let body = stream.peer_addr().unwrap().ip().to_string();
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    run("ip rule add fwmark 1337 lookup 133");
    run("ip route add local default dev lo table 133");
    for rule in [
        "-N DIVERT",
        "-A DIVERT -j MARK --set-mark 1337",
        "-A DIVERT -j ACCEPT",
        "-A PREROUTING -p tcp -m mark --mark 1337 -j CONNMARK --save-mark",
        "-A PREROUTING -p tcp -m mark --mark 1337 -j RETURN",
        "-A PREROUTING -p tcp -i lo -j RETURN",
        "-A PREROUTING -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j DIVERT",
        "-A PREROUTING -p tcp -j TPROXY --on-port 15006 --tproxy-mark 1337/0xffffffff",
        "-A OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark",
    ] {
        run(&format!("iptables -w -t mangle {rule}"));
    }
    assert_eq!(neighbour.ping("10.9.0.1", 9000), "10.9.0.2 at 10.9.0.1:9000 ping");
    let script = "exec 3<>/dev/tcp/10.9.0.1/8080 && printf 'GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n' >&3 && timeout 20 cat <&3";
    let id = neighbour.0.id().to_string();
    let answer = Command::new("nsenter").args(["-t", &id, "-n", "bash", "-c", script]).output().unwrap();
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(answer.ends_with("\r\n\r\n10.9.0.2"), "{answer}");
    // The address came after its listener.
    run("ip address add 10.77.0.1/32 dev lo");
    assert_eq!(ping_from("10.77.0.1:15021"), "early");
}

/// What is said to whoever connects.
fn ping_from(address: &str) -> String {
    let mut answer = String::new();
    TcpStream::connect(address).unwrap().read_to_string(&mut answer).unwrap();
    answer
}
