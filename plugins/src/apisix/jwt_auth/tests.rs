#![allow(clippy::unwrap_used)]
use crate::shared::jwt::tests::{ALGORITHMS, Signer};
use crate::testing::{chain_of, context, known, message_of, pass, request_header, stream};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sixfold_core::plugin::BuildContext;
use sixfold_core::stream::Stream;

const SECRET: &str = "my-secret-key";

fn consumers(said: Value) -> BuildContext {
    known(context(), "jwt-auth", &[("jack", said, None), ("nobody", json!(null), None)])
}

fn jack() -> Value {
    json!({"key": "user-key", "secret": SECRET})
}

fn token(claims: &Value) -> String {
    Signer::of_secret(SECRET.as_bytes()).token(claims)
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// What a client is refused with, or whom it is taken for.
fn answer_of(config: &Value, context: &BuildContext, s: &mut Stream) -> Result<String, String> {
    match pass(&chain_of(&[("jwt-auth", config)], context), s) {
        Some(reply) => {
            assert_eq!(reply.headers.get_str("www-authenticate"), Some("Bearer realm=\"jwt\""));
            Err(message_of(&reply))
        }
        None => Ok(request_header(s, "x-consumer-username").unwrap().to_owned()),
    }
}

fn answer(config: &Value, said: Value, token: &str) -> Result<String, String> {
    answer_of(config, &consumers(said), &mut stream("/", &[("authorization", token)]))
}

/// RSA keys of 1,024 bits are in use, though RFC 7518 forbids them.
#[test]
fn short_keys_verify_what_they_have_signed() {
    let pem = "-----BEGIN PUBLIC KEY-----\n\
             MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQC6gLihcCynah5MQkQ6yYcRd7G0\n\
             SGQCALkmetqyn+A8Aa8VIMOYtoR047OXVxUNoWFdNBkmnT9uK6CNMfiyG0L26Hdi\n\
             jFry8ind/txWAqsK6cd4jojFbew+z09OyXE0bHMQQrZMxFKmeFAGYQzGpDo7vfqQ\n\
             oKpCnDSsUL1HtF5goQIDAQAB\n\
             -----END PUBLIC KEY-----";
    let token = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJrZXkiOiJrIn0.\
                 jQ02izeObdwujIzHzh_3dwOThACIgkIaI8XXVuM_sBXtOiQ-vldob8SYbGq4zbagRFVtWKRUn2OdbIgzf_XkapUc69Dxd3ZhVGp-Pw89Uhc7-Ubto8e2vAit8wkDo7YWu8guCzUeQjxzNi71BqBWGe3--kdK-fJjnvR6b8Clgck";
    let said = |alg: &str| json!({"key": "k", "algorithm": alg, "public_key": pem});
    assert_eq!(answer(&json!({}), said("RS256"), token), Ok("jack".to_owned()));
    let forged = token.replace(".jQ0", ".jQ1");
    assert_eq!(answer(&json!({}), said("RS256"), &forged), Err("failed to verify jwt".to_owned()));
    let none = json!({"key": "k", "algorithm": "RS256", "public_key": "none"});
    assert_eq!(answer(&json!({}), none, token), Err("failed to verify jwt".to_owned()));
    assert_eq!(answer(&json!({}), said("RS512"), token), Err("failed to verify jwt".to_owned()));
    let (_, factory) = crate::registry().apisix("jwt-auth").map(|(n, f)| (n, f.clone())).unwrap();
    let mut refused = said("PS256");
    refused["base64_secret"] = false.into();
    refused["lifetime_grace_period"] = 0.into();
    let error = factory.credential(&refused).unwrap().unusable.unwrap().to_string();
    assert!(error.contains("an RSA key of 1024 bits, and not of 2048"), "{error}");
}

#[test]
fn every_algorithm_is_verified_and_no_other_than_the_consumers() {
    for alg in ALGORITHMS {
        let signer = Signer::new(alg);
        let mut said = json!({"key": "user-key", "algorithm": alg});
        match alg.starts_with("HS") {
            true => {
                let secret = signer.secret().unwrap();
                said["secret"] = STANDARD.encode(secret).into();
                said["base64_secret"] = true.into();
            }
            false => said["public_key"] = signer.pem().into(),
        }
        let claims = json!({"key": "user-key", "exp": now() + 60});
        let good = signer.token(&claims);
        assert_eq!(answer(&json!({}), said.clone(), &good), Ok("jack".to_owned()), "{alg}");
        for other in ALGORITHMS.into_iter().filter(|other| *other != alg) {
            for forged in
                [Signer::new(other).token(&claims), signer.with_header(&json!({"alg": other}), &claims)]
            {
                let refused = Err("failed to verify jwt".to_owned());
                assert_eq!(answer(&json!({}), said.clone(), &forged), refused, "{other} for {alg}");
            }
        }
    }
}

#[test]
fn tokens_are_in_header_query_or_cookie() {
    let good = token(&json!({"key": "user-key"}));
    let (query, cookie) = (format!("/p?a=1&jwt={good}"), format!("a=b; jwt={good}; c=d"));
    let bearer = format!("Bearer {good}");
    let hidden = json!({"hide_credentials": true});
    for (target, headers, left) in [
        ("/p", [("authorization", &*good)], ("/p", "")),
        ("/p", [("authorization", &*bearer)], ("/p", "")),
        (&*query, [("x", "y")], ("/p?a=1", "")),
        ("/p", [("cookie", &*cookie)], ("/p", "a=b; c=d")),
    ] {
        let mut s = stream(target, &headers);
        assert_eq!(
            answer_of(&hidden, &consumers(jack()), &mut s),
            Ok("jack".to_owned()),
            "{target} {headers:?}"
        );
        assert_eq!(s.request.target.full(), left.0.as_bytes());
        assert_eq!(request_header(&s, "cookie").unwrap_or_default(), left.1);
        assert_eq!(request_header(&s, "authorization"), None);
        let mut s = stream(target, &headers);
        assert_eq!(answer_of(&json!({}), &consumers(jack()), &mut s), Ok("jack".to_owned()));
        assert_eq!(s.request.target.full(), target.as_bytes(), "it stays");
    }
    // The one in the header is the one that counts.
    let mut s = stream(&query, &[("authorization", "x")]);
    assert_eq!(answer_of(&json!({}), &consumers(jack()), &mut s), Err("JWT token invalid".to_owned()));
    assert_eq!(
        answer(&json!({}), jack(), &bearer.replace("Bearer", "BEARER")),
        Err("JWT token invalid".to_owned())
    );
}

#[test]
fn refusals_say_what_is_missing() {
    let of = |target: &str| answer_of(&json!({}), &consumers(jack()), &mut stream(target, &[]));
    assert_eq!(of("/"), Err("Missing JWT token in request".to_owned()));
    assert_eq!(of("/?jwt=a.b"), Err("JWT token invalid".to_owned()));
    assert_eq!(of("/?jwt"), Err("JWT token invalid".to_owned()));
    let of = |claims: Value| answer(&json!({}), jack(), &token(&claims));
    assert_eq!(of(json!({"sub": "jack"})), Err("missing user key in JWT token".to_owned()));
    for key in [json!("other"), json!(1), json!(["user-key"]), json!({"user-key": 1})] {
        assert_eq!(of(json!({"key": key})), Err("Invalid user key in JWT token".to_owned()), "{key}");
    }
    let named = json!({"key_claim_name": "iss"});
    assert_eq!(answer(&named, jack(), &token(&json!({"iss": "user-key"}))), Ok("jack".to_owned()));
    let anonymous = json!({"anonymous_consumer": "nobody"});
    assert_eq!(answer(&anonymous, jack(), "x"), Ok("nobody".to_owned()));
}

#[test]
fn time_is_looked_at_where_it_is_said_and_must_be_where_that_is_configured() {
    let of = |config: &Value, claims: Value, grace: u32| {
        let mut said = jack();
        said["lifetime_grace_period"] = grace.into();
        let mut claims = claims;
        claims["key"] = "user-key".into();
        answer(config, said, &token(&claims)).is_ok()
    };
    let (past, later, any) = (now() - 30, now() + 30, json!({}));
    for (claims, holds) in [
        (json!({}), true),
        (json!({"exp": later, "nbf": past}), true),
        (json!({"exp": past}), false),
        (json!({"nbf": later}), false),
        (json!({"exp": later.to_string()}), false),
        (json!({"exp": null}), false),
        (json!({"nbf": [past]}), false),
    ] {
        assert_eq!(of(&any, claims.clone(), 0), holds, "{claims}");
        assert_eq!(of(&json!({"claims_to_verify": []}), claims.clone(), 0), holds, "{claims}");
    }
    assert!(of(&any, json!({"exp": past, "nbf": later}), 60));
    let only_nbf = json!({"claims_to_verify": ["nbf"]});
    assert!(of(&only_nbf, json!({"exp": past, "nbf": past}), 0) && !of(&only_nbf, json!({"exp": later}), 0));
}

#[test]
fn keys_that_verify_nothing_are_refused() {
    let factory = crate::registry().apisix("jwt-auth").unwrap().1.clone();
    let of = |said: Value| {
        let mut all =
            json!({"algorithm": "HS256", "base64_secret": false, "lifetime_grace_period": 0, "key": "k"});
        all.as_object_mut().unwrap().extend(said.as_object().unwrap().clone());
        // What verifies nothing is taken all the same, as in APISIX, and said.
        let read = factory.credential(&all);
        let fault = read.map_or_else(Some, |credential| credential.unusable.map(|reason| *reason));
        fault.map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(of(json!({})), "property \"secret\" is required when using HS based algorithms");
    assert!(
        of(json!({"secret": "?", "base64_secret": true})).ends_with("the secret is not in base64 format")
    );
    assert!(of(json!({"secret": "", "base64_secret": true})).contains("secret: is empty"));
    assert_eq!(of(json!({"algorithm": "RS256", "secret": "x"})), "missing valid public key");
    let (rsa, ec) = (Signer::new("RS256").pem(), Signer::new("ES256").pem());
    assert_eq!(of(json!({"algorithm": "RS256", "public_key": rsa})), "");
    for (alg, pem) in
        [("RS256", &ec), ("ES256", &rsa), ("ES384", &ec), ("EdDSA", &ec), ("PS256", &"x".to_owned())]
    {
        assert!(of(json!({"algorithm": alg, "public_key": pem})).starts_with("public_key: is no"), "{alg}");
    }
    let private = rsa.replace("PUBLIC", "PRIVATE");
    assert!(of(json!({"algorithm": "RS256", "public_key": private})).contains("is PEM of PRIVATE KEY"));
    let short = "-----BEGIN PUBLIC KEY-----\nMFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKebDxlvQMGyEesAL1r1nIJBkSdqu3Hr\n\
                 7noq/0ukiZqVQLSJPMOv0oxQSutvvK3hoibwGakDOza+xRITB7cs2cECAwEAAQ==\n-----END PUBLIC KEY-----";
    assert!(of(json!({"algorithm": "RS256", "public_key": short})).contains("an RSA key of 512 bits"));
}
