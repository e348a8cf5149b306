//! h2spec, the conformance suite for HTTP/2 servers, against the proxy over cleartext and over TLS.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::process::{Background, free_port, root, target};
use crate::tools::{build_proxy, go_program, self_signed};

const PACKAGE: &str = "github.com/summerwind/h2spec/cmd/h2spec";
/// All that h2spec has outside its strict mode.
const MUST_PASS: u32 = 145;

#[derive(Debug, Args)]
pub struct Options {
    /// This binary instead of the proxy built with the `ci` profile
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Only these sections, as h2spec numbers them: http2/5.1.1, hpack/4
    sections: Vec<String>,
}

/// # Errors
/// A case fails, or h2spec cannot be had.
pub fn run(options: &Options) -> Result<()> {
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => build_proxy("ci")?,
    };
    check(&binary, &options.sections)
}

/// # Errors
/// A case fails, or h2spec cannot be had.
pub fn check(binary: &Path, sections: &[String]) -> Result<()> {
    let h2spec = go_program("h2spec", PACKAGE, &root().join("proxy/conformance/h2spec"))?;
    let dir = target().join("h2spec");
    fs::create_dir_all(&dir)?;
    self_signed(&dir)?;
    let (cleartext, tls, upstream) = (free_port()?, free_port()?, patient_upstream()?);
    let file = dir.join("bootstrap.json");
    fs::write(
        &file,
        serde_json::to_string_pretty(&bootstrap(&dir.canonicalize()?, [cleartext, tls, upstream]))?,
    )?;

    let mut proxy = Command::new(binary);
    if binary.file_name().is_some_and(|name| name != "envoy") {
        proxy.arg("envoy");
    }
    proxy.arg("-c").arg(&file).args(["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error"]);
    let mut proxy = Background::spawn(proxy.stderr(File::create(dir.join("proxy.log"))?))?;
    for port in [cleartext, tls] {
        proxy.wait_for_port(port, Duration::from_secs(20))?;
    }
    let first = one_run(&h2spec, "cleartext", cleartext, &[], sections);
    let second = one_run(&h2spec, "TLS", tls, &["--tls", "--insecure"], sections);
    first.and(second)
}

fn one_run(h2spec: &Path, kind: &str, port: u16, flags: &[&str], sections: &[String]) -> Result<()> {
    let mut command = Command::new(h2spec);
    command.args(["--port", &port.to_string(), "--timeout", "4"]).args(flags).args(sections);
    let out = command.output().context("cannot start h2spec")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let Some(tally) = Tally::parse(&text) else {
        bail!("h2spec over {kind} gave no result:\n{text}{}", String::from_utf8_lossy(&out.stderr));
    };
    println!("h2spec over {kind}: {} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 || (sections.is_empty() && tally.passed < MUST_PASS) {
        // The failures stand together after the heading, each with what was expected.
        println!("{}", text.split_once("Failures:").map_or(&*text, |(_, failures)| failures));
        bail!("h2spec over {kind}: {} passed, {} failed", tally.passed, tally.failed);
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    /// From h2spec's last line: `146 tests, 145 passed, 1 skipped, 0 failed`.
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().rev().find(|line| line.contains(" tests, "))?;
        let number_before = |word: &str| {
            let part = line.split(", ").find(|part| part.ends_with(word))?;
            part.split(' ').next()?.parse().ok()
        };
        Some(Self { passed: number_before("passed")?, failed: number_before("failed")? })
    }
}

fn bootstrap(dir: &Path, [cleartext, tls, upstream]: [u16; 3]) -> Value {
    let secure = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"alpn_protocols": ["h2"], "tls_certificates": [{
            "certificate_chain": {"filename": dir.join("cert.pem")},
            "private_key": {"filename": dir.join("key.pem")}}]}}});
    json!({"static_resources": {"listeners": [
        listener("cleartext", cleartext, &Value::Null), listener("tls", tls, &secure)],
        "clusters": [{"name": "upstream", "type": "STATIC", "load_assignment": {"cluster_name": "upstream", "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}]}}]}})
}

fn listener(name: &str, port: u16, transport_socket: &Value) -> Value {
    let connection_manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name, "codec_type": "HTTP2",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}]}]}});
    let mut chain = json!({"filters": [
        {"name": "envoy.filters.network.http_connection_manager", "typed_config": connection_manager}]});
    if !transport_socket.is_null() {
        chain["transport_socket"] = transport_socket.clone();
    }
    json!({"name": name, "filter_chains": [chain],
           "address": address(port)})
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

/// An HTTP/1 upstream that answers when it has the whole request, never before: several cases send something wrong
/// after the head, and an answer that overtakes it would end the stream first.
fn patient_upstream() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            // A connection that breaks off is the end of its thread, nothing else.
            thread::spawn(move || answer(connection).ok());
        }
    });
    Ok(port)
}

fn answer(connection: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(connection);
    loop {
        let (mut chunked, mut length) = (false, 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_ascii_lowercase();
            chunked |= line.starts_with("transfer-encoding:");
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if line.is_empty() {
                break;
            }
        }
        if chunked {
            // Chunks of these requests hold no line that is just "0".
            let mut line = String::new();
            while line != "0\r\n" {
                line.clear();
                if reader.read_line(&mut line)? == 0 {
                    return Ok(());
                }
            }
            reader.read_line(&mut line)?;
        } else {
            io::copy(&mut reader.by_ref().take(length), &mut io::sink())?;
        }
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\na body of some bytes\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_tally() {
        let text = "1. x\n\nFinished in 1.2 seconds\n146 tests, 144 passed, 1 skipped, 1 failed\n";
        assert_eq!(Tally::parse(text), Some(Tally { passed: 144, failed: 1 }));
        assert_eq!(Tally::parse("Error: connection refused"), None);
    }
}
