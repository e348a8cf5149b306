//! apisix-ingress-controller's requests, as they were recorded (`ingress/README.md`): what it writes is kept as it was sent, is in
//! force, and is gone when it takes it away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use support::gateway::{Ports, ask_on};
use support::{Directory, Process, Response, free_port, request, sixfold};

const KEY: &str = "of-the-test";
/// A plugin that is not here: whatever has it is refused by name.
const MISSING: &str = "proxy-mirror";
/// The addresses of the recorded endpoints, and their port.
const ENDPOINTS: [&str; 3] = ["127.0.0.81", "127.0.0.82", "127.0.0.85"];
const PORT: u64 = 8080;

struct Recorded {
    step: u64,
    method: String,
    path: String,
    digest: Option<String>,
    body: Value,
    status: u64,
}

fn recorded(text: &str, port: u16) -> Vec<Recorded> {
    let of = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let mut body = value["body"].clone();
        move_endpoints(&mut body, port);
        Recorded {
            step: value["step"].as_u64().unwrap(),
            method: text("method"),
            path: text("path"),
            digest: value["digest"].as_str().map(str::to_owned),
            body,
            status: value["status"].as_u64().unwrap(),
        }
    };
    text.lines().map(of).collect()
}

/// Gives the nodes of all upstreams a port that is free here.
fn move_endpoints(value: &mut Value, port: u16) {
    match value {
        Value::Object(object) => object.iter_mut().for_each(|(key, value)| {
            if key == "port" && *value == json!(PORT) {
                *value = json!(port);
            }
            move_endpoints(value, port);
        }),
        Value::Array(list) => list.iter_mut().for_each(|item| move_endpoints(item, port)),
        _ => {}
    }
}

/// The same without what belongs to the plugin that is missing.
fn without_missing(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.remove(MISSING);
            object.values_mut().for_each(without_missing);
        }
        Value::Array(list) => list.iter_mut().for_each(without_missing),
        _ => {}
    }
}

/// Endpoints that answer with the head of the request.
fn endpoints() -> u16 {
    let port = free_port();
    for host in ENDPOINTS {
        let listener = TcpListener::bind((host, port)).expect("a port of each address");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || {
                    while let Some(head) = head_of(&mut stream) {
                        let length = head.len();
                        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{head}").unwrap();
                    }
                });
            }
        });
    }
    port
}

/// The next head of a connection; nothing of it has a body.
fn head_of(stream: &mut std::net::TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        std::io::Read::read_exact(stream, &mut byte).ok()?;
        head.extend(byte);
    }
    Some(String::from_utf8_lossy(&head).to_ascii_lowercase())
}

struct Gateway {
    process: Process,
    ports: Ports,
    _directory: Directory,
}

impl Gateway {
    fn start(provider: &str) -> Gateway {
        let (directory, ports) = (Directory::new(), Ports::free());
        let Ports { http, admin, control, status } = ports;
        let stream = free_port();
        let config = directory.write(
            "config.yaml",
            &format!(
                "apisix:\n  node_listen: [{{ip: 127.0.0.1, port: {http}}}]\n  ssl: {{enable: false}}\n  \
                 proxy_mode: http&stream\n  stream_proxy: {{tcp: ['127.0.0.1:{stream}']}}\n  \
                 control: {{port: {control}}}\n  status: {{port: {status}}}\n\
                 nginx_config: {{worker_processes: 2, http: {{enable_access_log: false}}}}\n\
                 plugin_attr: {{prometheus: {{enable_export_server: false}}}}\n\
                 deployment:\n  role: traditional\n  role_traditional: {{config_provider: {provider}}}\n  \
                 admin:\n    admin_listen: {{ip: 127.0.0.1, port: {admin}}}\n    \
                 admin_key: [{{name: admin, key: {KEY}, role: admin}}]\n"
            ),
        );
        let mut command = sixfold();
        command.args(["run", "-c", &config]).current_dir(&directory.0);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        let mut process = Process(command.spawn().unwrap());
        process.until("the gateway", || support::get(http, "/none"));
        Gateway { process, ports, _directory: directory }
    }

    fn ask(&self, recorded: &Recorded, body: &Value) -> Response {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.ports.admin)).unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let digest = recorded.digest.as_ref().map(|digest| format!("\r\nX-Digest: {digest}"));
        let key = format!("{KEY}{}", digest.unwrap_or_default());
        ask_on(&mut stream, &key, &recorded.method, &recorded.path, &body).unwrap()
    }

    /// Sends it, and what is refused for the plugin that is missing once more without that.
    fn replay(&self, recorded: &Recorded) -> Value {
        let told = |answer: &Response| {
            format!(
                "{} {} {}: {} {}",
                recorded.step, recorded.method, recorded.path, answer.status, answer.body
            )
        };
        let mut body = recorded.body.clone();
        if body.to_string().contains(MISSING) {
            let answer = self.ask(recorded, &body);
            let named = answer.body.contains(&format!("unknown plugin [{MISSING}]"));
            assert!(answer.status == 400 && named, "{}", told(&answer));
            without_missing(&mut body);
        }
        let answer = self.ask(recorded, &body);
        assert_eq!(u64::from(answer.status), recorded.status, "{}", told(&answer));
        body
    }

    /// All resources, by their paths; without the times that they were written at.
    fn kept(&self) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        let sections = "routes services upstreams ssls consumers global_rules stream_routes plugin_configs";
        for section in sections.split(' ') {
            let target = format!("/apisix/admin/{section}");
            let answer = support::gateway::call(self.ports.admin, KEY, "GET", &target, "").unwrap();
            let answer: Value = serde_json::from_str(&answer.body).unwrap();
            for item in answer["list"].as_array().unwrap() {
                let mut value = item["value"].clone();
                let value_of = value.as_object_mut().unwrap();
                value_of.remove("create_time").zip(value_of.remove("update_time")).unwrap();
                all.insert(item["key"].as_str().unwrap().to_owned(), value);
            }
        }
        all
    }

    /// The answer to a request that a client makes, once that is what the configuration says.
    fn until(&mut self, what: &str, line: &str, headers: &[&str], right: impl Fn(&Response) -> bool) {
        let (method, path) = line.split_once(' ').unwrap();
        let port = self.ports.http;
        self.process.until(what, || request(port, method, path, headers).filter(&right));
    }

    /// What the recorded objects say of requests.
    fn traffic(&mut self) {
        let has = |response: &Response, text: &str| response.status == 200 && response.body.contains(text);
        self.until("HTTPRoute", "GET /get/x", &["Host: hr.example"], |r| has(r, "x-a: b\r\n"));
        self.until("Ingress", "GET /any", &["Host: ing.example"], |r| has(r, "get /any "));
        self.until("ApisixRoute's limit", "POST /api/x", &["Host: ar.example"], |r| r.status == 429);
        let many = "Host: many.example";
        self.until("whole path", "GET /re/7", &[many, "X-H: abc"], |r| {
            has(r, "get /whole ") && r.head.contains("x-r: s\r\n") && r.head.contains("x-r2: a\r\n")
        });
        self.until("exact", "POST /exact?q=1", &["Host: a.many.example", "X-H: v"], |r| {
            has(r, "post /exact")
        });
        self.until("missing backend", "GET /missing", &[many], |r| {
            r.status == 500 && r.body == "No existing backendRef provided"
        });
        self.until("redirect", "GET /redirect/x", &[many], |r| {
            r.status == 301 && r.head.contains("location: https://www.example:8443/redirect/x\r\n")
        });
        let auth = ["Host: auth.example", "X-V: abc"];
        self.until("no key", "GET /", &auth, |r| r.status == 401);
        // One of its two upstreams speaks gRPC.
        self.until("a key", "GET /", &[auth[0], auth[1], "apikey: secret-key"], |r| {
            has(r, "x-consumer-username")
        });
        self.until("global rule", "GET /get", &["Host: hr.example"], |r| r.head.contains("x-rid: "));
    }
}

/// How a resource is shown that was written like this.
fn shown(path: &str, mut body: Value) -> Value {
    let object = body.as_object_mut().unwrap();
    if !path.contains("/consumers/") {
        object.insert("id".to_owned(), path.rsplit('/').next().unwrap().into());
    }
    if path.contains("/ssls/") {
        // Private keys are not told.
        object.remove("key");
    }
    body
}

#[test]
fn resources_are_kept_as_they_were_sent_and_are_in_force() {
    let requests = recorded(include_str!("ingress/admin-api.jsonl"), endpoints());
    let last = requests.last().unwrap().step;
    let mut gateway = Gateway::start("embedded");
    let mut wanted = BTreeMap::new();
    for step in 0..=last {
        for request in requests.iter().filter(|request| request.step == step) {
            let sent = gateway.replay(request);
            let path = request.path.replacen("/apisix/admin/", "/apisix/", 1);
            match request.method.as_str() {
                "DELETE" => drop(wanted.remove(&path).expect("what is deleted was there")),
                _ => drop(wanted.insert(path.clone(), shown(&path, sent))),
            }
        }
        let kept = gateway.kept();
        for (path, value) in &wanted {
            assert_eq!(kept.get(path), Some(value), "step {step}, {path}");
        }
        assert!(kept.keys().eq(wanted.keys()), "step {step}: {:?}", kept.keys());
        if step == 8 {
            gateway.traffic();
        }
    }
    assert!(wanted.is_empty());
    gateway.until("nothing", "GET /get", &["Host: hr.example"], |response| response.status == 404);
}

#[test]
fn whole_configurations_are_kept_as_they_were_sent_and_are_in_force() {
    let requests = recorded(include_str!("ingress/standalone.jsonl"), endpoints());
    let mut gateway = Gateway::start("yaml");
    for request in &requests {
        let Value::Object(sent) = gateway.replay(request) else { panic!("no object") };
        let answer =
            support::gateway::call(gateway.ports.admin, KEY, "GET", "/apisix/admin/configs", "").unwrap();
        let kept: Map<String, Value> = serde_json::from_str(&answer.body).unwrap();
        for (key, value) in &sent {
            // A list without items is not there.
            let empty = value.as_array().is_some_and(Vec::is_empty);
            assert_eq!(kept.get(key), Some(value).filter(|_| !empty), "step {}, {key}", request.step);
        }
        assert!(kept.keys().all(|key| sent.contains_key(key)), "step {}", request.step);
        if request.step == 8 {
            gateway.traffic();
        }
    }
    gateway.until("nothing", "GET /get", &["Host: hr.example"], |response| response.status == 404);
}
