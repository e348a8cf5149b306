//! Those who ask, and count each request that is lost, and those who leave in the middle.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use parking_lot::{Mutex, RwLock};

use super::http;
use super::upstream::ANSWER;

/// How many reasons are kept of requests that were lost.
const REASONS: usize = 8;
/// Between two requests of one client.
const PACE: Duration = Duration::from_millis(10);

/// What became of requests.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub asked: AtomicU64,
    pub lost: AtomicU64,
    reasons: Mutex<Vec<String>>,
}

impl Tally {
    pub(super) fn lose(&self, reason: String) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        let mut reasons = self.reasons.lock();
        if reasons.len() < REASONS {
            reasons.push(reason);
        }
    }

    pub(super) fn reasons(&self) -> Vec<String> {
        self.reasons.lock().clone()
    }
}

/// Whether a gateway may be given new connections, as a balancer in front of it would know by its readiness. It is held
/// from connecting to the first answer, so that a drain begins between connections, not in one.
#[derive(Debug)]
pub(super) struct Door(RwLock<bool>);

impl Door {
    pub(super) fn open() -> Self {
        Self(RwLock::new(true))
    }

    pub(super) fn set(&self, is_open: bool) {
        *self.0.write() = is_open;
    }
}

/// A client that keeps its connection as long as the gateway lets it.
#[derive(Debug)]
pub(super) struct Client<'a> {
    pub name: &'a str,
    pub port: u16,
    pub door: &'a Door,
    pub tally: &'a Tally,
    pub stop: &'a AtomicBool,
    /// The whole request, with an answer of the usual body
    pub requests: Vec<String>,
}

impl Client<'_> {
    /// Asks until it is told to stop.
    pub(super) fn run(&self) {
        let mut next = self.requests.iter().cycle();
        let mut kept: Option<TcpStream> = None;
        while !self.stop.load(Ordering::Relaxed) {
            let Some(request) = next.next() else { return };
            let asked = match kept.take() {
                Some(stream) => ask(stream, request).map(Some),
                None => self.ask_anew(request),
            };
            match asked {
                Ok(Some(stream)) => {
                    self.tally.asked.fetch_add(1, Ordering::Relaxed);
                    kept = stream;
                }
                Ok(None) => {}
                Err(error) => {
                    self.tally.asked.fetch_add(1, Ordering::Relaxed);
                    self.tally.lose(format!("{}: {error:#}", self.name));
                }
            }
            sleep(PACE);
        }
    }

    /// On a new connection, if there may be one.
    fn ask_anew(&self, request: &str) -> Result<Option<Option<TcpStream>>> {
        let is_open = self.door.0.read();
        if !*is_open {
            return Ok(None);
        }
        let stream = http::connect(self.port).context("connecting")?;
        ask(stream, request).context("the first request of a connection").map(Some)
    }
}

/// The connection again, unless the answer ends it.
fn ask(mut stream: TcpStream, request: &str) -> Result<Option<TcpStream>> {
    stream.write_all(request.as_bytes())?;
    let line = request.lines().next().unwrap_or_default();
    let answer = http::read(&mut stream, &mut Vec::new()).with_context(|| line.to_owned())?;
    let answer = answer.with_context(|| format!("{line}: the connection ended without an answer"))?;
    if answer.status() != Some(200) || answer.body != ANSWER.as_bytes() {
        let body = String::from_utf8_lossy(answer.body.get(..80).unwrap_or(&answer.body)).into_owned();
        bail!("{line}: {} {body}", answer.head.lines().next().unwrap_or_default());
    }
    Ok((!answer.closes()).then_some(stream))
}

/// Leaves a gateway in every state of a request, again and again, until it is told to stop. Gives how often it left.
pub(super) fn leave(port: u16, stop: &AtomicBool) -> u64 {
    let mut left = 0;
    while !stop.load(Ordering::Relaxed) {
        for state in 0..6 {
            let _ = leave_in(port, state);
            left += 1;
            sleep(PACE * 2);
        }
    }
    left
}

fn leave_in(port: u16, state: u32) -> Result<()> {
    let mut stream = http::connect(port)?;
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: soak\r\n\r\n");
    match state {
        // Before a byte, in the head, in the body.
        0 => {}
        1 => stream.write_all(b"GET /stable/ HTTP/1.1\r\nHost: so")?,
        2 => stream.write_all(
            b"POST /stable/ HTTP/1.1\r\nHost: soak\r\nContent-Length: 100000\r\n\r\nthe beginning of it",
        )?,
        // While the upstream works, and at once after asking.
        3 => {
            stream.write_all(request("/slow/").as_bytes())?;
            sleep(PACE);
        }
        4 => stream.write_all(request("/large/").as_bytes())?,
        // In the answer, with bytes that were not read: a reset.
        _ => {
            stream.write_all(request("/large/").as_bytes())?;
            let mut some = [0; 1_000];
            stream.read_exact(&mut some)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::upstream::Upstream;
    use super::*;

    #[test]
    fn a_request_that_nobody_answers_is_lost_and_its_reason_kept() {
        let upstream = Upstream::start().unwrap();
        let (door, tally, stop) = (Door::open(), Tally::default(), AtomicBool::new(false));
        let requests = vec!["GET /svc/1/api HTTP/1.1\r\nHost: soak\r\n\r\n".to_owned()];
        let client =
            Client { name: "test", port: upstream.port, door: &door, tally: &tally, stop: &stop, requests };
        std::thread::scope(|scope| {
            scope.spawn(|| client.run());
            while tally.asked.load(Ordering::Relaxed) < 3 {
                sleep(PACE);
            }
            assert_eq!(tally.lost.load(Ordering::Relaxed), 0);
            upstream.die();
            while tally.lost.load(Ordering::Relaxed) == 0 {
                sleep(PACE);
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(tally.reasons()[0].starts_with("test: "), "{:?}", tally.reasons());
    }

    #[test]
    fn a_closed_door_makes_no_connection_and_loses_nothing() {
        let (door, tally, stop) = (Door::open(), Tally::default(), AtomicBool::new(false));
        door.set(false);
        let requests = vec!["GET / HTTP/1.1\r\n\r\n".to_owned()];
        let client = Client { name: "test", port: 1, door: &door, tally: &tally, stop: &stop, requests };
        std::thread::scope(|scope| {
            scope.spawn(|| client.run());
            sleep(PACE * 5);
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(tally.asked.load(Ordering::Relaxed), 0);
    }
}
