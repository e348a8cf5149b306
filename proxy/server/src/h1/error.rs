//! Why a message was refused, and what the client is told.

use super::options::Profile;
use sixfold_core::headers::HeaderFault;

/// A message that the codec refuses. The connection it came by is of no further use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum H1Error {
    /// The bytes are not HTTP/1; the text says what is wrong, for the log.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// A header value with a NUL, a bare CR or, in Envoy's profile, another control.
    #[error("header value with an invalid character")]
    InvalidCharacters,
    /// The head, or the trailers, are larger than allowed.
    #[error("head too large")]
    HeadersTooLarge,
    /// More fields than allowed in a head or in trailers.
    #[error("too many header fields")]
    TooManyHeaders,
    /// The request line is longer than a line may be (nginx's 414).
    #[error("request line too long")]
    UriTooLong,
    /// Transfer-Encoding is not exactly `chunked`.
    #[error("unsupported Transfer-Encoding")]
    InvalidTransferEncoding,
    /// Content-Length beside Transfer-Encoding.
    #[error("both Content-Length and Transfer-Encoding")]
    LengthAndChunked,
    /// `_` in a header name, where that is refused.
    #[error("header name with an underscore")]
    Underscore,
    /// The Connection header names fields that must not be removed, or too many.
    #[error("Connection names a field that it must not")]
    ConnectionHeader,
    /// An absolute or authority-form target that is no URL.
    #[error("invalid request target")]
    InvalidUrl,
    /// An absolute target with a scheme other than http and https.
    #[error("invalid scheme in the request target")]
    InvalidScheme,
    /// An `https` target on a connection without TLS, where nobody before this proxy can have ended it.
    #[error("https target on a plaintext connection")]
    HttpsOnPlaintext,
    /// A request without TLS on a port of TLS (nginx's 497).
    #[error("plain HTTP on a TLS port")]
    PlainOnTls,
    /// A Host with bytes that no authority can hold.
    #[error("invalid authority")]
    InvalidAuthority,
    /// CONNECT with a body.
    #[error("a body is not allowed here")]
    BodyDisallowed,
    /// HTTP/1.0 where it is not accepted, or any other version than 1.1.
    #[error("HTTP version too low")]
    LowVersion,
    /// HTTP/2 or higher in an HTTP/1 request line (nginx's 505).
    #[error("HTTP version not supported")]
    VersionNotSupported,
    /// A method that is never served (nginx: TRACE, CONNECT).
    #[error("method not allowed")]
    MethodNotAllowed,
    /// Transfer-Encoding in a 1xx or 204 response, or in a 2xx answer to CONNECT.
    #[error("Transfer-Encoding is not allowed in this response")]
    TransferEncodingNotAllowed,
    /// Content-Length in a 1xx or 204 response, or in a 2xx answer to CONNECT.
    #[error("Content-Length is not allowed in this response")]
    ContentLengthNotAllowed,
    /// The connection ended inside a message.
    #[error("connection closed inside a message")]
    Truncated,
}

impl H1Error {
    /// Whether it is the underscore in a name.
    pub(crate) fn is_of_underscore(self) -> bool {
        self == H1Error::Underscore
    }
}

impl From<HeaderFault> for H1Error {
    fn from(fault: HeaderFault) -> H1Error {
        match fault {
            HeaderFault::TooMany => H1Error::TooManyHeaders,
            HeaderFault::Underscore => H1Error::Underscore,
            HeaderFault::Repeated => H1Error::Malformed("repeated header field"),
            HeaderFault::Name => H1Error::Malformed("bad header name"),
        }
    }
}

impl H1Error {
    /// Status of the local reply to a refused request. (A refused response of an upstream is 502 in both
    /// profiles.)
    pub fn status(self, profile: Profile) -> u16 {
        let envoy = profile == Profile::Envoy;
        match self {
            H1Error::HeadersTooLarge | H1Error::TooManyHeaders if envoy => 431,
            H1Error::UriTooLong => 414,
            H1Error::InvalidTransferEncoding => 501,
            H1Error::LowVersion => 426,
            H1Error::VersionNotSupported => 505,
            H1Error::MethodNotAllowed => 405,
            H1Error::HttpsOnPlaintext => 403,
            _ => 400,
        }
    }

    /// What nginx's page says of it, where it says more than the status does (`ngx_http_special_response.c`).
    pub fn told(self) -> Option<&'static str> {
        match self {
            H1Error::HeadersTooLarge => Some("Request Header Or Cookie Too Large"),
            H1Error::PlainOnTls => Some("The plain HTTP request was sent to HTTPS port"),
            _ => None,
        }
    }

    /// Envoy's `%RESPONSE_CODE_DETAILS%`.
    pub fn details(self) -> &'static str {
        match self {
            H1Error::Malformed(_)
            | H1Error::Truncated
            | H1Error::UriTooLong
            | H1Error::VersionNotSupported
            | H1Error::PlainOnTls
            | H1Error::MethodNotAllowed => "http1.codec_error",
            H1Error::InvalidCharacters => "http1.invalid_characters",
            H1Error::HeadersTooLarge => "http1.headers_too_large",
            H1Error::TooManyHeaders => "http1.too_many_headers",
            H1Error::InvalidTransferEncoding => "http1.invalid_transfer_encoding",
            H1Error::LengthAndChunked => "http1.content_length_and_chunked_not_allowed",
            H1Error::Underscore => "http1.unexpected_underscore",
            H1Error::ConnectionHeader => "http1.connection_header_rejected",
            H1Error::InvalidUrl => "http1.invalid_url",
            H1Error::InvalidScheme => "http1.invalid_scheme",
            H1Error::HttpsOnPlaintext => "http1.https_url_on_plaintext_connection",
            H1Error::InvalidAuthority => "http.invalid_authority",
            H1Error::BodyDisallowed => "http1.body_disallowed",
            H1Error::LowVersion => "low_version",
            H1Error::TransferEncodingNotAllowed => "http1.transfer_encoding_not_allowed",
            H1Error::ContentLengthNotAllowed => "http1.content_length_not_allowed",
        }
    }
}

/// A message that is not written. Nothing of it has gone out, unless the body was already under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The request target is empty, or holds a blank or a control.
    #[error("the request target cannot be sent")]
    Target,
    /// The authority holds a blank or a control.
    #[error("the authority cannot be sent")]
    Authority,
    /// The status is not in 100 to 999.
    #[error("the status cannot be sent")]
    Status,
    /// Content-Length is no number, or there are several.
    #[error("bad Content-Length in an outgoing message")]
    ContentLength,
    /// More body bytes than Content-Length announced.
    #[error("body longer than its Content-Length")]
    BodyTooLong,
    /// Fewer body bytes than Content-Length announced.
    #[error("body shorter than its Content-Length")]
    BodyTooShort,
}
