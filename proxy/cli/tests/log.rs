//! The process's own log: it stops nothing, and clients do not fill it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::time::Instant;
use support::{Directory, LIMIT, Process, free_port, get, sixfold};

/// A gateway with a route whose plugin fails with every request, and a line of the log says so.
fn files(directory: &Directory, port: u16, status: u16) -> String {
    directory.write(
        "apisix.yaml",
        "routes:\n  - {id: a, uri: /fails, plugins: {forward-auth: {uri: 'http://127.0.0.1:1/'}}, \
         upstream: {nodes: {'127.0.0.1:1': 1}}}\n#END\n",
    );
    directory.write(
        "config.yaml",
        &format!(
            "deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n\
             apisix:\n  node_listen: [{{ip: 127.0.0.1, port: {port}}}]\n  ssl: {{enable: false}}\n  \
             status: {{ip: 127.0.0.1, port: {status}}}\nnginx_config:\n  worker_processes: 1\n  \
             http: {{enable_access_log: false}}\n"
        ),
    )
}

/// Workers wrote their lines to standard error themselves and waited for whoever reads it.
#[test]
fn a_log_that_nobody_reads_stops_no_worker() {
    const PIPE: usize = 64 << 10;
    let (directory, port, status) = (Directory::new(), free_port(), free_port());
    let config = files(&directory, port, status);
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    // Full from the first line on.
    writer.write_all(&vec![b'\n'; PIPE]).unwrap();
    let child = sixfold().args(["run", "-c", &config]).stdout(Stdio::null()).stderr(writer).spawn().unwrap();
    let mut process = Process(child);
    let start = Instant::now();
    while get(status, "/status/ready").is_none_or(|ready| ready.status != 200) {
        assert!(start.elapsed() < LIMIT && process.0.try_wait().unwrap().is_none(), "it does not start");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for _ in 0..50 {
        assert_eq!(get(port, "/fails").unwrap().status, 403);
    }
    process.signal("TERM");
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(process.wait(), 0);
    assert!(text.contains("serving") && text.contains("failed to process forward auth"), "{}", text.trim());
}

/// One line a request, for as long as a client went on.
#[test]
fn a_client_does_not_fill_the_log() {
    let (directory, port, status) = (Directory::new(), free_port(), free_port());
    let config = files(&directory, port, status);
    let mut process = Process::start(&["run", "-c", &config]);
    process.until("readiness", || get(status, "/status/ready").filter(|r| r.status == 200));
    let start = Instant::now();
    for _ in 0..300 {
        assert_eq!(get(port, "/fails").unwrap().status, 403);
    }
    let seconds = start.elapsed().as_secs() as usize;
    process.signal("INT");
    let lines: Vec<String> =
        BufReader::new(process.0.stderr.take().unwrap()).lines().map_while(Result::ok).collect();
    assert_eq!(process.wait(), 0);
    let failures = lines.iter().filter(|line| line.contains("failed to process forward auth")).count();
    assert!((1..=10 * (seconds + 2)).contains(&failures), "{failures} lines in {seconds} s");
    if failures < 300 {
        let told: usize = lines
            .iter()
            .filter(|line| line.contains("were left out") && line.contains("forward_auth"))
            .filter_map(|line| line.rsplit_once("lines=")?.1.trim().parse::<usize>().ok())
            .sum();
        assert_eq!(failures + told, 300, "{lines:?}");
    }
}
