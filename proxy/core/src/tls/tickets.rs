//! Session tickets by keys that are configured (extensions/transport_sockets/tls/v3 TlsSessionTicketKeys): contexts and
//! processes that have them in common take up each other's sessions.
//!
//! A session holds who the client is, and a session that goes on is not verified again. So each key is made
//! one of its context: what verifies clients there, and for which names it speaks. A ticket of a context that does
//! either otherwise is none.

use super::certificate::sha256;
use super::{Pem, Validation};
use crate::connection::Certificate;
use crate::error::{ConfigContext, ConfigError};
use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use rustls::server::ProducesTickets;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How clients take up sessions without the server keeping them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Tickets {
    /// Not at all (`disable_stateless_session_resumption`).
    Off,
    /// By keys that the context makes itself, and changes; the default. No other context takes them.
    #[default]
    Own,
    /// By keys of 80 bytes; the first one seals, all of them open.
    Keys(Vec<Pem>),
}

/// Bytes of a key: its name, what signs, what encrypts.
const KEY: usize = NAME + 32 + 32;
const NAME: usize = 16;
const NONCE: usize = 12;
/// How long a session can be taken up, as in BoringSSL.
const LIFETIME: Duration = Duration::from_secs(7200);

impl Tickets {
    /// Whether the keys can be used.
    ///
    /// # Errors
    /// Names the key and what is wrong with it.
    pub fn check(&self) -> Result<(), ConfigError> {
        match self {
            Tickets::Keys(keys) => KeyedTickets::new(keys, &[]).map(drop),
            Tickets::Off | Tickets::Own => Ok(()),
        }
    }
}

/// What makes two contexts alike for sessions: the certificates that clients must have, whether they must, and the names
/// that the server speaks for, by whose word, and is asked by. Files count by their content.
///
/// # Errors
/// A file that can't be read.
pub(super) fn kinship<'c>(
    validation: Option<&Validation>,
    required: bool,
    server_names: &[String],
    certificates: impl Iterator<Item = &'c Arc<Certificate>>,
) -> Result<Vec<u8>, ConfigError> {
    let mut all = format!("{validation:?} {required} {server_names:?}").into_bytes();
    for pem in validation.iter().flat_map(|v| v.trusted_ca.iter().chain(&v.crl)) {
        all.extend(sha256(&pem.read().map_err(ConfigError::new)?));
    }
    for certificate in certificates {
        let Certificate { subject, issuer, dns_sans, ip_sans, uri_sans, .. } = &**certificate;
        all.extend(format!("{subject:?} {issuer:?} {dns_sans:?} {ip_sans:?} {uri_sans:?}").into_bytes());
    }
    Ok(all)
}

/// Seals sessions into tickets: name of the key, nonce, and in AES-256-GCM the moment and the session.
pub(super) struct KeyedTickets(Vec<Key>);

struct Key {
    name: [u8; NAME],
    key: RandomizedNonceKey,
}

impl KeyedTickets {
    /// `kinship` is what sessions depend on ([`kinship`]).
    pub(super) fn new(keys: &[Pem], kinship: &[u8]) -> Result<Arc<KeyedTickets>, ConfigError> {
        let key = |(index, pem)| Key::new(pem, kinship).in_index(index).in_key("keys");
        let keys = keys.iter().enumerate().map(key).collect::<Result<Vec<_>, ConfigError>>()?;
        match keys.is_empty() {
            true => Err(ConfigError::field("keys", "must not be empty")),
            false => Ok(Arc::new(KeyedTickets(keys))),
        }
    }

    fn seal(&self, session: &[u8], now: u64) -> Option<Vec<u8>> {
        let Key { name, key } = self.0.first()?;
        let mut sealed = [&now.to_be_bytes(), session].concat();
        let nonce = key.seal_in_place_append_tag(Aad::from(name), &mut sealed).ok()?;
        Some([name, &nonce.as_ref()[..], &sealed].concat())
    }

    fn open(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE)?;
        let Key { name, key } = self.0.iter().find(|key| key.name == name)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let opened = key.open_in_place(nonce, Aad::from(name), &mut sealed).ok()?;
        let (at, session) = opened.split_first_chunk()?;
        let age = now.saturating_sub(u64::from_be_bytes(*at));
        (age <= LIFETIME.as_secs()).then(|| session.to_vec())
    }
}

impl Key {
    fn new(pem: &Pem, kinship: &[u8]) -> Result<Key, ConfigError> {
        let bytes = pem.read().map_err(ConfigError::new)?;
        let wrong = || ConfigError::new(format!("must have {KEY} bytes, not {}", bytes.len()));
        let bytes: &[u8; KEY] = (&*bytes).try_into().map_err(|_| wrong())?;
        let (name, secrets) = bytes.split_first_chunk().ok_or_else(wrong)?;
        let (signs, encrypts) = secrets.split_at(32);
        let own = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, signs), &[encrypts, kinship].concat());
        let key =
            RandomizedNonceKey::new(&AES_256_GCM, own.as_ref()).map_err(|_| ConfigError::new("is no key"))?;
        Ok(Key { name: *name, key })
    }
}

impl ProducesTickets for KeyedTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME.as_secs() as u32
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.seal(session, now())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(ticket, now())
    }
}

impl fmt::Debug for KeyedTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ticket keys", self.0.len())
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(byte: u8) -> Pem {
        Pem::Inline(vec![byte; KEY])
    }

    fn tickets(keys: &[u8], kinship: &[u8]) -> Arc<KeyedTickets> {
        let keys: Vec<Pem> = keys.iter().map(|byte| key(*byte)).collect();
        KeyedTickets::new(&keys, kinship).unwrap()
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let (old, both, new) = (tickets(&[1], b"a"), tickets(&[2, 1], b"a"), tickets(&[2], b"a"));
        let ticket = old.seal(b"session", 1000).unwrap();
        assert_eq!(both.open(&ticket, 1000).as_deref(), Some(&b"session"[..]));
        assert_eq!(new.open(&ticket, 1000), None, "the key is gone");
        let ticket = both.seal(b"session", 1000).unwrap();
        assert!(new.open(&ticket, 1000).is_some() && old.open(&ticket, 1000).is_none());
    }

    #[test]
    fn a_ticket_of_another_kin_a_changed_one_and_an_old_one_are_none() {
        let (ours, others) = (tickets(&[1], b"a"), tickets(&[1], b"b"));
        let ticket = ours.seal(b"session", 1000).unwrap();
        assert_eq!(others.open(&ticket, 1000), None);
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(ours.open(&changed, 1000), None, "byte {at}");
            assert_eq!(ours.open(&ticket[..at], 1000), None, "{at} bytes");
        }
        assert!(ours.open(&ticket, 1000 + 7200).is_some() && ours.open(&ticket, 1001 + 7200).is_none());
    }

    #[test]
    fn keys_have_80_bytes() {
        let short = Tickets::Keys(vec![key(1), Pem::Inline(vec![0; 79])]).check().unwrap_err().to_string();
        assert_eq!(short, "keys[1]: must have 80 bytes, not 79");
        assert_eq!(Tickets::Keys(vec![]).check().unwrap_err().to_string(), "keys: must not be empty");
        assert!(Tickets::Keys(vec![key(1)]).check().is_ok() && Tickets::Own.check().is_ok());
    }
}
