//! What imported configurations are tried with.

use super::{Process, free_port, request, sixfold};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

/// Headers of a request that are told back.
const TOLD: [&str; 6] = ["x-shop:", "x-beta:", "x-secret:", "x-api-key:", "x-consumer-username:", "host:"];

/// A server that answers what it was asked: the target and some headers.
pub fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    port
}

fn answer(mut stream: TcpStream) {
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        head.extend_from_slice(&buffer[..read]);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let first = text.lines().next().unwrap_or_default();
        let target = first.split(' ').nth(1).unwrap_or_default();
        let lines = || text.lines().map(str::to_ascii_lowercase);
        let mut kept = vec![target.to_owned()];
        kept.extend(TOLD.iter().flat_map(|name| lines().filter(move |line| line.starts_with(name))));
        let body = kept.join("|");
        if write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).is_err() {
            return;
        }
        head.clear();
    }
}

/// A process, once it answers on the port.
pub fn started(mut command: Command, port: u16) -> Process {
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it is installed");
    let mut process = Process(child);
    process.until("it answers", || request(port, "GET", "/", &["Connection: close"]));
    process
}

/// Writes the config.yaml of a folder anew with other ports, also those that it does not name, and answers what it is.
pub fn gateway_beside(folder: &str, ports: &[(u16, u16)]) -> String {
    let file = Path::new(folder).join("config.yaml");
    let mut config = std::fs::read_to_string(&file).unwrap();
    for (theirs, ours) in ports {
        config = config.replace(&format!("port: {theirs}\n"), &format!("port: {ours}\n"));
    }
    let (status, control) = (free_port(), free_port());
    let own = format!(
        "plugin_attr:\n  prometheus:\n    enable_export_server: false\napisix:\n  status:\n    port: {status}\n  control:\n    port: {control}\n"
    );
    config = config.replacen("apisix:\n", &own, 1);
    std::fs::write(&file, &config).unwrap();
    config
}

/// The gateway of a folder.
pub fn gateway(folder: &str) -> Command {
    let mut command = sixfold();
    command.args(["run", "-c", "config.yaml"]).current_dir(folder);
    command
}
