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
