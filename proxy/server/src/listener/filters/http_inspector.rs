//! Tells the versions of HTTP apart on plain text, so that `application_protocols` can choose a chain.

use crate::wire::PREFACE;

/// Bytes that are looked at, as in Envoy.
const MAX: usize = 64 << 10;

/// What the bytes of a connection's beginning are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// HTTP: `http/1.0`, `http/1.1` or `h2c`.
    Http(&'static str),
    /// Perhaps the beginning of HTTP.
    NeedsMore,
    /// Something else.
    NotHttp,
    /// Perhaps a request line, but longer than what is looked at.
    TooLong,
}

/// Looks at the first bytes of a connection as they come, at each once.
#[derive(Debug, Default)]
pub struct Inspector {
    /// Where the request line begins, if it has.
    start: usize,
    /// Bytes that may be the beginning of HTTP.
    looked: usize,
    /// The method has ended.
    named: bool,
}

/// Looks at the first bytes of a connection.
pub fn inspect(bytes: &[u8]) -> Outcome {
    Inspector::default().inspect(bytes)
}

impl Inspector {
    /// The same with what it knows of them; `bytes` are those of before and more.
    pub fn inspect(&mut self, bytes: &[u8]) -> Outcome {
        // Cut first, so that the answer does not depend on how the bytes were split into reads.
        let bytes = bytes.get(..MAX).unwrap_or(bytes);
        if bytes.starts_with(PREFACE) {
            return Outcome::Http("h2c");
        }
        if PREFACE.starts_with(bytes) {
            return Outcome::NeedsMore;
        }
        let fresh = |from: usize| bytes.get(from..).unwrap_or_default();
        if self.start == self.looked {
            // Empty lines before a request line are let pass (RFC 9112 section 2.2).
            let empty = fresh(self.start).iter().position(|b| !matches!(b, b'\r' | b'\n'));
            self.start = empty.map_or(bytes.len(), |at| self.start + at);
            self.looked = self.start;
        }
        if let Some(end) = memchr::memchr(b'\n', fresh(self.looked)) {
            return request_line(bytes.get(self.start..self.looked + end).unwrap_or_default());
        }
        if !self.may_become(fresh(self.looked)) {
            return Outcome::NotHttp;
        }
        self.looked = bytes.len();
        if bytes.len() >= MAX { Outcome::TooLong } else { Outcome::NeedsMore }
    }

    /// Whether more bytes could make a request line of what there was and these.
    fn may_become(&mut self, more: &[u8]) -> bool {
        if self.named {
            return true;
        }
        let space = memchr::memchr(b' ', more);
        self.named = space.is_some();
        more.iter().take(space.unwrap_or(more.len())).all(is_token)
    }
}

/// A line with a version that is not there is HTTP too, as in Envoy: it is for the connection manager to refuse.
fn request_line(line: &[u8]) -> Outcome {
    let mut words = line.trim_ascii_end().split(|b| *b == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let version = words.next();
    let is_method = !method.is_empty() && method.iter().all(is_token);
    if !is_method || target.is_empty() || words.next().is_some() {
        return Outcome::NotHttp;
    }
    match version {
        Some(b"HTTP/1.1") => Outcome::Http("http/1.1"),
        Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor])
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Outcome::Http("http/1.0")
        }
        // Without one: lines of other protocols have words as well.
        None if is_target(target) => Outcome::Http("http/1.0"),
        _ => Outcome::NotHttp,
    }
}

/// Whether a word can hardly be anything but the target of a request: a path, `*`, or a URL.
fn is_target(word: &[u8]) -> bool {
    let scheme = word.iter().take_while(|b| b.is_ascii_alphabetic()).count();
    let is_url = scheme > 0 && word.get(scheme..).is_some_and(|rest| rest.starts_with(b"://"));
    is_url || matches!(word, [b'/' | b'*', ..])
}

/// `tchar` of RFC 9110 section 5.6.2.
fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

/// For the fuzzer: once the beginning has decided, more bytes change nothing; what comes in pieces is what comes at once.
pub fn fuzz(data: &[u8]) {
    let whole = inspect(data);
    let mut bit_by_bit = Inspector::default();
    let first = data.len().min(64);
    for end in (0..first).chain([first.max(data.len() / 2), data.len()]) {
        let start = bit_by_bit.inspect(data.get(..end).unwrap_or_default());
        assert!(start == Outcome::NeedsMore || start == whole, "cut at {end}: {start:?}, not {whole:?}");
        assert_eq!(start, inspect(data.get(..end).unwrap_or_default()), "cut at {end}");
        if start != Outcome::NeedsMore {
            return;
        }
    }
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
        for bytes in [
            &b"\x16\x03\x01"[..],
            b"GET / http/1.1\r\n",
            b"GET / HTTP/01.1\r\n",
            b"GET / HTTP/1.1 x\r\n",
            b"get key\r\n",
            b"USER bob\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"a b c d\r\n",
            b" / HTTP/1.1\r\n",
        ] {
            assert_eq!(inspect(bytes), Outcome::NotHttp, "{bytes:?}");
        }
    }

    /// They went to the chain of what is not HTTP, past all that is done with requests.
    #[test]
    fn lines_that_envoy_takes_for_requests_are_http() {
        for (line, protocol) in [
            ("GET / HTTP/1.2", "http/1.0"),
            ("GET / HTTP/2.0", "http/1.0"),
            ("GET / HTTP/0.9", "http/1.0"),
            ("GET /admin", "http/1.0"),
            ("GET http://a/admin", "http/1.0"),
            ("GET / HTTP/1.1 ", "http/1.1"),
        ] {
            assert_eq!(inspect(format!("{line}\r\n").as_bytes()), Outcome::Http(protocol), "{line}");
        }
        let method = [&[b'A'; 300][..], b" / HTTP/1.1\r\n"].concat();
        assert_eq!(inspect(&method), Outcome::Http("http/1.1"));
    }

    /// A line of 8 KiB was taken for something else, by a client's choice or a long query string's.
    #[test]
    fn a_long_line_is_http_and_a_longer_one_is_nothing_else() {
        let line = |length: usize| {
            let mut bytes = b"GET /".to_vec();
            bytes.resize(length - 11, b'a');
            bytes.extend(b" HTTP/1.1\r\n");
            bytes
        };
        for length in [8000, 8 << 10, 60_000, MAX - 1] {
            assert_eq!(inspect(&line(length)), Outcome::Http("http/1.1"), "{length}");
        }
        for bytes in [line(MAX + 2), vec![b'A'; MAX]] {
            assert_eq!(inspect(&bytes), Outcome::TooLong);
            assert_eq!(inspect(&bytes[..MAX - 1]), Outcome::NeedsMore);
        }
    }

    #[test]
    fn the_answer_does_not_depend_on_how_reads_are_split() {
        fuzz(b"GET / HTTP/1.1\r\n");
        fuzz(b"\r\n\r\nGET / HTTP/1.1\r\n");
        fuzz(&[&[b'A'; 33][..], b" / HTTP/1.1\r\n"].concat());
        let lines = [&b"\r\n".repeat(MAX / 2 - 4)[..], b"GET / HTTP/1.1\r\n"].concat();
        assert_eq!(inspect(&lines), Outcome::TooLong);
        fuzz(&[&lines[..], &[b'x'; 9000]].concat());
    }

    #[test]
    fn the_fuzz_target_holds() {
        crate::stable::run("http_inspector", &["GET", " / ", "HTTP/1.1", "\r\n", "PRI * HTTP/2.0\r\n"], fuzz);
    }
}
