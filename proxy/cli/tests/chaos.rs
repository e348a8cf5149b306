//! Requests go on whatever the control plane does: `sixfold xds serve` with its faults, and the binary that follows it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use support::traffic::{Traffic, upstream};
use support::{Directory, LIMIT, Process, free_port, get, sixfold, xds};

const TYPES: &str = "type.googleapis.com/envoy";

/// `sixfold xds serve` on a unix socket.
struct Plane {
    child: Child,
    lines: BufReader<ChildStdout>,
    log: Receiver<String>,
}

impl Drop for Plane {
    /// As a crash would.
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Plane {
    fn start(directory: &Directory) -> Plane {
        let listen = format!("unix:{}", directory.path("XDS"));
        let folder = directory.path("world");
        let mut child = sixfold()
            .args(["xds", "serve", &folder, "--faults", "--listen", &listen])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let (errors, (sender, log)) = (BufReader::new(child.stderr.take().unwrap()), channel());
        std::thread::spawn(move || {
            errors.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut plane = Plane { child, lines, log };
        assert_eq!(plane.line(), format!("listening on {listen}"));
        plane
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Gives an order; it is taken when this has ended.
    fn order(&mut self, order: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{order}").unwrap();
        assert_eq!(self.line(), order);
    }

    /// Waits for a line of its log.
    fn logged(&self, what: &str) -> String {
        loop {
            let line = self.log.recv_timeout(LIMIT).expect(what);
            if line.contains(what) {
                return line;
            }
        }
    }
}

/// All there is: each world has a cluster of its own, which goes with the next.
fn world(number: usize, port: u16, upstream: u16, timeout: &str) -> String {
    let extensions = format!("{TYPES}.extensions.filters");
    format!(
        r#"
- "@type": {TYPES}.config.cluster.v3.Cluster
  name: c{number}
  type: EDS
  eds_cluster_config: {{eds_config: {{ads: {{}}, initial_fetch_timeout: 0s}}}}
- "@type": {TYPES}.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: c{number}
  endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}}}]}}]
- "@type": {TYPES}.config.listener.v3.Listener
  name: l
  address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
  filter_chains:
  - filters:
    - name: hcm
      typed_config:
        "@type": {extensions}.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: l
        rds: {{route_config_name: r, config_source: {{ads: {{}}, initial_fetch_timeout: 0s}}}}
        http_filters: [{{name: router, typed_config: {{"@type": {extensions}.http.router.v3.Router}}}}]
- "@type": {TYPES}.config.route.v3.RouteConfiguration
  name: r
  response_headers_to_add: [{{header: {{key: x-world, value: "{number}"}}}}]
  virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: c{number}, timeout: {timeout}}}}}]}}]
"#
    )
}

struct Scene {
    directory: Directory,
    admin: u16,
    port: u16,
    upstream: u16,
    worlds: usize,
}

impl Scene {
    fn new() -> Scene {
        let directory = Directory::new();
        std::fs::create_dir(directory.0.join("world")).unwrap();
        let mut scene =
            Scene { directory, admin: free_port(), port: free_port(), upstream: upstream(), worlds: 0 };
        scene.turn("15s");
        scene
    }

    /// The next world comes; at once, so that none is read in part.
    fn turn(&mut self, timeout: &str) {
        self.worlds += 1;
        let text = world(self.worlds, self.port, self.upstream, timeout);
        let fresh = self.directory.write("next", &text);
        std::fs::rename(fresh, self.directory.0.join("world/all.yaml")).unwrap();
    }

    fn proxy(&self, api_type: &str) -> Process {
        let text = xds::bootstrap(self.admin, &self.directory.path("XDS"), api_type, "", "");
        let file = self.directory.write("envoy.yaml", &text);
        let mut proxy = Process::start(&["-c", &file, "--concurrency", "2", "--log-level", "off"]);
        proxy.until("readiness", || get(self.admin, "/ready").filter(|answer| answer.status == 200));
        proxy
    }

    /// Waits until the last world is the one that answers.
    fn arrived(&self, proxy: &mut Process) {
        let header = format!("x-world: {}", self.worlds);
        proxy.until(&header, || get(self.port, "/").filter(|answer| answer.head.contains(&header)));
    }
}

fn no_request_fails(api_type: &str) {
    let mut scene = Scene::new();
    let mut plane = Plane::start(&scene.directory);
    let mut proxy = scene.proxy(api_type);
    let mut traffic = Traffic::new();
    traffic.http1(scene.port, "/", Duration::from_millis(1));
    traffic.http2(scene.port, "/", 2);
    for orders in [
        &[][..],
        &["cut"],
        &["garbage"],
        &["flood 50"],
        &["cut", "garbage", "flood 20", "cut"],
        &["delay 100"],
        &["cut", "delay 0"],
    ] {
        orders.iter().for_each(|order| plane.order(order));
        scene.turn("15s");
        scene.arrived(&mut proxy);
    }
    // What comes while nothing is heard comes later.
    plane.order("hang");
    scene.turn("15s");
    std::thread::sleep(Duration::from_millis(500));
    plane.order("resume");
    scene.arrived(&mut proxy);
    plane.order("refuse");
    plane.order("cut");
    scene.turn("15s");
    std::thread::sleep(Duration::from_millis(500));
    plane.order("accept");
    scene.arrived(&mut proxy);
    // It crashes, and another that knows another world comes in its place.
    drop(plane);
    scene.turn("15s");
    std::thread::sleep(Duration::from_millis(500));
    let _plane = Plane::start(&scene.directory);
    scene.arrived(&mut proxy);
    let tally = traffic.stop();
    assert_eq!(tally.failed, [""; 0]);
    assert!(tally.done > 100, "{}", tally.done);
}

#[test]
fn no_request_fails_whatever_the_control_plane_does() {
    no_request_fails("DELTA_GRPC");
}

#[test]
fn no_request_fails_whatever_a_control_plane_of_the_state_of_the_world_does() {
    no_request_fails("GRPC");
}

#[test]
fn what_is_refused_is_told_where_the_control_plane_runs() {
    let mut scene = Scene::new();
    let plane = Plane::start(&scene.directory);
    let mut proxy = scene.proxy("DELTA_GRPC");
    scene.arrived(&mut proxy);
    scene.turn("-1s");
    let line = plane.logged("refused");
    assert!(line.contains("route configuration") && line.contains("timeout: must"), "{line}");
    let before = format!("x-world: {}", scene.worlds - 1);
    assert!(get(scene.port, "/").unwrap().head.contains(&before));
}
