//! Writing heads and bodies.
//!
//! Nothing that could be read as a line end is ever written from a message: a field whose name is no token, or
//! whose value holds CR, LF or NUL (from a plugin, or from HTTP/2), is dropped; a request whose method, target
//! or authority holds a blank or a control is refused.

use sixfold_core::headers::{Headers, Known, KnownSet, Line, has_blank};
use sixfold_core::message::{Method, RequestHead, ResponseHead, Version};

use super::error::EncodeError;
use super::framing::{ContentLength, FRAMING, FramingFields, RequestKind};
use super::options::{H1Options, HeaderCase, Profile};
use super::reason::reason_phrase;

/// Writes a body in the way that its head has announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEncoder {
    /// There is no body; data that comes all the same (an answer to HEAD) is not written.
    Discard,
    /// Content-Length, with the bytes that are still to come.
    Sized(u64),
    /// Chunks.
    Chunked,
    /// Bytes as they are: a tunnel, or a body that ends with the connection.
    Raw,
}

/// What a response's head depends on beside itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResponseContext {
    /// What the response answers.
    pub request: RequestKind,
    /// Version of the request.
    pub version: Version,
    /// Whether the response ends with its head.
    pub end_stream: bool,
    /// Whether the connection may go on after the response.
    pub keep_alive: bool,
}

/// What was written of a response's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodedResponse {
    /// How the body goes.
    pub body: BodyEncoder,
    /// Whether the connection can go on after the response: false when the body ends with the connection,
    /// whatever the context asked for.
    pub keep_alive: bool,
    /// Bytes of the field lines.
    pub field_bytes: u64,
    /// Those of name and value of the field `connection` that was added; 0 where none was.
    pub connection_bytes: u8,
}

/// What was written of a request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodedRequest {
    /// How the body goes.
    pub body: BodyEncoder,
    /// The head announces bytes that come only behind an upgrade: an upstream that does not upgrade still waits for them.
    pub owes: bool,
    /// Bytes of the field lines.
    pub field_bytes: u64,
}

/// Appends a request's head: request line in origin form (authority form for CONNECT), Host, the fields, and
/// the framing field. A Content-Length among the fields is kept; without one a request with a body is chunked,
/// and in Envoy's profile one without a body gets `content-length: 0` unless its method usually has none.
/// `end_stream` says that there is no body, whatever Content-Length says. `close` asks the upstream to close.
///
/// What flows after an upgrade or through a tunnel is no body: an upgrade without one is encoded with
/// `end_stream`, and the raw bytes may follow only when the upstream has answered 101 (or 2xx to CONNECT).
/// Earlier they would be the next request to an upstream that does not upgrade. In Envoy's profile all that follows an
/// upgrade is such bytes, whatever Content-Length says of it: it goes on as it came.
///
/// # Errors
/// [`EncodeError`]; nothing has then been appended.
pub fn encode_request(
    out: &mut Vec<u8>,
    head: &RequestHead,
    end_stream: bool,
    close: bool,
    opts: &H1Options,
) -> Result<EncodedRequest, EncodeError> {
    let connect = head.method == Method::CONNECT;
    let target = if connect { &head.authority } else { head.target.full() };
    if target.is_empty() || !may_stand_in_start_line(target) {
        return Err(EncodeError::Target);
    }
    if !may_stand_in_start_line(&head.authority) {
        return Err(EncodeError::Authority);
    }
    let start = out.len();
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let first = out.len();
    // nginx sends no field that its configuration makes empty.
    if !head.authority.is_empty() || opts.profile == Profile::Envoy {
        write_own(out, Known::HOST, &head.authority, &head.headers, opts);
    }

    let fields = write_fields(
        out,
        &head.headers,
        |known| match known {
            Known::HOST | Known::TRANSFER_ENCODING => Keep::No,
            Known::CONTENT_LENGTH if end_stream => Keep::Noted,
            _ => Keep::Yes,
        },
        opts,
    );
    let length = match fields.content_length {
        ContentLength::Invalid => {
            out.truncate(start);
            return Err(EncodeError::ContentLength);
        }
        ContentLength::Bytes(n) => Some(n),
        ContentLength::Absent => None,
    };
    let own = |out: &mut Vec<u8>, name, value: &[u8]| write_own(out, name, value, &head.headers, opts);
    let mut owes = false;
    let body = match length {
        _ if connect => BodyEncoder::Raw,
        Some(n) if end_stream && opts.profile == Profile::Envoy && fields.is_upgrade() => {
            own(out, Known::CONTENT_LENGTH, itoa::Buffer::new().format(n).as_bytes());
            owes = n > 0;
            BodyEncoder::Raw
        }
        Some(_) if end_stream => {
            own(out, Known::CONTENT_LENGTH, b"0");
            BodyEncoder::Discard
        }
        Some(n) => BodyEncoder::Sized(n),
        None if end_stream && fields.is_upgrade() => BodyEncoder::Raw,
        None if end_stream => {
            if opts.profile == Profile::Envoy && !usually_without_body(&head.method) {
                own(out, Known::CONTENT_LENGTH, b"0");
            }
            BodyEncoder::Discard
        }
        None => {
            own(out, Known::TRANSFER_ENCODING, b"chunked");
            BodyEncoder::Chunked
        }
    };
    if close && !fields.close && !fields.is_upgrade() {
        own(out, Known::CONNECTION, b"close");
    }
    let field_bytes = (out.len() - first) as u64;
    out.extend_from_slice(b"\r\n");
    Ok(EncodedRequest { body, owes, field_bytes })
}

/// Appends a response's head: status line with the reason phrase that came with the status, else the profile's, the fields,
/// the framing field and Connection. Transfer-Encoding among the fields is never copied; Connection is only for 101, else it
/// follows from the context: Envoy writes `close` when the connection ends and `keep-alive` to HTTP/1.0 clients, nginx
/// always one of both.
///
/// # Errors
/// [`EncodeError`]; nothing has then been appended.
pub fn encode_response(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    context: ResponseContext,
    opts: &H1Options,
) -> Result<EncodedResponse, EncodeError> {
    if !(100..=999).contains(&head.status) {
        return Err(EncodeError::Status);
    }
    let start = out.len();
    let status = head.status;
    let tunnel = status == 101 || (context.request == RequestKind::Connect && (200..300).contains(&status));
    let http10 = context.version == Version::Http10;
    let phrase = head.reason.of(status).unwrap_or_else(|| reason_phrase(status, opts.profile).as_bytes());
    write_status_line(out, status, http10 && opts.profile == Profile::Envoy, phrase);
    let first = out.len();

    let bodiless = tunnel || status < 200 || status == 204;
    let head_only = context.request == RequestKind::Head || status == 304;
    let fields = write_fields(
        out,
        &head.headers,
        |known| match known {
            Known::CONNECTION if status == 101 => Keep::Yes,
            Known::CONNECTION | Known::TRANSFER_ENCODING => Keep::No,
            Known::SERVER if opts.profile == Profile::Apisix => Keep::No,
            // Envoy announces the body that a 204 does not carry, when the answer is its own.
            Known::CONTENT_LENGTH if status == 204 && opts.profile == Profile::Envoy => Keep::Yes,
            Known::CONTENT_LENGTH if bodiless => Keep::No,
            Known::CONTENT_LENGTH if context.end_stream && !head_only => Keep::Noted,
            _ => Keep::Yes,
        },
        opts,
    );
    if fields.content_length == ContentLength::Invalid {
        out.truncate(start);
        return Err(EncodeError::ContentLength);
    }
    let own = |out: &mut Vec<u8>, name, value: &[u8]| write_own(out, name, value, &head.headers, opts);
    let (body, framing) = match tunnel {
        true => (BodyEncoder::Raw, None),
        false => body_of_response(fields.content_length, status, context, opts.profile),
    };
    if let Some((name, value)) = framing {
        own(out, name, value);
    }
    let keep_alive = context.keep_alive && body != BodyEncoder::Raw;
    let refused = status == 101 && opts.profile == Profile::Envoy && !fields.is_upgrade();
    let connection: Option<&[u8]> = match (keep_alive, opts.profile) {
        _ if refused => Some(b"close"),
        _ if tunnel || status < 200 => None,
        (false, _) => Some(b"close"),
        (true, Profile::Envoy) if !http10 => None,
        (true, _) => Some(b"keep-alive"),
    };
    let mut connection_bytes = 0;
    if let Some(value) = connection {
        own(out, Known::CONNECTION, value);
        connection_bytes = ("connection".len() + value.len()) as u8;
    }
    // nginx's own fields stand before those of others, which Server is one of to APISIX.
    if let Some(server) = head.headers.get(Known::SERVER).filter(|_| opts.profile == Profile::Apisix) {
        own(out, Known::SERVER, server);
    }
    let field_bytes = (out.len() - first) as u64;
    out.extend_from_slice(b"\r\n");
    Ok(EncodedResponse { body, keep_alive, field_bytes, connection_bytes })
}

/// The field that says how a body is framed.
type Framing = Option<(Known, &'static [u8])>;

/// How the body of a response that opens no tunnel is framed, and the field of ours that says so, if one is needed.
fn body_of_response(
    length: ContentLength,
    status: u16,
    context: ResponseContext,
    profile: Profile,
) -> (BodyEncoder, Framing) {
    let http10 = context.version == Version::Http10;
    let chunked: Framing = Some((Known::TRANSFER_ENCODING, b"chunked"));
    let head_only = context.request == RequestKind::Head;
    match length {
        _ if status < 200 || matches!(status, 204 | 304) => (BodyEncoder::Discard, None),
        ContentLength::Bytes(_) if head_only => (BodyEncoder::Discard, None),
        // Envoy guesses that GET would be chunked; nginx says nothing.
        _ if head_only => (BodyEncoder::Discard, chunked.filter(|_| profile == Profile::Envoy && !http10)),
        _ if context.end_stream => (BodyEncoder::Discard, Some((Known::CONTENT_LENGTH, b"0"))),
        ContentLength::Bytes(n) => (BodyEncoder::Sized(n), None),
        _ if http10 => (BodyEncoder::Raw, None),
        _ => (BodyEncoder::Chunked, chunked),
    }
}

impl BodyEncoder {
    /// Appends body bytes with what frames them. Empty data writes nothing.
    ///
    /// # Errors
    /// [`EncodeError::BodyTooLong`] beyond the announced Content-Length.
    pub fn data(&mut self, out: &mut Vec<u8>, data: &[u8]) -> Result<(), EncodeError> {
        if self.begin(out, data.len())? {
            out.extend_from_slice(data);
            self.end(out);
        }
        Ok(())
    }

    /// Appends what goes before `len` bytes that the caller writes itself, and counts them. False: the bytes
    /// are not to be written at all. [`BodyEncoder::end`] must follow the bytes.
    ///
    /// # Errors
    /// [`EncodeError::BodyTooLong`] beyond the announced Content-Length.
    pub fn begin(&mut self, out: &mut Vec<u8>, len: usize) -> Result<bool, EncodeError> {
        match self {
            _ if len == 0 => return Ok(false),
            BodyEncoder::Discard => return Ok(false),
            BodyEncoder::Sized(left) => {
                *left = left.checked_sub(len as u64).ok_or(EncodeError::BodyTooLong)?;
            }
            BodyEncoder::Chunked => chunk_header(out, len),
            BodyEncoder::Raw => {}
        }
        Ok(true)
    }

    /// Appends what goes after the bytes that [`BodyEncoder::begin`] announced.
    pub fn end(&self, out: &mut Vec<u8>) {
        if *self == BodyEncoder::Chunked {
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Appends what ends the body. Trailers are written after chunks where `enable_trailers` is on, and
    /// dropped otherwise.
    ///
    /// # Errors
    /// [`EncodeError::BodyTooShort`] if fewer bytes came than Content-Length announced: the connection must be
    /// closed.
    pub fn finish(
        self,
        out: &mut Vec<u8>,
        trailers: Option<&Headers>,
        opts: &H1Options,
    ) -> Result<(), EncodeError> {
        self.finish_with(out, trailers.filter(|_| opts.enable_trailers), opts)
    }

    /// Appends what ends the body, with trailers after chunks whatever `enable_trailers` says.
    ///
    /// # Errors
    /// As for [`BodyEncoder::finish`].
    pub fn finish_with(
        self,
        out: &mut Vec<u8>,
        trailers: Option<&Headers>,
        opts: &H1Options,
    ) -> Result<(), EncodeError> {
        match self {
            BodyEncoder::Sized(1..) => return Err(EncodeError::BodyTooShort),
            BodyEncoder::Chunked => {
                out.extend_from_slice(b"0\r\n");
                if let Some(trailers) = trailers {
                    write_fields(
                        out,
                        trailers,
                        |known| match known {
                            Known::CONTENT_LENGTH | Known::TRANSFER_ENCODING | Known::HOST => Keep::No,
                            _ => Keep::Yes,
                        },
                        opts,
                    );
                }
                out.extend_from_slice(b"\r\n");
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the body ends only with the connection.
    pub fn closes(self) -> bool {
        self == BodyEncoder::Raw
    }
}

/// Appends a chunk's size line.
pub fn chunk_header(out: &mut Vec<u8>, len: usize) {
    let mut digits = [0u8; 16];
    let mut at = digits.len();
    let mut rest = len;
    loop {
        at -= 1;
        if let Some(digit) = digits.get_mut(at) {
            *digit = b"0123456789abcdef"[rest & 15];
        }
        rest >>= 4;
        if rest == 0 || at == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
    out.extend_from_slice(b"\r\n");
}

/// What [`write_fields`] does with a field of [`TOLD_OF`].
enum Keep {
    /// Writes it and takes note.
    Yes,
    /// Takes note only.
    Noted,
    /// Neither.
    No,
}

/// Fields that say something of framing, or that are not always written. All others are.
const TOLD_OF: KnownSet = FRAMING.and(&KnownSet::of(&[Known::HOST, Known::SERVER]));

/// Appends all fields that may go out, and gathers what they say about framing. Lines that lie side by side and go out
/// as they are are copied together.
fn write_fields(
    out: &mut Vec<u8>,
    headers: &Headers,
    keep: impl Fn(Known) -> Keep,
    opts: &H1Options,
) -> FramingFields {
    let mut fields = FramingFields::default();
    let case = spelling_of(headers, opts);
    let wire = headers.wire();
    let mut run = 0..0;
    for line in headers.lines() {
        if let Some(known) = line.known.filter(|known| TOLD_OF.contains(*known)) {
            match keep(known) {
                Keep::No => continue,
                Keep::Noted => {
                    fields.note(known, line.value(wire));
                    continue;
                }
                Keep::Yes => fields.note(known, line.value(wire)),
            }
        }
        if !line.sound {
            continue;
        }
        if run.end == line.at.start {
            run.end = line.at.end;
        } else {
            out.extend_from_slice(wire.get(run).unwrap_or_default());
            run = line.at.clone();
        }
        if !is_spelled(&line, case, opts.profile) {
            // It is spelled in its place, behind all that has come before.
            out.extend_from_slice(wire.get(std::mem::take(&mut run)).unwrap_or_default());
            let at = out.len() - line.at.len();
            if let Some(name) = out.get_mut(at..at + line.name_len) {
                spell(name, line.known, case);
            }
        }
    }
    out.extend_from_slice(wire.get(run).unwrap_or_default());
    fields
}

/// How nginx in APISIX spells the fields that it writes itself, whatever spelling the other side has.
fn nginx_spelling(known: Known) -> Option<&'static str> {
    Some(match known {
        Known::CONTENT_LENGTH => "Content-Length",
        Known::CONTENT_TYPE => "Content-Type",
        Known::DATE => "Date",
        Known::LAST_MODIFIED => "Last-Modified",
        Known::SERVER => "Server",
        Known::X_APISIX_UPSTREAM_STATUS => "X-APISIX-Upstream-Status",
        Known::X_FORWARDED_FOR => "X-Forwarded-For",
        Known::X_FORWARDED_HOST => "X-Forwarded-Host",
        Known::X_FORWARDED_PORT => "X-Forwarded-Port",
        Known::X_FORWARDED_PROTO => "X-Forwarded-Proto",
        Known::X_REAL_IP => "X-Real-IP",
        _ => return None,
    })
}

/// How the names of a message are spelled: Envoy's are as the side wants that they go out of, unless the side that
/// they came by keeps their spelling.
#[inline]
fn spelling_of(headers: &Headers, opts: &H1Options) -> HeaderCase {
    match (opts.profile, opts.header_case) {
        (Profile::Envoy, _) if headers.keeps_spelling() => HeaderCase::Preserve,
        (Profile::Envoy, HeaderCase::Preserve) => HeaderCase::Lower,
        (_, case) => case,
    }
}

/// Whether a field's name is written as it is stored.
#[inline(always)]
fn is_spelled(line: &Line, case: HeaderCase, profile: Profile) -> bool {
    match case {
        HeaderCase::Preserve => profile == Profile::Envoy || line.known.and_then(nginx_spelling).is_none(),
        HeaderCase::Lower => !line.upper,
        HeaderCase::ProperCase => false,
    }
}

/// Spells a name that has been written as it is stored.
fn spell(name: &mut [u8], known: Option<Known>, case: HeaderCase) {
    match (case, known.and_then(nginx_spelling)) {
        (HeaderCase::Preserve, Some(spelled)) => {
            name.iter_mut().zip(spelled.bytes()).for_each(|(to, from)| *to = from);
        }
        (HeaderCase::Preserve, None) => {}
        (HeaderCase::Lower, _) => name.make_ascii_lowercase(),
        (HeaderCase::ProperCase, _) => proper_case(name),
    }
}

/// Envoy's proper case: a letter is upper case at the start and after anything but a letter or digit.
fn proper_case(name: &mut [u8]) {
    let mut upper = true;
    for b in name {
        if upper {
            b.make_ascii_uppercase();
        }
        upper = !b.is_ascii_alphanumeric();
    }
}

/// Appends a field of the codec's own. Where the peer's spelling is kept, Envoy writes it as the peer has spelled
/// its own, else in lower case, and nginx in proper case.
fn write_own(out: &mut Vec<u8>, name: Known, value: &[u8], headers: &Headers, opts: &H1Options) {
    let spelled = headers.spelling(name);
    let at = out.len();
    out.extend_from_slice(spelled.unwrap_or(name.as_str().as_bytes()));
    let written = out.get_mut(at..).unwrap_or_default();
    match (spelling_of(headers, opts), opts.profile) {
        (HeaderCase::ProperCase, _) | (HeaderCase::Preserve, Profile::Apisix) => proper_case(written),
        (HeaderCase::Preserve | HeaderCase::Lower, _) => {}
    }
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn write_status_line(out: &mut Vec<u8>, status: u16, http10: bool, phrase: &[u8]) {
    let digit = |place: u16| b'0' + (status / place % 10) as u8;
    let minor = if http10 { b'0' } else { b'1' };
    // One array is written by one store: so are the parts of all that is known beforehand.
    out.extend_from_slice(&[
        b'H',
        b'T',
        b'T',
        b'P',
        b'/',
        b'1',
        b'.',
        minor,
        b' ',
        digit(100),
        digit(10),
        digit(1),
        b' ',
    ]);
    out.extend_from_slice(phrase);
    out.extend_from_slice(b"\r\n");
}

/// No blank and no control.
fn may_stand_in_start_line(bytes: &[u8]) -> bool {
    !has_blank(bytes)
}

/// Envoy's `HeaderUtility::requestShouldHaveNoBody`.
fn usually_without_body(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::TRACE | Method::CONNECT)
}
