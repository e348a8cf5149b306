//! A token, taken apart.

use super::{Algorithm, Fault, from_base64url, from_spaced_base64url};
use crate::shared::json;
use serde_json::{Map, Value};

/// Bytes of a token that are looked at; a longer one is none.
pub(crate) const MAX_BYTES: usize = 64 * 1024;

/// The three parts of a compact token (RFC 7515 section 7.1) of one reading, none of them empty and none looked into.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    text: &'a str,
    header: &'a str,
    payload: &'a str,
    signature: &'a str,
}

impl<'a> Parts<'a> {
    /// The parts of a text of at most [`MAX_BYTES`].
    ///
    /// # Errors
    /// It has not three.
    pub(crate) fn of(text: &'a [u8]) -> Result<Parts<'a>, Fault> {
        let text = std::str::from_utf8(text).map_err(|_| Fault::BadFormat)?;
        let parts: Vec<&str> = text.splitn(4, '.').collect();
        let [header, payload, signature] = *parts.as_slice() else {
            return Err(Fault::BadFormat);
        };
        if text.len() > MAX_BYTES || parts.iter().any(|part| part.is_empty()) {
            return Err(Fault::BadFormat);
        }
        Ok(Parts { text, header, payload, signature })
    }

    /// The members of the header, each there once.
    ///
    /// # Errors
    /// It is no base64url, or no such JSON.
    pub(crate) fn header(&self) -> Result<Map<String, Value>, Fault> {
        json::object(&from_base64url(self.header).ok_or(Fault::HeaderBase64)?).ok_or(Fault::HeaderJson)
    }

    /// The claims, each there once.
    ///
    /// # Errors
    /// As of the header.
    pub(crate) fn payload(&self) -> Result<Map<String, Value>, Fault> {
        json::object(&from_base64url(self.payload).ok_or(Fault::PayloadBase64)?).ok_or(Fault::PayloadJson)
    }

    /// The signature.
    ///
    /// # Errors
    /// It is no base64url.
    pub(crate) fn signature(&self) -> Result<Vec<u8>, Fault> {
        from_base64url(self.signature).ok_or(Fault::SignatureBase64)
    }

    /// The bytes that are signed.
    pub(crate) fn signed(&self) -> &'a [u8] {
        self.text.as_bytes().get(..self.header.len() + 1 + self.payload.len()).unwrap_or_default()
    }
}

/// A token whose form is right. Nothing in it is true before [`KeySet::verify`](super::KeySet::verify) has said so.
#[derive(Debug)]
pub(crate) struct Token {
    /// Header, dot and claims as they were sent: what is signed.
    signed: Box<str>,
    /// Bytes up to the dot.
    header_len: usize,
    signature: Box<[u8]>,
    /// The header's members.
    pub(crate) header: Map<String, Value>,
    /// The claims.
    pub(crate) payload: Map<String, Value>,
    /// How it says that it is signed.
    pub(crate) algorithm: Algorithm,
    /// Which key it says that it is signed with; empty if it does not.
    pub(crate) kid: Box<str>,
    /// `iss`; empty if there is none.
    pub(crate) issuer: Box<str>,
    /// `sub`; empty if there is none.
    pub(crate) subject: Box<str>,
    /// `aud`, one or several.
    pub(crate) audiences: Box<[Box<str>]>,
    /// `nbf`, seconds since 1970; 0 if there is none.
    pub(crate) not_before: u64,
    /// `exp`, seconds since 1970; `None` without one, and for 0, which Envoy takes for none.
    pub(crate) expires: Option<u64>,
}

impl Token {
    /// Takes a compact token (RFC 7515 section 7.1) apart as Envoy does (source/common/jwt/jwt.cc, `parseFromString`):
    /// three parts that are not empty, between however many dots, with spaces in them, JSON objects of unique members.
    ///
    /// # Errors
    /// The first thing that is wrong with its form.
    pub(crate) fn parse(text: &[u8]) -> Result<Token, Fault> {
        let mut parts = text.split(|byte| *byte == b'.').filter(|part| !part.is_empty());
        let (Some(header_text), Some(claims_text), Some(signature), None, ..=MAX_BYTES) =
            (parts.next(), parts.next(), parts.next(), parts.next(), text.len())
        else {
            return Err(Fault::BadFormat);
        };
        let header = from_spaced_base64url(header_text).ok_or(Fault::HeaderBase64)?;
        let header = json::object(&header).ok_or(Fault::HeaderJson)?;
        let alg = header.get("alg").and_then(Value::as_str).ok_or(Fault::HeaderAlg)?;
        let algorithm = Algorithm::named(alg).ok_or(Fault::UnknownAlg)?;
        let kid = text_of(&header, "kid", Fault::HeaderKid)?;
        let payload = from_spaced_base64url(claims_text).ok_or(Fault::PayloadBase64)?;
        let payload = json::object(&payload).ok_or(Fault::PayloadJson)?;
        let issuer = text_of(&payload, "iss", Fault::IssuerType)?;
        let subject = text_of(&payload, "sub", Fault::SubjectType)?;
        time_of(&payload, "iat", Fault::IssuedAtType, Fault::IssuedAtRange)?;
        let not_before = time_of(&payload, "nbf", Fault::NotBeforeType, Fault::NotBeforeRange)?;
        let expires = time_of(&payload, "exp", Fault::ExpiresType, Fault::ExpiresRange)?;
        text_of(&payload, "jti", Fault::IdType)?;
        let audiences = audiences_of(&payload)?;
        let signature = from_spaced_base64url(signature).ok_or(Fault::SignatureBase64)?;
        // What is base64url with spaces is text.
        let signed = [header_text, claims_text].join(&b'.');
        let signed = String::from_utf8(signed).map_err(|_| Fault::BadFormat)?;
        Ok(Token {
            signed: signed.into(),
            header_len: header_text.len(),
            signature: signature.into(),
            header,
            payload,
            algorithm,
            kid,
            issuer,
            subject,
            audiences,
            not_before: not_before.unwrap_or(0),
            expires: expires.filter(|at| *at > 0),
        })
    }

    /// The bytes that are signed.
    pub(super) fn signed(&self) -> &[u8] {
        self.signed.as_bytes()
    }

    /// The signature over them.
    pub(super) fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// The claims as they were sent: base64url, in which there may be spaces.
    pub(crate) fn encoded_payload(&self) -> &str {
        self.signed.get(self.header_len + 1..).unwrap_or_default()
    }

    /// Whether it holds at `now`, seconds since 1970, by a clock that may be `skew` seconds off.
    ///
    /// # Errors
    /// It does not yet, or no longer.
    pub(crate) fn check_time(&self, now: u64, skew: u64) -> Result<(), Fault> {
        if now.saturating_add(skew) < self.not_before {
            return Err(Fault::NotYetValid);
        }
        match self.expires {
            Some(expires) if now > expires.saturating_add(skew) => Err(Fault::Expired),
            _ => Ok(()),
        }
    }

    /// The claim at the end of a path through objects.
    pub(crate) fn claim(&self, path: &[Box<str>]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.payload.get(&**first)?, |value, key| value.as_object()?.get(&**key))
    }
}

fn text_of(members: &Map<String, Value>, name: &str, fault: Fault) -> Result<Box<str>, Fault> {
    match members.get(name) {
        None => Ok("".into()),
        Some(Value::String(text)) => Ok(text.as_str().into()),
        Some(_) => Err(fault),
    }
}

/// A moment in seconds. Fractions are cut, as in Envoy, whose numbers are floats.
fn time_of(
    members: &Map<String, Value>,
    name: &str,
    wrong: Fault,
    range: Fault,
) -> Result<Option<u64>, Fault> {
    let Some(value) = members.get(name) else { return Ok(None) };
    if let Some(seconds) = value.as_u64() {
        return Ok(Some(seconds));
    }
    match value.as_f64() {
        None => Err(wrong),
        Some(seconds) if (0.0..18_446_744_073_709_551_615.0).contains(&seconds) => Ok(Some(seconds as u64)),
        Some(_) => Err(range),
    }
}

fn audiences_of(members: &Map<String, Value>) -> Result<Box<[Box<str>]>, Fault> {
    let text = |value: &Value| value.as_str().map(Box::from).ok_or(Fault::AudienceType);
    match members.get("aud") {
        None => Ok(Box::default()),
        Some(Value::Array(several)) => several.iter().map(text).collect(),
        Some(one) => Ok([text(one)?].into()),
    }
}
