//! What a running proxy tells.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How long it may take between two pieces of an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest answer, 1 GiB.
const MOST: u64 = 1 << 30;

/// What a server has answered.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// Where a server of this machine is asked that listens here: loopback, if that is every address.
pub(crate) fn reachable(mut listens: SocketAddr) -> SocketAddr {
    if listens.ip().is_unspecified() {
        listens.set_ip(match listens.is_ipv4() {
            true => Ipv4Addr::LOCALHOST.into(),
            false => Ipv6Addr::LOCALHOST.into(),
        });
    }
    listens
}

/// Asks the server at this address for a page, in plain text.
///
/// # Errors
/// Why there is no answer, as a phrase.
pub(crate) fn get(address: &str, target: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
    let told = |error: std::io::Error| error.to_string();
    let meant = address.to_socket_addrs().map_err(told)?.next().ok_or("no such address")?;
    let mut stream = TcpStream::connect_timeout(&meant, PATIENCE).map_err(told)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(told)?;
    // Envoy answers HTTP/1.0 with 426.
    let mut request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).map_err(told)?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer).map_err(told)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or("the answer is no HTTP")?;
    let (head, body) = answer.split_at(end + 4);
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    let body = if head.contains("transfer-encoding: chunked") { joined(body)? } else { body.to_vec() };
    let body = String::from_utf8(body).map_err(|_| "the answer is not UTF-8".to_owned())?;
    Ok(Answer { status, body })
}

/// A body in chunks as one.
fn joined(mut rest: &[u8]) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    let cut = || "the answer was cut off".to_owned();
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n").ok_or_else(cut)?;
        let (size, behind) = (rest.get(..line).unwrap_or_default(), rest.get(line + 2..).unwrap_or_default());
        let size = std::str::from_utf8(size).ok().and_then(|size| size.split(';').next());
        let size = size.and_then(|size| usize::from_str_radix(size.trim(), 16).ok()).ok_or_else(cut)?;
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(behind.get(..size).ok_or_else(cut)?);
        rest = behind.get(size + 2..).ok_or_else(cut)?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn chunks_are_joined() {
        assert_eq!(joined(b"3\r\nabc\r\nA;x\r\n0123456789\r\n0\r\n\r\n").unwrap(), b"abc0123456789");
        assert_eq!(joined(b"3\r\nab").unwrap_err(), "the answer was cut off");
        assert!(joined(b"zz\r\n").is_err());
    }
}
