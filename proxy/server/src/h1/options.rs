//! What a configuration can change about the HTTP/1 codec.

pub use sixfold_core::cluster::HeaderCase;
pub use sixfold_core::hcm::Profile;
use sixfold_core::headers::HeaderRules;

/// Settings of one side of the codec, prepared when configuration arrives.
#[derive(Clone, Debug)]
pub struct H1Options {
    /// Whose behaviour the codec shows.
    pub profile: Profile,
    /// Envoy's `accept_http_10`; without it HTTP/1.0 is answered 426. nginx always accepts it.
    pub accept_http_10: bool,
    /// Envoy's `default_host_for_http_10`, used when an HTTP/1.0 request has no Host.
    pub default_host_for_http_10: Option<Box<[u8]>>,
    /// Envoy's `allow_absolute_url`, default true. Without it an absolute target is passed on as it is.
    pub allow_absolute_url: bool,
    /// Envoy's `allow_chunked_length`: Content-Length beside `chunked` is dropped instead of refused.
    pub allow_chunked_length: bool,
    /// Envoy's `enable_trailers`; without it trailers are read and dropped.
    pub enable_trailers: bool,
    /// Spelling of names that this side sends. `Preserve` is of Envoy's names that this side reads: they keep their
    /// spelling wherever they go.
    pub header_case: HeaderCase,
    /// Whether the reason phrases of responses that this side reads are passed on: nginx does so, Envoy where
    /// `preserve_case` says `forward_reason_phrase`.
    pub forward_reason: bool,
    /// Largest head in bytes, start line and line ends counted (Envoy's `max_request_headers_kb`,
    /// default 60 KiB, and 80 KiB for responses; nginx's `large_client_header_buffers` 4 x 8 KiB).
    pub max_head_bytes: usize,
    /// Longest single line in bytes: one buffer of nginx's `large_client_header_buffers`, 8 KiB. A longer
    /// request line is 414 there. Envoy has no such limit.
    pub max_line_bytes: Option<usize>,
    /// What is let pass of the fields of heads and trailers.
    pub rules: HeaderRules,
    /// Refuses what Envoy and nginx tolerate: folded lines, bare LF, several or other blanks in the start
    /// line, two Host fields, a Host that differs from an absolute target, blanks in chunk lines.
    pub strict: bool,
}

impl H1Options {
    /// The defaults for requests that clients send us and the responses they get.
    pub fn downstream(profile: Profile) -> H1Options {
        let apisix = profile == Profile::Apisix;
        H1Options {
            profile,
            accept_http_10: apisix,
            default_host_for_http_10: None,
            allow_absolute_url: true,
            allow_chunked_length: false,
            enable_trailers: false,
            header_case: if apisix { HeaderCase::Preserve } else { HeaderCase::Lower },
            forward_reason: apisix,
            max_head_bytes: if apisix { 32 * 1024 } else { 60 * 1024 },
            max_line_bytes: apisix.then_some(8 * 1024),
            rules: if apisix { HeaderRules::APISIX } else { HeaderRules::ENVOY },
            strict: false,
        }
    }

    /// The defaults for requests that we send to upstreams and the responses they give.
    pub fn upstream(profile: Profile) -> H1Options {
        H1Options {
            accept_http_10: true,
            max_head_bytes: 80 * 1024,
            max_line_bytes: None,
            ..H1Options::downstream(profile)
        }
    }

    /// Whether a message that was read is written as the peer spelled it, fields that the codec writes by itself too:
    /// Envoy's `preserve_case`. nginx has its own spelling.
    #[inline]
    pub(super) fn remembers_spelling(&self) -> bool {
        self.keeps_spelling() && self.profile == Profile::Envoy
    }

    /// Whether names are stored as the peer spelled them.
    #[inline]
    pub(super) fn keeps_spelling(&self) -> bool {
        self.header_case == HeaderCase::Preserve
    }
}

impl Default for H1Options {
    fn default() -> Self {
        H1Options::downstream(Profile::Envoy)
    }
}
