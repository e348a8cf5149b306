//! The header names that sixfold itself looks at, found by one look into a table.

use super::plain::BEFORE;
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
        /// What their lines begin with.
        const STARTS: &[&str] = &["", $(concat!($name, ": "),)*];
    };
}

/// A header name that sixfold itself looks at, as one byte.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Known(pub(super) u8);

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
    X_ENVOY_PEER_METADATA = "x-envoy-peer-metadata",
    X_ENVOY_PEER_METADATA_ID = "x-envoy-peer-metadata-id",
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

/// Names that come together or hardly ever, and share a bit of [`Known::folded`]: there are more names than bits, and two
/// that many messages have should not be taken for one that is there twice.
const TOGETHER: &[&[Known]] = &[
    &[
        Known::ACCESS_CONTROL_ALLOW_CREDENTIALS,
        Known::ACCESS_CONTROL_ALLOW_HEADERS,
        Known::ACCESS_CONTROL_ALLOW_METHODS,
        Known::ACCESS_CONTROL_EXPOSE_HEADERS,
        Known::ACCESS_CONTROL_MAX_AGE,
    ],
    &[Known::ACCESS_CONTROL_REQUEST_HEADERS, Known::ACCESS_CONTROL_REQUEST_METHOD],
    &[Known::PROXY_AUTHENTICATE, Known::PROXY_AUTHORIZATION, Known::PROXY_CONNECTION, Known::PROXY_STATUS],
    &[Known::X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER, Known::X_ENVOY_DOWNSTREAM_SERVICE_NODE],
    &[
        Known::X_ENVOY_ORIGINAL_DST_HOST,
        Known::X_ENVOY_ORIGINAL_HOST,
        Known::X_ENVOY_ORIGINAL_METHOD,
        Known::X_ENVOY_ORIGINAL_PATH,
        Known::X_ENVOY_ORIGINAL_URL,
    ],
    &[Known::X_ENVOY_PEER_METADATA, Known::X_ENVOY_PEER_METADATA_ID],
    &[
        Known::X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT,
        Known::X_ENVOY_MAX_RETRIES,
        Known::X_ENVOY_RETRIABLE_HEADER_NAMES,
        Known::X_ENVOY_RETRIABLE_STATUS_CODES,
        Known::X_ENVOY_RETRY_GRPC_ON,
        Known::X_ENVOY_RETRY_ON,
    ],
    &[
        Known::X_ENVOY_UPSTREAM_ALT_STAT_NAME,
        Known::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS,
        Known::X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE,
        Known::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS,
        Known::X_ENVOY_UPSTREAM_STREAM_DURATION_MS,
    ],
];

/// The bit of each name.
const BITS: [u64; NAMES.len()] = bits();

const fn bits() -> [u64; NAMES.len()] {
    let mut bits = [0; NAMES.len()];
    let mut next = 0;
    let mut group = 0;
    while group < TOGETHER.len() {
        let mut i = 0;
        while i < TOGETHER[group].len() {
            bits[TOGETHER[group][i].0 as usize] = 1 << next;
            i += 1;
        }
        next += 1;
        group += 1;
    }
    let mut id = 1;
    while id < NAMES.len() {
        if bits[id] == 0 {
            // One too many does not compile.
            bits[id] = 1 << next;
            next += 1;
        }
        id += 1;
    }
    bits
}

/// Fields that say how a response is framed, and what becomes of its connection: the codecs' own.
const OF_FRAMING: KnownSet = KnownSet::of(&[
    Known::CONNECTION,
    Known::CONTENT_LENGTH,
    Known::KEEP_ALIVE,
    Known::PROXY_CONNECTION,
    Known::TRANSFER_ENCODING,
    Known::UPGRADE,
]);

impl Known {
    /// Whether the field says how a response is framed, or what becomes of its connection. Who knows no more of the response than
    /// what a configuration, a service or a script wants in it never sets such a field: its body has the length that it has.
    #[inline]
    pub fn frames(self) -> bool {
        OF_FRAMING.contains(self)
    }
}

/// A set of well-known names.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KnownSet {
    names: [u64; WORDS],
    folded: u64,
}

/// Words of a set: a bit for each name, and for those that are not well known.
const WORDS: usize = NAMES.len().div_ceil(64);

impl KnownSet {
    /// No name.
    pub(super) const EMPTY: KnownSet = KnownSet { names: [0; WORDS], folded: 0 };

    /// A set that is known at compile time.
    pub const fn of(names: &[Known]) -> KnownSet {
        let mut set = KnownSet::EMPTY;
        let mut i = 0;
        while i < names.len() {
            set.names[(names[i].0 / 64) as usize] |= 1 << (names[i].0 % 64);
            set.folded |= names[i].folded();
            i += 1;
        }
        set
    }

    /// With the names of another set.
    pub const fn and(mut self, other: &KnownSet) -> KnownSet {
        let mut i = 0;
        while i < WORDS {
            self.names[i] |= other.names[i];
            i += 1;
        }
        self.folded |= other.folded;
        self
    }

    /// Whether the name is in it.
    #[inline]
    pub fn contains(&self, known: Known) -> bool {
        self.has(known.0)
    }

    /// Whether the name was not there before.
    #[inline]
    pub(super) fn add(&mut self, known: u8) -> bool {
        let (word, bit) = (usize::from(known / 64), 1u64 << (known % 64));
        let new = self.names[word] & bit == 0;
        self.names[word] |= bit;
        self.folded |= BITS[usize::from(known)];
        new
    }

    #[inline]
    pub(super) fn has(&self, known: u8) -> bool {
        self.names[usize::from(known / 64)] & 1u64 << (known % 64) != 0
    }

    /// In one word, in which a few names share a bit.
    #[inline]
    pub(super) fn folded(&self) -> u64 {
        self.folded
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names == [0; WORDS]
    }
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

/// Bytes of the names that are found as one number.
const SHORT: usize = 16;
/// Names of up to [`SHORT`] bytes as numbers, filled up with zeros; 0 for the others.
const NUMBERS: [u128; NAMES.len()] = {
    let mut numbers = [0; NAMES.len()];
    let mut id = 1;
    while id < NAMES.len() {
        let name = NAMES[id].as_bytes();
        let mut at = 0;
        while name.len() <= SHORT && at < name.len() {
            numbers[id] |= (name[at] as u128) << (8 * at);
            at += 1;
        }
        id += 1;
    }
    numbers
};
const SHORT_TABLE: [u8; TABLE_SIZE] = {
    let mut table = [0u8; TABLE_SIZE];
    let mut id = 1;
    while id < NAMES.len() {
        if NUMBERS[id] != 0 {
            let mut at = short_slot(NUMBERS[id]);
            while table[at] != 0 {
                at = (at + 1) % TABLE_SIZE;
            }
            table[at] = id as u8;
        }
        id += 1;
    }
    table
};

/// Spreads a name over the table by all of its bytes.
#[inline]
const fn short_slot(number: u128) -> usize {
    let both = (number as u64) ^ ((number >> 64) as u64).rotate_left(29);
    (both.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - TABLE_SIZE.trailing_zeros())) as usize
}

impl Known {
    /// The id of the name that the first `len` bytes are, which are in lower case.
    #[inline(always)]
    pub(super) fn find_short(name: [u8; SHORT], len: usize) -> Option<Known> {
        let before = u128::from_le_bytes(*BEFORE.get(len)?);
        let number = u128::from_le_bytes(name) & before;
        let mut at = short_slot(number);
        loop {
            let id = SHORT_TABLE[at];
            if id == 0 {
                return None;
            }
            // A zero may be a byte of a name that is none.
            if NUMBERS[id as usize] == number && NAMES[id as usize].len() == len {
                return Some(Known(id));
            }
            at = (at + 1) % TABLE_SIZE;
        }
    }

    /// The id of `name` in any case, if it is a well-known one.
    #[inline]
    pub fn find(name: &[u8]) -> Option<Known> {
        Known::search(name, |known| known.eq_ignore_ascii_case(name))
    }

    /// [`Known::find`] for a name that is in lower case already.
    #[inline]
    pub fn find_lower(name: &[u8]) -> Option<Known> {
        Known::search(name, |known| known == name)
    }

    #[inline]
    fn search(name: &[u8], is: impl Fn(&[u8]) -> bool) -> Option<Known> {
        if name.is_empty() {
            return None;
        }
        let mut at = slot(name);
        loop {
            let id = TABLE[at];
            if id == 0 {
                return None;
            }
            if is(NAMES[id as usize].as_bytes()) {
                return Some(Known(id));
            }
            at = (at + 1) % TABLE_SIZE;
        }
    }

    /// Its bit in [`KnownSet::folded`].
    #[inline]
    pub(super) const fn folded(self) -> u64 {
        BITS[self.0 as usize]
    }

    /// Every well-known name, each at the place that [`Known::index`] says.
    pub fn all() -> impl Iterator<Item = Known> {
        (1..NAMES.len()).map(|id| Known(id as u8))
    }

    /// Its place among all of them, from 0: for tables.
    pub fn index(self) -> usize {
        usize::from(self.0) - 1
    }

    /// Whether Envoy joins repeated lines of this header with a comma (its "inline" headers): every well-known
    /// one but those that may come several times and stay lines of their own.
    pub fn is_inline(self) -> bool {
        !matches!(
            self,
            Known::COOKIE
                | Known::SET_COOKIE
                | Known::WWW_AUTHENTICATE
                | Known::PROXY_AUTHENTICATE
                | Known::FORWARDED
                | Known::PROXY_AUTHORIZATION
                | Known::LAST_MODIFIED
                | Known::RETRY_AFTER
                | Known::TRAILER
                | Known::HTTP2_SETTINGS
                | Known::X_ENVOY_PEER_METADATA
                | Known::X_ENVOY_PEER_METADATA_ID
                | Known::X_REAL_IP
                | Known::X_APISIX_UPSTREAM_STATUS
        )
    }

    /// What a line with it begins with, up to the value.
    #[inline]
    pub(super) fn start(self) -> &'static [u8] {
        STARTS[self.0 as usize].as_bytes()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_finds_itself_in_any_case() {
        for name in NAMES.iter().skip(1) {
            assert_eq!(Known::find(name.as_bytes()).map(Known::as_str), Some(*name));
            assert_eq!(Known::find(name.to_uppercase().as_bytes()).map(Known::as_str), Some(*name));
            assert_eq!(Known::find_lower(name.as_bytes()).map(Known::as_str), Some(*name));
            assert_eq!(Known::find_lower(name.to_uppercase().as_bytes()), None);
            let mut block = [b'!'; SHORT];
            if let Some(place) = block.get_mut(..name.len()) {
                place.copy_from_slice(name.as_bytes());
                assert_eq!(Known::find_short(block, name.len()).map(Known::as_str), Some(*name));
                block[name.len() - 1] = 0;
                assert_eq!(Known::find_short(block, name.len()), None);
            }
        }
        assert_eq!(Known::find_short(*b"host\0\0\0\0\0\0\0\0\0\0\0\0", 5), None);
        assert_eq!(Known::find(b"x-other"), None);
        assert_eq!(Known::find(b""), None);
        assert!(Known::all().enumerate().all(|(place, known)| known.index() == place));
    }

    /// `connection` and `x-envoy-upstream-service-time` shared a bit: in nearly every response something was taken for
    /// repeated, and was looked for.
    #[test]
    fn names_that_many_messages_have_share_no_bit() {
        let alone = |known: Known| Known::all().filter(|other| other.folded() == known.folded()).count() == 1;
        let rare = |known: Known| TOGETHER.iter().any(|group| group.contains(&known));
        assert!(Known::all().all(|known| alone(known) != rare(known)));
        let some = KnownSet::of(&[Known::CONNECTION, Known::X_ENVOY_RETRY_ON]);
        assert_eq!(some.folded(), Known::CONNECTION.folded() | Known::X_ENVOY_RETRY_ON.folded());
    }
}
