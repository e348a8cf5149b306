//! What is let pass of the fields of a message: one set of rules for every version of HTTP.

use super::{Headers, Known};

/// What is done about a name with `_` in it: Envoy's `headers_with_underscores_action`, nginx's
/// `underscores_in_headers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Underscores {
    /// It is a field like any other.
    #[default]
    Allow,
    /// The message is refused.
    Reject,
    /// The field is left out (nginx with `underscores_in_headers off`).
    Drop,
}

/// Rules for the fields of heads and trailers, requests and responses, prepared when configuration arrives.
///
/// Codecs hand in a finished block ([`HeaderRules::apply`]); what only the bytes on the wire tell, their number
/// and which of them may stand in a field, is theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderRules {
    /// Most fields: Envoy's `max_headers_count`, 100 by default; 1,000 in APISIX's mode. Every line of a
    /// repeated name counts, every cookie crumb, Host, and HTTP/2's pseudo-headers.
    pub max_count: usize,
    /// Names with `_`.
    pub underscores: Underscores,
    /// Joins repeated lines of well-known names, as Envoy does. nginx leaves them.
    pub join: bool,
}

/// Why a block is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// More fields than allowed.
    #[error("too many header fields")]
    TooMany,
    /// A name with `_`, where that is refused.
    #[error("header name with an underscore")]
    Underscore,
    /// Several lines of a name that there may be one of.
    #[error("repeated header field")]
    Repeated,
    /// A name that is no token (RFC 9110 section 5.1).
    #[error("bad header name")]
    Name,
}

impl HeaderRules {
    /// Envoy's defaults.
    pub const ENVOY: HeaderRules =
        HeaderRules { max_count: 100, underscores: Underscores::Allow, join: true };
    /// Those of APISIX's nginx.
    pub const APISIX: HeaderRules =
        HeaderRules { max_count: 1000, underscores: Underscores::Allow, join: false };

    /// Whether a block may have so many fields. Codecs ask before they copy any.
    ///
    /// # Errors
    /// [`HeaderFault::TooMany`].
    #[inline]
    pub fn check_count(&self, count: usize) -> Result<(), HeaderFault> {
        if count > self.max_count { Err(HeaderFault::TooMany) } else { Ok(()) }
    }

    /// Applies the rules to a finished head, whose fields have been counted.
    ///
    /// # Errors
    /// [`HeaderFault::Underscore`].
    pub fn apply(&self, headers: &mut Headers) -> Result<(), HeaderFault> {
        match self.underscores {
            Underscores::Allow => {}
            Underscores::Reject if headers.iter().any(|(name, _)| name.contains(&b'_')) => {
                return Err(HeaderFault::Underscore);
            }
            Underscores::Reject => {}
            Underscores::Drop => headers.retain(|_, name, _| !name.contains(&b'_')),
        }
        if self.join {
            headers.join_repeated(Known::is_inline);
        }
        Ok(())
    }

    /// Applies them to finished trailers. What would change framing, routing or the connection never becomes a
    /// trailer (RFC 9110 section 6.5.1).
    ///
    /// # Errors
    /// As for [`HeaderRules::apply`].
    pub fn apply_to_trailers(&self, trailers: &mut Headers) -> Result<(), HeaderFault> {
        trailers.retain(|known, _, _| known.is_none_or(may_trail));
        self.apply(trailers)
    }
}

/// Refuses requests with several lines of what nginx takes once (`ngx_http_process_unique_header_line`): a second
/// `Authorization` would be another one's credentials to whoever looks at the last line.
///
/// # Errors
/// [`HeaderFault::Repeated`].
pub fn check_unique(headers: &Headers) -> Result<(), HeaderFault> {
    const UNKNOWN: [&[u8]; 6] = [
        b"if-modified-since",
        b"if-unmodified-since",
        b"if-match",
        b"if-none-match",
        b"if-range",
        b"content-range",
    ];
    let mut seen = 0u8;
    for (known, name, _) in headers.iter_known() {
        let at = match known {
            Some(Known::AUTHORIZATION) => 6,
            Some(Known::EXPECT) => 7,
            Some(_) => continue,
            None if !matches!(name.first(), Some(b'i' | b'I' | b'c' | b'C')) => continue,
            None => match UNKNOWN.iter().position(|unique| name.eq_ignore_ascii_case(unique)) {
                Some(at) => at,
                None => continue,
            },
        };
        let bit = 1 << at;
        if seen & bit != 0 {
            return Err(HeaderFault::Repeated);
        }
        seen |= bit;
    }
    Ok(())
}

fn may_trail(known: Known) -> bool {
    !matches!(
        known,
        Known::CONNECTION
            | Known::CONTENT_LENGTH
            | Known::HOST
            | Known::KEEP_ALIVE
            | Known::PROXY_CONNECTION
            | Known::TE
            | Known::TRAILER
            | Known::TRANSFER_ENCODING
            | Known::UPGRADE
    )
}
