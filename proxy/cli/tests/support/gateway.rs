//! A gateway whose configuration is written by requests.

use super::{Directory, LIMIT, Process, Response, free_port, get, read, sixfold};
use std::io::Write;
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A gateway with its folder.
pub struct Gateway {
    pub process: Process,
    pub ports: Ports,
    pub key: String,
}

#[derive(Clone, Copy)]
pub struct Ports {
    pub http: u16,
    pub admin: u16,
    pub control: u16,
    pub status: u16,
}

impl Ports {
    pub fn free() -> Ports {
        Ports { http: free_port(), admin: free_port(), control: free_port(), status: free_port() }
    }

    pub fn config(self, deployment: &str) -> String {
        let Ports { http, admin, control, status } = self;
        format!(
            "apisix:\n  node_listen: [{{ip: 127.0.0.1, port: {http}}}]\n  ssl: {{enable: false}}\n  \
             control: {{port: {control}}}\n  status: {{port: {status}}}\n\
             nginx_config: {{worker_processes: 2, http: {{enable_access_log: false}}}}\n\
             plugin_attr: {{prometheus: {{enable_export_server: false}}}}\n\
             deployment:\n  admin: {{admin_listen: {{port: {admin}}}}}\n  {deployment}\n"
        )
    }
}

pub fn start(directory: &Directory) -> Process {
    let mut command = sixfold();
    command.args(["run", "-c", &directory.path("config.yaml")]).current_dir(&directory.0);
    Process(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

impl Gateway {
    pub fn start(directory: &Directory, ports: Ports) -> Gateway {
        let mut process = start(directory);
        process.until("the gateway", || get(ports.http, "/none"));
        let key = std::fs::read_to_string(directory.path("data/admin-key")).unwrap().trim().to_owned();
        Gateway { process, ports, key }
    }

    pub fn ask(&self, method: &str, target: &str, body: &str) -> Response {
        call(self.ports.admin, &self.key, method, &format!("/apisix/admin{target}"), body).unwrap()
    }

    pub fn until_status(&mut self, path: &str, status: u16) -> Duration {
        let start = Instant::now();
        // Finer than the steps of `until`.
        while get(self.ports.http, path).is_none_or(|answer| answer.status != status) {
            if start.elapsed() > LIMIT {
                // Its errors end with it.
                let _ = self.process.0.kill();
                panic!("{path} is not {status}: {}", self.process.errors());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        start.elapsed()
    }
}

/// One request on a connection of its own.
pub fn call(port: u16, key: &str, method: &str, target: &str, body: &str) -> Option<Response> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    ask_on(&mut stream, key, method, target, body)
}

pub fn ask_on(stream: &mut TcpStream, key: &str, method: &str, target: &str, body: &str) -> Option<Response> {
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nX-API-KEY: {key}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
    read(stream)
}

pub fn route(uri: &str, text: &str) -> String {
    format!(r#"{{"uri":"{uri}","plugins":{{"mocking":{{"response_example":"{text}"}}}}}}"#)
}
