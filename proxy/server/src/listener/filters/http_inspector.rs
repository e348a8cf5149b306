//! Tells the versions of HTTP apart on plain text, so that `application_protocols` can choose a chain.

use crate::wire::PREFACE;

/// Bytes that are looked at.
const MAX: usize = 8 << 10;
/// Longest method that is taken for one.
const MAX_METHOD: usize = 32;

/// What the bytes of a connection's beginning are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// HTTP: `http/1.0`, `http/1.1` or `h2c`.
    Http(&'static str),
    /// Perhaps the beginning of HTTP.
    NeedsMore,
    /// Something else.
    NotHttp,
}

/// Looks at the first bytes of a connection.
pub fn inspect(bytes: &[u8]) -> Outcome {
    // Cut first, so that the answer does not depend on how the bytes were split into reads.
    let bytes = bytes.get(..MAX).unwrap_or(bytes);
    if bytes.starts_with(PREFACE) {
        return Outcome::Http("h2c");
    }
    if PREFACE.starts_with(bytes) {
        return Outcome::NeedsMore;
    }
    // Empty lines before a request line are let pass (RFC 9112 section 2.2).
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(bytes.len());
    let line = bytes.get(start..).unwrap_or_default();
    match memchr::memchr(b'\n', line) {
        Some(end) => request_line(line.get(..end).unwrap_or_default()),
        None if bytes.len() >= MAX || !may_become(line) => Outcome::NotHttp,
        None => Outcome::NeedsMore,
    }
}

fn request_line(line: &[u8]) -> Outcome {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut words = line.split(|b| *b == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let version = words.next().unwrap_or_default();
    if method.is_empty() || !is_method(method) || target.is_empty() || words.next().is_some() {
        return Outcome::NotHttp;
    }
    match version {
        b"HTTP/1.1" => Outcome::Http("http/1.1"),
        b"HTTP/1.0" => Outcome::Http("http/1.0"),
        _ => Outcome::NotHttp,
    }
}

/// Whether more bytes could make a request line of this.
fn may_become(start: &[u8]) -> bool {
    let method = start.split(|b| *b == b' ').next().unwrap_or_default();
    is_method(method)
}

fn is_method(method: &[u8]) -> bool {
    method.len() <= MAX_METHOD && method.iter().all(is_token)
}

/// `tchar` of RFC 9110 section 5.6.2.
fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

/// For the fuzzer: once the beginning has decided, more bytes change nothing.
pub fn fuzz(data: &[u8]) {
    let whole = inspect(data);
    for end in 0..data.len().min(2 * MAX_METHOD) {
        let start = inspect(data.get(..end).unwrap_or_default());
        assert!(start == Outcome::NeedsMore || start == whole, "cut at {end}: {start:?}, not {whole:?}");
    }
    let cut = inspect(data.get(..data.len() / 2).unwrap_or_default());
    assert!(cut == Outcome::NeedsMore || cut == whole, "cut in the middle: {cut:?}, not {whole:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        assert_eq!(inspect(b"GET / HTTP/1.1\r\nHost: a\r\n"), Outcome::Http("http/1.1"));
        assert_eq!(inspect(b"\r\nPOST /x HTTP/1.0\n"), Outcome::Http("http/1.0"));
        assert_eq!(inspect(PREFACE), Outcome::Http("h2c"));
        assert_eq!(inspect(b"PRI * HTTP/2.0\r\n"), Outcome::NeedsMore);
        assert_eq!(inspect(b"GET /lo"), Outcome::NeedsMore);
        assert_eq!(inspect(b""), Outcome::NeedsMore);
    }

    #[test]
    fn other_protocols_are_not_http() {
        for bytes in
            [&b"\x16\x03\x01"[..], b"GET / HTTP/3.0\r\n", b"GET /\r\n", b"a b c d\r\n", b" / HTTP/1.1\r\n"]
        {
            assert_eq!(inspect(bytes), Outcome::NotHttp, "{bytes:?}");
        }
        assert_eq!(inspect(&[b'A'; 33]), Outcome::NotHttp);
        let mut long = b"GET /".to_vec();
        long.resize(MAX, b'a');
        assert_eq!(inspect(&long), Outcome::NotHttp);
    }

    #[test]
    fn the_answer_does_not_depend_on_how_reads_are_split() {
        fuzz(b"GET / HTTP/1.1\r\n");
        fuzz(&[&[b'A'; 33][..], b" / HTTP/1.1\r\n"].concat());
        let lines = [&b"\r\n".repeat(MAX / 2 - 4)[..], b"GET / HTTP/1.1\r\n"].concat();
        assert_eq!(inspect(&lines), Outcome::NotHttp);
        fuzz(&[&lines[..], &[b'x'; 9000]].concat());
    }

    #[test]
    fn the_fuzz_target_holds() {
        crate::stable::run("http_inspector", &["GET", " / ", "HTTP/1.1", "\r\n", "PRI * HTTP/2.0\r\n"], fuzz);
    }
}
