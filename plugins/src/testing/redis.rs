//! Debian's redis-server, for tests of what is counted there.

#[allow(unreachable_pub)]
#[path = "../../../proxy/core/tests/support/ports.rs"]
mod ports;

use super::context;
use sixfold_core::plugin::{
    BuildContext, Callout, CalloutError, CalloutFuture, CalloutRequest, CalloutStreamFuture, CalloutWire,
    ConnectFuture, ConnectRequest,
};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A server on loopback; it ends with this.
pub(crate) struct RedisServer {
    child: Child,
    pub(crate) port: u16,
}

/// Plain connections, counted.
#[derive(Default)]
pub(crate) struct Wires(pub(crate) AtomicUsize);

impl Callout for Wires {
    fn send(&self, _: CalloutRequest) -> CalloutFuture {
        Box::pin(async { Err(CalloutError::Timeout) })
    }

    fn open(&self, _: CalloutRequest) -> CalloutStreamFuture {
        Box::pin(async { Err(CalloutError::Timeout) })
    }

    fn connect<'a>(&'a self, request: ConnectRequest<'a>) -> ConnectFuture<'a> {
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect((request.host, request.port)).await;
            self.0.fetch_add(1, Relaxed);
            let stream = stream.map_err(|error| CalloutError::Failed(error.to_string()))?;
            Ok(Box::new(stream) as Box<dyn CalloutWire>)
        })
    }
}

/// A context whose callouts connect.
pub(crate) fn connecting() -> (BuildContext, Arc<Wires>) {
    let wires = Arc::new(Wires::default());
    (BuildContext { callout: wires.clone(), ..context() }, wires)
}

/// A port that nobody else gets.
pub(crate) fn free_port() -> u16 {
    ports::free_port().unwrap()
}

impl RedisServer {
    /// With these settings beside.
    pub(crate) fn start(settings: &[&str]) -> RedisServer {
        RedisServer::start_at(free_port(), settings)
    }

    /// The same at a port.
    pub(crate) fn start_at(port: u16, settings: &[&str]) -> RedisServer {
        let text = port.to_string();
        let usual = ["--port", &text, "--bind", "127.0.0.1", "--save", "", "--dir", "/tmp"];
        let arguments: Vec<&str> = usual.iter().chain(settings).copied().collect();
        RedisServer::spawn(port, &arguments)
    }

    /// One that these arguments have listen at a port.
    pub(crate) fn spawn(port: u16, arguments: &[&str]) -> RedisServer {
        let mut command = Command::new("redis-server");
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("redis-server is needed: Debian's package of that name");
        let server = RedisServer { child, port };
        server.wait();
        server
    }

    /// Has it stand still, or go on.
    pub(crate) fn stop(&self, stands: bool) {
        let signal = if stands { "-STOP" } else { "-CONT" };
        assert!(
            Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success()
        );
    }

    fn wait(&self) {
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "redis-server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
