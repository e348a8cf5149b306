//! The real binary, and a client that speaks to it over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code, unreachable_pub)]

pub mod authority;
pub mod echo;
pub mod envoy;
pub mod etcd;
pub mod gateway;
#[path = "../../../core/tests/support/ports.rs"]
mod ports;
pub mod traffic;
pub mod wrk;
pub mod xds;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything here may take.
pub const LIMIT: Duration = Duration::from_secs(20);

/// The binary under test: `SIXFOLD_BINARY` where figures are asked of another build.
pub fn sixfold() -> Command {
    let binary = std::env::var_os("SIXFOLD_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_sixfold").into());
    let mut command = Command::new(binary);
    // A service that runs the tests may have a folder of its own.
    command.env_remove("STATE_DIRECTORY");
    command
}

pub fn output(arguments: &[&str]) -> Output {
    sixfold().args(arguments).output().unwrap()
}

/// A directory of its own for each test, taken away at the end.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Directory {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sixfold-cli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A port that nobody else gets.
pub fn free_port() -> u16 {
    ports::free_port().unwrap()
}

/// A running process; killed when the test ends before it.
pub struct Process(pub Child);

impl Process {
    pub fn start(arguments: &[&str]) -> Process {
        Process(sixfold().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// The same with no more descriptors than that.
    pub fn start_with_descriptors(most: u32, arguments: &[&str]) -> Process {
        let mut command = Command::new("sh");
        let limited = format!("ulimit -n {most}; exec \"$0\" \"$@\"");
        command.args(["-c", &limited, env!("CARGO_BIN_EXE_sixfold")]).args(arguments);
        Process(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    pub fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args([format!("-{name}"), id]).status().unwrap().success());
    }

    /// The exit code, once it has ended.
    pub fn wait(&mut self) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(start.elapsed() < LIMIT, "the process does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything it wrote to standard error, once it has ended.
    pub fn errors(&mut self) -> String {
        let mut text = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Waits until `done` answers something.
    pub fn until<T>(&mut self, what: &str, mut done: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = done() {
                return found;
            }
            if self.0.try_wait().unwrap().is_some() {
                panic!("the process ended before {what}: {}", self.errors());
            }
            assert!(start.elapsed() < LIMIT, "no {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Sends one request on a connection of its own.
pub fn request(port: u16, method: &str, path: &str, headers: &[&str]) -> Option<Response> {
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).ok()?;
    send(&mut stream, method, path, headers);
    read(&mut stream)
}

pub fn get(port: u16, path: &str) -> Option<Response> {
    request(port, "GET", path, &[])
}

pub fn send(stream: &mut TcpStream, method: &str, path: &str, headers: &[&str]) {
    let host = headers.iter().any(|h| h.to_ascii_lowercase().starts_with("host:"));
    let mut text = format!("{method} {path} HTTP/1.1\r\n");
    if !host {
        text.push_str("Host: localhost\r\n");
    }
    headers.iter().for_each(|header| text.push_str(&format!("{header}\r\n")));
    text.push_str("\r\n");
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let _ = stream.write_all(text.as_bytes());
}

/// Reads one answer: with its length, or in chunks.
pub fn read(stream: &mut TcpStream) -> Option<Response> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let split = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        match stream.read(&mut buffer) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
            _ => return None,
        }
    };
    let head = String::from_utf8_lossy(&bytes[..split]).to_ascii_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut body = bytes.split_off(split);
    let mut more = |body: &mut Vec<u8>| match stream.read(&mut buffer) {
        Ok(n) if n > 0 => {
            body.extend_from_slice(&buffer[..n]);
            true
        }
        _ => false,
    };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    if head.contains("transfer-encoding: chunked") {
        while !body.ends_with(b"0\r\n\r\n") && more(&mut body) {}
        body = dechunk(&body);
    } else {
        while body.len() < length.unwrap_or(0) && more(&mut body) {}
    }
    Some(Response { status, head, body: String::from_utf8_lossy(&body).into_owned() })
}

fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        body.extend_from_slice(&rest[at + 2..at + 2 + size]);
        rest = &rest[at + 4 + size..];
    }
    body
}

/// A bootstrap with one listener that answers `body` by itself.
pub fn bootstrap(admin: u16, port: u16, body: &str, log: &Path) -> String {
    let admin_log = log.with_file_name("admin.log").display().to_string();
    let log = log.display();
    format!(
        r#"
node: {{id: node, cluster: c}}
admin:
  address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}
  access_log_path: {admin_log}
static_resources:
  listeners:
  - name: in
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          access_log:
          - name: f
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {log}
              log_format: {{text_format_source: {{inline_string: "%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE%\n"}}}}
          route_config:
            name: r
            virtual_hosts:
            - name: v
              domains: ["*"]
              routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: "{body}"}}}}}}]
          http_filters:
          - name: router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"#
    )
}
