//! What every authenticator must withstand, whoever it is: a new one enters by a line in [`AUTHENTICATORS`].

use super::grpc::{GrpcService, Reply};
use super::{Answering, chain_of, known, pass_waiting, routed};
use crate::shared::jwt::tests::{ALGORITHMS, Signer, set_of};
use crate::shared::jwt::{from_base64url, to_base64url};
use aws_lc_rs::hmac;
use prost::Message;
use serde_json::{Value, json};
use sixfold_core::headers::Headers;
use sixfold_core::plugin::{BuildContext, CalloutRequest, CalloutResponse, Chain};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use sixfold_xds_api::pb::envoy::extensions::filters::http::{
    api_key_auth::v3::ApiKeyAuth, basic_auth::v3::BasicAuth, ext_authz::v3::ExtAuthz,
    jwt_authn::v3::JwtAuthentication, oauth2::v3::OAuth2,
};
use sixfold_xds_api::pb::envoy::service::auth::v3::check_response::HttpResponse;
use sixfold_xds_api::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse, OkHttpResponse};
use sixfold_xds_api::pb::google::rpc::Status;
use std::sync::Arc;

/// An authenticator that takes jack for who he is, and nobody else.
pub(crate) struct Authenticator {
    pub(crate) chain: Arc<Chain>,
    /// The header with the credential.
    pub(crate) header: &'static str,
    /// What stands before the credential, which is not part of it.
    pub(crate) prefix: &'static str,
    /// Jack's credential.
    pub(crate) credential: String,
    /// The header that tells the upstream who it is; there it says `jack`.
    pub(crate) identity: &'static str,
    /// Credentials of others that look right, each with what it is.
    pub(crate) forged: Vec<(String, String)>,
}

type Make = fn() -> Authenticator;

/// All of them.
const AUTHENTICATORS: [(&str, Make); 9] = [
    ("jwt_authn", jwt_authn),
    ("basic_auth", basic_auth),
    ("api_key_auth", api_key_auth),
    ("oauth2", oauth2),
    ("key-auth", key_auth),
    ("basic-auth", apisix_basic_auth),
    ("jwt-auth", apisix_jwt_auth),
    ("ext_authz", ext_authz),
    ("ext_authz by HTTP", ext_authz_by_http),
];

pub(super) fn filter<M: Message + Default + prost::Name>(config: Value) -> Arc<Chain> {
    filter_in::<M>(config, &super::context())
}

pub(super) fn filter_in<M: Message + Default + prost::Name>(
    config: Value,
    context: &BuildContext,
) -> Arc<Chain> {
    let registry = crate::registry();
    let factory = registry.filter(&M::full_name()).unwrap();
    let config = super::message::<M>(config).encode_to_vec();
    Arc::new(super::filter_in(factory, &config, &[], context).unwrap().chain)
}

fn jwt_authn() -> Authenticator {
    let (signer, claims) =
        (Signer::new("RS256"), json!({"iss": "i", "aud": "a", "sub": "jack", "exp": 4_102_444_800_u64}));
    let config = json!({
        "providers": {"p": {
            "issuer": "i", "audiences": ["a"], "require_expiration": true,
            "local_jwks": {"inline_string": set_of(&[signer.jwk()])},
            "claim_to_headers": [{"header_name": "x-user", "claim_name": "sub"}],
        }},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "p"}}],
    });
    Authenticator {
        chain: filter::<JwtAuthentication>(config),
        header: "authorization",
        prefix: "Bearer ",
        credential: signer.token(&claims),
        identity: "x-user",
        forged: forged_tokens(&signer, &claims),
    }
}

/// Tokens that jack's key has not signed so, and tokens that it should not have signed.
pub(crate) fn forged_tokens(signer: &Signer, claims: &Value) -> Vec<(String, String)> {
    let mut forged = Vec::new();
    let payload = to_base64url(claims.to_string());
    for alg in ["none", "None", "NONE", ""] {
        let header = json!({"alg": alg, "typ": "JWT"});
        let text = format!("{}.{payload}", to_base64url(header.to_string()));
        let signed = signer.with_header(&header, claims);
        forged.extend([format!("{text}."), text, signed].map(|token| (format!("alg {alg}"), token)));
    }
    for secret in signer.public_forms() {
        forged.push(("a public key as a secret".to_owned(), Signer::of_secret(&secret).token(claims)));
    }
    for alg in ALGORITHMS {
        if !alg.starts_with("RS") && !alg.starts_with("PS") {
            forged.push((format!("the key of another with {alg}"), Signer::new(alg).token(claims)));
        }
        if alg != "RS256" {
            let lied = signer.with_header(&json!({"alg": alg}), claims);
            forged.push((format!("RS256 that calls itself {alg}"), lied));
        }
    }
    let key = json!({"alg": "ES256", "jwk": Signer::new("ES256").jwk()});
    forged.push(("its own key in the header".to_owned(), Signer::new("ES256").with_header(&key, claims)));
    for (claim, value) in [
        ("iss", json!("other")),
        ("iss", json!(1)),
        ("iss", json!(["i"])),
        ("sub", json!({})),
        ("aud", json!("b")),
        ("aud", json!([1])),
        ("aud", json!({"a": 1})),
        ("exp", json!(1)),
        ("exp", json!("4102444800")),
        ("exp", json!(-1)),
        ("exp", json!(null)),
        ("exp", json!([])),
        ("nbf", json!(4_102_444_800_u64)),
        ("nbf", json!("0")),
        ("iat", json!("0")),
        ("jti", json!(1)),
    ] {
        let mut changed = claims.clone();
        changed[claim] = value;
        forged.push((format!("{claim} {}", changed[claim]), signer.token(&changed)));
    }
    let twice = claims.to_string().replacen('{', r#"{"sub":"eve","#, 1);
    forged.push(("a claim twice".to_owned(), signer.of_text(r#"{"alg":"RS256"}"#, &twice)));
    forged.push((
        "a header twice".to_owned(),
        signer.of_text(r#"{"alg":"none","alg":"RS256"}"#, &claims.to_string()),
    ));
    let mut bare = claims.clone();
    bare.as_object_mut().unwrap().remove("exp");
    forged.push(("no exp".to_owned(), signer.token(&bare)));
    forged
}

fn basic_auth() -> Authenticator {
    let config = json!({
        "users": {"inline_string": "jack:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=\nann:{SHA}nU4eI71bcnBGqeO0t9tXvY1u5oQ="},
        "forward_username_header": "x-user",
    });
    Authenticator {
        chain: filter::<BasicAuth>(config),
        header: "authorization",
        prefix: "Basic ",
        credential: basic("jack:test"),
        identity: "x-user",
        // APISIX leaves spaces out.
        forged: [forged_pairs(), vec![("jack:test ".to_owned(), basic("jack:test "))]].concat(),
    }
}

fn api_key_auth() -> Authenticator {
    let config = json!({
        "credentials": [{"key": "jack-s-key", "client": "jack"}, {"key": "ann-s-key", "client": "ann"}],
        "key_sources": [{"header": "x-key"}], "forwarding": {"header": "x-user"},
    });
    let of = |key: &str| (key.to_owned(), key.to_owned());
    Authenticator {
        chain: filter::<ApiKeyAuth>(config),
        header: "x-key",
        prefix: "",
        credential: "jack-s-key".to_owned(),
        identity: "x-user",
        forged: ["jack", "JACK-S-KEY", "jack-s-key ", "Basic jack-s-key", "jack-s-key,ann-s-key"]
            .map(of)
            .to_vec(),
    }
}

/// Cookies of a session: what is signed of them is the host, when they end, and the three tokens.
fn oauth2() -> Authenticator {
    let config = json!({"config": {
        "token_endpoint": {"uri": "https://as.test/token", "cluster": "as", "timeout": "1s"},
        "authorization_endpoint": "https://as.test/authorize",
        "redirect_uri": "https://example.com/callback",
        "redirect_path_matcher": {"path": {"exact": "/callback"}},
        "signout_path": {"path": {"exact": "/signout"}},
        "credentials": {"client_id": "me", "token_secret": {"name": "client"}, "hmac_secret": {"name": "hmac"}},
        "forward_id_token": {"header": "x-user"}, "disable_token_encryption": true, "use_refresh_token": false,
        // Nobody is sent away to sign in.
        "deny_redirect_matcher": [{"name": "x-none", "present_match": true, "invert_match": true}],
    }});
    let (context, _) = super::with_secrets(super::context(), &[("client", "shh"), ("hmac", "key")]);
    let session = |secret: &str, host: &str, ends: &str, id: &str| {
        let signed = [host, ends, "acc", id, ""].join("\n");
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let tag = base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD,
            hmac::sign(&key, signed.as_bytes()),
        );
        format!("BearerToken=acc;OauthExpires={ends};IdToken={id};OauthHMAC={tag}")
    };
    let (host, ends) = ("example.com", "4102444800");
    let credential = session("key", host, ends, "jack");
    let forged = [
        ("of another's secret", session("other", host, ends, "jack")),
        ("without a secret", session("", host, ends, "jack")),
        ("of another host", session("key", "evil.com", ends, "jack")),
        ("at its end", session("key", host, "1", "jack")),
        ("without an end", session("key", host, "", "jack")),
        ("with an end that is none", session("key", host, "never", "jack")),
        ("of eve", credential.replace("IdToken=jack", "IdToken=eve")),
        ("of eve before jack", format!("IdToken=eve;{credential}")),
        ("that lasts longer", credential.replace(ends, "4102444801")),
        ("with another token", credential.replace("BearerToken=acc", "BearerToken=eve")),
        ("with a refresh token", format!("RefreshToken=r;{credential}")),
    ];
    Authenticator {
        chain: filter_in::<OAuth2>(config, &context),
        header: "cookie",
        prefix: "",
        credential,
        identity: "x-user",
        forged: forged.map(|(what, cookies)| (what.to_owned(), cookies)).to_vec(),
    }
}

fn key_auth() -> Authenticator {
    let consumers =
        [("jack", json!({"key": "jack-s-key"}), None), ("ann", json!({"key": "ann-s-key"}), Some("one"))];
    let context = known(super::context(), "key-auth", &consumers);
    let of = |key: &str| (key.to_owned(), key.to_owned());
    Authenticator {
        chain: chain_of(&[("key-auth", &json!({"header": "x-key"}))], &context),
        header: "x-key",
        prefix: "",
        credential: "jack-s-key".to_owned(),
        identity: "x-consumer-username",
        forged: ["jack", "JACK-S-KEY", "jack-s-key ", "jack-s-key,ann-s-key", "$env://KEY"].map(of).to_vec(),
    }
}

fn apisix_basic_auth() -> Authenticator {
    let said = |user: &str, password: &str| json!({"username": user, "password": password});
    let consumers = [("jack", said("jack", "test"), None), ("ann", said("ann", "secret"), None)];
    let context = known(super::context(), "basic-auth", &consumers);
    Authenticator {
        chain: chain_of(&[("basic-auth", &json!({}))], &context),
        header: "authorization",
        prefix: "Basic ",
        credential: basic("jack:test"),
        identity: "x-consumer-username",
        forged: forged_pairs(),
    }
}

/// A name and a password as `Basic` has them.
fn basic(pair: &str) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pair)
}

/// Pairs that are nearly those of jack or ann, or of nobody.
fn forged_pairs() -> Vec<(String, String)> {
    ["jack:", "jack", ":test", "jack:Test", "jack:test\0", "ann:test", "eve:test", "jack::test", "eve:"]
        .map(|pair| (pair.to_owned(), basic(pair)))
        .to_vec()
}

fn apisix_jwt_auth() -> Authenticator {
    // All signers with RS256 have one key.
    let (signer, ann) = (Signer::new("RS256"), Signer::new("ES256"));
    let claims = json!({"key": "jack", "sub": "jack", "exp": 4_102_444_800_u64, "nbf": 1});
    let said =
        |key: &str, alg: &str, of: &Signer| json!({"key": key, "algorithm": alg, "public_key": of.pem()});
    let consumers =
        [("jack", said("jack", "RS256", &signer), None), ("ann", said("ann", "ES256", &ann), None)];
    let context = known(super::context(), "jwt-auth", &consumers);
    let mut forged = forged_tokens(&signer, &claims);
    // What APISIX does not look at.
    forged
        .retain(|(what, _)| !["iss ", "sub ", "aud ", "iat ", "jti "].iter().any(|of| what.starts_with(of)));
    forged.push(("by ann".to_owned(), ann.token(&claims)));
    forged.push(("by ann as jack's".to_owned(), ann.with_header(&json!({"alg": "RS256"}), &claims)));
    for key in [json!(1), json!(null), json!(["jack"]), json!("Jack"), json!("")] {
        let mut changed = claims.clone();
        changed["key"] = key;
        forged.push((format!("key {}", changed["key"]), signer.token(&changed)));
    }
    Authenticator {
        chain: chain_of(&[("jwt-auth", &json!({"claims_to_verify": ["exp", "nbf"]}))], &context),
        header: "authorization",
        prefix: "Bearer ",
        credential: signer.token(&claims),
        identity: "x-consumer-username",
        forged,
    }
}

/// What a credential of a header alone is not.
fn forged_texts() -> Vec<(String, String)> {
    [
        "jack",
        "JACK-S-KEY",
        "jack-s-key ",
        " jack-s-key",
        "jack-s-key,jack-s-key",
        "jack-s-key;",
        "jack-s-key\t",
    ]
    .map(|text| (text.to_owned(), text.to_owned()))
    .to_vec()
}

/// A service that is told of the request and knows jack's key.
fn ext_authz() -> Authenticator {
    let service = GrpcService::new(|message| {
        let told = CheckRequest::decode(message).unwrap().attributes.unwrap().request.unwrap().http.unwrap();
        let is_jack = told.headers.get("x-key").is_some_and(|key| key == "jack-s-key");
        let status = Status { code: if is_jack { 0 } else { 7 }, ..Status::default() };
        let header = HeaderValue { key: "X-User".into(), value: "jack".into(), ..HeaderValue::default() };
        let header = HeaderValueOption { header: Some(header), ..HeaderValueOption::default() };
        let ok = OkHttpResponse { headers: vec![header], ..OkHttpResponse::default() };
        let http_response = is_jack.then_some(HttpResponse::OkResponse(ok));
        let answer = CheckResponse { status: Some(status), http_response, ..CheckResponse::default() };
        Reply::Message(answer.encode_to_vec())
    });
    let config =
        json!({"grpc_service": {"envoy_grpc": {"cluster_name": "authz"}}, "transport_api_version": "V3"});
    by_service(filter_in::<ExtAuthz>(config, &service.context()))
}

/// The same by HTTP.
fn ext_authz_by_http() -> Authenticator {
    let answer = |request: &CalloutRequest| {
        let mut keys = request.headers.get_all("x-key");
        let is_jack = keys.next().is_some_and(|key| key == b"jack-s-key") && keys.next().is_none();
        let mut headers = Headers::new();
        if is_jack {
            headers.push(b"x-user", b"jack");
        }
        CalloutResponse { status: if is_jack { 200 } else { 401 }, headers, body: bytes::Bytes::new() }
    };
    let context = BuildContext { callout: Arc::new(Answering(answer)), ..super::context() };
    let config = json!({
        "http_service": {
            "server_uri": {"uri": "http://authz.test", "cluster": "authz", "timeout": "1s"},
            "authorization_response": {"allowed_upstream_headers": {"patterns": [{"exact": "x-user"}]}}},
        "allowed_headers": {"patterns": [{"exact": "x-key"}]}, "transport_api_version": "V3",
    });
    by_service(filter_in::<ExtAuthz>(config, &context))
}

fn by_service(chain: Arc<Chain>) -> Authenticator {
    Authenticator {
        chain,
        header: "x-key",
        prefix: "",
        credential: "jack-s-key".to_owned(),
        identity: "x-user",
        forged: forged_texts(),
    }
}

impl Authenticator {
    /// Whether a request with these values of the header passes, and whom the upstream takes it for.
    async fn tries(&self, values: &[&str], more: &[(&str, &str)]) -> (bool, Vec<String>) {
        let mut headers: Vec<(&str, &str)> = values.iter().map(|value| (self.header, *value)).collect();
        headers.extend(more);
        let mut s = routed("/", &headers);
        let refused = pass_waiting(&self.chain, &mut s).await;
        assert!(refused.as_ref().is_none_or(|reply| matches!(reply.status, 401 | 403)));
        (refused.is_none(), self.identities(&s))
    }

    /// Who the request says it is from, under the header's name and all that servers take for it.
    fn identities(&self, stream: &Stream) -> Vec<String> {
        let fold = |name: &[u8]| String::from_utf8_lossy(name).to_lowercase().replace(['_', '.'], "-");
        let all = stream.request.headers.iter().filter(|(name, _)| fold(name) == self.identity);
        all.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }

    fn line(&self, credential: &str) -> String {
        format!("{}{credential}", self.prefix)
    }
}

/// A token with its signature decoded; any other credential as it is.
fn meaning(credential: &str) -> (&str, Option<Vec<u8>>) {
    match credential.rsplit_once('.') {
        Some((signed, signature)) => (signed, from_base64url(signature)),
        None => (credential, None),
    }
}

#[tokio::test]
async fn every_authenticator_withstands() {
    for (name, make) in AUTHENTICATORS {
        let of = make();
        let good = of.line(&of.credential);
        let jack = (true, vec!["jack".to_owned()]);
        assert_eq!(of.tries(&[&good], &[]).await, jack, "{name}");

        // What a client says of itself is heard by nobody.
        let (upper, name_of) = (of.identity.to_uppercase(), of.identity);
        let aliases = [name_of.to_owned(), name_of.replace('-', "_"), name_of.replace('-', "."), upper];
        let said: Vec<(&str, &str)> = aliases.iter().map(|alias| (alias.as_str(), "eve")).collect();
        assert_eq!(of.tries(&[&good], &said).await, jack, "{name}");

        let none = (false, Vec::<String>::new());
        for bad in ["", " ", of.prefix, of.prefix.trim(), "Negotiate x", "Bearer", "Basic"] {
            assert!(!of.tries(&[bad], &[]).await.0, "{name}: {bad:?}");
        }
        assert_eq!(of.tries(&[], &[]).await, none, "{name}: no credential");

        for (what, forged) in &of.forged {
            assert!(!of.tries(&[&of.line(forged)], &[]).await.0, "{name}: {what}");
            // Nor does it pass in front of a good one.
            assert!(!of.tries(&[&of.line(forged), &good], &[]).await.0, "{name}: {what}, then a good one");
        }

        // Every credential that is nearly right.
        let bytes = of.credential.as_bytes();
        for at in 0..bytes.len() {
            let mut cut = bytes.to_vec();
            cut.remove(at);
            let mut other = bytes.to_vec();
            other[at] = if other[at] == b'Q' { b'g' } else { b'Q' };
            for near in [cut, other, bytes[..at].to_vec()] {
                let near = String::from_utf8(near).unwrap();
                // The last character of base64 has bits that stand for nothing.
                if near == of.credential || meaning(&near) == meaning(&of.credential) {
                    continue;
                }
                assert!(!of.tries(&[&of.line(&near)], &[]).await.0, "{name}: {near}");
            }
        }

        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..500 {
            let noise: String = (0..random.usize(..200)).map(|_| random.char('\u{1}'..'\u{ff}')).collect();
            assert!(!of.tries(&[&of.line(&noise)], &[]).await.0, "{name}: {noise:?}");
        }
    }
}
