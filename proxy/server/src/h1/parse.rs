//! The incremental parser of heads: request line or status line, and header fields.
//!
//! It goes line by line and remembers where it stopped, so every byte is looked at once however the head is
//! cut into reads, and whatever the cut the outcome is the same. Fields go straight into the message's arena: lines
//! as nearly all are at one look, and what is odd about a line, or cut, is left to those that take it apart.

use sixfold_core::message::{Method, RequestHead, ResponseHead, Scheme, Version};

use super::error::H1Error;
use super::fields::{self, FieldSink};
use super::framing::{BodyLength, FramingFields, RequestKind, request_framing, response_framing};
use super::hop;
use super::lines::{Line, LineReader};
use super::options::{H1Options, Profile};
use super::target::{self, check_authority};
use super::upgrade;

use sixfold_core::headers::{Headers, Known, check_unique, find_either};

/// Methods that Envoy's parser knows beside those that [`Method`] has constants for.
const MORE_METHODS: &[&[u8]] = &[
    b"ACL",
    b"BIND",
    b"CHECKOUT",
    b"COPY",
    b"LINK",
    b"LOCK",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKCOL",
    b"MOVE",
    b"MSEARCH",
    b"NOTIFY",
    b"PROPFIND",
    b"PROPPATCH",
    b"PURGE",
    b"REBIND",
    b"REPORT",
    b"SEARCH",
    b"SOURCE",
    b"SUBSCRIBE",
    b"UNBIND",
    b"UNLINK",
    b"UNLOCK",
    b"UNSUBSCRIBE",
];

/// A complete request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Bytes of the buffer that belong to the head.
    pub consumed: usize,
    /// Where the body ends.
    pub body: BodyLength,
    /// Whether the client lets the connection go on after this request.
    pub keep_alive: bool,
    /// Whether there was a Host field, if only an empty one, or an authority in the target.
    pub has_host: bool,
    /// Scheme of an absolute target, in Envoy's profile. `head.scheme` is left for the caller otherwise.
    pub scheme: Option<Scheme>,
    /// The client asks for another protocol: it stands alone in the one Upgrade field. Without an upgrade there
    /// is none.
    pub upgrade: bool,
    /// `Expect: 100-continue`.
    pub expect_continue: bool,
    /// Bytes of its fields, as Envoy counts them.
    pub field_bytes: u64,
}

/// A complete response head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsedResponse {
    /// Bytes of the buffer that belong to the head.
    pub consumed: usize,
    /// Where the body ends.
    pub body: BodyLength,
    /// Whether the upstream lets the connection go on after this response.
    pub keep_alive: bool,
    /// 1xx other than 101: another head follows.
    pub interim: bool,
    /// 101, or 2xx to CONNECT: what follows is no HTTP.
    pub tunnel: bool,
    /// Bytes of its fields, as Envoy counts them.
    pub field_bytes: u64,
}

/// Parses the head of one message after another on a connection.
///
/// Give it all bytes of the message so far at every call, from the first one on; it remembers how far it got.
/// After `Ok(Some(_))` it is ready for the next message. After an error the connection must be closed.
#[derive(Debug, Default)]
pub struct HeadParser {
    lines: LineReader,
    started: bool,
    start_line_done: bool,
    sink: FieldSink,
    /// The request line's version as the wire has it, before the profile judges it.
    version: Version,
}

impl HeadParser {
    /// A parser at the start of a connection.
    pub fn new() -> HeadParser {
        HeadParser::default()
    }

    /// Whether a first byte other than an empty line of the next message has been seen: tells a client that
    /// is slow with its head from an idle one.
    pub fn is_started(&self) -> bool {
        self.started
    }

    /// Whether the start line of the message has been taken.
    pub fn has_start_line(&self) -> bool {
        self.start_line_done
    }

    /// Parses a request head from the start of `buf` into `head`. `Ok(None)`: more bytes are needed.
    ///
    /// # Errors
    /// [`H1Error`] tells the status and details of the local reply; what was parsed so far is in `head`.
    pub fn request(
        &mut self,
        buf: &[u8],
        head: &mut RequestHead,
        opts: &H1Options,
    ) -> Result<Option<Parsed>, H1Error> {
        if !self.begin(buf, opts)? {
            return Ok(None);
        }
        if !self.start_line_done {
            let Some(line) = self.lines.plain(buf, opts, H1Error::UriTooLong)? else {
                return Ok(None);
            };
            head.clear();
            if opts.remembers_spelling() {
                head.headers.keep_spelling();
            }
            self.version = parse_request_line(line, head, opts)?;
            self.start_line_done = true;
        }
        let RequestHead { headers, authority, .. } = head;
        if !self.read_fields(buf, headers, Some(authority), opts)? {
            return Ok(None);
        }
        let consumed = self.lines.pos();
        let parsed = self.finish_request(consumed, head, opts)?;
        *self = HeadParser::new();
        Ok(Some(parsed))
    }

    /// Parses a response head from the start of `buf` into `head`. `Ok(None)`: more bytes are needed.
    /// `request` is what the response answers.
    ///
    /// # Errors
    /// [`H1Error`]; for the client it is 502 whatever it is.
    pub fn response(
        &mut self,
        buf: &[u8],
        head: &mut ResponseHead,
        request: RequestKind,
        opts: &H1Options,
    ) -> Result<Option<ParsedResponse>, H1Error> {
        // Unlike before a request, no empty line comes before a status line (RFC 9112 section 2.2).
        self.started |= !buf.is_empty();
        if !self.start_line_done {
            let Some(line) = self.lines.plain(buf, opts, H1Error::HeadersTooLarge)? else {
                return Ok(None);
            };
            head.clear();
            if opts.remembers_spelling() {
                head.headers.keep_spelling();
            }
            parse_status_line(line, head, opts)?;
            self.start_line_done = true;
        }
        if !self.read_fields(buf, &mut head.headers, None, opts)? {
            return Ok(None);
        }
        let fields = self.sink.framing;
        let framing = response_framing(head.status, head.version, request, &fields, opts)?;
        if framing.drop_content_length {
            head.headers.remove(Known::CONTENT_LENGTH);
        }
        let (consumed, field_bytes) = (self.lines.pos(), self.sink.bytes());
        *self = HeadParser::new();
        // Envoy's `Utility::isUpgrade`; nginx goes by the status.
        let switches = opts.profile == Profile::Apisix || fields.is_upgrade();
        let connected = request == RequestKind::Connect && (200..300).contains(&head.status);
        Ok(Some(ParsedResponse {
            consumed,
            body: framing.body,
            keep_alive: framing.keep_alive,
            interim: head.status < 200 && head.status != 101,
            tunnel: (head.status == 101 && switches) || connected,
            field_bytes,
        }))
    }

    /// Skips empty lines before a request; false while there is nothing else.
    fn begin(&mut self, buf: &[u8], opts: &H1Options) -> Result<bool, H1Error> {
        if !self.started {
            self.started = self.lines.skip_empty(buf, opts)?;
        }
        Ok(self.started)
    }

    /// Reads fields up to the empty line; false if it has not come yet.
    fn read_fields(
        &mut self,
        buf: &[u8],
        headers: &mut Headers,
        mut authority: Option<&mut Vec<u8>>,
        opts: &H1Options,
    ) -> Result<bool, H1Error> {
        loop {
            let ahead = self.lines.ahead(buf, opts);
            let plain = self.sink.take_plain(ahead, headers, authority.as_deref_mut(), opts)?;
            if plain > 0 {
                self.lines.step(plain);
            }
            if self.lines.take_end(ahead.get(plain..).unwrap_or_default(), opts) {
                opts.rules.apply(headers)?;
                return Ok(true);
            }
            match self.lines.logical(buf, opts)? {
                None => return Ok(false),
                Some(Line { text: [], .. }) => {
                    opts.rules.apply(headers)?;
                    return Ok(true);
                }
                Some(Line { text, folded: false }) => {
                    self.sink.take(text, headers, authority.as_deref_mut(), opts)?;
                }
                Some(Line { text, folded: true }) => {
                    let text = fields::unfold(text);
                    self.sink.take(&text, headers, authority.as_deref_mut(), opts)?;
                }
            }
        }
    }

    fn finish_request(
        &mut self,
        consumed: usize,
        head: &mut RequestHead,
        opts: &H1Options,
    ) -> Result<Parsed, H1Error> {
        let fields: &mut FramingFields = &mut self.sink.framing;
        let envoy = opts.profile == Profile::Envoy;
        let upgrade = fields.upgrade && upgrade::agree(head, fields, opts.profile);
        let framing = request_framing(&head.method, head.version, fields, opts)?;
        if framing.drop_content_length {
            head.headers.remove(Known::CONTENT_LENGTH);
        }
        if !envoy {
            check_unique(&head.headers)?;
        }
        if envoy && (fields.nominates || fields.options >= hop::MAX_OPTIONS) {
            hop::sanitize_connection(&mut head.headers)?;
        }
        let mut has_host = self.sink.hosts > 0;
        let scheme = target::resolve(head, has_host, opts)?;
        has_host |= scheme.is_some() || head.method == Method::CONNECT || !head.authority.is_empty();
        if head.version == Version::Http10 {
            if !opts.accept_http_10 {
                return Err(H1Error::LowVersion);
            }
            if let (false, Some(host)) = (has_host, &opts.default_host_for_http_10) {
                head.authority.extend_from_slice(host);
                has_host = true;
            }
        }
        if has_host {
            check_authority(&head.authority, opts.profile)?;
        } else if !envoy && head.version == Version::Http11 {
            return Err(H1Error::Malformed("no Host in HTTP/1.1"));
        }
        Ok(Parsed {
            consumed,
            body: framing.body,
            keep_alive: framing.keep_alive,
            has_host,
            scheme,
            upgrade,
            expect_continue: fields.expect_continue,
            field_bytes: self.sink.bytes(),
        })
    }
}

/// Splits at blanks as the profile does: Envoy takes any run of SP and HTAB, nginx runs of SP; strictly it is
/// one SP.
fn next_word<'a>(line: &'a [u8], opts: &H1Options) -> (&'a [u8], &'a [u8]) {
    let tab = if opts.profile == Profile::Envoy && !opts.strict { b'\t' } else { b' ' };
    let blank = |b: &u8| *b == b' ' || *b == tab;
    let end = find_either(b' ', tab, line).unwrap_or(line.len());
    let (word, rest) = line.split_at_checked(end).unwrap_or((line, &[]));
    let skip = match rest.iter().position(|b| !blank(b)) {
        _ if opts.strict => usize::from(!rest.is_empty()),
        Some(n) => n,
        None => rest.len(),
    };
    (word, rest.get(skip..).unwrap_or_default())
}

/// Method and target of a request line as nearly all are: a common method, one blank, a path, one blank, HTTP/1.1. Without
/// strictness there is nothing more to be asked of it.
#[inline]
fn plain_request_line<'a>(line: &'a [u8], opts: &H1Options) -> Option<(Method, &'a [u8])> {
    let (method, target) = match line.strip_suffix(b" HTTP/1.1")? {
        [b'G', b'E', b'T', b' ', target @ ..] => (Method::GET, target),
        [b'P', b'O', b'S', b'T', b' ', target @ ..] => (Method::POST, target),
        [b'P', b'U', b'T', b' ', target @ ..] => (Method::PUT, target),
        [b'H', b'E', b'A', b'D', b' ', target @ ..] => (Method::HEAD, target),
        [b'D', b'E', b'L', b'E', b'T', b'E', b' ', target @ ..] => (Method::DELETE, target),
        _ => return None,
    };
    (target.first() == Some(&b'/') && target::is_valid(target, opts.profile)).then_some((method, target))
}

/// The request line. The target is stored as it came; [`target::resolve`] sees to its form later.
fn parse_request_line(line: &[u8], head: &mut RequestHead, opts: &H1Options) -> Result<Version, H1Error> {
    if !opts.strict
        && let Some((method, target)) = plain_request_line(line, opts)
    {
        head.method = method;
        head.target.set(target);
        head.version = Version::Http11;
        return Ok(Version::Http11);
    }
    let (method, rest) = next_word(line, opts);
    head.method = parse_method(method, opts)?;
    let (raw, rest) = next_word(rest, opts);
    target::check_syntax(raw, head.method == Method::CONNECT, opts)?;
    head.target.set(raw);
    let (version, rest) = next_word(rest, opts);
    if !rest.is_empty() {
        return Err(H1Error::Malformed("bad request line"));
    }
    head.version = parse_version(version, opts)?;
    Ok(head.version)
}

fn parse_method(name: &[u8], opts: &H1Options) -> Result<Method, H1Error> {
    const BAD: H1Error = H1Error::Malformed("bad method");
    let ok = match opts.profile {
        Profile::Envoy => {
            matches!(
                name,
                b"GET"
                    | b"POST"
                    | b"PUT"
                    | b"HEAD"
                    | b"DELETE"
                    | b"OPTIONS"
                    | b"PATCH"
                    | b"CONNECT"
                    | b"TRACE"
            ) || MORE_METHODS.contains(&name)
        }
        Profile::Apisix => name.iter().all(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_')),
    };
    if !ok {
        return Err(BAD);
    }
    Method::from_bytes(name).map_err(|_| BAD)
}

/// Envoy knows HTTP/1.1 and takes every other version (even a missing one) for HTTP/1.0; nginx takes any
/// HTTP/1.x and answers 505 to a higher one. nginx's HTTP/0.9 is refused here.
fn parse_version(text: &[u8], opts: &H1Options) -> Result<Version, H1Error> {
    const BAD: H1Error = H1Error::Malformed("bad HTTP version");
    match (text, opts.profile) {
        (b"HTTP/1.1", _) => Ok(Version::Http11),
        (b"HTTP/1.0", _) => Ok(Version::Http10),
        ([], Profile::Envoy) if !opts.strict => Ok(Version::Http10),
        ([b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'], Profile::Envoy) => {
            if opts.strict {
                Err(H1Error::LowVersion)
            } else {
                Ok(Version::Http10)
            }
        }
        ([b'H', b'T', b'T', b'P', b'/', major @ b'1'..=b'9', b'.', minor @ ..], Profile::Apisix) => {
            if minor.is_empty() || minor.len() > 2 || !minor.iter().all(u8::is_ascii_digit) {
                return Err(BAD);
            }
            if *major > b'1' {
                return Err(H1Error::VersionNotSupported);
            }
            Ok(if minor.iter().all(|b| *b == b'0') { Version::Http10 } else { Version::Http11 })
        }
        _ => Err(BAD),
    }
}

/// `HTTP/x.y 200 reason`; the reason phrase is kept where it is passed on. Controls in it are refused as in Envoy:
/// nginx passes them on.
fn parse_status_line(line: &[u8], head: &mut ResponseHead, opts: &H1Options) -> Result<(), H1Error> {
    const BAD: H1Error = H1Error::Malformed("bad status line");
    let rest = line.strip_prefix(b"HTTP/").ok_or(BAD)?;
    let [b'0'..=b'9', b'.', b'0'..=b'9', b' ', rest @ ..] = rest else { return Err(BAD) };
    head.version = if line.starts_with(b"HTTP/1.1") { Version::Http11 } else { Version::Http10 };
    let rest = rest.trim_ascii_start();
    let [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', reason @ ..] = rest else { return Err(BAD) };
    let phrase = match reason {
        [] => reason,
        [b' ' | b'\t', phrase @ ..] => phrase,
        _ => return Err(BAD),
    };
    if phrase.iter().any(|b| b.is_ascii_control() && *b != b'\t') {
        return Err(H1Error::Malformed("control in the reason phrase"));
    }
    let digit = |b: &u8| u16::from(b - b'0');
    head.status = digit(a) * 100 + digit(b) * 10 + digit(c);
    if opts.forward_reason {
        head.reason.set(head.status, phrase);
    }
    Ok(())
}
