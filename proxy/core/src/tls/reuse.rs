//! TLS towards endpoints that is in use, by what it is made of.

use super::certificate::sha256;
use super::server::load_identity;
use super::verify::{Authorities, Peer};
use super::{ClientContext, ClientSettings, ClientTls, Identity, Pem, Protocols, Validation};
use crate::error::ConfigError;
use crate::interned::Interned;
use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use std::sync::Arc;

/// Contexts and places that somebody holds. Settings that say the same compile to the same object, files that they
/// name by content: a thousand clusters with one secret hold it once, and a cluster that is compiled again keeps its
/// place where its TLS has not changed, so that its connections serve on.
#[derive(Default)]
pub struct ClientCache {
    contexts: Mutex<Interned<[u8; 32], ClientContext>>,
    places: Mutex<Interned<(Box<str>, usize), ClientTls>>,
    parts: Parts,
}

/// What settings that differ otherwise may be made of alike: keys that were loaded, authorities that were read.
#[derive(Default)]
pub(super) struct Parts {
    providers: Mutex<Interned<Protocols, CryptoProvider>>,
    identities: Mutex<Interned<[u8; 32], CertifiedKey>>,
    authorities: Mutex<Interned<[u8; 32], Authorities>>,
}

impl Parts {
    pub(super) fn provider(&self, protocols: &Protocols) -> Result<Arc<CryptoProvider>, ConfigError> {
        let known = self.providers.lock().get(protocols);
        if let Some(provider) = known {
            return Ok(provider);
        }
        let provider = protocols.provider()?;
        self.providers.lock().insert(protocols.clone(), &provider);
        Ok(provider)
    }

    /// Whatever is negotiated, keys are loaded alike.
    pub(super) fn identity(
        &self,
        identity: &Identity,
        provider: &CryptoProvider,
    ) -> Result<Arc<CertifiedKey>, ConfigError> {
        let Identity { chain, key } = identity;
        let print = print_of_inline("", &[chain, key]);
        shared(&self.identities, print, || load_identity(identity, provider).map(Arc::new))
    }

    /// Whatever is negotiated, signatures of authorities are verified alike.
    pub(super) fn authorities(
        &self,
        validation: &Validation,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<Authorities>, ConfigError> {
        let Validation { trusted_ca, crl, only_leaf_crl, .. } = validation;
        let pems: Vec<&Pem> = trusted_ca.iter().chain(crl).collect();
        let kind = format!("{only_leaf_crl} {}", crl.is_some());
        let print = print_of_inline(&kind, &pems);
        shared(&self.authorities, print, || Authorities::new(validation, Peer::Server, provider))
    }
}

/// What is known by this digest, else what is made now.
fn shared<T>(
    known: &Mutex<Interned<[u8; 32], T>>,
    print: Option<[u8; 32]>,
    make: impl FnOnce() -> Result<Arc<T>, ConfigError>,
) -> Result<Arc<T>, ConfigError> {
    let Some(print) = print else { return make() };
    if let Some(found) = known.lock().get(&print) {
        return Ok(found);
    }
    let made = make()?;
    known.lock().insert(print, &made);
    Ok(made)
}

/// The PEM that settings are made of.
fn pems_of(settings: &ClientSettings) -> impl Iterator<Item = &Pem> {
    let identity = settings.identity.iter().flat_map(|identity| [&identity.chain, &identity.key]);
    let validation = settings.validation.iter().flat_map(|v| v.trusted_ca.iter().chain(&v.crl));
    identity.chain(validation)
}

/// Digest of settings by their description, which leaves contents out, and of these contents; `None` when those can't be
/// read.
fn print_of<'a>(described: &str, pems: impl Iterator<Item = &'a Pem>) -> Option<[u8; 32]> {
    let mut all = described.as_bytes().to_vec();
    for pem in pems {
        all.extend(sha256(&pem.read().ok()?));
    }
    Some(sha256(&all))
}

/// The same of PEM that stands in the configuration itself; `None` when some is in a file, which may change while it is
/// read.
fn print_of_inline(kind: &str, pems: &[&Pem]) -> Option<[u8; 32]> {
    let is_inline = pems.iter().all(|pem| matches!(pem, Pem::Inline(_)));
    print_of(kind, pems.iter().copied()).filter(|_| is_inline)
}

impl ClientCache {
    /// The settings, compiled.
    ///
    /// # Errors
    /// Those of [`ClientContext::new`].
    pub fn context(&self, settings: ClientSettings) -> Result<Arc<ClientContext>, ConfigError> {
        let described = format!("{settings:?}");
        let files: Vec<Pem> = pems_of(&settings).filter(|pem| matches!(pem, Pem::File(_))).cloned().collect();
        let of_files = || print_of("", files.iter());
        let before = of_files();
        let print = print_of(&described, pems_of(&settings));
        if let Some(print) = &print
            && let Some(context) = self.contexts.lock().get(print)
        {
            return Ok(context);
        }
        let context = ClientContext::with(&self.parts, settings)?;
        // Of a file that has changed in between nobody knows which content was compiled.
        if let Some(print) = print.filter(|_| files.is_empty() || of_files() == before) {
            self.contexts.lock().insert(print, &context);
        }
        Ok(context)
    }

    /// The place of `owner` that holds the context: the one it has already, if that is so.
    pub fn place(&self, owner: &str, context: Arc<ClientContext>) -> Arc<ClientTls> {
        let key = (owner.into(), Arc::as_ptr(&context) as usize);
        let mut places = self.places.lock();
        let known = places.get(&key);
        if let Some(place) = known.filter(|place| place.holds(&context)) {
            return place;
        }
        let place = ClientTls::new(Some(context));
        places.insert(key, &place);
        place
    }
}

impl std::fmt::Debug for ClientCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientCache")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tls::{Identity, Validation};

    fn certificate() -> (Vec<u8>, Vec<u8>) {
        let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        (made.cert.pem().into_bytes(), made.signing_key.serialize_pem().into_bytes())
    }

    fn settings(chain: &Pem, key: &[u8]) -> ClientSettings {
        let identity = Identity { chain: chain.clone(), key: Pem::Inline(key.to_vec()) };
        ClientSettings { identity: Some(identity), ..ClientSettings::default() }
    }

    /// Every compile made new ones, and the connections of those before stayed open beside them.
    #[test]
    fn what_says_the_same_is_the_same() {
        let cache = ClientCache::default();
        let ((chain, key), (other, other_key)) = (certificate(), certificate());
        let chain = Pem::Inline(chain);
        let context = cache.context(settings(&chain, &key)).unwrap();
        assert!(Arc::ptr_eq(&context, &cache.context(settings(&chain, &key)).unwrap()));
        let place = cache.place("cluster.a.", context.clone());
        assert!(Arc::ptr_eq(&place, &cache.place("cluster.a.", context.clone())));
        assert!(!Arc::ptr_eq(&place, &cache.place("cluster.b.", context.clone())), "it may change by itself");
        let different = [
            settings(&Pem::Inline(other), &other_key),
            ClientSettings { auto_sni: true, ..settings(&chain, &key) },
            ClientSettings { sni: Some("a".into()), ..settings(&chain, &key) },
            ClientSettings { validation: Some(Validation::default()), ..settings(&chain, &key) },
        ];
        for settings in different {
            assert!(!Arc::ptr_eq(&context, &cache.context(settings).unwrap()));
        }
        // Contents of the same length are not described.
        let (short, long) = (Pem::Inline(b"a".into()), Pem::Inline(b"b".into()));
        let print = |pem: &Pem| print_of(&format!("{:?}", settings(pem, b"k")), [pem].into_iter());
        assert_ne!(print(&short), print(&long));
        // What was replaced by hand is another one's.
        place.replace(None);
        assert!(!Arc::ptr_eq(&place, &cache.place("cluster.a.", context)));
    }

    /// Each cluster parsed the key and the authorities of its mesh anew, and kept them.
    #[test]
    fn what_differs_shares_what_it_has_alike() {
        let cache = ClientCache::default();
        let (chain, key) = certificate();
        let validation = Validation { trusted_ca: Some(Pem::Inline(chain.clone())), ..Validation::default() };
        let of = |sni: &str, key: &[u8], validation: &Validation| {
            let sni = Some(sni.to_owned());
            let validation =
                Validation { trusted_ca: validation.trusted_ca.clone(), ..Validation::default() };
            let validation = Some(validation);
            cache.context(ClientSettings { sni, validation, ..settings(&Pem::Inline(chain.clone()), key) })
        };
        let held = [of("a", &key, &validation).unwrap(), of("b", &key, &validation).unwrap()];
        assert!(!Arc::ptr_eq(&held[0], &held[1]));
        let parts = &cache.parts;
        let count = || {
            let (a, b, c) = (parts.providers.lock(), parts.identities.lock(), parts.authorities.lock());
            [a.len(), b.len(), c.len()]
        };
        assert_eq!(count(), [1, 1, 1]);
        let (other, other_key) = certificate();
        assert!(of("a", &other_key, &validation).is_err(), "the key of another certificate");
        let others = Validation { trusted_ca: Some(Pem::Inline(other)), ..Validation::default() };
        let _third = of("a", &key, &others).unwrap();
        assert_eq!(count(), [1, 1, 2]);
    }

    #[test]
    fn files_count_by_their_content() {
        let cache = ClientCache::default();
        let path = std::env::temp_dir().join(format!("sixfold-chain-{}.pem", std::process::id()));
        let ((chain, key), (other, other_key)) = (certificate(), certificate());
        let file = Pem::File(path.clone());
        assert!(cache.context(settings(&file, &key)).is_err(), "it is not there");
        std::fs::write(&path, &chain).unwrap();
        let first = cache.context(settings(&file, &key)).unwrap();
        assert!(Arc::ptr_eq(&first, &cache.context(settings(&file, &key)).unwrap()));
        std::fs::write(&path, &other).unwrap();
        let second = cache.context(settings(&file, &other_key)).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn nothing_is_kept_that_nobody_holds() {
        let cache = ClientCache::default();
        for n in 0..1000 {
            let sni = Some(format!("{n}.test"));
            let context = cache.context(ClientSettings { sni, ..ClientSettings::default() }).unwrap();
            drop(cache.place(&n.to_string(), context));
        }
        assert!(cache.contexts.lock().len() <= 20 && cache.places.lock().len() <= 20);
    }
}
