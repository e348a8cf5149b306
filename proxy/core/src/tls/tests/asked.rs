//! Which clients are asked for a certificate, and whose is an identity.

use super::*;
use base64::Engine;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Whether a client gets in, and whether its certificate is shown.
type Outcome = Result<bool, ()>;

const IN: Outcome = Ok(false);
const KNOWN: Outcome = Ok(true);
const OUT: Outcome = Err(());

/// Everybody got in where names or pins were listed and the flag was not set, and certificates that were looked at
/// by nobody were identities where there was nothing to verify them against.
#[test]
fn names_and_pins_need_a_certificate_and_nobody_is_asked_for_one_that_can_not_be_verified() {
    let (ca, other) = (authority("Test CA", None), authority("Other CA", None));
    let known = identity(&ca, &["client.test"], &[]);
    let stranger = identity(&other, &["stranger.test"], &[]);
    let der = known.chain.certificates().unwrap().remove(0);
    let (_, leaf) = X509Certificate::from_der(&der).unwrap();
    let key = base64::engine::general_purpose::STANDARD
        .encode(crate::tls::certificate::sha256(leaf.public_key().raw));
    let nothing = || Validation::default();
    let trusting = || trust(&ca).unwrap();
    let hash = || Validation { hashes: vec![sha256_hex(&der)], ..nothing() };
    let spki = || Validation { spki: vec![key.clone()], ..nothing() };
    let san = || {
        let matcher = StringMatcher::exact("client.test");
        Validation { sans: vec![SanMatcher { kind: SanKind::Dns, matcher }], ..trusting() }
    };
    let outcomes = |validation: Option<Validation>, require_client_certificate: bool| {
        let server = server(ServerSettings {
            identities: vec![identity(&ca, &["server.test"], &[])],
            validation,
            require_client_certificate,
            ..ServerSettings::default()
        });
        [None, Some(&known), Some(&stranger)].map(|of| {
            let client = client(ClientSettings { identity: of.cloned(), ..ClientSettings::default() });
            let seen = handshake(&server, &client, "server.test", AlpnOffer::None);
            seen.map(|(seen, _)| seen.peer.is_some()).map_err(drop)
        })
    };
    for flag in [false, true] {
        assert_eq!(outcomes(None, flag), [IN, IN, IN]);
        assert_eq!(outcomes(Some(nothing()), flag), [IN, IN, IN]);
        let untrusted = Validation { accept_untrusted: true, ..nothing() };
        assert_eq!(outcomes(Some(untrusted), flag), [IN, KNOWN, KNOWN]);
        for listed in [hash(), spki(), san(), Validation { trusted_ca: trusting().trusted_ca, ..hash() }] {
            assert_eq!(outcomes(Some(listed), flag), [OUT, KNOWN, OUT]);
        }
        let untrusted = Validation { accept_untrusted: true, ..hash() };
        assert_eq!(outcomes(Some(untrusted), flag), [IN, KNOWN, KNOWN]);
    }
    assert_eq!(outcomes(Some(trusting()), false), [IN, KNOWN, OUT]);
    assert_eq!(outcomes(Some(trusting()), true), [OUT, KNOWN, OUT]);
    let untrusted = || Some(Validation { accept_untrusted: true, ..san() });
    assert_eq!(outcomes(untrusted(), false), [IN, KNOWN, KNOWN]);
    assert_eq!(outcomes(untrusted(), true), [OUT, KNOWN, KNOWN]);
}
