//! Encryption at rest, as APISIX does it (`apisix/core/data_encryption.lua`): AES-CBC with PKCS#7, whose first block is mixed with
//! the key itself, in base64. The first key of the keyring encrypts, any of them decrypts.

use std::fmt;

use aws_lc_rs::cipher::{
    AES_128, AES_256, DecryptingKey, DecryptionContext, EncryptionContext, PaddedBlockEncryptingKey,
    UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::resource::Kind;

/// Keys of `apisix.data_encryption.keyring`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keyring(Vec<Box<[u8]>>);

/// Fields of a plugin's configuration that are kept encrypted: paths of the names in `encrypt_fields` of its schema.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EncryptFields(Box<[Box<[Box<str>]>]>);

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Encrypts.
    Seal,
    /// Decrypts.
    Open,
}

impl Keyring {
    /// Of keys of 16 bytes (AES-128) or 32 (AES-256).
    ///
    /// # Errors
    /// How long one is that is neither.
    pub fn new<'k>(keys: impl IntoIterator<Item = &'k str>) -> Result<Keyring, usize> {
        let keys = keys.into_iter().map(|key| match key.len() {
            16 | 32 => Ok(key.as_bytes().into()),
            other => Err(other),
        });
        Ok(Keyring(keys.collect::<Result<_, _>>()?))
    }

    /// A text as it is kept: the same without keys.
    pub(crate) fn encrypt(&self, text: &str) -> Option<String> {
        let Some(key) = self.0.first() else { return Some(text.to_owned()) };
        let mut bytes = text.as_bytes().to_vec();
        let cipher = PaddedBlockEncryptingKey::cbc_pkcs7(unbound(key)?).ok()?;
        cipher.less_safe_encrypt(&mut bytes, EncryptionContext::Iv128(iv(key)?)).ok()?;
        Some(STANDARD.encode(bytes))
    }

    /// What was encrypted by one of the keys; `None` for anything else.
    pub(crate) fn decrypt(&self, text: &str) -> Option<String> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = STANDARD.decode(text).ok().filter(|bytes| !bytes.is_empty())?;
        self.0.iter().find_map(|key| {
            let cipher = DecryptingKey::cbc(unbound(key)?).ok()?;
            let mut bytes = bytes.clone();
            let text = cipher.decrypt(&mut bytes, DecryptionContext::Iv128(iv(key)?)).ok()?;
            String::from_utf8(unpadded(text)?.to_vec()).ok()
        })
    }

    /// Encrypts the private keys of a resource that are PEM, or decrypts those that are not.
    pub(crate) fn turn(&self, turn: Turn, kind: Kind, value: &mut Value) {
        // APISIX reads a manager of secrets as it stands.
        if (kind, turn) == (Kind::Secret, Turn::Seal) {
            return;
        }
        let mut turned = |text: &str| match (turn, is_pem(text)) {
            (Turn::Seal, true) => self.encrypt(text),
            (Turn::Open, false) => self.decrypt(text),
            _ => None,
        };
        each_private_key(kind, value, &mut |holder, name| {
            if let Some(key) = holder.get_mut(name) {
                leaf(key, &mut turned);
            }
        });
    }
}

/// Whether a private key is written in the clear. PEM is found behind white space, too (RFC 7468, section 2), where APISIX takes it
/// for one that it has encrypted.
pub(crate) fn is_pem(text: &str) -> bool {
    text.trim_start().starts_with("---")
}

/// Nobody is told the keys.
impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

fn unbound(key: &[u8]) -> Option<UnboundCipherKey> {
    UnboundCipherKey::new(if key.len() == 16 { &AES_128 } else { &AES_256 }, key).ok()
}

/// What PKCS#7 has filled up: each byte that it has added says how many there are. Another key's text seldom does.
fn unpadded(text: &[u8]) -> Option<&[u8]> {
    let added = *text.last()?;
    let (text, padding) = text.split_at_checked(text.len().checked_sub(usize::from(added))?)?;
    let is_padding = (1..=16).contains(&added) && padding.iter().all(|byte| *byte == added);
    is_padding.then_some(text)
}

/// The first 16 bytes of the key.
fn iv(key: &[u8]) -> Option<FixedLength<16>> {
    let first: &[u8; 16] = key.first_chunk()?;
    Some(FixedLength::from(first))
}

/// What a private key is called in whichever object holds it: an upstream's `tls`, of plugins as well, and `auth_config` of a
/// manager of secrets.
const PRIVATE_KEYS: [&str; 2] = ["client_key", "private_key"];
/// What those of an `ssl` are called, at its top.
const OF_SSL: [&str; 2] = ["key", "keys"];

/// Leaves out the private keys of a resource that are in the clear: nobody is told them.
pub(crate) fn without_clear_keys(kind: Kind, value: &mut Value) {
    each_private_key(kind, value, &mut |holder, name| {
        let is_clear = |key: &Value| key.as_str().is_some_and(is_pem);
        let is_clear = match holder.get(name) {
            Some(Value::Array(keys)) => keys.iter().any(is_clear),
            key => key.is_some_and(is_clear),
        };
        if is_clear {
            holder.shift_remove(name);
        }
    });
}

/// Tells `found` of each private key of a resource: the object that holds it, and its name there.
fn each_private_key(kind: Kind, value: &mut Value, found: &mut dyn FnMut(&mut Map<String, Value>, &str)) {
    if let (Kind::Ssl, Value::Object(ssl)) = (kind, &mut *value) {
        OF_SSL.iter().for_each(|name| found(ssl, name));
    }
    below(value, found);
}

/// Tells of those that are called so anywhere in it.
fn below(value: &mut Value, found: &mut dyn FnMut(&mut Map<String, Value>, &str)) {
    match value {
        Value::Object(map) => {
            PRIVATE_KEYS.iter().for_each(|name| found(map, name));
            map.values_mut().for_each(|value| below(value, found));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| below(value, found)),
        _ => {}
    }
}

/// A text, or those of a list or a map.
fn leaf(value: &mut Value, change: &mut dyn FnMut(&str) -> Option<String>) {
    let mut one = |value: &mut Value| {
        if let Some(changed) = value.as_str().and_then(&mut *change) {
            *value = Value::String(changed);
        }
    };
    match value {
        Value::Array(items) => items.iter_mut().for_each(one),
        Value::Object(map) => map.values_mut().for_each(one),
        value => one(value),
    }
}

impl EncryptFields {
    /// Those of a schema.
    pub(crate) fn of(schema: &str) -> EncryptFields {
        let schema: Value = serde_json::from_str(schema).unwrap_or_default();
        let fields = schema.get("encrypt_fields").and_then(Value::as_array).into_iter().flatten();
        let path = |field: &str| field.split('.').map(Into::into).collect();
        EncryptFields(fields.filter_map(Value::as_str).map(path).collect())
    }

    /// Encrypts them or decrypts them. What can't be stays as it is.
    pub(crate) fn turn(&self, turn: Turn, keyring: &Keyring, config: &mut Value) {
        let mut change = |text: &str| match turn {
            Turn::Seal => keyring.encrypt(text),
            Turn::Open => keyring.decrypt(text),
        };
        self.0.iter().for_each(|path| at(config, path, &mut change));
    }
}

/// Changes what is at a path: lists on it stand for each of their members.
fn at(value: &mut Value, path: &[Box<str>], change: &mut dyn FnMut(&str) -> Option<String>) {
    let Some((name, rest)) = path.split_first() else { return leaf(value, change) };
    let Some(below) = value.get_mut(&**name) else { return };
    match below {
        Value::Array(items) if !rest.is_empty() => items.iter_mut().for_each(|item| at(item, rest, change)),
        below => at(below, rest, change),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn keyring(keys: &[&str]) -> Keyring {
        Keyring::new(keys.iter().copied()).unwrap()
    }

    // What APISIX 3.18 keeps in etcd.
    #[test]
    fn texts_are_kept_as_apisix_keeps_them() {
        let keys = keyring(&["edd1c9f0985e76a2"]);
        for (text, kept) in [
            ("userkey", "mt39FazQccyMqt4ctoRV7w=="),
            ("my-secret-key", "IRWpPjbDq5BCgHyIllnOMA=="),
            ("bar", "77+NmbYqNfN+oLm0aX5akg=="),
        ] {
            assert_eq!(keys.encrypt(text).as_deref(), Some(kept));
            assert_eq!(keys.decrypt(kept).as_deref(), Some(text));
        }
        let default = keyring(&["qeddd145sfvddff3", "edd1c9f0985e76a2"]);
        assert_eq!(default.encrypt("bar").as_deref(), Some("+kOEVUuRc5rC5ZwvvAMLwg=="));
        // An older key still opens what it has closed.
        assert_eq!(default.decrypt("77+NmbYqNfN+oLm0aX5akg==").as_deref(), Some("bar"));
        assert_eq!(keys.decrypt("+kOEVUuRc5rC5ZwvvAMLwg=="), None);
        let long = keyring(&["0123456789abcdef0123456789abcdef"]);
        let kept = long.encrypt("text").unwrap();
        assert_eq!(long.decrypt(&kept).as_deref(), Some("text"));
        assert_eq!(Keyring::new(["short"]), Err(5));
        let none = keyring(&[]);
        assert_eq!((none.encrypt("a").as_deref(), none.decrypt("a")), (Some("a"), None));
        for plain in ["bar", "", "====", "YmFy"] {
            assert_eq!(keys.decrypt(plain), None, "{plain}");
        }
    }

    #[test]
    fn fields_are_texts_lists_maps_and_below_lists() {
        let fields = EncryptFields::of(r#"{"encrypt_fields": ["a", "b.c", "d.e.f", "none", "a.x"]}"#);
        let keys = keyring(&["edd1c9f0985e76a2"]);
        let plain = json!({"a": "bar", "b": {"c": ["bar", 1], "x": "bar"},
            "d": [{"e": {"f": {"g": "bar"}}}, {"e": 5}, "bar"]});
        let kept = "77+NmbYqNfN+oLm0aX5akg==";
        let mut value = plain.clone();
        fields.turn(Turn::Seal, &keys, &mut value);
        let sealed = json!({"a": kept, "b": {"c": [kept, 1], "x": "bar"},
            "d": [{"e": {"f": {"g": kept}}}, {"e": 5}, "bar"]});
        assert_eq!(value, sealed);
        fields.turn(Turn::Open, &keys, &mut value);
        assert_eq!(value, plain);
        fields.turn(Turn::Open, &keys, &mut value);
        assert_eq!(value, plain);
    }

    /// Behind white space they were kept in the clear.
    #[test]
    fn private_keys_are_kept_encrypted() {
        for pem in ["-----BEGIN PRIVATE KEY-----", "\n \t\u{2028}-----BEGIN PRIVATE KEY-----"] {
            sealed_and_opened(pem);
        }
    }

    fn sealed_and_opened(pem: &str) {
        let keys = keyring(&["edd1c9f0985e76a2"]);
        let ssl = json!({"cert": pem, "key": pem, "keys": [pem, "$env://KEY"]});
        let route = json!({"uri": "/", "upstream": {"tls": {"client_cert": pem, "client_key": pem}}});
        // In the upstreams of a plugin they were kept in the clear.
        let weighted = json!({"weight": 1, "upstream": route["upstream"]});
        let split = json!({"plugins": {"traffic-split": {"rules": [{"weighted_upstreams": [weighted]}]}}});
        for (kind, plain) in [
            (Kind::Ssl, ssl),
            (Kind::Route, route.clone()),
            (Kind::Upstream, route["upstream"].clone()),
            (Kind::Route, split.clone()),
            (Kind::Consumer, split),
        ] {
            let mut value = plain.clone();
            keys.turn(Turn::Seal, kind, &mut value);
            assert_eq!(value.to_string().matches("BEGIN").count(), 1, "{value}");
            let sealed = value.clone();
            keys.turn(Turn::Seal, kind, &mut value);
            assert_eq!(value, sealed);
            keys.turn(Turn::Open, kind, &mut value);
            assert_eq!(value, plain);
            without_clear_keys(kind, &mut value);
            assert_eq!(value.to_string().matches("BEGIN").count(), 1, "{value}");
            assert!(value.to_string().contains("cert"), "{value}");
        }
    }

    /// The manager of another gateway could not read what it shares.
    #[test]
    fn the_key_of_a_manager_of_secrets_is_kept_and_not_told() {
        let plain =
            json!({"auth_config": {"client_email": "a", "private_key": "-----BEGIN PRIVATE KEY-----"}});
        let mut value = plain.clone();
        keyring(&["edd1c9f0985e76a2"]).turn(Turn::Seal, Kind::Secret, &mut value);
        assert_eq!(value, plain);
        without_clear_keys(Kind::Secret, &mut value);
        assert_eq!(value, json!({"auth_config": {"client_email": "a"}}));
    }
}
