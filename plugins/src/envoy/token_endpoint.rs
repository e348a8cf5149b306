//! What is said to the token endpoint of an authorisation server, and what it answers (RFC 6749).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use sixfold_core::headers::{Headers, Known, is_clean};

/// What is written as it is in forms and queries: the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A value of a form or query.
pub(crate) fn encoded(value: &str) -> String {
    utf8_percent_encode(value, RESERVED).to_string()
}

/// A form: names and values (`application/x-www-form-urlencoded`).
#[derive(Default)]
pub(crate) struct Form(String);

impl Form {
    /// Adds a value.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: &str) -> Form {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0 += &encoded(name);
        self.0.push('=');
        self.0 += &encoded(value);
        self
    }

    /// As it is sent.
    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

/// Headers of a request with a form.
pub(crate) fn form_headers() -> Headers {
    let mut headers = Headers::new();
    headers.append(Known::CONTENT_TYPE, b"application/x-www-form-urlencoded");
    headers.append("accept", b"application/json");
    headers
}

/// `Authorization: Basic` of a client (RFC 6749 section 2.3.1; as Envoy, without encoding the parts before).
pub(crate) fn basic(client: &str, secret: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{client}:{secret}")))
}

/// What an authorisation server answers (RFC 6749 section 5.1). Other members are not looked at.
#[derive(Deserialize, Default)]
pub(crate) struct Tokens {
    #[serde(default, deserialize_with = "token")]
    pub(crate) access_token: String,
    #[serde(default, deserialize_with = "token")]
    pub(crate) id_token: String,
    #[serde(default, deserialize_with = "token")]
    pub(crate) refresh_token: String,
    /// Seconds.
    #[serde(default, deserialize_with = "seconds")]
    pub(crate) expires_in: Option<u64>,
}

impl Tokens {
    /// Reads an answer.
    pub(crate) fn parse(body: &[u8]) -> Option<Tokens> {
        // A list would be taken for the members in their order.
        let members: serde_json::Map<_, _> = serde_json::from_slice(body).ok()?;
        serde_json::from_value(serde_json::Value::Object(members)).ok()
    }
}

/// A token, which goes into headers and cookies.
fn token<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    match is_clean(text.as_bytes()) && !text.contains([';', ',', '"', '\\', ' ']) {
        true => Ok(text),
        false => Err(D::Error::custom("a token can't be the value of a cookie")),
    }
}

/// A number, which protobuf's JSON may write as a text.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    match Option::<Either>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Either::Number(number)) => Ok(Some(number)),
        Some(Either::Text(text)) => text.parse().map(Some).map_err(D::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers_are_read_and_forms_written() {
        let whole =
            br#"{"access_token": "a", "id_token": "b", "refresh_token": null, "expires_in": "60", "x": 1}"#;
        let tokens = Tokens::parse(whole).unwrap();
        assert_eq!((&*tokens.access_token, &*tokens.id_token, &*tokens.refresh_token), ("a", "b", ""));
        assert_eq!(tokens.expires_in, Some(60));
        assert_eq!(Tokens::parse(br#"{"expires_in": 5}"#).unwrap().expires_in, Some(5));
        for bad in [
            "",
            "[]",
            r#"{"access_token": 1}"#,
            r#"{"access_token": "a\nb"}"#,
            r#"{"access_token": "a; b"}"#,
            r#"{"expires_in": -1}"#,
            r#"{"expires_in": "x"}"#,
        ] {
            assert!(Tokens::parse(bad.as_bytes()).is_none(), "{bad}");
        }
        let form = Form::default().with("grant_type", "x").with("a b", "c&d=é");
        assert_eq!(form.into_text(), "grant_type=x&a%20b=c%26d%3D%C3%A9");
        assert_eq!(basic("me", "s"), "Basic bWU6cw==");
    }
}
