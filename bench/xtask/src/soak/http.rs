//! As much of HTTP/1 as the soak's clients and upstreams speak: heads, and bodies with a length or in chunks.

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
        if let Some(message) = whole(rest)? {
            return Ok(Some(message));
        }
        match stream.read(&mut piece) {
            Ok(0) if rest.is_empty() => return Ok(None),
            Ok(0) => bail!("the connection ended within a message of {} bytes", rest.len()),
            Ok(count) => rest.extend_from_slice(piece.get(..count).unwrap_or_default()),
            Err(error) => return Err(error).with_context(|| format!("after {} bytes", rest.len())),
        }
    }
}

/// Takes the first message, once all of it is there.
fn whole(bytes: &mut Vec<u8>) -> Result<Option<Message>> {
    let Some(end) = find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let start = end + 4;
    let head = String::from_utf8_lossy(bytes.get(..start).unwrap_or_default()).into_owned();
    let after = bytes.get(start..).unwrap_or_default();
    let found = if field(&head, "transfer-encoding").is_some() {
        chunked(after)?
    } else {
        let length: usize = field(&head, "content-length").map_or(Ok(0), str::parse)?;
        after.get(..length).map(|body| (body.to_vec(), length))
    };
    let Some((body, length)) = found else { return Ok(None) };
    bytes.drain(..start + length);
    Ok(Some(Message { head, body }))
}

/// A body in chunks without trailers, and how many bytes it takes, once all of it is there.
fn chunked(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let Some(line) = find(rest, b"\r\n") else { return Ok(None) };
        let size = String::from_utf8_lossy(rest.get(..line).unwrap_or_default()).into_owned();
        let size = usize::from_str_radix(&size, 16).with_context(|| format!("a chunk of {size:?}"))?;
        let Some(chunk) = rest.get(line + 2..line + 2 + size + 2) else { return Ok(None) };
        body.extend_from_slice(chunk.get(..size).unwrap_or_default());
        at += line + 2 + size + 2;
        if size == 0 {
            return Ok(Some((body, at)));
        }
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|here| here == wanted)
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
    fn a_body_in_chunks_is_put_together() {
        let text =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0A\r\n0123456789\r\n0\r\n\r\n";
        let message = read(&mut &text[..], &mut Vec::new()).unwrap().unwrap();
        assert_eq!(message.body, b"abc0123456789");
        for cut in 1..text.len() {
            assert!(read(&mut &text[..cut], &mut Vec::new()).is_err(), "{cut}");
        }
    }

    #[test]
    fn an_end_within_a_message_is_an_error() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        for cut in 1..whole.len() {
            assert!(read(&mut &whole[..cut], &mut Vec::new()).is_err(), "{cut}");
        }
    }
}
