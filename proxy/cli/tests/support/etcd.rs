//! A real etcd (Debian's package etcd-server) of a test's own, and somebody else who writes to it.

use super::{Directory, LIMIT, Process, free_port, read};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

pub struct Etcd {
    process: Option<Process>,
    pub port: u16,
    peer: u16,
    folder: Directory,
    arguments: Vec<String>,
    tls: bool,
}

impl Etcd {
    pub fn start() -> Etcd {
        Etcd::with(&[])
    }

    /// With these options beside those of every test.
    pub fn with(arguments: &[&str]) -> Etcd {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let tls = arguments.iter().any(|argument| argument.starts_with("--cert-file"));
        let (port, peer) = (free_port(), free_port());
        let mut etcd = Etcd { process: None, port, peer, folder: Directory::new(), arguments, tls };
        etcd.start_again();
        etcd
    }

    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.tls { "https" } else { "http" }, self.port)
    }

    /// Starts it with what it has.
    pub fn start_again(&mut self) {
        let (url, peer) = (self.url(), format!("http://127.0.0.1:{}", self.peer));
        let mut command = Command::new("etcd");
        command.args(["--name", "n", "--data-dir", &self.folder.path("data")]);
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("n={peer}"), "--logger", "zap", "--log-level", "error"]);
        command.args(&self.arguments).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().expect("etcd is needed: Debian's package etcd-server");
        let mut process = Process(child);
        let port = self.port;
        process.until("etcd", || TcpStream::connect(("127.0.0.1", port)).ok());
        if !self.tls {
            // It listens before it has elected itself.
            let read = json!({ "key": STANDARD.encode("x") });
            process.until("a leader", || try_call(port, "kv/range", &read).filter(|a| a["error"].is_null()));
        }
        self.process = Some(process);
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process = None;
    }

    pub fn signal(&self, name: &str) {
        self.process.as_ref().unwrap().signal(name);
    }

    /// Calls its gateway of JSON.
    pub fn call(&self, path: &str, body: &Value) -> Value {
        let answer = try_call(self.port, path, body).expect("etcd answers");
        assert!(answer["error"].is_null(), "{path}: {answer}");
        answer
    }

    /// Puts a value as anybody else might; answers the revision.
    pub fn put(&self, key: &str, value: &str) -> u64 {
        let body = json!({ "key": STANDARD.encode(key), "value": STANDARD.encode(value) });
        self.call("kv/put", &body)["header"]["revision"].as_str().unwrap().parse().unwrap()
    }

    pub fn delete(&self, key: &str) {
        self.call("kv/deleterange", &json!({ "key": STANDARD.encode(key) }));
    }

    pub fn get(&self, key: &str) -> Option<String> {
        let answer = self.call("kv/range", &json!({ "key": STANDARD.encode(key) }));
        let value = answer["kvs"][0]["value"].as_str()?;
        Some(String::from_utf8(STANDARD.decode(value).unwrap()).unwrap())
    }

    pub fn compact(&self, revision: u64) {
        self.call("kv/compaction", &json!({ "revision": revision }));
    }
}

fn try_call(port: u16, path: &str, body: &Value) -> Option<Value> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let body = body.to_string();
    let head = format!(
        "POST /v3/{path} HTTP/1.1\r\nHost: etcd\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    serde_json::from_str(&read(&mut stream)?.body).ok()
}

/// A way to a port that can be cut and mended.
pub struct Relay {
    pub port: u16,
    open: Arc<AtomicBool>,
}

impl Relay {
    pub fn to(port: u16) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay =
            Relay { port: listener.local_addr().unwrap().port(), open: Arc::new(AtomicBool::new(true)) };
        let open = relay.open.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if open.load(SeqCst)
                    && let Ok(other) = TcpStream::connect(("127.0.0.1", port))
                {
                    pump(stream.try_clone().unwrap(), other.try_clone().unwrap(), open.clone());
                    pump(other, stream, open.clone());
                }
            }
        });
        relay
    }

    pub fn set_open(&self, open: bool) {
        self.open.store(open, SeqCst);
        // Connections look at it this often.
        std::thread::sleep(Duration::from_millis(60));
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, open: Arc<AtomicBool>) {
    from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        while open.load(SeqCst) {
            match std::io::Read::read(&mut from, &mut buffer) {
                Ok(0) => break,
                Ok(n) if to.write_all(&buffer[..n]).is_err() => break,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => break,
                _ => {}
            }
        }
        let _ = from.shutdown(std::net::Shutdown::Both);
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
}

/// Waits until `done` is true.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "no {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
