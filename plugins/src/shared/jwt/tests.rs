#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use aws_lc_rs::encoding::PublicKeyX509Der;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair,
};
use aws_lc_rs::{encoding::AsDer, hmac};
use serde_json::{Value, json};
use std::slice::from_ref;
use std::sync::LazyLock;

/// Who signs tokens in tests.
pub(crate) struct Signer {
    alg: &'static str,
    key: SigningKey,
}

enum SigningKey {
    Rsa(&'static RsaKeyPair, &'static dyn RsaEncoding),
    Ec(EcdsaKeyPair, &'static str),
    Ed(Ed25519KeyPair),
    Secret(hmac::Algorithm, Vec<u8>),
}

/// One for all tests: it takes a while to make.
static RSA: LazyLock<RsaKeyPair> = LazyLock::new(|| {
    let pair = rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der = AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
    RsaKeyPair::from_pkcs8(der.as_ref()).unwrap()
});

pub(crate) const ALGORITHMS: [&str; 13] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256",
    "HS384", "HS512",
];

impl Signer {
    /// One with a fresh key, but for RSA.
    pub(crate) fn new(alg: &'static str) -> Signer {
        let ec = |algorithm: &'static EcdsaSigningAlgorithm, curve| {
            SigningKey::Ec(EcdsaKeyPair::generate(algorithm).unwrap(), curve)
        };
        let secret = |algorithm| {
            let mut bytes = vec![0; 64];
            fastrand::fill(&mut bytes);
            SigningKey::Secret(algorithm, bytes)
        };
        let key = match alg {
            "RS256" => SigningKey::Rsa(&RSA, &signature::RSA_PKCS1_SHA256),
            "RS384" => SigningKey::Rsa(&RSA, &signature::RSA_PKCS1_SHA384),
            "RS512" => SigningKey::Rsa(&RSA, &signature::RSA_PKCS1_SHA512),
            "PS256" => SigningKey::Rsa(&RSA, &signature::RSA_PSS_SHA256),
            "PS384" => SigningKey::Rsa(&RSA, &signature::RSA_PSS_SHA384),
            "PS512" => SigningKey::Rsa(&RSA, &signature::RSA_PSS_SHA512),
            "ES256" => ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
            "ES384" => ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
            "ES512" => ec(&signature::ECDSA_P521_SHA512_FIXED_SIGNING, "P-521"),
            "EdDSA" => SigningKey::Ed(Ed25519KeyPair::generate().unwrap()),
            "HS256" => secret(hmac::HMAC_SHA256),
            "HS384" => secret(hmac::HMAC_SHA384),
            "HS512" => secret(hmac::HMAC_SHA512),
            other => panic!("{other}"),
        };
        Signer { alg, key }
    }

    /// A secret that is known: the text of somebody's public key, for instance.
    pub(crate) fn of_secret(secret: &[u8]) -> Signer {
        Signer { alg: "HS256", key: SigningKey::Secret(hmac::HMAC_SHA256, secret.to_vec()) }
    }

    /// The key as others may know it, without `kid` and `alg`.
    pub(crate) fn jwk(&self) -> Value {
        match &self.key {
            SigningKey::Rsa(pair, _) => {
                // RSAPublicKey of RFC 8017, appendix A.1.1: it ends with a modulus of 256 bytes and 65537.
                let der = pair.public_key().as_ref();
                let n = &der[der.len() - 5 - 256..der.len() - 5];
                json!({"kty": "RSA", "n": to_base64url(n), "e": "AQAB"})
            }
            SigningKey::Ec(pair, curve) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"kty": "EC", "crv": curve, "x": to_base64url(x), "y": to_base64url(y)})
            }
            SigningKey::Ed(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": to_base64url(pair.public_key().as_ref())})
            }
            SigningKey::Secret(_, secret) => json!({"kty": "oct", "k": to_base64url(secret)}),
        }
    }

    /// The public key in the forms in which a secret could be made of it.
    pub(crate) fn public_forms(&self) -> Vec<Vec<u8>> {
        let Some(der) = self.public_key() else { return Vec::new() };
        vec![der, self.pem().into_bytes(), self.jwk().to_string().into_bytes()]
    }

    /// The public key as SubjectPublicKeyInfo.
    fn public_key(&self) -> Option<Vec<u8>> {
        let der: PublicKeyX509Der<'_> = match &self.key {
            SigningKey::Rsa(pair, _) => pair.public_key().as_der().unwrap(),
            SigningKey::Ec(pair, _) => pair.public_key().as_der().unwrap(),
            SigningKey::Ed(pair) => pair.public_key().as_der().unwrap(),
            SigningKey::Secret(..) => return None,
        };
        Some(der.as_ref().to_vec())
    }

    /// The secret, if it signs with one.
    pub(crate) fn secret(&self) -> Option<&[u8]> {
        match &self.key {
            SigningKey::Secret(_, secret) => Some(secret),
            _ => None,
        }
    }

    /// The public key in PEM.
    pub(crate) fn pem(&self) -> String {
        let base64 = base64::engine::general_purpose::STANDARD.encode(self.public_key().unwrap());
        format!("-----BEGIN PUBLIC KEY-----\n{base64}\n-----END PUBLIC KEY-----\n")
    }

    /// A token of these claims.
    pub(crate) fn token(&self, payload: &Value) -> String {
        self.with_header(&json!({"alg": self.alg}), payload)
    }

    /// The same with another header.
    pub(crate) fn with_header(&self, header: &Value, payload: &Value) -> String {
        self.of_text(&header.to_string(), &payload.to_string())
    }

    /// The same of any texts.
    pub(crate) fn of_text(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", to_base64url(header), to_base64url(payload));
        let signature = self.sign(signed.as_bytes());
        format!("{signed}.{}", to_base64url(signature))
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            SigningKey::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(*encoding, &random, message, &mut signature).unwrap();
                signature
            }
            SigningKey::Ec(pair, _) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            SigningKey::Ed(pair) => pair.sign(message).as_ref().to_vec(),
            SigningKey::Secret(algorithm, secret) => {
                hmac::sign(&hmac::Key::new(*algorithm, secret), message).as_ref().to_vec()
            }
        }
    }
}

/// A set of these keys.
pub(crate) fn set_of(keys: &[Value]) -> String {
    json!({"keys": keys}).to_string()
}

fn verify(set: &str, token: &str) -> Result<(), Fault> {
    KeySet::parse(set.as_bytes()).unwrap().verify(&Token::parse(token.as_bytes())?)
}

fn with(jwk: &Value, member: &str, value: &str) -> Value {
    let mut jwk = jwk.clone();
    jwk[member] = value.into();
    jwk
}

#[test]
fn every_algorithm_verifies_what_it_has_signed_and_nothing_else() {
    let signers = ALGORITHMS.map(Signer::new);
    let claims = json!({"sub": "jack"});
    for signer in &signers {
        let token = signer.token(&claims);
        let jwk = signer.jwk();
        assert_eq!(verify(&set_of(from_ref(&jwk)), &token), Ok(()), "{}", signer.alg);
        assert_eq!(verify(&set_of(&[with(&jwk, "alg", signer.alg)]), &token), Ok(()), "{}", signer.alg);
        let (signed, _) = token.rsplit_once('.').unwrap();
        for forged in [
            format!("{signed}.AAAA"),
            format!("{signed}.{}", to_base64url([0; 64])),
            token.replacen('.', &format!("{}.", "A"), 1),
        ] {
            assert!(verify(&set_of(from_ref(&jwk)), &forged).is_err(), "{}: {forged}", signer.alg);
        }
        for other in signers.iter().filter(|other| other.alg != signer.alg) {
            // The same key may serve several algorithms, but not what another one says it has signed.
            let lied = signer.with_header(&json!({"alg": other.alg}), &claims);
            assert!(verify(&set_of(from_ref(&jwk)), &lied).is_err(), "{} as {}", signer.alg, other.alg);
            let named = set_of(&[with(&jwk, "alg", signer.alg)]);
            assert_eq!(verify(&named, &other.token(&claims)), Err(Fault::NoMatchingKey));
        }
    }
}

/// The public key of an issuer is known to everybody: as the secret of an HMAC it verified what anybody had signed.
#[test]
fn a_public_key_is_no_secret() {
    let signer = Signer::new("RS256");
    let set = set_of(&[signer.jwk()]);
    for secret in signer.public_forms() {
        let forged = Signer::of_secret(&secret).token(&json!({"sub": "eve"}));
        assert_eq!(verify(&set, &forged), Err(Fault::NotVerified));
    }
    for alg in ["none", "None", "NONE", "nOnE", "", "RSA", "HS1", "ES256K", "RS256 "] {
        let header = json!({"alg": alg});
        for token in [
            signer.with_header(&header, &json!({"sub": "eve"})),
            format!("{}.{}.", to_base64url(header.to_string()), to_base64url("{}")),
        ] {
            let fault = verify(&set, &token).unwrap_err();
            assert!(matches!(fault, Fault::UnknownAlg | Fault::BadFormat), "{alg}: {fault:?}");
        }
    }
}

#[test]
fn a_key_is_chosen_by_its_name() {
    let (one, other) = (Signer::new("ES256"), Signer::new("ES256"));
    let set = set_of(&[with(&one.jwk(), "kid", "one"), with(&other.jwk(), "kid", "other")]);
    let named =
        |signer: &Signer, kid: &str| signer.with_header(&json!({"alg": "ES256", "kid": kid}), &json!({}));
    assert_eq!(verify(&set, &named(&one, "one")), Ok(()));
    assert_eq!(verify(&set, &named(&one, "other")), Err(Fault::NotVerified));
    assert_eq!(verify(&set, &named(&one, "third")), Err(Fault::NoMatchingKey));
    // Without a name each is tried.
    assert_eq!(verify(&set, &other.token(&json!({}))), Ok(()));
    assert_eq!(verify(&set_of(&[one.jwk()]), &named(&one, "third")), Ok(()));
}

#[test]
fn keys_that_can_not_be_used_are_left_out() {
    let good = Signer::new("ES256").jwk();
    let rsa = Signer::new("RS256").jwk();
    let mut short = vec![0xff; 128];
    short[127] = 1;
    for (bad, reason) in [
        (json!({}), "[kty] is missing"),
        (json!({"kty": 1}), "[kty] is no text"),
        (json!({"kty": "XX"}), "[kty] \"XX\" is not supported"),
        (json!(1), "is no object"),
        (with(&rsa, "alg", "ES256"), "[alg] \"ES256\" is none of an RSA key"),
        (with(&rsa, "e", "AQAC"), "[e] is neither 3 nor 65537"),
        (with(&rsa, "n", &to_base64url(short)), "[n] has 1024 bits, and not 2048 to 8192"),
        (with(&good, "alg", "ES384"), "[alg] \"ES384\" and [crv] \"P-256\" are none of an EC key"),
        (with(&good, "crv", "P-257"), "[alg] \"\" and [crv] \"P-257\" are none of an EC key"),
        (with(&good, "x", "%"), "[x] is no base64url"),
        (with(&good, "x", &to_base64url([1; 33])), "[x] is too long for P-256"),
        (
            json!({"kty": "OKP", "crv": "X25519", "x": "AA"}),
            "[alg] \"\" and [crv] \"X25519\" are none of an OKP key",
        ),
        (json!({"kty": "OKP", "crv": "Ed25519", "x": "AA"}), "[x] has not 32 bytes"),
        (json!({"kty": "oct"}), "[k] is missing"),
    ] {
        let set = KeySet::parse(set_of(&[bad.clone(), good.clone()]).as_bytes()).unwrap();
        assert_eq!(set.unusable, [format!("key 0: {reason}")]);
        let alone = KeySet::parse(set_of(&[bad]).as_bytes()).unwrap_err();
        assert_eq!(alone, format!("has no key that can be used (key 0: {reason})"));
    }
    // A point that is not on the curve.
    assert!(KeySet::parse(set_of(&[with(&good, "x", "AQ")]).as_bytes()).is_err());
    for (set, reason) in [
        ("[]", "is no JSON object"),
        ("{}", "has no [keys]"),
        (r#"{"keys": {}}"#, "[keys] is no array"),
        (r#"{"keys": []}"#, "has no keys"),
        (r#"{"a": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}"#, "key 0"),
    ] {
        let error = KeySet::parse(set.as_bytes()).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn the_form_of_a_token_is_judged_as_by_envoy() {
    let signer = Signer::new("HS256");
    let header = r#"{"alg":"HS256"}"#;
    let of = |header: &str, payload: &str| Token::parse(signer.of_text(header, payload).as_bytes());
    assert!(of(header, "{}").is_ok());
    for (header, fault) in [
        ("{", Fault::HeaderJson),
        ("[]", Fault::HeaderJson),
        (r#"{"alg":"HS256","alg":"RS256"}"#, Fault::HeaderJson),
        ("{}", Fault::HeaderAlg),
        (r#"{"alg":1}"#, Fault::HeaderAlg),
        (r#"{"alg":"none"}"#, Fault::UnknownAlg),
        (r#"{"alg":"HS256","kid":1}"#, Fault::HeaderKid),
    ] {
        assert_eq!(of(header, "{}").unwrap_err(), fault, "{header}");
    }
    for (payload, fault) in [
        ("x", Fault::PayloadJson),
        ("null", Fault::PayloadJson),
        (r#"{"sub":"a","sub":"b"}"#, Fault::PayloadJson),
        (r#"{"iss":1}"#, Fault::IssuerType),
        (r#"{"sub":[]}"#, Fault::SubjectType),
        (r#"{"iat":"1"}"#, Fault::IssuedAtType),
        (r#"{"iat":-1}"#, Fault::IssuedAtRange),
        (r#"{"nbf":true}"#, Fault::NotBeforeType),
        (r#"{"nbf":1e30}"#, Fault::NotBeforeRange),
        (r#"{"exp":null}"#, Fault::ExpiresType),
        (r#"{"exp":-0.5}"#, Fault::ExpiresRange),
        (r#"{"jti":1}"#, Fault::IdType),
        (r#"{"aud":1}"#, Fault::AudienceType),
        (r#"{"aud":["a",1]}"#, Fault::AudienceType),
    ] {
        assert_eq!(of(header, payload).unwrap_err(), fault, "{payload}");
    }
    let good = signer.of_text(header, "{}");
    let (signed, _) = good.rsplit_once('.').unwrap();
    let long = format!("{signed}.{}", "A".repeat(token::MAX_BYTES));
    for (text, fault) in [
        ("", Fault::BadFormat),
        ("a.b", Fault::BadFormat),
        ("..", Fault::BadFormat),
        (&format!("{good}.x"), Fault::BadFormat),
        (&format!("{signed}.."), Fault::BadFormat),
        (&long, Fault::BadFormat),
        ("%.e30.AA", Fault::HeaderBase64),
        (&good.replacen('.', ".%", 1), Fault::PayloadBase64),
        (&format!("{signed}.%"), Fault::SignatureBase64),
        (&format!("{signed}.AA=A"), Fault::SignatureBase64),
        (&format!("{signed}.AA="), Fault::SignatureBase64),
    ] {
        assert_eq!(Token::parse(text.as_bytes()).unwrap_err(), fault, "{text}");
    }
    assert_eq!(Token::parse(b"\xff.e30.AA").unwrap_err(), Fault::HeaderBase64);
}

/// Users of Envoy have tokens that pass it: empty parts and spaces are passed over.
#[test]
fn a_token_is_taken_apart_as_by_envoy() {
    let signer = Signer::new("HS256");
    let set = KeySet::parse(set_of(&[signer.jwk()]).as_bytes()).unwrap();
    let good = signer.token(&json!({"sub": "jack"}));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    for text in [
        format!("{good}."),
        format!("..{good}"),
        good.replacen('.', "...", 1),
        format!("{signed}. {signature}\t"),
        format!("{signed}.{signature}="),
        format!("{signed}.{signature} = \x0b"),
    ] {
        let token = Token::parse(text.as_bytes()).unwrap();
        assert_eq!((token.signed(), set.verify(&token)), (signed.as_bytes(), Ok(())), "{text}");
    }
    // What was signed had no space.
    let spaced = Token::parse(good.replacen('.', " .", 1).as_bytes()).unwrap();
    assert_eq!(set.verify(&spaced), Err(Fault::NotVerified));
    // Of one reading alone is what others take apart.
    for text in [format!("{good}."), good.replacen('.', "..", 1), format!("{good}.x")] {
        assert!(Parts::of(text.as_bytes()).is_err(), "{text}");
    }
    assert_eq!(
        Parts::of(format!("{signed}. {signature}").as_bytes()).unwrap().signature(),
        Err(Fault::SignatureBase64)
    );
}

/// The halves of an ECDSA signature are its numbers, however long they are.
#[test]
fn numbers_of_a_signature_may_have_zeros_in_front() {
    for (alg, length) in [("ES256", 32), ("ES384", 48), ("ES512", 66)] {
        let signer = Signer::new(alg);
        let set = KeySet::parse(set_of(&[signer.jwk()]).as_bytes()).unwrap();
        let good = signer.token(&json!({}));
        let (signed, signature) = good.rsplit_once('.').unwrap();
        let signature = from_base64url(signature).unwrap();
        let (r, s) = signature.split_at(length);
        let judge = |signature: &[u8]| {
            let text = format!("{signed}.{}", to_base64url(signature));
            set.verify(&Token::parse(text.as_bytes()).unwrap())
        };
        for fits in [
            [r, s].concat(),
            [r, s, b"x"].concat(),
            [b"\0", r, b"\0", s].concat(),
            [&[0; 300], r, &[0; 300], s, b"x"].concat(),
        ] {
            assert_eq!(judge(&fits), Ok(()), "{alg}");
        }
        for wrong in [
            [s, r].concat(),
            [r, s, b"xy"].concat(),
            [b"x", r, s].concat(),
            [b"\x01", r, b"\0", s].concat(),
            vec![0; 2 * length],
            b"x".to_vec(),
        ] {
            assert_eq!(judge(&wrong), Err(Fault::NotVerified), "{alg}");
        }
    }
}

#[test]
fn claims_are_read_once() {
    let signer = Signer::new("HS256");
    let payload = json!({
        "iss": "i", "sub": "s", "aud": ["a", "b"], "nbf": 100, "exp": 200.9, "a.b": 1, "a": {"b": 2, "c": 3},
    });
    let text = signer.token(&payload);
    let token = Token::parse(text.as_bytes()).unwrap();
    assert_eq!((&*token.issuer, &*token.subject, token.audiences.len()), ("i", "s", 2));
    assert_eq!(text.split('.').nth(1), Some(token.encoded_payload()));
    for (now, skew, expected) in [
        (89, 10, Err(Fault::NotYetValid)),
        (90, 10, Ok(())),
        (210, 10, Ok(())),
        (211, 10, Err(Fault::Expired)),
        (u64::MAX, u64::MAX, Ok(())),
    ] {
        assert_eq!(token.check_time(now, skew), expected, "{now}");
    }
    let claim = |path: &[&str]| {
        let path: Vec<Box<str>> = path.iter().map(|key| (*key).into()).collect();
        token.claim(&path).and_then(Value::as_u64)
    };
    assert_eq!((claim(&["a.b"]), claim(&["a", "b"]), claim(&["a", "c"])), (Some(1), Some(2), Some(3)));
    assert_eq!((claim(&["a.c"]), claim(&["a"]), claim(&["a.b", "c"]), claim(&[])), (None, None, None, None));
}

/// A parser of what anybody sends: whatever is done to a token, it is refused in words or it is the one that was signed.
#[test]
fn a_token_that_was_changed_is_not_good() {
    let mut random = fastrand::Rng::with_seed(7);
    for alg in ["RS256", "ES256", "EdDSA", "HS256"] {
        let signer = Signer::new(alg);
        let set = KeySet::parse(set_of(&[signer.jwk()]).as_bytes()).unwrap();
        let text =
            signer.token(&json!({"sub": "jack", "exp": 4_102_444_800_u64, "roles": ["a", {"b": null}]}));
        let original = Token::parse(text.as_bytes()).unwrap();
        for _ in 0..3000 {
            let mut bytes = text.clone().into_bytes();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                match random.u8(..4) {
                    0 => bytes[at] = random.u8(..),
                    1 => bytes[at] = b"ABab01-_.="[random.usize(..10)],
                    2 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, b".A=_"[random.usize(..4)]),
                }
            }
            let Ok(token) = Token::parse(&bytes) else { continue };
            // An odd byte behind the numbers of a signature is of neither.
            let length = if alg == "ES256" { 64 } else { usize::MAX };
            let signature = &token.signature()[..token.signature().len().min(length)];
            let same = (token.signed(), signature) == (original.signed(), original.signature())
                && token.signature().len() <= original.signature().len() + 1;
            assert_eq!(set.verify(&token).is_ok(), same, "{}", String::from_utf8_lossy(&bytes));
        }
    }
}

/// `cargo test --profile ci -p sixfold-plugins how_long -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
fn how_long_a_token_takes() {
    for alg in ["RS256", "ES256", "EdDSA", "HS256"] {
        let signer = Signer::new(alg);
        let keys = KeySet::parse(set_of(&[signer.jwk()]).as_bytes()).unwrap();
        let text = signer.token(&json!({
            "iss": "https://issuer.test", "sub": "jack", "aud": ["app"], "exp": 4_102_444_800_u64, "groups": ["a", "b"],
        }));
        let mut best = [f64::MAX; 2];
        for _ in 0..5 {
            let begin = std::time::Instant::now();
            let tokens: Vec<Token> = (0..2000).map(|_| Token::parse(text.as_bytes()).unwrap()).collect();
            let parsed = begin.elapsed();
            assert!(tokens.iter().all(|token| keys.verify(token).is_ok()));
            let micros = |time: std::time::Duration| time.as_secs_f64() * 1e6 / 2000.0;
            best = [best[0].min(micros(parsed)), best[1].min(micros(begin.elapsed() - parsed))];
        }
        println!("{alg}: {:.2} us to parse, {:.2} us to verify", best[0], best[1]);
    }
}
