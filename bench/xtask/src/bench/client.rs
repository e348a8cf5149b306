//! One open connection that asks for one thing after another.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A client of HTTP/1 whose answers are small and have a length.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
}

/// What was answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub status: u16,
    pub body: String,
}

impl Client {
    /// # Errors
    /// Nobody listens.
    pub(super) fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self { stream })
    }

    /// # Errors
    /// There is no answer within five seconds, or it is no whole one.
    pub(super) fn get(&mut self, path: &str) -> Result<Answer> {
        self.get_of("bench", path)
    }

    /// # Errors
    /// As [`Client::get`].
    pub(super) fn get_of(&mut self, host: &str, path: &str) -> Result<Answer> {
        write!(self.stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let read = self.stream.read(&mut piece)?;
            answer.extend_from_slice(piece.get(..read).unwrap_or_default());
            let text = String::from_utf8_lossy(&answer);
            if let Some(answer) = parse(&text)? {
                return Ok(answer);
            }
            if read == 0 {
                bail!("the connection ended in an answer: {text}");
            }
        }
    }
}

/// The status that is answered on a connection of its own, whatever form the body has.
///
/// # Errors
/// Nobody listens, or no status is answered within five seconds.
pub(super) fn status(port: u16, path: &str) -> Result<u16> {
    let mut client = Client::connect(port)?;
    write!(client.stream, "GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(client.stream).read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.with_context(|| format!("no status: {line}"))
}

/// The answer if it is there as a whole.
fn parse(text: &str) -> Result<Option<Answer>> {
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Ok(None) };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let length = head.lines().filter_map(|line| line.split_once(": "));
    let length = length.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = length.with_context(|| format!("no length: {head}"))?.1.parse()?;
    let status = status.with_context(|| format!("no status: {head}"))?;
    Ok((body.len() >= length).then(|| Answer { status, body: body.to_owned() }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        let text = "HTTP/1.1 503 X\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(parse(text).unwrap(), Some(Answer { status: 503, body: "abc".to_owned() }));
        for cut in 0..text.len() {
            assert_eq!(parse(&text[..cut]).unwrap(), None, "{cut}");
        }
        assert!(parse("HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
