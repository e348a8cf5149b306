//! A real etcd (Debian's package etcd-server) of a test's own, and somebody else who writes to it.

use super::{Directory, LIMIT, Process, free_port, read};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

pub struct Etcd {
    process: Option<Process>,
    pub port: u16,
    /// Where it is asked by the test: without TLS.
    plain: u16,
    peer: u16,
    folder: Directory,
    arguments: Vec<String>,
    tls: bool,
    name: String,
    /// All members of its cluster, as it wants them told.
    members: String,
    /// Of who asks, where that matters.
    token: Option<String>,
}

impl Etcd {
    pub fn start() -> Etcd {
        Etcd::with(&[])
    }

    /// With these options beside those of every test.
    pub fn with(arguments: &[&str]) -> Etcd {
        let mut etcd = Etcd::member("n", arguments);
        etcd.members = etcd.as_member();
        etcd.start_again();
        etcd
    }

    fn member(name: &str, arguments: &[&str]) -> Etcd {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let tls = arguments.iter().any(|argument| argument.starts_with("--cert-file"));
        let port = free_port();
        Etcd {
            process: None,
            port,
            plain: if tls { free_port() } else { port },
            peer: free_port(),
            folder: Directory::new(),
            arguments,
            tls,
            name: name.to_owned(),
            members: String::new(),
            token: None,
        }
    }

    fn as_member(&self) -> String {
        format!("{}=http://127.0.0.1:{}", self.name, self.peer)
    }

    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.tls { "https" } else { "http" }, self.port)
    }

    /// Starts it with what it has, and waits until it answers.
    pub fn start_again(&mut self) {
        self.spawn();
        self.wait();
    }

    fn spawn(&mut self) {
        let (url, peer) = (self.url(), format!("http://127.0.0.1:{}", self.peer));
        let mut command = Command::new("etcd");
        let listened = match self.tls {
            true => format!("{url},http://127.0.0.1:{}", self.plain),
            false => url.clone(),
        };
        command.args(["--name", &self.name, "--data-dir", &self.folder.path("data")]);
        command.args(["--listen-client-urls", &listened, "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &self.members, "--logger", "zap", "--log-level", "error"]);
        command.args(&self.arguments).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().expect("etcd is needed: Debian's package etcd-server");
        self.process = Some(Process(child));
    }

    fn wait(&mut self) {
        let (port, token) = (self.plain, self.token.clone());
        let process = self.process.as_mut().unwrap();
        process.until("etcd", || TcpStream::connect(("127.0.0.1", port)).ok());
        // It listens before there is a leader.
        let read = json!({ "key": STANDARD.encode("x") });
        process.until("a leader", || {
            try_call(port, "kv/range", &read, token.as_deref()).filter(|answer| {
                answer["error"].is_null() || answer["error"].as_str().unwrap().contains("user name")
            })
        });
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process = None;
    }

    pub fn signal(&self, name: &str) {
        self.process.as_ref().unwrap().signal(name);
    }

    /// Calls its gateway of JSON, again while a cluster is between two leaders.
    pub fn call(&self, path: &str, body: &Value) -> Value {
        let begun = Instant::now();
        loop {
            let answer = try_call(self.plain, path, body, self.token.as_deref()).expect("etcd answers");
            let error = answer["error"].as_str().unwrap_or_default();
            if error.contains("leader changed") && begun.elapsed() < LIMIT {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
            assert!(answer["error"].is_null(), "{path}: {answer}");
            return answer;
        }
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

    /// Has everybody show who they are: `users` with their passwords, who may do everything; `root` is one of them. What the
    /// test asks for from now on is asked by `root`.
    pub fn ask_for_passwords(&mut self, users: &[(&str, &str)]) {
        self.call("auth/role/add", &json!({ "name": "root" }));
        for (user, password) in users {
            self.call("auth/user/add", &json!({ "name": user, "password": password }));
            self.call("auth/user/grant", &json!({ "user": user, "role": "root" }));
        }
        self.call("auth/enable", &json!({}));
        let root = users.iter().find(|(user, _)| *user == "root").unwrap();
        let told = self.call("auth/authenticate", &json!({ "name": root.0, "password": root.1 }));
        self.token = Some(told["token"].as_str().unwrap().to_owned());
    }

    pub fn compact(&self, revision: u64) {
        self.call("kv/compaction", &json!({ "revision": revision }));
    }
}

fn try_call(port: u16, path: &str, body: &Value, token: Option<&str>) -> Option<Value> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let body = body.to_string();
    let token = token.map(|token| format!("Authorization: {token}\r\n")).unwrap_or_default();
    let fields = format!("{token}Content-Type: application/json\r\nContent-Length: {}", body.len());
    let request = format!("POST /v3/{path} HTTP/1.1\r\nHost: etcd\r\n{fields}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).ok()?;
    serde_json::from_str(&read(&mut stream)?.body).ok()
}

/// Members of one cluster, each a process.
pub struct Cluster {
    pub members: Vec<Etcd>,
}

impl Cluster {
    pub fn start(count: usize, arguments: &[&str]) -> Cluster {
        // Leaders are found again in half a second, as long as the machine is not much slower than that.
        let quick = ["--heartbeat-interval", "50", "--election-timeout", "500"];
        let arguments = [&quick, arguments].concat();
        let mut members: Vec<Etcd> = (0..count).map(|n| Etcd::member(&format!("n{n}"), &arguments)).collect();
        let all = members.iter().map(Etcd::as_member).collect::<Vec<_>>().join(",");
        for member in &mut members {
            member.members.clone_from(&all);
            member.spawn();
        }
        members.iter_mut().for_each(Etcd::wait);
        Cluster { members }
    }

    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(Etcd::url).collect()
    }

    /// The index of the leader, once those that run have one.
    pub fn leader(&self) -> usize {
        let mut found = None;
        until("leader", || {
            let leads = |member: &Etcd| {
                let told = member.process.as_ref().and_then(|_| {
                    try_call(member.plain, "maintenance/status", &json!({}), member.token.as_deref())
                });
                told.is_some_and(|told| {
                    told["leader"].is_string() && told["leader"] == told["header"]["member_id"]
                })
            };
            found = self.members.iter().position(leads);
            found.is_some()
        });
        found.unwrap()
    }
}

/// A way to a port that can be cut and mended.
pub struct Relay {
    pub port: u16,
    open: Arc<AtomicBool>,
    /// Directions of connections that bytes may pass in.
    pumps: Arc<AtomicUsize>,
}

impl Relay {
    pub fn to(port: u16) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port_of_relay = listener.local_addr().unwrap().port();
        let relay =
            Relay { port: port_of_relay, open: Arc::new(AtomicBool::new(true)), pumps: Arc::default() };
        let (open, pumps) = (relay.open.clone(), relay.pumps.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if open.load(SeqCst)
                    && let Ok(other) = TcpStream::connect(("127.0.0.1", port))
                {
                    pump(
                        stream.try_clone().unwrap(),
                        other.try_clone().unwrap(),
                        open.clone(),
                        pumps.clone(),
                    );
                    pump(other, stream, open.clone(), pumps.clone());
                }
            }
        });
        relay
    }

    pub fn set_open(&self, open: bool) {
        self.open.store(open, SeqCst);
        if !open {
            until("end of its connections", || self.pumps.load(SeqCst) == 0);
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, open: Arc<AtomicBool>, pumps: Arc<AtomicUsize>) {
    pumps.fetch_add(1, SeqCst);
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
        pumps.fetch_sub(1, SeqCst);
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
