//! Upstreams in this process, which die and come back at the same port.

use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;

use super::http;
use crate::process::free_port;

/// What is answered to everything but `/large/*`.
pub(super) const ANSWER: &str = "hello world, this is a body\n";
/// Bytes of `/large/*`: more than the buffers between a client and an upstream hold.
const LARGE: usize = 8 << 20;
/// How long `/slow/*` takes.
const SLOW: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Upstream {
    pub port: u16,
    life: Mutex<Option<Arc<Life>>>,
}

/// From one start to the death that ends it.
#[derive(Debug, Default)]
struct Life {
    is_over: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

impl Upstream {
    /// # Errors
    /// No port is free.
    pub(super) fn start() -> Result<Self> {
        // Another program may take a port between the two.
        let mut tries = 10;
        loop {
            let upstream = Self { port: free_port()?, life: Mutex::new(None) };
            tries -= 1;
            match upstream.come_back() {
                Ok(()) => return Ok(upstream),
                Err(_) if tries > 0 => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// # Errors
    /// Its port was taken meanwhile.
    pub(super) fn come_back(&self) -> Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port))?;
        let life = Arc::new(Life::default());
        *self.life.lock() = Some(Arc::clone(&life));
        thread::spawn(move || accept(&listener, &life));
        Ok(())
    }

    /// Closes its socket and all its connections, with requests in them, as the end of a process does.
    pub(super) fn die(&self) {
        let Some(life) = self.life.lock().take() else { return };
        life.is_over.store(true, Ordering::SeqCst);
        // Whoever accepts is woken by a connection.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        for connection in life.connections.lock().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.die();
    }
}

fn accept(listener: &TcpListener, life: &Arc<Life>) {
    for stream in listener.incoming() {
        if life.is_over.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let Ok(copy) = stream.try_clone() else { continue };
        {
            let mut connections = life.connections.lock();
            connections.retain(|connection| connection.peer_addr().is_ok());
            connections.push(copy);
        }
        thread::spawn(move || {
            let _ = serve(&stream);
            let _ = stream.shutdown(Shutdown::Both);
        });
    }
}

fn serve(mut stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut rest = Vec::new();
    while let Some(request) = http::read(&mut stream, &mut rest)? {
        let path = request.head.split(' ').nth(1).unwrap_or_default();
        if path.starts_with("/slow/") {
            thread::sleep(SLOW);
        }
        let body = if path.starts_with("/large/") { vec![b'x'; LARGE] } else { ANSWER.as_bytes().to_vec() };
        // In one piece: of a small answer nothing or all is there when the upstream dies.
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(&[head.into_bytes(), body].concat())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn it_answers_dies_and_comes_back_at_its_port() {
        let upstream = Upstream::start().unwrap();
        let ask = || http::call(upstream.port, "GET", "/svc/1/api", "", "");
        assert_eq!(ask().unwrap().body, ANSWER.as_bytes());
        let kept = http::connect(upstream.port).unwrap();
        upstream.die();
        assert!(http::read(&mut &kept, &mut Vec::new()).map_or(true, |message| message.is_none()));
        assert!(ask().is_err());
        upstream.come_back().unwrap();
        assert_eq!(ask().unwrap().body, ANSWER.as_bytes());
    }
}
