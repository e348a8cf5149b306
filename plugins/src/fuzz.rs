//! What must hold for any bytes at all that somebody sends for a token or a set of keys. The fuzz target in `proxy/fuzz`
//! calls this, and so does a test on stable; a broken promise is a failed assertion.

use crate::shared::json;
use crate::shared::jwt::{KeySet, Token, from_base64url};
use serde_json::Value;

/// The bytes as a token and as a set of keys.
///
/// A token that is taken has three parts of base64url and is what its parts say; nothing that was not signed is verified.
pub fn jwt(data: &[u8]) {
    let keys = KeySet::parse(data).ok();
    let Ok(token) = Token::parse(data) else { return };
    let parts: Vec<&[u8]> = data.split(|byte| *byte == b'.').collect();
    assert_eq!(parts.len(), 3);
    let object = |part: &[u8]| from_base64url(part).and_then(|text| json::object(&text));
    assert_eq!(object(parts[0]).as_ref(), Some(&token.header));
    assert_eq!(object(parts[1]).as_ref(), Some(&token.payload));
    assert_eq!(token.encoded_payload().as_bytes(), parts[1]);
    let text = |name: &str| token.payload.get(name).and_then(Value::as_str).unwrap_or_default();
    assert_eq!((&*token.issuer, &*token.subject), (text("iss"), text("sub")));
    assert_ne!(token.header.get("alg").and_then(Value::as_str), Some("none"));
    // At no moment it both does not hold yet and holds no longer.
    let _ = token.check_time(u64::MAX, u64::MAX);
    assert!(keys.is_none_or(|keys| keys.verify(&token).is_err()), "a text is no key of itself");
}

#[cfg(test)]
#[path = "../../proxy/fuzz/stable.rs"]
mod stable;

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: &[&str] = &[
        ".",
        "eyJhbGciOiJIUzI1NiJ9",
        "eyJhbGciOiJub25lIn0",
        "e30",
        "{\"keys\": [",
        "\"kty\": \"RSA\"",
        "\"kty\": \"EC\"",
        "\"crv\": \"P-521\"",
        "\"x\": \"AQAB\"",
        "\"e\": \"Aw\"",
        "=",
        "-----BEGIN CERTIFICATE-----\\n",
        "]}",
        "null",
    ];

    #[test]
    fn bytes_that_anybody_sends() {
        stable::run("jwt", WORDS, jwt);
    }
}
