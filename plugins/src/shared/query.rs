//! Parameters of a query as Envoy's authenticators read them: names and values decoded, `+` as it is.

use percent_encoding::percent_decode;
use std::borrow::Cow;

/// The parts of a query: name and value as they are written.
fn pairs(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    query.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()).map(|pair| {
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        (halves.next().unwrap_or_default(), halves.next().unwrap_or_default())
    })
}

/// A name or value decoded.
fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    percent_decode(text).into()
}

/// The first value of a parameter, decoded.
pub(crate) fn parameter<'a>(query: Option<&'a [u8]>, name: &[u8]) -> Option<Cow<'a, [u8]>> {
    pairs(query?).find(|(key, _)| *decoded(key) == *name).map(|(_, value)| decoded(value))
}

/// A target without a parameter, however often it is there; the others stay as they are written.
pub(crate) fn without(target: &[u8], name: &[u8]) -> Vec<u8> {
    let mut halves = target.splitn(2, |byte| *byte == b'?');
    let mut made = halves.next().unwrap_or_default().to_vec();
    let mut separator = b'?';
    for pair in halves.next().unwrap_or_default().split(|byte| *byte == b'&') {
        let key = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
        if pair.is_empty() || *decoded(key) == *name {
            continue;
        }
        made.push(separator);
        made.extend_from_slice(pair);
        separator = b'&';
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_decoded_and_taken_out() {
        let query = Some(&b"a=1&%74=x%2ey&t=2&b"[..]);
        assert_eq!(parameter(query, b"t").as_deref(), Some(&b"x.y"[..]));
        assert_eq!(parameter(query, b"b").as_deref(), Some(&b""[..]));
        assert_eq!(parameter(query, b"c"), None);
        assert_eq!(without(b"/p?a=1&%74=x&t=2&b", b"t"), b"/p?a=1&b");
        assert_eq!(without(b"/p?t=1", b"t"), b"/p");
        assert_eq!(without(b"/p", b"t"), b"/p");
    }
}
