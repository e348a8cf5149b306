//! As much of HTTP/1 as the soak's clients and upstreams speak: heads, and bodies with a length.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How long a client waits for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A request or an answer.
#[derive(Debug)]
pub(super) struct Message {
    pub head: String,
    pub body: Vec<u8>,
}

impl Message {
    /// The status of an answer.
    pub(super) fn status(&self) -> Option<u16> {
        self.head.split(' ').nth(1)?.parse().ok()
    }

    /// Whether the connection ends with this message.
    pub(super) fn closes(&self) -> bool {
        field(&self.head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

fn field<'h>(head: &'h str, wanted: &str) -> Option<&'h str> {
    let mut fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    fields.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
}

/// Reads one message; none when the other side ends before its first byte.
///
/// # Errors
/// The connection breaks, or ends within the message.
pub(super) fn read(stream: &mut impl Read, rest: &mut Vec<u8>) -> Result<Option<Message>> {
    let mut piece = [0; 16 * 1024];
    loop {
        if let Some((head, length)) = whole_head(rest)? {
            if rest.len() >= head + length {
                let after = rest.split_off(head + length);
                let mut message = std::mem::replace(rest, after);
                let body = message.split_off(head);
                return Ok(Some(Message { head: String::from_utf8_lossy(&message).into_owned(), body }));
            }
        }
        match stream.read(&mut piece) {
            Ok(0) if rest.is_empty() => return Ok(None),
            Ok(0) => bail!("the connection ended within a message of {} bytes", rest.len()),
            Ok(count) => rest.extend_from_slice(piece.get(..count).unwrap_or_default()),
            Err(error) => return Err(error).with_context(|| format!("after {} bytes", rest.len())),
        }
    }
}

/// The lengths of the head and of the body, once the head is there.
fn whole_head(bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default());
    if field(&head, "transfer-encoding").is_some() {
        bail!("a body without a length: {head}");
    }
    let length = field(&head, "content-length").map_or(Ok(0), str::parse)?;
    Ok(Some((end + 4, length)))
}

/// A connection to a port of 127.0.0.1 that does not wait for ever.
///
/// # Errors
/// Nobody listens.
pub(super) fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One request on a connection of its own.
///
/// # Errors
/// There is no whole answer in time.
pub(super) fn call(port: u16, method: &str, path: &str, fields: &str, body: &str) -> Result<Message> {
    let mut stream = connect(port)?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n{fields}Content-Length: {length}\r\n\r\n{body}"
    )?;
    read(&mut stream, &mut Vec::new())?.with_context(|| format!("{method} {path}: no answer"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn messages_are_read_one_after_the_other() {
        let mut bytes: &[u8] =
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabcHTTP/1.1 404 X\r\n\r\n";
        let mut rest = Vec::new();
        let first = read(&mut bytes, &mut rest).unwrap().unwrap();
        assert_eq!((first.status(), first.body.as_slice(), first.closes()), (Some(200), &b"abc"[..], true));
        let second = read(&mut bytes, &mut rest).unwrap().unwrap();
        assert_eq!((second.status(), second.closes()), (Some(404), false));
        assert!(read(&mut bytes, &mut rest).unwrap().is_none());
    }

    #[test]
    fn an_end_within_a_message_is_an_error() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        for cut in 1..whole.len() {
            assert!(read(&mut &whole[..cut], &mut Vec::new()).is_err(), "{cut}");
        }
    }
}
