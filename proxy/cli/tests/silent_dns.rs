//! A DNS server that says nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::net::UdpSocket;
use std::time::{Duration, Instant};
use support::traffic::upstream;
use support::{Directory, Process, free_port, get};

/// Start, a change and SIGTERM waited 5 s each for a name that nobody answers for.
#[test]
fn a_silent_name_delays_neither_the_start_nor_changes_nor_the_end() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (directory, port, up) = (Directory::new(), free_port(), upstream());
    let config = directory.write(
        "config.yaml",
        &format!(
            "apisix:\n  node_listen: {port}\n  ssl: {{enable: false}}\n  dns_resolver: [\"{}\"]\n\
             nginx_config: {{http: {{access_log: {}}}}}\n\
             plugin_attr: {{prometheus: {{enable_export_server: false}}}}\n\
             deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n",
            silent.local_addr().unwrap(),
            directory.path("access.log"),
        ),
    );
    let resources = |nth: usize| {
        let route = |name: &str, node: &str| {
            format!("  - {{id: {name}, uri: /{name}, upstream: {{nodes: {{'{node}': 1}}}}}}\n")
        };
        let known = route(&format!("known{nth}"), &format!("127.0.0.1:{up}"));
        format!("routes:\n{known}{}#END\n", route("silent", &format!("silent{nth}.test:80")))
    };
    let write = |nth| {
        let file = directory.write("next.yaml", &resources(nth));
        std::fs::rename(file, directory.path("apisix.yaml")).unwrap();
    };
    write(0);
    let start = Instant::now();
    let mut process = Process::start(&["run", "-c", &config, "--log-level", "error"]);
    for nth in 0..3 {
        let path = format!("/known{nth}");
        process.until("the route", || {
            write(nth);
            get(port, &path).filter(|response| response.status == 200)
        });
    }
    assert_eq!(get(port, "/silent").unwrap().status, 503);
    process.signal("TERM");
    process.wait();
    // It was three times 5 s, and some more.
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
}
