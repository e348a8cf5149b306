//! One value of `x-forwarded-client-cert` (`XFCC_VALUE`).
//!
//! The header is a list of elements, one for each proxy that saw a client's certificate, of `key=value` pairs. The value is
//! that of the first element that has the key; nothing has one in a header with a quote that is not closed
//! (source/extensions/formatter/xfcc_value/xfcc_value.cc).

use crate::headers::{Headers, Known};
use std::borrow::Cow;

/// The keys that there are, in lower case.
const KEYS: [&str; 7] = ["by", "hash", "cert", "chain", "subject", "uri", "dns"];

/// A key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key(&'static str);

impl Key {
    /// A key, in any case of its letters.
    ///
    /// # Errors
    /// There is none of this name.
    pub(super) fn parse(name: &str) -> Result<Key, String> {
        let known = KEYS.into_iter().find(|key| key.eq_ignore_ascii_case(name));
        known.map(Key).ok_or_else(|| format!("'{name}' is none of {}", KEYS.join(", ")))
    }

    /// Appends the value; tells whether there is one.
    pub(super) fn write(self, headers: &Headers, out: &mut Vec<u8>) -> bool {
        let header = whole(headers);
        let found = parts(&header, b',').find_map(|element| self.of_element(element?));
        found.map(|value| unquote(value, out)).is_some()
    }

    fn of_element(self, element: &[u8]) -> Option<&[u8]> {
        parts(element, b';').flatten().find_map(|pair| {
            let end = memchr::memchr(b'=', pair).unwrap_or(pair.len());
            let (key, value) = pair.split_at(end);
            let is_it = key.trim_ascii().eq_ignore_ascii_case(self.0.as_bytes());
            is_it.then(|| value.strip_prefix(b"=").unwrap_or_default().trim_ascii())
        })
    }
}

/// The lines of the header as one.
fn whole(headers: &Headers) -> Cow<'_, [u8]> {
    let mut lines = headers.get_all(Known::X_FORWARDED_CLIENT_CERT);
    let mut header = Cow::Borrowed(lines.next().unwrap_or_default());
    for line in lines {
        let header = header.to_mut();
        header.push(b',');
        header.extend_from_slice(line);
    }
    header
}

/// What stands between separators outside of quotes; `None` in the place of what has a quote that is not closed. A quote
/// behind an odd number of backslashes is none.
fn parts(text: &[u8], separator: u8) -> impl Iterator<Item = Option<&[u8]>> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let (mut quoted, mut escaped) = (false, false);
        for (at, &byte) in text.iter().enumerate() {
            if byte == separator && !quoted {
                rest = text.get(at + 1..);
                return Some(text.get(..at));
            }
            quoted ^= byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
        }
        Some((!quoted).then_some(text))
    })
}

/// Appends a value without the quotes around it, and quotes and backslashes in it without theirs.
fn unquote(value: &[u8], out: &mut Vec<u8>) {
    let inside = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    let mut rest = inside.unwrap_or(value);
    while let [byte, after @ ..] = rest {
        match (byte, after) {
            (b'\\', [next @ (b'"' | b'\\'), behind @ ..]) => {
                out.push(*next);
                rest = behind;
            }
            _ => {
                out.push(*byte);
                rest = after;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn value(key: &str, lines: &[&str]) -> Option<String> {
        let mut headers = Headers::new();
        lines.iter().for_each(|line| headers.push(b"X-Forwarded-Client-Cert", line.as_bytes()));
        let mut out = Vec::new();
        let there = Key::parse(key).unwrap().write(&headers, &mut out);
        assert!(there || out.is_empty());
        there.then(|| String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_first_element_that_has_a_key_has_its_value() {
        let usual = "By=spiffe://a/b;Hash=468;Subject=\"/C=US/CN=Test, Inc\";URI=spiffe://a/c;DNS=x;DNS=y";
        for (key, lines, expected) in [
            ("BY", &[usual][..], Some("spiffe://a/b")),
            ("subject", &[usual], Some("/C=US/CN=Test, Inc")),
            ("dns", &[usual], Some("x")),
            ("chain", &[usual], None),
            ("by", &["Hash=1,By=second;Hash=2"], Some("second")),
            ("hash", &["Hash=1", "URI=u"], Some("1")),
            ("uri", &["Hash=1", "URI=u"], Some("u")),
            ("uri", &["URI;Hash=1"], Some("")),
            ("hash", &["Hash=\"\""], Some("")),
            ("hash", &["Hash=\""], None),
            ("subject", &[r#"Subject="a \"q\" \\ b;c=d,e" ; URI = u"#], Some(r#"a "q" \ b;c=d,e"#)),
            ("uri", &[r#"Subject="a \"q\" \\ b;c=d,e" ; URI = u"#], Some("u")),
            // An open quote takes the rest with it, also that of the next line.
            ("uri", &["URI=u;Subject=\"open"], None),
            ("hash", &["Hash=h,Subject=\"open"], Some("h")),
            ("hash", &["Subject=\"open", "Hash=h"], None),
            ("uri", &[], None),
        ] {
            assert_eq!(value(key, lines).as_deref(), expected, "{key} of {lines:?}");
        }
        assert_eq!(
            Key::parse("foo").unwrap_err(),
            "'foo' is none of by, hash, cert, chain, subject, uri, dns"
        );
    }
}
