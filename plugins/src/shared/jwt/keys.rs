//! Sets of keys.

use super::key::Key;
use super::{Fault, Token};
use serde_json::{Map, Value};

/// Keys that one issuer signs with; by default none, which no token fits.
#[derive(Default)]
pub(crate) struct KeySet {
    keys: Box<[Key]>,
    /// Those that were left out, and why.
    pub(crate) unusable: Vec<String>,
}

impl KeySet {
    /// A set as JSON: RFC 7517 section 5, or an object of certificates by their names. Keys that can't be used are
    /// left out as long as there is one that can.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn parse(json: &[u8]) -> Result<KeySet, String> {
        let set: Map<String, Value> =
            serde_json::from_slice(json).map_err(|error| format!("is no JSON object: {error}"))?;
        let made: Vec<Result<Key, String>> = match set.get("keys") {
            Some(Value::Array(keys)) => keys.iter().map(of_member).collect(),
            Some(_) => return Err("[keys] is no array".to_owned()),
            None if are_certificates(&set) => {
                let certificate = |(kid, pem): (&String, &Value)| {
                    Key::of_certificate(kid, pem.as_str().unwrap_or_default())
                };
                set.iter().map(certificate).collect()
            }
            None => return Err("has no [keys]".to_owned()),
        };
        let (mut keys, mut unusable) = (Vec::new(), Vec::new());
        for (index, key) in made.into_iter().enumerate() {
            match key {
                Ok(key) => keys.push(key),
                Err(reason) => unusable.push(format!("key {index}: {reason}")),
            }
        }
        match keys.is_empty() {
            true if unusable.is_empty() => Err("has no keys".to_owned()),
            true => Err(format!("has no key that can be used ({})", unusable.join("; "))),
            false => Ok(KeySet { keys: keys.into(), unusable }),
        }
    }

    /// Whether one of the keys has signed the token. Time, issuer and audience are not looked at.
    ///
    /// # Errors
    /// There are no keys, none is the one that the token names, or none has signed it.
    pub(crate) fn verify(&self, token: &Token) -> Result<(), Fault> {
        if self.keys.is_empty() {
            return Err(Fault::NoValidKeys);
        }
        let mut fault = Fault::NoMatchingKey;
        for key in self.keys.iter().filter(|key| key.is_meant(token)) {
            match key.verify(token) {
                Ok(()) => return Ok(()),
                Err(Fault::Ed25519Length) => return Err(Fault::Ed25519Length),
                Err(other) => fault = other,
            }
        }
        Err(fault)
    }
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.keys.len())
    }
}

fn of_member(jwk: &Value) -> Result<Key, String> {
    jwk.as_object().ok_or_else(|| "is no object".to_owned()).and_then(Key::of_jwk)
}

fn are_certificates(set: &Map<String, Value>) -> bool {
    let is_certificate = |(kid, pem): (&String, &Value)| {
        let pem = pem.as_str().unwrap_or_default();
        !kid.is_empty() && pem.starts_with("-----BEGIN CERTIFICATE-----\n")
    };
    !set.is_empty() && set.iter().all(is_certificate)
}
