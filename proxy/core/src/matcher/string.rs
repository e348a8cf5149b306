//! Envoy's StringMatcher (type/matcher/v3/string.proto).

use crate::regex::Regex;

/// A test of a text.
#[derive(Debug)]
pub enum StringMatcher {
    /// Equal; the flag ignores ASCII case.
    Exact(Box<[u8]>, bool),
    /// Starts with; the flag ignores ASCII case.
    Prefix(Box<[u8]>, bool),
    /// Ends with; the flag ignores ASCII case.
    Suffix(Box<[u8]>, bool),
    /// Has inside; the flag ignores ASCII case (the needle is then kept in lower case).
    Contains(Box<[u8]>, bool),
    /// Matches as a whole.
    Regex(Regex),
}

impl StringMatcher {
    /// An exact, case-sensitive test.
    pub fn exact(text: &str) -> StringMatcher {
        StringMatcher::Exact(text.as_bytes().into(), false)
    }

    /// A search for `needle` anywhere.
    pub fn contains(needle: &str, ignore_case: bool) -> StringMatcher {
        let needle = if ignore_case { needle.to_ascii_lowercase() } else { needle.to_owned() };
        StringMatcher::Contains(needle.into_bytes().into(), ignore_case)
    }

    /// The expression, where it is one.
    pub(crate) fn expression(&self) -> Option<&Regex> {
        if let StringMatcher::Regex(regex) = self { Some(regex) } else { None }
    }

    /// Whether the text passes.
    pub fn matches(&self, text: &[u8]) -> bool {
        fn equal(a: &[u8], b: &[u8], ignore_case: bool) -> bool {
            if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
        }
        match self {
            StringMatcher::Exact(want, i) => equal(text, want, *i),
            StringMatcher::Prefix(want, i) => text.get(..want.len()).is_some_and(|t| equal(t, want, *i)),
            StringMatcher::Suffix(want, i) => {
                text.len() >= want.len() && equal(&text[text.len() - want.len()..], want, *i)
            }
            StringMatcher::Contains(want, false) => memchr::memmem::find(text, want).is_some(),
            StringMatcher::Contains(want, true) => {
                want.is_empty() || text.windows(want.len()).any(|w| w.eq_ignore_ascii_case(want))
            }
            StringMatcher::Regex(regex) => regex.is_match(text),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_kind_matches_as_named() {
        assert!(StringMatcher::exact("a").matches(b"a") && !StringMatcher::exact("a").matches(b"A"));
        assert!(StringMatcher::Exact(b"a"[..].into(), true).matches(b"A"));
        assert!(StringMatcher::Prefix(b"ab"[..].into(), false).matches(b"abc"));
        assert!(!StringMatcher::Prefix(b"abcd"[..].into(), false).matches(b"abc"));
        assert!(StringMatcher::Suffix(b"BC"[..].into(), true).matches(b"abc"));
        assert!(StringMatcher::contains("B", true).matches(b"abc"));
        assert!(!StringMatcher::contains("B", false).matches(b"abc"));
        assert!(StringMatcher::Regex(Regex::full("a.c").unwrap()).matches(b"abc"));
    }
}
