//! SIGUSR2: a new process takes the place of a running one, and nobody who is served notices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::envoy::{bootstrap_of, cluster, listener};
use support::gateway::{Ports, call, route};
use support::traffic::{Traffic, exchange, open_websocket, upstream};
use support::{Directory, LIMIT, free_port, get, read, send};

/// A process that is started by a link to the binary, which another one may be put in the place of.
struct Running {
    directory: Directory,
    /// Of all processes, the one that serves last.
    ids: Vec<u32>,
}

impl Running {
    fn start(directory: Directory, arguments: &[&str], environment: &[(&str, &str)]) -> Running {
        let mut running = Running { directory, ids: Vec::new() };
        running.install();
        let log = File::create(running.directory.path("process.log")).unwrap();
        let mut command = Command::new(running.directory.path("sixfold"));
        command.args(arguments).args(["--pid-file", &running.directory.path("pid")]);
        command.current_dir(&running.directory.0).envs(environment.iter().copied());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let id = child.id();
        // So that it is gone when it has ended.
        std::thread::spawn(move || child.wait());
        running.ids.push(id);
        running.until("the first process", |running| running.serving() == Some(id));
        running
    }

    /// Puts the binary in its place.
    fn install(&self) {
        self.replace(|path| symlink(env!("CARGO_BIN_EXE_sixfold"), path).unwrap());
    }

    fn replace(&self, make: impl FnOnce(&str)) {
        let path = self.directory.path("sixfold");
        let _ = std::fs::remove_file(&path);
        make(&path);
    }

    /// Puts a script in its place.
    fn install_script(&self, text: &str, mode: u32) {
        self.replace(|path| {
            std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        });
    }

    fn serving(&self) -> Option<u32> {
        std::fs::read_to_string(self.directory.path("pid")).ok()?.trim().parse().ok()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path("process.log")).unwrap()
    }

    fn signal(&self, name: &str) {
        signal(*self.ids.last().unwrap(), name);
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Running) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < LIMIT, "no {what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Has a new process take over; waits until it has.
    fn upgrade(&mut self) {
        let before = *self.ids.last().unwrap();
        self.signal("USR2");
        self.until("new process", |running| running.serving().is_some_and(|id| id != before));
        self.ids.push(self.serving().unwrap());
    }

    fn is_alive(id: u32) -> bool {
        // One that nobody has waited for has ended all the same.
        std::fs::read_to_string(format!("/proc/{id}/stat"))
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for id in self.serving().into_iter().chain(self.ids.clone()).filter(|id| Running::is_alive(*id)) {
            signal(id, "KILL");
        }
    }
}

fn signal(id: u32, name: &str) {
    let _ = Command::new("kill").args([format!("-{name}"), id.to_string()]).stderr(Stdio::null()).status();
}

/// A gateway with routes to an upstream, one of them for WebSockets.
fn gateway(ports: Ports, workers: usize, upstream: u16) -> (String, String) {
    let config = ports.config("role: data_plane\n  role_data_plane: {config_provider: yaml}").replace(
        "worker_processes: 2",
        &format!("worker_shutdown_timeout: 60s, worker_processes: {workers}"),
    );
    let resources = format!(
        "routes:\n- {{id: a, uri: /*, enable_websocket: true, upstream: {{type: roundrobin, nodes: \
         {{\"127.0.0.1:{upstream}\": 1}}}}}}\n#END\n"
    );
    (config, resources)
}

#[test]
fn three_upgrades_in_a_row_lose_nothing() {
    let (directory, ports, upstream) = (Directory::new(), Ports::free(), upstream());
    let (config, resources) = gateway(ports, 4, upstream);
    let file = directory.write("config.yaml", &config);
    directory.write("apisix.yaml", &resources);
    let mut running = Running::start(directory, &["run", "-c", &file, "--log-level", "info"], &[]);
    let mut traffic = Traffic::new();
    for nth in 0..10 {
        traffic.http1(ports.http, "/fast", Duration::from_millis(nth));
    }
    traffic.http1(ports.http, "/slow", Duration::ZERO);
    // More connections than requests: each comes alone.
    let (stop, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut websockets = Traffic::new();
    (0..50).for_each(|_| websockets.websocket(ports.http, "/ws"));
    std::thread::scope(|scope| {
        let single = || {
            while !stop.load(SeqCst) {
                let answer = get(ports.http, "/single").expect("an answer on a connection of its own");
                assert_eq!(answer.status, 200);
                // The probe of whoever looks at the gateway never fails.
                assert_eq!(get(ports.status, "/status/ready").expect("a status").status, 200);
                opened.fetch_add(1, SeqCst);
            }
        };
        let singles: Vec<_> = (0..4).map(|_| scope.spawn(single)).collect();
        for workers in [1, 4, 2] {
            std::thread::sleep(Duration::from_millis(500));
            let config = gateway(ports, workers, upstream).0;
            running.directory.write("config.yaml", &config);
            running.upgrade();
        }
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, SeqCst);
        singles.into_iter().for_each(|single| single.join().unwrap());
    });
    let tally = traffic.stop();
    assert_eq!(tally.failed, [""; 0], "{}", running.log());
    assert!(Running::is_alive(running.ids[0]), "its WebSockets are open");
    let messages = websockets.stop();
    assert_eq!(messages.failed, [""; 0]);
    println!(
        "{} requests, {} connections for one, {} messages",
        tally.done,
        opened.load(SeqCst),
        messages.done
    );
    assert!(tally.done > 500 && opened.load(SeqCst) > 100 && messages.done > 500);
    let replaced = running.ids[..3].to_owned();
    for id in replaced {
        running.until("end of the old ones", |_| !Running::is_alive(id));
    }
    // The last one ends as the first would have.
    let last = *running.ids.last().unwrap();
    running.signal("TERM");
    running.until("end", |_| !Running::is_alive(last));
    assert_eq!(running.serving(), None, "its file is gone with it");
}

/// Whoever had connected to the old process was told by it that the gateway was ending.
#[test]
fn who_asks_the_process_that_is_replaced_hears_that_the_gateway_is_ready() {
    let (directory, ports, upstream) = (Directory::new(), Ports::free(), upstream());
    let (config, resources) = gateway(ports, 2, upstream);
    let file = directory.write("config.yaml", &config);
    directory.write("apisix.yaml", &resources);
    let mut running = Running::start(directory, &["run", "-c", &file], &[]);
    let mut websocket = open_websocket(ports.http, "/ws").unwrap();
    let asks = |stream: &mut TcpStream| {
        send(stream, "GET", "/status/ready", &[]);
        read(stream)
    };
    let mut probes: Vec<_> =
        (0..8).map(|_| TcpStream::connect(("127.0.0.1", ports.status)).unwrap()).collect();
    for probe in &mut probes {
        assert_eq!(asks(probe).unwrap().status, 200);
    }
    running.upgrade();
    // It has each for as long as another request may be on its way.
    let answers: Vec<_> = probes.iter_mut().filter_map(asks).map(|answer| answer.status).collect();
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    exchange(&mut websocket, "still here").unwrap();
}

#[test]
fn a_new_process_that_fails_leaves_the_old_one_serving() {
    let (directory, ports, upstream) = (Directory::new(), Ports::free(), upstream());
    let (config, resources) = gateway(ports, 2, upstream);
    let file = directory.write("config.yaml", &config);
    directory.write("apisix.yaml", &resources);
    let options = ["run", "-c", &file, "--upgrade-timeout-s", "1"];
    let mut running = Running::start(directory, &options, &[]);
    let mut websocket = open_websocket(ports.http, "/ws").unwrap();
    let mut traffic = Traffic::new();
    (0..4).for_each(|nth| traffic.http1(ports.http, "/fast", Duration::from_millis(nth)));
    let mut told = 0;
    let mut fails = |running: &mut Running, reason: &str| {
        running.signal("USR2");
        told += 1;
        running.until(reason, |running| {
            running.log().matches("no new process takes over, this one goes on").count() == told
        });
        let log = running.log();
        assert!(log.lines().last().is_some_and(|line| line.contains(reason)), "{log}");
        exchange(&mut websocket, "still here").unwrap();
        assert_eq!(get(ports.http, "/a").unwrap().status, 200);
    };
    running.replace(|_| {});
    fails(&mut running, "No such file or directory");
    running.install_script("exit 0", 0o644);
    fails(&mut running, "Permission denied");
    running.install_script("exit 3", 0o755);
    fails(&mut running, "exit status: 3");
    running.install_script("kill -SEGV $$", 0o755);
    fails(&mut running, "signal: 11");
    running.install_script("exec sleep 60", 0o755);
    fails(&mut running, "it was not ready within 1 s");
    running.install();
    running.directory.write("config.yaml", &config.replace("worker_processes: 2", "worker_processes: some"));
    fails(&mut running, "worker_processes");
    assert_eq!(running.serving(), Some(running.ids[0]));
    running.directory.write("config.yaml", &config);
    running.upgrade();
    let tally = traffic.stop();
    assert_eq!(tally.failed, [""; 0]);
    assert_eq!(get(ports.http, "/a").unwrap().status, 200);
}

/// The store is one process's at a time. What was answered is there afterwards, and nothing is refused meanwhile.
#[test]
fn no_write_that_was_answered_is_lost() {
    let (directory, ports) = (Directory::new(), Ports::free());
    let config = ports.config("role: traditional\n  role_traditional: {config_provider: embedded}");
    let file = directory.write("config.yaml", &config);
    let mut running = Running::start(directory, &["run", "-c", &file], &[]);
    let key = std::fs::read_to_string(running.directory.path("data/admin-key")).unwrap().trim().to_owned();
    let (stop, next) = (AtomicBool::new(false), AtomicUsize::new(0));
    let written = std::thread::scope(|scope| {
        let write = || {
            let mut written = Vec::new();
            while !stop.load(SeqCst) {
                let id = next.fetch_add(1, SeqCst);
                let target = format!("/apisix/admin/routes/{id}");
                let body = route(&format!("/r{id}"), "x");
                let answer = call(ports.admin, &key, "PUT", &target, &body).expect("an answer");
                assert_eq!(answer.status, 201, "{answer:?}");
                written.push(id);
            }
            written
        };
        let writers: Vec<_> = (0..4).map(|_| scope.spawn(write)).collect();
        std::thread::sleep(Duration::from_millis(300));
        running.upgrade();
        std::thread::sleep(Duration::from_millis(300));
        // One that fails gives the store back.
        running.directory.write("config.yaml", &format!("{config}no_such: [\n"));
        running.signal("USR2");
        running.until("failure", |running| running.log().contains("this one goes on"));
        running.directory.write("config.yaml", &config);
        std::thread::sleep(Duration::from_millis(300));
        running.upgrade();
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, SeqCst);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect::<Vec<_>>()
    });
    println!("{} writes", written.len());
    assert!(written.len() > 20);
    for id in &written {
        let answer = call(ports.admin, &key, "GET", &format!("/apisix/admin/routes/{id}"), "").unwrap();
        assert_eq!(answer.status, 200, "route {id} is lost");
    }
    let last = written.iter().max().unwrap();
    running
        .until("the last route", |_| get(ports.http, &format!("/r{last}")).is_some_and(|a| a.status == 200));
}

/// A store that was lent to a process which did not become ready is written again by the old one.
#[test]
fn a_store_that_comes_back_is_written_again() {
    let (directory, ports) = (Directory::new(), Ports::free());
    let config = ports.config("role: traditional\n  role_traditional: {config_provider: embedded}");
    let file = directory.write("config.yaml", &config);
    let options = ["run", "-c", &file, "--upgrade-timeout-s", "2"];
    let mut running = Running::start(directory, &options, &[]);
    let key = std::fs::read_to_string(running.directory.path("data/admin-key")).unwrap().trim().to_owned();
    let put = |id: &str| {
        let body = route(&format!("/{id}"), id);
        call(ports.admin, &key, "PUT", &format!("/apisix/admin/routes/{id}"), &body).unwrap().status
    };
    assert_eq!(put("before"), 201);
    // It gets as far as its Admin API, whose certificate is not there.
    let broken = config.replace("admin_listen:", "https_admin: true, admin_api_mtls: {admin_ssl_cert: /none, admin_ssl_cert_key: /none}, admin_listen:");
    running.directory.write("config.yaml", &broken);
    running.signal("USR2");
    running.until("failure", |running| running.log().contains("this one goes on"));
    assert!(
        running.log().contains("this one goes on: ") && running.log().contains("admin_api_mtls"),
        "{}",
        running.log()
    );
    assert_eq!(put("after"), 201);
    running.until("the route", |_| get(ports.http, "/after").is_some_and(|answer| answer.body == "after"));
    running.directory.write("config.yaml", &config);
    running.upgrade();
    for path in ["/before", "/after"] {
        running.until(path, |_| get(ports.http, path).is_some_and(|answer| answer.status == 200));
    }
}

#[test]
fn a_bootstrap_is_taken_over_as_well_and_systemd_is_told() {
    let (directory, admin, port) = (Directory::new(), free_port(), free_port());
    let socket = directory.path("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(LIMIT)).unwrap();
    let told = || {
        let mut text = [0; 256];
        let length = manager.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    let resources = [
        listener("in", port, "{match: {prefix: /}, route: {cluster: up, timeout: 0s}}"),
        cluster("up", upstream()),
    ];
    let file = directory.write("envoy.yaml", &bootstrap_of(admin, &resources));
    let options = ["envoy", "-c", &file, "--concurrency", "2", "--drain-time-s", "20"];
    let mut running = Running::start(directory, &options, &[("NOTIFY_SOCKET", &socket)]);
    assert_eq!(told(), "READY=1");
    let mut traffic = Traffic::new();
    (0..4).for_each(|nth| traffic.http1(port, "/fast", Duration::from_millis(nth)));
    traffic.http2(port, "/fast", 8);
    let mut websocket = open_websocket(port, "/ws").unwrap();
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(200));
        running.upgrade();
        assert_eq!(told(), format!("MAINPID={}\nREADY=1", running.ids.last().unwrap()));
        // Of the new one, which need not say so.
        assert_eq!(told(), "READY=1");
        assert_eq!(get(admin, "/ready").unwrap().status, 200);
    }
    assert_eq!(traffic.stop().failed, [""; 0]);
    exchange(&mut websocket, "still here").unwrap();
    assert!(Running::is_alive(running.ids[0]));
    // Who has handed over and is told to end goes on draining; asked again, it ends at once.
    signal(running.ids[0], "TERM");
    std::thread::sleep(Duration::from_millis(100));
    exchange(&mut websocket, "still here").unwrap();
    signal(running.ids[0], "TERM");
    let first = running.ids[0];
    running.until("end of the first", |_| !Running::is_alive(first));
    assert_eq!(get(port, "/a").unwrap().status, 200);
}

#[test]
fn who_is_told_to_end_before_the_new_one_is_ready_ends_both() {
    let (directory, ports, upstream) = (Directory::new(), Ports::free(), upstream());
    let (config, resources) = gateway(ports, 1, upstream);
    let file = directory.write("config.yaml", &config);
    directory.write("apisix.yaml", &resources);
    let mut running = Running::start(directory, &["run", "-c", &file], &[]);
    running.install_script("echo $$ > child; exec sleep 60", 0o755);
    running.signal("USR2");
    let child = |running: &Running| {
        std::fs::read_to_string(running.directory.path("child")).ok()?.trim().parse::<u32>().ok()
    };
    running.until("new process", |running| child(running).is_some());
    let (first, new) = (running.ids[0], child(&running).unwrap());
    // Asked once more, it starts no second one.
    running.signal("USR2");
    running.until("word of it", |running| running.log().contains("nothing is done"));
    running.signal("TERM");
    running.until("end", |_| !Running::is_alive(first) && !Running::is_alive(new));
    assert!(!running.log().contains("this one goes on"), "{}", running.log());
}

/// Processes that run with this file.
fn running_with(file: &str) -> Vec<u32> {
    let ids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let has_file = |id: &u32| {
        let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(file) && Running::is_alive(*id)
    };
    ids.filter(has_file).collect()
}

/// Between letting go and being told of that, the old process drained with its surfaces open: they took what was the new
/// one's. At any moment both end, or the new one serves.
#[test]
fn whenever_the_old_one_is_told_to_end_both_do_or_the_new_one_serves() {
    let mut outlived = 0;
    for nth in 0..16_u64 {
        let (directory, ports, upstream) = (Directory::new(), Ports::free(), upstream());
        let (config, resources) = gateway(ports, 1, upstream);
        let file = directory.write("config.yaml", &config);
        directory.write("apisix.yaml", &resources);
        let mut running = Running::start(directory, &["run", "-c", &file, "--log-level", "info"], &[]);
        let first = running.ids[0];
        running.signal("USR2");
        match nth % 4 {
            // As near to that moment as can be.
            0 => running.until("new process", |running| running.log().contains("a new process serves")),
            _ => std::thread::sleep(Duration::from_millis(nth * 10)),
        }
        running.signal("TERM");
        running.until("end of the old one", |_| !Running::is_alive(first));
        let left = running_with(&file);
        assert!(left.len() < 2, "{left:?}");
        let Some(new) = left.first() else { continue };
        running.ids.push(*new);
        outlived += 1;
        // It would have been answered by the old one that it ends.
        assert_eq!(get(ports.status, "/status/ready").expect("a status").status, 200, "{}", running.log());
        assert_eq!(get(ports.http, "/a").expect("an answer").status, 200);
        running.until("its id in the file", |running| running.serving() == Some(*new));
    }
    println!("{outlived} of 16 outlived the old process");
    assert!(outlived >= 4);
}
