//! Traffic that never pauses: an upstream, and clients that count what goes wrong.

use super::{LIMIT, read, send};
use bytes::Bytes;
use h2::client;
use http::Request;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

/// Starts an upstream on its own port. It answers `ok` (`/slow...` after half a second), and accepts upgrades, over
/// which it sends back what comes.
pub fn upstream() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            spawn(move || answer(stream));
        }
    });
    port
}

fn answer(mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        while let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head: Vec<u8> = bytes.drain(..at + 4).collect();
            let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
            if head.contains("upgrade: websocket") {
                let accepted =
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
                return if stream.write_all(accepted).is_ok() {
                    echo(stream)
                };
            }
            if head.contains("/slow") {
                std::thread::sleep(Duration::from_millis(500));
            }
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                return;
            }
        }
        match stream.read(&mut buffer) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
            _ => return,
        }
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

/// What became of a client's exchanges.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    pub done: usize,
    pub failed: Vec<String>,
}

impl Tally {
    fn failed(mut self, what: impl Into<String>) -> Tally {
        self.failed.push(what.into());
        self
    }
}

/// Clients that run until [`Traffic::stop`], or until the proxy tells them to go and takes no new connection.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Tally>>,
}

impl Traffic {
    pub fn new() -> Traffic {
        Traffic { stop: Arc::default(), clients: Vec::new() }
    }

    /// A keep-alive connection of HTTP/1, opened anew after `Connection: close`; `pause` between two requests.
    pub fn http1(&mut self, port: u16, path: &str, pause: Duration) {
        let path = path.to_owned();
        self.start(move |stop| http1(port, &path, pause, stop));
    }

    /// A connection of HTTP/2 with as many streams at a time.
    pub fn http2(&mut self, port: u16, path: &str, streams: usize) {
        let path = path.to_owned();
        self.start(move |stop| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(http2(port, &path, streams, stop))
        });
    }

    /// A WebSocket that exchanges a message every 20 ms.
    pub fn websocket(&mut self, port: u16, path: &str) {
        let path = path.to_owned();
        self.start(move |stop| websocket(port, &path, stop));
    }

    fn start(&mut self, client: impl FnOnce(&Arc<AtomicBool>) -> Tally + Send + 'static) {
        let stop = self.stop.clone();
        self.clients.push(spawn(move || client(&stop)));
    }

    /// Ends the clients and adds up.
    pub fn stop(self) -> Tally {
        self.stop.store(true, SeqCst);
        self.join()
    }

    /// Waits until the clients have ended by themselves, and adds up.
    pub fn join(self) -> Tally {
        self.clients.into_iter().map(|client| client.join().unwrap()).fold(
            Tally::default(),
            |mut all, one| {
                all.done += one.done;
                all.failed.extend(one.failed);
                all
            },
        )
    }
}

fn connect(port: u16) -> Option<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    Some(stream)
}

fn http1(port: u16, path: &str, pause: Duration, stop: &AtomicBool) -> Tally {
    let mut tally = Tally::default();
    while let Some(mut stream) = connect(port) {
        for nth in 1.. {
            if stop.load(SeqCst) {
                return tally;
            }
            send(&mut stream, "GET", path, &[]);
            let Some(response) = read(&mut stream) else {
                return tally.failed(format!("{path}: no answer to request {nth} of a connection"));
            };
            if (response.status, response.body.as_str()) != (200, "ok") {
                return tally.failed(format!("{path}: {response:?}"));
            }
            tally.done += 1;
            if response.head.contains("connection: close") {
                break;
            }
            std::thread::sleep(pause);
        }
    }
    tally
}

async fn http2(port: u16, path: &str, streams: usize, stop: &Arc<AtomicBool>) -> Tally {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut tally = Tally::default();
    while !stop.load(SeqCst) && tally.failed.is_empty() {
        let Ok(stream) = tokio::net::TcpStream::connect(address).await else { break };
        let (requests, connection) = match client::handshake(stream).await {
            Ok(opened) => opened,
            Err(error) => return tally.failed(format!("{path}: no HTTP/2: {error}")),
        };
        tokio::spawn(connection);
        let clients: Vec<_> = (0..streams)
            .map(|_| tokio::spawn(http2_stream(requests.clone(), path.to_owned(), stop.clone())))
            .collect();
        drop(requests);
        for client in clients {
            let one = client.await.unwrap();
            tally.done += one.done;
            tally.failed.extend(one.failed);
        }
    }
    tally
}

/// Sends one request after another, until the connection takes no more (it was told to go).
async fn http2_stream(requests: client::SendRequest<Bytes>, path: String, stop: Arc<AtomicBool>) -> Tally {
    let mut tally = Tally::default();
    while !stop.load(SeqCst) {
        let Ok(mut ready) = requests.clone().ready().await else { return tally };
        let request = Request::get(format!("http://localhost{path}")).body(()).unwrap();
        let Ok((response, _)) = ready.send_request(request, true) else { return tally };
        let mut body = match response.await {
            Ok(response) if response.status() == 200 => response.into_body(),
            Ok(response) => return tally.failed(format!("{path}: {}", response.status())),
            Err(error) => return tally.failed(format!("{path}: no answer on a stream: {error}")),
        };
        while let Some(data) = body.data().await {
            if let Err(error) = data {
                return tally.failed(format!("{path}: the body broke off: {error}"));
            }
        }
        tally.done += 1;
    }
    tally
}

/// Opens a WebSocket.
pub fn open_websocket(port: u16, path: &str) -> Result<TcpStream, String> {
    let mut stream = connect(port).ok_or("no connection")?;
    let headers = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    send(&mut stream, "GET", path, &headers);
    match read(&mut stream) {
        Some(response) if response.status == 101 => Ok(stream),
        other => Err(format!("{path}: no upgrade: {other:?}")),
    }
}

/// Sends a message and waits until it is back.
pub fn exchange(stream: &mut TcpStream, message: &str) -> Result<(), String> {
    let mut back = vec![0; message.len()];
    stream.write_all(message.as_bytes()).map_err(|error| format!("\"{message}\": {error}"))?;
    stream.read_exact(&mut back).map_err(|error| format!("\"{message}\" does not come back: {error}"))?;
    if back == message.as_bytes() { Ok(()) } else { Err(format!("\"{message}\" comes back as another")) }
}

fn websocket(port: u16, path: &str, stop: &AtomicBool) -> Tally {
    let mut tally = Tally::default();
    let mut stream = match open_websocket(port, path) {
        Ok(stream) => stream,
        Err(error) => return tally.failed(error),
    };
    while !stop.load(SeqCst) {
        if let Err(error) = exchange(&mut stream, &format!("message {}", tally.done)) {
            return tally.failed(format!("WebSocket: {error}"));
        }
        tally.done += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    tally
}

/// Sleeps until a moment, if it is not over.
pub fn sleep_until(moment: Instant) {
    std::thread::sleep(moment.saturating_duration_since(Instant::now()));
}
