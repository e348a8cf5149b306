//! Names of header fields, prepared when configuration arrives.

use super::Known;
use super::scan::has_upper;
use std::fmt;

/// A header name prepared when configuration arrives: lower case, and its id if it is well known.
#[derive(Clone)]
pub struct HeaderName {
    known: Option<Known>,
    name: Box<str>,
    /// As it is written where spelling is kept; `None` for lower case.
    spelled: Option<Box<str>>,
    /// Whether that has an upper case letter.
    upper: bool,
}

/// A name with a byte that RFC 9110 section 5.1 does not allow in a field name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a header name")]
pub struct InvalidHeaderName(pub String);

impl HeaderName {
    /// Prepares `name`, in any case.
    ///
    /// # Errors
    /// [`InvalidHeaderName`] if it is empty, longer than 65,535 bytes or holds a byte outside `tchar` of RFC 9110.
    pub fn new(name: &str) -> Result<HeaderName, InvalidHeaderName> {
        if !is_token(name.as_bytes()) || name.len() > usize::from(u16::MAX) {
            return Err(InvalidHeaderName(name.to_owned()));
        }
        let name = name.to_ascii_lowercase().into_boxed_str();
        Ok(HeaderName { known: Known::find(name.as_bytes()), name, spelled: None, upper: false })
    }

    /// The same, and fields that are added by it are spelled as it is (APISIX's plugins).
    ///
    /// # Errors
    /// As for [`HeaderName::new`].
    pub fn as_spelled(name: &str) -> Result<HeaderName, InvalidHeaderName> {
        let upper = has_upper(name.as_bytes());
        HeaderName::new(name).map(|lower| HeaderName { spelled: Some(name.into()), upper, ..lower })
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
        HeaderName { known: Some(known), name: known.as_str().into(), spelled: None, upper: false }
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
    /// Whether that has an upper case letter.
    #[inline]
    fn is_upper(&self) -> bool {
        false
    }
    /// Whether it is a token. What was prepared is one.
    #[inline]
    fn is_token(&self) -> bool {
        is_token(self.spelled())
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
    #[inline]
    fn is_upper(&self) -> bool {
        self.upper
    }
    #[inline]
    fn is_token(&self) -> bool {
        true
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
    #[inline]
    fn is_upper(&self) -> bool {
        has_upper(self.as_bytes())
    }
}
