//! Matchers of strings, headers, query parameters and cookies.

use crate::pb::envoy::config::core::v3::TypedExtensionConfig;
use crate::pb::envoy::config::route::v3 as proto;
use crate::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use crate::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use crate::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use crate::pb::envoy::r#type::matcher::v3::metadata_matcher::{PathSegment, path_segment::Segment};
use crate::pb::envoy::r#type::matcher::v3::value_matcher::MatchPattern as ValuePattern;
use crate::pb::envoy::r#type::matcher::v3::{
    ListStringMatcher, MetadataMatcher as ProtoMetadata, OrMatcher, StringMatcher as ProtoString,
    ValueMatcher as ProtoValue, double_matcher, list_matcher, string_matcher::MatchPattern,
};
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::matcher::{
    CookieMatcher, HeaderMatch, HeaderMatcher, HeaderTarget, MetadataMatcher, QueryMatcher, StringMatcher,
    ValueMatcher,
};

use crate::values::{Result, full_regex, not_empty, one_of, required};
use crate::{any, refuse};

/// type/matcher/v3/string.proto StringMatcher.
pub fn string(value: &ProtoString) -> Result<StringMatcher> {
    let ProtoString { ignore_case, match_pattern } = value;
    let ignore = *ignore_case;
    let bytes = |text: &str| -> Box<[u8]> { text.as_bytes().into() };
    Ok(match match_pattern {
        Some(MatchPattern::Exact(text)) => StringMatcher::Exact(bytes(text), ignore),
        Some(MatchPattern::Prefix(text)) => StringMatcher::Prefix(bytes(not_empty(text, "prefix")?), ignore),
        Some(MatchPattern::Suffix(text)) => StringMatcher::Suffix(bytes(not_empty(text, "suffix")?), ignore),
        Some(MatchPattern::Contains(text)) => StringMatcher::contains(not_empty(text, "contains")?, ignore),
        Some(MatchPattern::SafeRegex(regex)) => {
            if ignore {
                return Err(ConfigError::field("ignore_case", "has no effect on safe_regex"));
            }
            StringMatcher::Regex(full_regex(regex).in_key("safe_regex")?)
        }
        Some(MatchPattern::Custom(_)) => return Err(ConfigError::field("custom", "is not supported")),
        None => {
            return Err(ConfigError::new("one of exact, prefix, suffix, contains, safe_regex is missing"));
        }
    })
}

/// type/matcher/v3/string.proto ListStringMatcher: its tests, of which one at least must hold.
pub fn strings(value: &ListStringMatcher) -> Result<Vec<StringMatcher>> {
    let each = value.patterns.iter().enumerate().map(|(index, pattern)| string(pattern).in_index(index));
    collect(each).in_key("patterns")
}

/// The same of a field; without it none.
pub fn strings_of(value: &Option<ListStringMatcher>, field: &str) -> Result<Box<[StringMatcher]>> {
    value.as_ref().map_or(Ok(Vec::new()), strings).in_key(field).map(Vec::into_boxed_slice)
}

/// Header matchers of a field.
pub fn headers(values: &[proto::HeaderMatcher], field: &str) -> Result<Vec<HeaderMatcher>> {
    collect(values.iter().enumerate().map(|(index, value)| header(value).in_index(index))).in_key(field)
}

/// config/route/v3 HeaderMatcher, of request headers.
pub fn header(value: &proto::HeaderMatcher) -> Result<HeaderMatcher> {
    header_matcher(value, HeaderTarget::of_request)
}

/// config/route/v3 HeaderMatcher, of response headers.
pub fn response_header(value: &proto::HeaderMatcher) -> Result<HeaderMatcher> {
    header_matcher(value, HeaderTarget::of_response)
}

fn header_matcher(value: &proto::HeaderMatcher, target: fn(&str) -> HeaderTarget) -> Result<HeaderMatcher> {
    let proto::HeaderMatcher { name, invert_match, treat_missing_header_as_empty, header_match_specifier } =
        value;
    Ok(HeaderMatcher {
        target: target(not_empty(name, "name")?),
        test: header_test(header_match_specifier)?,
        invert: *invert_match,
        missing_is_empty: *treat_missing_header_as_empty,
    })
}

fn header_test(value: &Option<HeaderMatchSpecifier>) -> Result<HeaderMatch> {
    let bytes = |text: &str| -> Box<[u8]> { text.as_bytes().into() };
    Ok(HeaderMatch::String(match value {
        None => return Ok(HeaderMatch::Present(true)),
        Some(HeaderMatchSpecifier::PresentMatch(present)) => return Ok(HeaderMatch::Present(*present)),
        Some(HeaderMatchSpecifier::RangeMatch(range)) => {
            return Ok(HeaderMatch::Range(range.start, range.end));
        }
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => string(matcher).in_key("string_match")?,
        // Envoy takes the deprecated form without a text for one of any value, but not `string_match`'s.
        Some(HeaderMatchSpecifier::ExactMatch(text)) if text.is_empty() => {
            StringMatcher::Prefix(Box::default(), false)
        }
        Some(HeaderMatchSpecifier::ExactMatch(text)) => StringMatcher::exact(text),
        Some(HeaderMatchSpecifier::PrefixMatch(text)) => {
            StringMatcher::Prefix(bytes(not_empty(text, "prefix_match")?), false)
        }
        Some(HeaderMatchSpecifier::SuffixMatch(text)) => {
            StringMatcher::Suffix(bytes(not_empty(text, "suffix_match")?), false)
        }
        Some(HeaderMatchSpecifier::ContainsMatch(text)) => {
            StringMatcher::contains(not_empty(text, "contains_match")?, false)
        }
        Some(HeaderMatchSpecifier::SafeRegexMatch(regex)) => {
            StringMatcher::Regex(full_regex(regex).in_key("safe_regex_match")?)
        }
    }))
}

/// type/matcher/v3 MetadataMatcher.
pub fn metadata(value: &ProtoMetadata) -> Result<MetadataMatcher> {
    let ProtoMetadata { filter, path, value, invert } = value;
    let mut keys = path.iter().enumerate().map(|(index, PathSegment { segment })| match segment {
        Some(Segment::Key(key)) => Ok(key.as_str().into()),
        None => Err(ConfigError::field("key", "is missing").in_index(index).in_key("path")),
    });
    let key = keys.next().transpose()?.ok_or_else(|| ConfigError::field("path", "is missing"))?;
    Ok(MetadataMatcher {
        namespace: not_empty(filter, "filter")?.into(),
        key,
        path: keys.collect::<Result<_>>()?,
        value: self::value(required(value, "value")?).in_key("value")?,
        invert: *invert,
    })
}

/// type/matcher/v3 ValueMatcher.
pub fn value(value: &ProtoValue) -> Result<ValueMatcher> {
    Ok(match one_of::<ProtoValue, _>(&value.match_pattern, "match_pattern")? {
        ValuePattern::NullMatch(_) => ValueMatcher::Null,
        ValuePattern::DoubleMatch(number) => match &number.match_pattern {
            Some(double_matcher::MatchPattern::Range(range)) => ValueMatcher::Within(range.start..range.end),
            Some(double_matcher::MatchPattern::Exact(number)) => ValueMatcher::Number(*number),
            None => return Err(ConfigError::field("double_match", "is empty")),
        },
        ValuePattern::StringMatch(test) => ValueMatcher::Text(string(test).in_key("string_match")?),
        ValuePattern::BoolMatch(wanted) => ValueMatcher::Bool(*wanted),
        ValuePattern::PresentMatch(wanted) => ValueMatcher::Present(*wanted),
        ValuePattern::ListMatch(list) => match &list.match_pattern {
            Some(list_matcher::MatchPattern::OneOf(test)) => {
                ValueMatcher::OneOf(Box::new(self::value(test).in_key("one_of").in_key("list_match")?))
            }
            None => return Err(ConfigError::field("list_match", "is empty")),
        },
        ValuePattern::OrMatch(OrMatcher { value_matchers }) => {
            let tests =
                value_matchers.iter().enumerate().map(|(index, test)| self::value(test).in_index(index));
            let tests: Result<_> = tests.collect();
            ValueMatcher::Any(tests.in_key("value_matchers").in_key("or_match")?)
        }
    })
}

/// The template of extensions/path/match/uri_template/v3 UriTemplateMatchConfig.
///
/// # Errors
/// It is another extension, or none.
pub fn path_template(value: &TypedExtensionConfig) -> Result<String> {
    let TypedExtensionConfig { name, typed_config } = value;
    let config = required(typed_config, "typed_config")?;
    let kind = any::type_name(config).in_key("typed_config")?;
    if kind != "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig" {
        return Err(refuse::extension("path match policy", name, &kind));
    }
    let UriTemplateMatchConfig { path_template } = any::unpack(config).in_key("typed_config")?;
    Ok(path_template)
}

/// config/route/v3 QueryParameterMatcher.
pub fn query(value: &proto::QueryParameterMatcher) -> Result<QueryMatcher> {
    let proto::QueryParameterMatcher { name, query_parameter_match_specifier } = value;
    let (test, present) = match query_parameter_match_specifier {
        Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => {
            (Some(string(matcher).in_key("string_match")?), true)
        }
        Some(QueryParameterMatchSpecifier::PresentMatch(present)) => (None, *present),
        None => (None, true),
    };
    Ok(QueryMatcher { name: not_empty(name, "name")?.into(), test, present })
}

/// config/route/v3 CookieMatcher.
pub fn cookie(value: &proto::CookieMatcher) -> Result<CookieMatcher> {
    let proto::CookieMatcher { name, string_match, invert_match } = value;
    Ok(CookieMatcher {
        name: not_empty(name, "name")?.into(),
        test: string(required(string_match, "string_match")?).in_key("string_match")?,
        invert: *invert_match,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::read;
    use sixfold_core::message::RequestHead;

    fn refused(yaml: &str) -> String {
        header(&read(yaml)).unwrap_err().to_string()
    }

    #[test]
    fn every_header_test_is_compiled() {
        let test = |yaml: &str| header(&read(yaml)).unwrap();
        assert!(matches!(test("{name: a}").test, HeaderMatch::Present(true)));
        assert!(matches!(test("{name: a, present_match: false}").test, HeaderMatch::Present(false)));
        assert!(matches!(
            test("{name: a, range_match: {start: -1, end: 5}}").test,
            HeaderMatch::Range(-1, 5)
        ));
        let inverted =
            test("{name: ':path', string_match: {prefix: /A, ignore_case: true}, invert_match: true}");
        assert!(inverted.invert && inverted.target == HeaderTarget::Path);
        assert!(
            matches!(&inverted.test, HeaderMatch::String(StringMatcher::Prefix(text, true)) if &**text == b"/A")
        );
        assert!(test("{name: a, treat_missing_header_as_empty: true}").missing_is_empty);
    }

    /// It asked for an empty value.
    #[test]
    fn an_exact_match_without_a_text_is_one_of_any_value() {
        let request = |values: &[&str]| {
            let mut head = RequestHead::default();
            values.iter().for_each(|value| head.headers.append("a", value.as_bytes()));
            head
        };
        let some = header(&read("{name: a, exact_match: ''}")).unwrap();
        let none = header(&read("{name: a, exact_match: '', invert_match: true}")).unwrap();
        let or_missing =
            header(&read("{name: a, exact_match: '', treat_missing_header_as_empty: true}")).unwrap();
        let empty = header(&read("{name: a, string_match: {exact: ''}}")).unwrap();
        for (values, wanted) in [
            (&[][..], [false, false, true, false]),
            (&[""], [true, false, true, true]),
            (&["b"], [true, false, true, false]),
        ] {
            let head = request(values);
            let passes = [&some, &none, &or_missing, &empty].map(|matcher| matcher.matches(&head));
            assert_eq!(passes, wanted, "{values:?}");
        }
    }

    #[test]
    fn a_name_that_no_header_has_is_looked_for_in_vain() {
        let mut head = RequestHead::default();
        head.headers.append("x", b"y");
        for (yaml, wanted) in [
            ("{name: 'x y', present_match: true}", false),
            ("{name: 'x y', present_match: false}", true),
            ("{name: 'x y', string_match: {exact: y}, invert_match: true}", false),
        ] {
            assert_eq!(header(&read(yaml)).unwrap().matches(&head), wanted, "{yaml}");
        }
    }

    #[test]
    fn bad_matchers_name_the_field() {
        assert_eq!(refused("{}"), "name: must not be empty");
        assert_eq!(refused("{name: a, prefix_match: ''}"), "prefix_match: must not be empty");
        assert!(
            refused("{name: a, string_match: {safe_regex: {regex: '('}}}")
                .starts_with("string_match.safe_regex.regex: ")
        );
        assert_eq!(
            refused("{name: a, string_match: {}}"),
            "string_match: one of exact, prefix, suffix, contains, safe_regex is missing"
        );
    }

    #[test]
    fn queries_and_cookies() {
        let present = query(&read("{name: a}")).unwrap();
        assert!(present.matches(Some(b"a=1")) && !present.matches(Some(b"b=1")));
        let absent = query(&read("{name: a, present_match: false}")).unwrap();
        assert!(!absent.matches(Some(b"a=1")) && absent.matches(None));
        assert_eq!(cookie(&read("{name: a}")).unwrap_err().to_string(), "string_match: is missing");
    }
}
