//! Header fields of a message in one arena.
//!
//! A message's names and values live in one byte buffer, and a field is four numbers into it. Parsing a
//! head therefore allocates nothing once a connection has served its first request, well-known names are
//! compared by one byte, and the original spelling of a name stays available to the profiles that keep it
//! (nginx does, Envoy lower-cases).

mod known;

pub use known::Known;

use bytes::Bytes;
use std::fmt;

/// A header name prepared when configuration arrives: lower case, and its id if it is well known.
#[derive(Clone)]
pub struct HeaderName {
    known: Option<Known>,
    name: Box<str>,
    /// As it is written where spelling is kept; `None` for lower case.
    spelled: Option<Box<str>>,
}

/// A name with a byte that RFC 9110 section 5.1 does not allow in a field name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a header name")]
pub struct InvalidHeaderName(pub String);

impl HeaderName {
    /// Prepares `name`, in any case.
    ///
    /// # Errors
    /// [`InvalidHeaderName`] if it is empty or holds a byte outside `tchar` of RFC 9110.
    pub fn new(name: &str) -> Result<HeaderName, InvalidHeaderName> {
        if !is_token(name.as_bytes()) {
            return Err(InvalidHeaderName(name.to_owned()));
        }
        let name = name.to_ascii_lowercase().into_boxed_str();
        Ok(HeaderName { known: Known::find(name.as_bytes()), name, spelled: None })
    }

    /// The same, and fields that are added by it are spelled as it is (APISIX's plugins).
    ///
    /// # Errors
    /// As for [`HeaderName::new`].
    pub fn as_spelled(name: &str) -> Result<HeaderName, InvalidHeaderName> {
        HeaderName::new(name).map(|lower| HeaderName { spelled: Some(name.into()), ..lower })
    }

    /// The name in lower case.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The id, for a well-known name.
    pub fn known(&self) -> Option<Known> {
        self.known
    }
}

impl PartialEq for HeaderName {
    /// Spelling does not count.
    fn eq(&self, other: &HeaderName) -> bool {
        self.name == other.name
    }
}

impl Eq for HeaderName {}

impl std::hash::Hash for HeaderName {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl From<Known> for HeaderName {
    fn from(known: Known) -> Self {
        HeaderName { known: Some(known), name: known.as_str().into(), spelled: None }
    }
}

impl fmt::Debug for HeaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Whether `bytes` is a non-empty `token` of RFC 9110 section 5.6.2.
pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

/// What a header can be looked up by.
pub trait Key: Copy {
    /// The id, when the name is well known.
    fn known(self) -> Option<Known>;
    /// The name in lower case.
    fn name(&self) -> &[u8];
    /// The name as a field that is added gets it.
    #[inline]
    fn spelled(&self) -> &[u8] {
        self.name()
    }
}

impl Key for Known {
    #[inline]
    fn known(self) -> Option<Known> {
        Some(self)
    }
    #[inline]
    fn name(&self) -> &[u8] {
        self.as_str().as_bytes()
    }
}

impl Key for &HeaderName {
    #[inline]
    fn known(self) -> Option<Known> {
        self.known
    }
    #[inline]
    fn name(&self) -> &[u8] {
        self.name.as_bytes()
    }
    #[inline]
    fn spelled(&self) -> &[u8] {
        self.spelled.as_ref().unwrap_or(&self.name).as_bytes()
    }
}

/// A name that is only known while a request runs; prefer [`HeaderName`].
impl Key for &str {
    #[inline]
    fn known(self) -> Option<Known> {
        Known::find(self.as_bytes())
    }
    #[inline]
    fn name(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// One field: where its name and value lie in the arena.
#[derive(Clone, Copy)]
struct Field {
    name: u32,
    value: u32,
    value_len: u32,
    name_len: u16,
    /// 0 for a name that is not well known.
    known: u8,
}

impl Field {
    #[inline]
    fn name<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        &buf[self.name as usize..self.name as usize + self.name_len as usize]
    }
    #[inline]
    fn value<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        &buf[self.value as usize..self.value as usize + self.value_len as usize]
    }
    #[inline]
    fn is(&self, key: impl Key, buf: &[u8]) -> bool {
        match key.known() {
            Some(known) => self.known == known.0,
            None => self.known == 0 && self.name(buf).eq_ignore_ascii_case(key.name()),
        }
    }
}

/// The header fields of one message, in order. Names compare without regard to case.
#[derive(Clone, Default)]
pub struct Headers {
    buf: Vec<u8>,
    fields: Vec<Field>,
}

impl Headers {
    /// An empty block; allocates with the first field.
    pub const fn new() -> Headers {
        Headers { buf: Vec::new(), fields: Vec::new() }
    }

    /// Removes every field and keeps the memory for the next message.
    pub fn clear(&mut self) {
        self.buf.clear();
        self.fields.clear();
    }

    /// The number of fields, a repeated name counted every time.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The bytes of all names and values, with Envoy's four more a field for `: ` and the line end.
    pub fn wire_len(&self) -> usize {
        self.fields.iter().map(|f| f.name_len as usize + f.value_len as usize + 4).sum()
    }

    /// The first value of `key`.
    #[inline]
    pub fn get(&self, key: impl Key) -> Option<&[u8]> {
        self.fields.iter().find(|f| f.is(key, &self.buf)).map(|f| f.value(&self.buf))
    }

    /// The first value of `key`, if it is UTF-8.
    pub fn get_str(&self, key: impl Key) -> Option<&str> {
        self.get(key).and_then(|v| std::str::from_utf8(v).ok())
    }

    /// Whether `key` is there, with any value.
    #[inline]
    pub fn contains(&self, key: impl Key) -> bool {
        self.fields.iter().any(|f| f.is(key, &self.buf))
    }

    /// Every value of `key`, in order.
    pub fn get_all<'a>(&'a self, key: impl Key + 'a) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.fields.iter().filter(move |f| f.is(key, &self.buf)).map(|f| f.value(&self.buf))
    }

    /// Every field in order: the name as it is spelled, and the value.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|f| (f.name(&self.buf), f.value(&self.buf)))
    }

    /// Every field in order with the id of a well-known name.
    pub fn iter_known(&self) -> impl Iterator<Item = (Option<Known>, &[u8], &[u8])> {
        self.fields
            .iter()
            .map(|f| ((f.known != 0).then_some(Known(f.known)), f.name(&self.buf), f.value(&self.buf)))
    }

    /// [`Headers::iter_known`], each value a part of one shared copy of all bytes: for libraries that keep values.
    pub fn iter_shared(&self) -> impl Iterator<Item = (Option<Known>, &[u8], Bytes)> {
        let shared = Bytes::copy_from_slice(&self.buf);
        self.fields.iter().map(move |f| {
            let value = shared.slice(f.value as usize..f.value as usize + f.value_len as usize);
            ((f.known != 0).then_some(Known(f.known)), f.name(&self.buf), value)
        })
    }

    /// Adds a field as it came off the wire, its name in any case and kept as spelled.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.push_known(Known::find(name), name, value);
    }

    /// [`Headers::push`] for a caller that has looked `known` up already: it must be what
    /// [`Known::find`] says of `name`.
    #[inline]
    pub fn push_known(&mut self, known: Option<Known>, name: &[u8], value: &[u8]) {
        self.push_field(known.map_or(0, |k| k.0), name, value);
    }

    /// [`Headers::push_known`], with the name stored in lower case.
    #[inline]
    pub fn push_known_lower(&mut self, known: Option<Known>, name: &[u8], value: &[u8]) {
        let at = self.buf.len();
        self.push_known(known, name, value);
        self.buf[at..at + name.len()].make_ascii_lowercase();
    }

    /// Adds a field after those that are there; an equal name stays a line of its own.
    pub fn append(&mut self, key: impl Key, value: &[u8]) {
        let known = key.known().map_or(0, |k| k.0);
        self.push_field(known, key.spelled(), value);
    }

    fn push_field(&mut self, known: u8, name: &[u8], value: &[u8]) {
        let name_at = self.buf.len() as u32;
        self.buf.extend_from_slice(name);
        let value_at = self.buf.len() as u32;
        self.buf.extend_from_slice(value);
        self.fields.push(Field {
            name: name_at,
            value: value_at,
            value_len: value.len() as u32,
            name_len: name.len() as u16,
            known,
        });
    }

    /// Makes `value` the only value of `key`, in the place of the first one.
    pub fn set(&mut self, key: impl Key, value: &[u8]) {
        let Headers { buf, fields } = self;
        let Some(first) = fields.iter().position(|f| f.is(key, buf)) else {
            return self.append(key, value);
        };
        fields[first].value = buf.len() as u32;
        fields[first].value_len = value.len() as u32;
        buf.extend_from_slice(value);
        let mut at = 0;
        fields.retain(|f| {
            at += 1;
            at <= first + 1 || !f.is(key, buf)
        });
    }

    /// Adds `key` unless it is there already.
    pub fn set_if_absent(&mut self, key: impl Key, value: &[u8]) {
        if !self.contains(key) {
            self.append(key, value);
        }
    }

    /// Adds `value` to the first value of `key` with `separator` between, or adds the field.
    pub fn join(&mut self, key: impl Key, separator: &[u8], value: &[u8]) {
        let Headers { buf, fields } = self;
        let Some(field) = fields.iter_mut().find(|f| f.is(key, buf)) else {
            return self.append(key, value);
        };
        let (from, len) = (field.value as usize, field.value_len as usize);
        field.value = buf.len() as u32;
        field.value_len = (len + separator.len() + value.len()) as u32;
        buf.extend_from_within(from..from + len);
        buf.extend_from_slice(separator);
        buf.extend_from_slice(value);
    }

    /// Joins the lines of a repeated well-known name into the first one, with commas, where `inline` says so.
    pub fn join_repeated(&mut self, inline: impl Fn(Known) -> bool) {
        let mut seen = [0u64; 4];
        let repeated = self.fields.iter().any(|f| {
            let (word, bit) = (usize::from(f.known / 64), 1u64 << (f.known % 64));
            let again = f.known != 0 && seen[word] & bit != 0 && inline(Known(f.known));
            seen[word] |= bit;
            again
        });
        let mut at = 0;
        while let Some(known) = self.fields.get(at).filter(|_| repeated).map(|f| Known(f.known)) {
            at += 1;
            let again = self.fields.iter().skip(at).any(|f| f.known == known.0);
            if known.0 != 0 && again && inline(known) {
                let joined = self.get_all(known).collect::<Vec<_>>().join(&b","[..]);
                self.set(known, &joined);
            }
        }
    }

    /// Removes every field of that name; tells whether there was one.
    pub fn remove(&mut self, key: impl Key) -> bool {
        let Headers { buf, fields } = self;
        let before = fields.len();
        if fields.iter().any(|f| f.is(key, buf)) {
            fields.retain(|f| !f.is(key, buf));
        }
        fields.len() != before
    }

    /// Keeps the fields for which `keep(id, name, value)` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(Option<Known>, &[u8], &[u8]) -> bool) {
        let Headers { buf, fields } = self;
        fields.retain(|f| keep((f.known != 0).then_some(Known(f.known)), f.name(buf), f.value(buf)));
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.iter().map(|(n, v)| (String::from_utf8_lossy(n), String::from_utf8_lossy(v))))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn set_replaces_in_place_and_drops_the_rest() {
        let mut h = Headers::new();
        h.push(b"A", b"1");
        h.push(b"Host", b"x");
        h.push(b"a", b"2");
        h.set("a", b"3");
        assert_eq!(h.iter().collect::<Vec<_>>(), [(&b"A"[..], &b"3"[..]), (b"Host", b"x")]);
        h.set(Known::HOST, b"y");
        assert_eq!(h.get(Known::HOST), Some(&b"y"[..]));
        assert_eq!(h.len(), 2);
    }

    #[test]
    fn join_append_and_remove() {
        let mut h = Headers::new();
        h.join(Known::X_FORWARDED_FOR, b",", b"1.1.1.1");
        h.join(Known::X_FORWARDED_FOR, b",", b"2.2.2.2");
        assert_eq!(h.get(Known::X_FORWARDED_FOR), Some(&b"1.1.1.1,2.2.2.2"[..]));
        h.append("x-one", b"a");
        h.append("x-one", b"b");
        assert_eq!(h.get_all("x-one").count(), 2);
        assert!(h.remove("X-One".to_ascii_lowercase().as_str()));
        assert!(!h.remove("x-one"));
    }

    #[test]
    fn repeated_names_join_where_they_may() {
        let mut h = Headers::new();
        for (name, value) in
            [("Accept", "a"), ("x-own", "1"), ("Cookie", "c"), ("accept", "b"), ("x-own", "2")]
        {
            h.push(name.as_bytes(), value.as_bytes());
        }
        h.push(b"cookie", b"d");
        h.join_repeated(|known| known != Known::COOKIE);
        let lines: Vec<_> = h.iter().map(|(_, value)| value).collect();
        assert_eq!(lines, [&b"a,b"[..], b"1", b"c", b"2", b"d"]);
    }

    #[test]
    fn names_with_bad_bytes_are_refused_and_spelling_is_kept_where_asked() {
        assert!(HeaderName::new("x y").is_err());
        assert!(HeaderName::new("").is_err());
        let spelled = HeaderName::as_spelled("X-RateLimit-Limit").unwrap();
        let mut h = Headers::new();
        h.set(&spelled, b"1");
        assert_eq!(h.iter().next(), Some((&b"X-RateLimit-Limit"[..], &b"1"[..])));
        assert_eq!((h.get("x-ratelimit-limit"), spelled.as_str()), (Some(&b"1"[..]), "x-ratelimit-limit"));
        assert_eq!(HeaderName::new("X-Request-Id").map(|n| n.known()), Ok(Some(Known::X_REQUEST_ID)));
    }
}
