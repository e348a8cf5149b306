//! Parameters of a query as authenticators read them: Envoy's, which leave `+` as it is, and APISIX's.

use percent_encoding::percent_decode;
use sixfold_core::message::Target;
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

/// An argument of a query as APISIX's plugins find it (`ngx.req.get_uri_args`), where `+` is a blank.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Argument<'a> {
    /// It is not there.
    Absent,
    /// It is there, and no text: it has no `=`, or is there more than once.
    NoText,
    /// Its value.
    Text(Cow<'a, [u8]>),
}

/// The arguments of a query as OpenResty reads them, as they are written; one without `=` has no value.
fn arguments(query: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    query.split(|byte| *byte == b'&').filter(|part| !part.is_empty()).map(|part| {
        let mut halves = part.splitn(2, |byte| *byte == b'=');
        (halves.next().unwrap_or_default(), halves.next())
    })
}

/// An argument, decoded; one without `=` has no value.
pub(crate) type Pair<'a> = (Cow<'a, [u8]>, Option<Cow<'a, [u8]>>);

/// All arguments of a query, decoded.
pub(crate) fn form_pairs(query: &[u8]) -> impl Iterator<Item = Pair<'_>> {
    arguments(query).map(|(key, value)| (form_decoded(key), value.map(form_decoded)))
}

/// The argument of this name.
pub(crate) fn argument<'a>(query: Option<&'a [u8]>, name: &[u8]) -> Argument<'a> {
    let all = arguments(query.unwrap_or_default());
    let mut found = all.filter_map(|(key, value)| (*form_decoded(key) == *name).then_some(value));
    match (found.next(), found.next()) {
        (None, _) => Argument::Absent,
        (Some(Some(value)), None) => Argument::Text(form_decoded(value)),
        _ => Argument::NoText,
    }
}

/// A text of a form or of APISIX's query decoded.
fn form_decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'+') {
        return decoded(text);
    }
    let blanks: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    Cow::Owned(decoded(&blanks).into_owned())
}

/// Takes a parameter out of a target, however often it is there; the others stay as they are written.
pub(crate) fn remove_parameter(target: &mut Target, name: &[u8]) {
    let rest = without(target.full(), |key| *decoded(key) == *name);
    target.set(&rest);
}

/// Takes what [`argument`] finds by this name out of a target, as [`remove_parameter`] does.
pub(crate) fn remove_argument(target: &mut Target, name: &[u8]) {
    let rest = without(target.full(), |key| *form_decoded(key) == *name);
    target.set(&rest);
}

fn without(target: &[u8], is_meant: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut halves = target.splitn(2, |byte| *byte == b'?');
    let mut made = halves.next().unwrap_or_default().to_vec();
    let mut separator = b'?';
    for pair in halves.next().unwrap_or_default().split(|byte| *byte == b'&') {
        let key = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
        if pair.is_empty() || is_meant(key) {
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
        let without = |text: &[u8], name: &[u8], remove: fn(&mut Target, &[u8])| {
            let mut target = Target::new(text);
            remove(&mut target, name);
            String::from_utf8_lossy(target.full()).into_owned()
        };
        for remove in [remove_parameter, remove_argument] {
            assert_eq!(without(b"/p?a=1&%74=x&t=2&b", b"t", remove), "/p?a=1&b");
            assert_eq!(without(b"/p?t=1", b"t", remove), "/p");
            assert_eq!(without(b"/p", b"t", remove), "/p");
        }
        // What was found under a name with a blank stayed, and the upstream got to see it.
        assert_eq!(without(b"/p?my+key=s&my%20key=t", b"my key", remove_argument), "/p");
        assert_eq!(without(b"/p?my+key=s&my%20key=t", b"my key", remove_parameter), "/p?my+key=s");
    }

    #[test]
    fn arguments_that_are_no_text_are_told_from_none() {
        let of = |query: &'static [u8]| argument(Some(query), b"key");
        assert_eq!(of(b"a=1&%6bey=a+b%2B"), Argument::Text(Cow::Borrowed(b"a b+")));
        assert_eq!(of(b"key="), Argument::Text(Cow::Borrowed(b"")));
        assert_eq!((of(b"key"), of(b"key=1&key=2")), (Argument::NoText, Argument::NoText));
        assert_eq!((of(b"keys=1"), argument(None, b"key")), (Argument::Absent, Argument::Absent));
    }
}
