//! Where a message ends: the one place that decides it, for requests and for responses.
//!
//! RFC 9112 section 6.3, with Envoy's and nginx's refusals. Both functions are pure: they see the start line
//! and what the framing fields say, and nothing of the bytes that follow.

use sixfold_core::headers::{Headers, Known, KnownSet};
use sixfold_core::message::{Method, Version};

use super::error::H1Error;
use super::options::{H1Options, Profile};

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BodyLength {
    /// The message has no body.
    #[default]
    None,
    /// Content-Length: so many bytes, possibly 0.
    Sized(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
    /// The body goes on until the peer closes (responses only).
    UntilClose,
}

impl BodyLength {
    /// Whether the message is complete with its head.
    pub fn is_empty(self) -> bool {
        matches!(self, BodyLength::None | BodyLength::Sized(0))
    }
}

/// What the request says about the response's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RequestKind {
    /// Any other method.
    #[default]
    Plain,
    /// HEAD: the response has no body whatever its fields say.
    Head,
    /// CONNECT: a 2xx response opens a tunnel.
    Connect,
}

impl From<&Method> for RequestKind {
    fn from(method: &Method) -> Self {
        match *method {
            Method::HEAD => RequestKind::Head,
            Method::CONNECT => RequestKind::Connect,
            _ => RequestKind::Plain,
        }
    }
}

/// The Content-Length fields of a message, taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ContentLength {
    /// There is none.
    #[default]
    Absent,
    /// One, of digits only, at most 2^63 - 1.
    Bytes(u64),
    /// Several (even equal ones), a list, a sign, an overflow or garbage.
    Invalid,
}

impl ContentLength {
    /// Reads them off a finished block.
    pub fn of(headers: &Headers) -> ContentLength {
        headers.get_all(Known::CONTENT_LENGTH).fold(ContentLength::Absent, ContentLength::and)
    }

    /// With one more field.
    fn and(self, value: &[u8]) -> ContentLength {
        match (self, parse_length(value)) {
            (ContentLength::Absent, Some(n)) => ContentLength::Bytes(n),
            _ => ContentLength::Invalid,
        }
    }
}

/// The Transfer-Encoding fields of a message, taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TransferEncoding {
    /// There is none.
    #[default]
    Absent,
    /// One, exactly `chunked` in any case.
    Chunked,
    /// One with anything else.
    Other,
    /// Several.
    Repeated,
}

/// What the fields of a head say about framing and about the connection. Gathered while the head is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FramingFields {
    /// Content-Length.
    pub content_length: ContentLength,
    /// Transfer-Encoding.
    pub transfer_encoding: TransferEncoding,
    /// `Connection: close`, or `Proxy-Connection: close`.
    pub close: bool,
    /// `Connection: keep-alive`.
    pub keep_alive: bool,
    /// `Connection: upgrade`.
    pub connection_upgrade: bool,
    /// Connection names something beside close, keep-alive, upgrade and http2-settings.
    pub nominates: bool,
    /// Names in Connection, options counted.
    pub options: u8,
    /// There is an Upgrade field, if only an empty one.
    pub upgrade: bool,
    /// `Expect: 100-continue`.
    pub expect_continue: bool,
}

/// Fields that say something of framing.
pub(super) const FRAMING: KnownSet = KnownSet::of(&[
    Known::CONTENT_LENGTH,
    Known::TRANSFER_ENCODING,
    Known::CONNECTION,
    Known::PROXY_CONNECTION,
    Known::UPGRADE,
    Known::EXPECT,
]);

impl FramingFields {
    /// Reads them off a finished block.
    pub fn of(headers: &Headers) -> FramingFields {
        let mut fields = FramingFields::default();
        for (known, _, value) in headers.iter_known() {
            if let Some(known) = known {
                fields.note(known, value);
            }
        }
        fields
    }

    /// Takes in one field; `value` has no blanks around it.
    #[inline]
    pub fn note(&mut self, known: Known, value: &[u8]) {
        if FRAMING.contains(known) {
            self.take(known, value);
        }
    }

    fn take(&mut self, known: Known, value: &[u8]) {
        match known {
            Known::CONTENT_LENGTH => self.content_length = self.content_length.and(value),
            Known::TRANSFER_ENCODING => {
                self.transfer_encoding = match self.transfer_encoding {
                    TransferEncoding::Absent if value.eq_ignore_ascii_case(b"chunked") => {
                        TransferEncoding::Chunked
                    }
                    TransferEncoding::Absent => TransferEncoding::Other,
                    _ => TransferEncoding::Repeated,
                }
            }
            // Nearly always it is this one, as it stands here.
            Known::CONNECTION if value == b"keep-alive" => {
                self.options = self.options.saturating_add(1);
                self.keep_alive = true;
            }
            Known::CONNECTION => tokens(value).for_each(|t| self.note_option(t)),
            Known::PROXY_CONNECTION => {
                self.close |= tokens(value).any(|t| t.eq_ignore_ascii_case(b"close"));
            }
            Known::UPGRADE => self.upgrade = true,
            Known::EXPECT => self.expect_continue |= value.eq_ignore_ascii_case(b"100-continue"),
            _ => {}
        }
    }

    fn note_option(&mut self, token: &[u8]) {
        self.options = self.options.saturating_add(1);
        match token {
            t if t.eq_ignore_ascii_case(b"close") => self.close = true,
            t if t.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
            t if t.eq_ignore_ascii_case(b"upgrade") => self.connection_upgrade = true,
            t if t.eq_ignore_ascii_case(b"http2-settings") => {}
            _ => self.nominates = true,
        }
    }

    /// Envoy's `Utility::isUpgrade`: both `Connection: upgrade` and an Upgrade field.
    pub fn is_upgrade(&self) -> bool {
        self.upgrade && self.connection_upgrade
    }

    fn keeps_alive(&self, version: Version) -> bool {
        !self.close && (version != Version::Http10 || self.keep_alive)
    }
}

/// The elements of a comma-separated list, without the blanks around them and without empty ones.
pub(super) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}

/// `1*DIGIT`, at most 2^63 - 1.
pub(super) fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // So many digits never overflow.
    if value.len() <= 18 {
        return Some(value.iter().fold(0, |n, b| n * 10 + u64::from(b - b'0')));
    }
    std::str::from_utf8(value).ok()?.parse().ok().filter(|n| *n <= i64::MAX as u64)
}

/// What is decided about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// How the body ends.
    pub body: BodyLength,
    /// Whether the connection can carry another message after this one.
    pub keep_alive: bool,
    /// Content-Length must be removed: Transfer-Encoding overrides it, or it may not be there.
    pub drop_content_length: bool,
}

/// Decides where a request ends.
///
/// # Errors
/// Every ambiguity: a bad or repeated Content-Length, a Transfer-Encoding that is not exactly `chunked`, both
/// at once (unless `allow_chunked_length`), chunked in HTTP/1.0, CONNECT with a body, and nginx's refusal of
/// TRACE and CONNECT.
pub fn request_framing(
    method: &Method,
    version: Version,
    fields: &FramingFields,
    opts: &H1Options,
) -> Result<Framing, H1Error> {
    let (mut length, chunked) = lengths(fields)?;
    let mut drop_content_length = false;
    if opts.profile == Profile::Apisix && matches!(*method, Method::CONNECT | Method::TRACE) {
        return Err(H1Error::MethodNotAllowed);
    }
    if *method == Method::CONNECT {
        match length {
            None => {}
            Some(0) => (length, drop_content_length) = (None, true),
            Some(_) => return Err(H1Error::BodyDisallowed),
        }
        if chunked {
            return Err(H1Error::InvalidTransferEncoding);
        }
    }
    if chunked && version == Version::Http10 {
        return Err(H1Error::Malformed("Transfer-Encoding in HTTP/1.0"));
    }
    if chunked && length.is_some() {
        if !opts.allow_chunked_length {
            return Err(H1Error::LengthAndChunked);
        }
        drop_content_length = true;
    }
    let body = match length {
        _ if chunked => BodyLength::Chunked,
        Some(n) => BodyLength::Sized(n),
        None => BodyLength::None,
    };
    Ok(Framing { body, keep_alive: fields.keeps_alive(version), drop_content_length })
}

/// Decides where a response ends.
///
/// # Errors
/// The same ambiguities as in requests; in Envoy's profile also Transfer-Encoding or a Content-Length other
/// than 0 where no body can be (1xx, 204, 2xx to CONNECT).
pub fn response_framing(
    status: u16,
    version: Version,
    request: RequestKind,
    fields: &FramingFields,
    opts: &H1Options,
) -> Result<Framing, H1Error> {
    let (length, chunked) = lengths(fields)?;
    if chunked && length.is_some() && !opts.allow_chunked_length {
        return Err(H1Error::LengthAndChunked);
    }
    let tunnel = status == 101 || (request == RequestKind::Connect && (200..300).contains(&status));
    if tunnel || status < 200 || status == 204 {
        if opts.profile == Profile::Envoy {
            if chunked {
                return Err(H1Error::TransferEncodingNotAllowed);
            }
            if length.is_some_and(|n| n > 0) {
                return Err(H1Error::ContentLengthNotAllowed);
            }
        }
        return Ok(Framing {
            body: BodyLength::None,
            keep_alive: !tunnel && fields.keeps_alive(version),
            drop_content_length: length.is_some(),
        });
    }
    let body = match length {
        _ if request == RequestKind::Head || status == 304 => BodyLength::None,
        _ if chunked => BodyLength::Chunked,
        Some(n) => BodyLength::Sized(n),
        None => BodyLength::UntilClose,
    };
    // RFC 9112 section 6.1: chunked in HTTP/1.0 may come from a recipient that does not know it; read it
    // once, and do not trust the connection after that.
    let odd = chunked && version == Version::Http10;
    Ok(Framing {
        body,
        keep_alive: !odd && body != BodyLength::UntilClose && fields.keeps_alive(version),
        drop_content_length: chunked && length.is_some(),
    })
}

/// Content-Length and whether the body is chunked, if both are clean each for itself.
fn lengths(fields: &FramingFields) -> Result<(Option<u64>, bool), H1Error> {
    let chunked = match fields.transfer_encoding {
        TransferEncoding::Absent => false,
        TransferEncoding::Chunked => true,
        TransferEncoding::Other => return Err(H1Error::InvalidTransferEncoding),
        TransferEncoding::Repeated => return Err(H1Error::Malformed("several Transfer-Encoding fields")),
    };
    match fields.content_length {
        ContentLength::Absent => Ok((None, chunked)),
        ContentLength::Bytes(n) => Ok((Some(n), chunked)),
        ContentLength::Invalid => Err(H1Error::Malformed("bad Content-Length")),
    }
}
