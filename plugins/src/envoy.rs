//! What Envoy's filters share: matchers and shares of requests from their protobuf messages.

use prost::{Message, Name};
use sixfold_core::matcher::{HeaderMatch, HeaderMatcher, HeaderTarget, StringMatcher};
use sixfold_core::regex::Regex;
use sixfold_xds_api::pb::envoy::config::route::v3 as route;
use sixfold_xds_api::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier as Test;
use sixfold_xds_api::pb::envoy::r#type::matcher::v3 as matcher;
use sixfold_xds_api::pb::envoy::r#type::v3::FractionalPercent;
use sixfold_xds_api::pb::envoy::r#type::v3::fractional_percent::DenominatorType;

/// A filter's message from its bytes.
pub(crate) fn decode<M: Message + Default + Name>(bytes: &[u8]) -> Result<M, String> {
    M::decode(bytes).map_err(|e| format!("is not a valid {}: {e}", M::full_name()))
}

/// type/matcher/v3/string.proto StringMatcher.
pub(crate) fn string_matcher(value: &matcher::StringMatcher) -> Result<StringMatcher, String> {
    use matcher::string_matcher::MatchPattern;
    let bytes = |text: &str| -> Box<[u8]> { text.as_bytes().into() };
    let ignore = value.ignore_case;
    Ok(match &value.match_pattern {
        Some(MatchPattern::Exact(text)) => StringMatcher::Exact(bytes(text), ignore),
        Some(MatchPattern::Prefix(text)) => StringMatcher::Prefix(bytes(text), ignore),
        Some(MatchPattern::Suffix(text)) => StringMatcher::Suffix(bytes(text), ignore),
        Some(MatchPattern::Contains(text)) => StringMatcher::contains(text, ignore),
        Some(MatchPattern::SafeRegex(regex)) => StringMatcher::Regex(full(&regex.regex)?),
        Some(MatchPattern::Custom(_)) => return Err("custom: is not supported".to_owned()),
        None => return Err("match_pattern: is missing".to_owned()),
    })
}

/// config/route/v3 HeaderMatcher.
#[allow(deprecated, reason = "old configurations still have these fields, and Envoy still reads them")]
pub(crate) fn header_matcher(value: &route::HeaderMatcher) -> Result<HeaderMatcher, String> {
    let bytes = |text: &str| -> Box<[u8]> { text.as_bytes().into() };
    let test = match &value.header_match_specifier {
        None => HeaderMatch::Present(true),
        Some(Test::PresentMatch(present)) => HeaderMatch::Present(*present),
        Some(Test::RangeMatch(range)) => HeaderMatch::Range(range.start, range.end),
        Some(Test::StringMatch(text)) => HeaderMatch::String(string_matcher(text)?),
        Some(Test::ExactMatch(text)) => HeaderMatch::String(StringMatcher::exact(text)),
        Some(Test::PrefixMatch(text)) => HeaderMatch::String(StringMatcher::Prefix(bytes(text), false)),
        Some(Test::SuffixMatch(text)) => HeaderMatch::String(StringMatcher::Suffix(bytes(text), false)),
        Some(Test::ContainsMatch(text)) => HeaderMatch::String(StringMatcher::contains(text, false)),
        Some(Test::SafeRegexMatch(regex)) => HeaderMatch::String(StringMatcher::Regex(full(&regex.regex)?)),
    };
    Ok(HeaderMatcher {
        target: HeaderTarget::parse(&value.name).map_err(|e| format!("headers: name: {e}"))?,
        test,
        invert: value.invert_match,
        missing_is_empty: value.treat_missing_header_as_empty,
    })
}

fn full(regex: &str) -> Result<Regex, String> {
    Regex::full(regex).map_err(|e| e.to_string())
}

/// A share of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Requests that count, of `of`.
    pub(crate) numerator: u32,
    /// 100, 10,000 or 1,000,000.
    pub(crate) of: u32,
}

impl Share {
    /// type/v3/percent.proto FractionalPercent; a missing one is none.
    pub(crate) fn new(value: Option<FractionalPercent>) -> Share {
        let value = value.unwrap_or_default();
        let of = match value.denominator() {
            DenominatorType::Hundred => 100,
            DenominatorType::TenThousand => 10_000,
            DenominatorType::Million => 1_000_000,
        };
        Share { numerator: value.numerator, of }
    }

    /// Whether this request is in the share.
    pub(crate) fn draw(self) -> bool {
        fastrand::u32(..self.of) < self.numerator
    }
}
