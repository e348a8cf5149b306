//! Access logs that the gateway rotates by itself, as APISIX's plugin log-rotate does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;
use support::gateway::{Ports, start};
use support::{Directory, Process, get};

struct Running {
    process: Process,
    directory: Directory,
    port: u16,
}

impl Running {
    fn start(attributes: &str) -> Running {
        let (directory, ports) = (Directory::new(), Ports::free());
        let config = ports
            .config("role: data_plane\n  role_data_plane: {config_provider: yaml}")
            .replace("enable_access_log: false", "access_log: logs/access.log")
            .replace(
                "plugin_attr: {",
                &format!("plugins: [log-rotate, mocking]\nplugin_attr: {{{attributes}, "),
            );
        directory.write("config.yaml", &config);
        let route = "{id: a, uri: /*, plugins: {mocking: {response_example: x}}}";
        directory.write("apisix.yaml", &format!("routes: [{route}]\n#END\n"));
        let mut process = start(&directory);
        process.until("the gateway", || get(ports.http, "/first"));
        Running { process, directory, port: ports.http }
    }

    /// Names of old files, the oldest first.
    fn old(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path("logs")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != "access.log").collect();
        names.sort();
        names
    }

    fn lines(&self) -> usize {
        let names = self.old().into_iter().chain(["access.log".to_owned()]);
        let read = |name: String| std::fs::read_to_string(self.directory.path("logs") + "/" + &name);
        names.map(|name| read(name).unwrap().lines().count()).sum()
    }

    fn ask(&self, times: usize) {
        for _ in 0..times {
            assert_eq!(get(self.port, "/asked").unwrap().status, 200);
        }
    }
}

#[test]
fn a_log_of_a_size_is_rotated_and_no_line_is_lost() {
    let mut running = Running::start("log-rotate: {max_size: 1000}");
    let start = std::time::Instant::now();
    for round in 1..=3 {
        running.ask(50);
        while running.old().len() < round {
            assert!(start.elapsed() < support::LIMIT, "{:?}", running.old());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let old = running.old();
    assert!(old.iter().all(|name| is_named(name)), "{old:?}");
    running.process.signal("TERM");
    assert_eq!(running.process.wait(), 0);
    // The one of the start may have been asked more than once.
    assert!(running.lines() >= 151, "{}", running.lines());
    // It is not a plugin of routes, and said to be missing all the same.
    let log = running.process.errors();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

/// `2026-11-30_15-00-00__access.log`
fn is_named(name: &str) -> bool {
    let time = name.strip_suffix("__access.log").unwrap_or_default();
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "0000-00-00_00-00-00"
}

#[test]
fn so_many_old_files_are_kept_and_compressed() {
    let running = Running::start("log-rotate: {interval: 2, max_kept: 2, enable_compression: true}");
    let start = std::time::Instant::now();
    let mut most = 0;
    let compressed = |name: &String| name.ends_with("__access.log.tar.gz");
    while running.old().iter().filter(|name| compressed(name)).count() < 2
        || start.elapsed() < Duration::from_secs(8)
    {
        assert!(start.elapsed() < support::LIMIT, "{:?}", running.old());
        running.ask(1);
        most = most.max(running.old().iter().filter(|name| compressed(name)).count());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(most <= 3, "{most}");
    let newest = running.old().into_iter().rfind(compressed).unwrap();
    let listed = std::process::Command::new("tar")
        .arg("-tzf")
        .arg(running.directory.path("logs") + "/" + &newest)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(listed.stdout).unwrap().trim(), newest.trim_end_matches(".tar.gz"));
}
