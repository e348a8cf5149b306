//! Header fields of a message in one arena.
//!
//! A message's names and values live in one byte buffer, and a field is four numbers into it. Parsing a
//! head therefore allocates nothing once a connection has served its first request, well-known names are
//! compared by one byte, and the original spelling of a name stays available to the profiles that keep it
//! (nginx does, Envoy lower-cases).

use std::fmt;

/// Declares the well-known names: one constant of [`Known`] each, in the order of the list.
macro_rules! known_names {
    ($($id:ident = $name:literal,)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, dead_code)]
        #[derive(Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        enum Index { CUSTOM, $($id,)* }

        impl Known {
            $(#[doc = concat!("`", $name, "`")] pub const $id: Known = Known(Index::$id as u8);)*
        }

        const NAMES: &[&str] = &["", $($name,)*];
    };
}

/// A header name that sixfold itself looks at, as one byte.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Known(u8);

known_names! {
    ACCEPT = "accept",
    ACCEPT_ENCODING = "accept-encoding",
    ACCESS_CONTROL_ALLOW_CREDENTIALS = "access-control-allow-credentials",
    ACCESS_CONTROL_ALLOW_HEADERS = "access-control-allow-headers",
    ACCESS_CONTROL_ALLOW_METHODS = "access-control-allow-methods",
    ACCESS_CONTROL_ALLOW_ORIGIN = "access-control-allow-origin",
    ACCESS_CONTROL_EXPOSE_HEADERS = "access-control-expose-headers",
    ACCESS_CONTROL_MAX_AGE = "access-control-max-age",
    ACCESS_CONTROL_REQUEST_HEADERS = "access-control-request-headers",
    ACCESS_CONTROL_REQUEST_METHOD = "access-control-request-method",
    AUTHORIZATION = "authorization",
    CACHE_CONTROL = "cache-control",
    CONNECTION = "connection",
    CONTENT_ENCODING = "content-encoding",
    CONTENT_LENGTH = "content-length",
    CONTENT_TYPE = "content-type",
    COOKIE = "cookie",
    DATE = "date",
    ETAG = "etag",
    EXPECT = "expect",
    FORWARDED = "forwarded",
    GRPC_MESSAGE = "grpc-message",
    GRPC_STATUS = "grpc-status",
    GRPC_TIMEOUT = "grpc-timeout",
    HOST = "host",
    HTTP2_SETTINGS = "http2-settings",
    KEEP_ALIVE = "keep-alive",
    LAST_MODIFIED = "last-modified",
    LOCATION = "location",
    ORIGIN = "origin",
    PROXY_AUTHENTICATE = "proxy-authenticate",
    PROXY_AUTHORIZATION = "proxy-authorization",
    PROXY_CONNECTION = "proxy-connection",
    PROXY_STATUS = "proxy-status",
    REFERER = "referer",
    RETRY_AFTER = "retry-after",
    SERVER = "server",
    SET_COOKIE = "set-cookie",
    TE = "te",
    TRAILER = "trailer",
    TRANSFER_ENCODING = "transfer-encoding",
    UPGRADE = "upgrade",
    USER_AGENT = "user-agent",
    VARY = "vary",
    VIA = "via",
    WWW_AUTHENTICATE = "www-authenticate",
    X_APISIX_UPSTREAM_STATUS = "x-apisix-upstream-status",
    X_ENVOY_ATTEMPT_COUNT = "x-envoy-attempt-count",
    X_ENVOY_DECORATOR_OPERATION = "x-envoy-decorator-operation",
    X_ENVOY_DEGRADED = "x-envoy-degraded",
    X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER = "x-envoy-downstream-service-cluster",
    X_ENVOY_DOWNSTREAM_SERVICE_NODE = "x-envoy-downstream-service-node",
    X_ENVOY_EXPECTED_RQ_TIMEOUT_MS = "x-envoy-expected-rq-timeout-ms",
    X_ENVOY_EXTERNAL_ADDRESS = "x-envoy-external-address",
    X_ENVOY_FORCE_TRACE = "x-envoy-force-trace",
    X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT = "x-envoy-hedge-on-per-try-timeout",
    X_ENVOY_IMMEDIATE_HEALTH_CHECK_FAIL = "x-envoy-immediate-health-check-fail",
    X_ENVOY_INTERNAL = "x-envoy-internal",
    X_ENVOY_IP_TAGS = "x-envoy-ip-tags",
    X_ENVOY_IS_TIMEOUT_RETRY = "x-envoy-is-timeout-retry",
    X_ENVOY_MAX_RETRIES = "x-envoy-max-retries",
    X_ENVOY_ORIGINAL_DST_HOST = "x-envoy-original-dst-host",
    X_ENVOY_ORIGINAL_HOST = "x-envoy-original-host",
    X_ENVOY_ORIGINAL_METHOD = "x-envoy-original-method",
    X_ENVOY_ORIGINAL_PATH = "x-envoy-original-path",
    X_ENVOY_ORIGINAL_URL = "x-envoy-original-url",
    X_ENVOY_OVERLOADED = "x-envoy-overloaded",
    X_ENVOY_RATELIMITED = "x-envoy-ratelimited",
    X_ENVOY_RETRIABLE_HEADER_NAMES = "x-envoy-retriable-header-names",
    X_ENVOY_RETRIABLE_STATUS_CODES = "x-envoy-retriable-status-codes",
    X_ENVOY_RETRY_GRPC_ON = "x-envoy-retry-grpc-on",
    X_ENVOY_RETRY_ON = "x-envoy-retry-on",
    X_ENVOY_UPSTREAM_ALT_STAT_NAME = "x-envoy-upstream-alt-stat-name",
    X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS = "x-envoy-upstream-rq-per-try-timeout-ms",
    X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE = "x-envoy-upstream-rq-timeout-alt-response",
    X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS = "x-envoy-upstream-rq-timeout-ms",
    X_ENVOY_UPSTREAM_SERVICE_TIME = "x-envoy-upstream-service-time",
    X_ENVOY_UPSTREAM_STREAM_DURATION_MS = "x-envoy-upstream-stream-duration-ms",
    X_FORWARDED_CLIENT_CERT = "x-forwarded-client-cert",
    X_FORWARDED_FOR = "x-forwarded-for",
    X_FORWARDED_HOST = "x-forwarded-host",
    X_FORWARDED_PORT = "x-forwarded-port",
    X_FORWARDED_PROTO = "x-forwarded-proto",
    X_REAL_IP = "x-real-ip",
    X_REQUEST_ID = "x-request-id",
}

const TABLE_SIZE: usize = 512;
const TABLE: [u8; TABLE_SIZE] = build_table();

/// Spreads a name over the table by its length and three of its bytes; upper and lower case are alike.
const fn slot(name: &[u8]) -> usize {
    let len = name.len();
    let first = (name[0] | 0x20) as usize;
    let last = (name[len - 1] | 0x20) as usize;
    let middle = (name[len / 2] | 0x20) as usize;
    let later = (name[len * 3 / 4] | 0x20) as usize;
    (len * 7 + first * 31 + last * 67 + middle * 131 + later * 197) % TABLE_SIZE
}

const fn build_table() -> [u8; TABLE_SIZE] {
    let mut table = [0u8; TABLE_SIZE];
    let mut i = 1;
    while i < NAMES.len() {
        let mut at = slot(NAMES[i].as_bytes());
        while table[at] != 0 {
            at = (at + 1) % TABLE_SIZE;
        }
        table[at] = i as u8;
        i += 1;
    }
    table
}

impl Known {
    /// The id of `name` in any case, if it is a well-known one.
    #[inline]
    pub fn find(name: &[u8]) -> Option<Known> {
        if name.is_empty() {
            return None;
        }
        let mut at = slot(name);
        loop {
            let id = TABLE[at];
            if id == 0 {
                return None;
            }
            if NAMES[id as usize].as_bytes().eq_ignore_ascii_case(name) {
                return Some(Known(id));
            }
            at = (at + 1) % TABLE_SIZE;
        }
    }

    /// The name in lower case.
    pub fn as_str(self) -> &'static str {
        NAMES[self.0 as usize]
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A header name prepared when configuration arrives: lower case, and its id if it is well known.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HeaderName {
    known: Option<Known>,
    name: Box<str>,
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
        Ok(HeaderName { known: Known::find(name.as_bytes()), name })
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

impl From<Known> for HeaderName {
    fn from(known: Known) -> Self {
        HeaderName { known: Some(known), name: known.as_str().into() }
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
        self.push_field(known, key.name(), value);
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

    /// Spells every name in lower case, as HTTP/2 demands and Envoy's profile does.
    pub fn lowercase_names(&mut self) {
        for f in &self.fields {
            self.buf[f.name as usize..f.name as usize + f.name_len as usize].make_ascii_lowercase();
        }
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
    use super::*;

    #[test]
    fn every_known_name_finds_itself_in_any_case() {
        for name in NAMES.iter().skip(1) {
            assert_eq!(Known::find(name.as_bytes()).map(Known::as_str), Some(*name));
            assert_eq!(Known::find(name.to_uppercase().as_bytes()).map(Known::as_str), Some(*name));
        }
        assert_eq!(Known::find(b"x-other"), None);
        assert_eq!(Known::find(b""), None);
    }

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
    fn names_with_bad_bytes_are_refused() {
        assert!(HeaderName::new("x y").is_err());
        assert!(HeaderName::new("").is_err());
        assert_eq!(HeaderName::new("X-Request-Id").map(|n| n.known()), Ok(Some(Known::X_REQUEST_ID)));
    }
}
