//! What whoever asks a service must withstand: one that is slow, down, or answers without end. A new one enters by a line in
//! [`ASKERS`].

use super::authenticator::filter_in;
use super::{pass_waiting, routed, with_secrets};
use crate::shared::jwt::tests::{Signer, set_of};
use bytes::Bytes;
use serde_json::{Value, json};
use sixfold_core::headers::Headers;
use sixfold_core::plugin::{
    BuildContext, Callout, CalloutError, CalloutFuture, CalloutRequest, CalloutResponse, CalloutStreamFuture,
    Chain,
};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::filters::http::{
    ext_authz::v3::ExtAuthz, jwt_authn::v3::JwtAuthentication, oauth2::v3::OAuth2,
};
use std::sync::Arc;
use std::time::Duration;

/// What a service does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Answers,
    /// Nothing, for longer than anybody waits.
    Sleeps,
    IsDown,
    /// What lets a request pass, and 10 MB more.
    AnswersAtLength,
    /// So with a status that says it can't.
    Fails,
}

/// A service that is asked within the bounds of its callers, as those of the proxy are.
struct Bounded {
    does: Does,
    answer: String,
}

impl Callout for Bounded {
    fn send(&self, request: CalloutRequest) -> CalloutFuture {
        let (does, mut body) = (self.does, self.answer.clone());
        Box::pin(async move {
            match does {
                Does::Answers | Does::Fails => {}
                Does::Sleeps => {
                    tokio::time::sleep(request.timeout.min(Duration::from_secs(86_400))).await;
                    return Err(CalloutError::Timeout);
                }
                Does::IsDown => return Err(CalloutError::Failed("connection refused".to_owned())),
                Does::AnswersAtLength => body.push_str(&" ".repeat(10 << 20)),
            }
            if body.len() > request.max_body {
                return Err(CalloutError::Failed("the answer is too long".to_owned()));
            }
            let status = if does == Does::Fails { 503 } else { 200 };
            Ok(CalloutResponse { status, headers: Headers::new(), body: Bytes::from(body) })
        })
    }

    fn open(&self, _: CalloutRequest) -> CalloutStreamFuture {
        Box::pin(async { Err(CalloutError::Timeout) })
    }
}

/// A filter with a service, and a request that passes where that answers.
type Make = fn(Does) -> (Arc<Chain>, Stream);

const ASKERS: [(&str, Make); 3] =
    [("jwt_authn", jwt_authn), ("oauth2", oauth2), ("ext_authz by HTTP", ext_authz_by_http)];

fn context(does: Does, answer: String) -> BuildContext {
    BuildContext { callout: Arc::new(Bounded { does, answer }), ..super::context() }
}

fn jwt_authn(does: Does) -> (Arc<Chain>, Stream) {
    let signer = Signer::new("ES256");
    let token = format!("Bearer {}", signer.token(&json!({"iss": "i", "exp": 4_102_444_800_u64})));
    let uri = json!({"uri": "https://keys.test/jwks", "cluster": "keys", "timeout": "2s"});
    let config = json!({
        "providers": {"p": {"issuer": "i", "remote_jwks": {"http_uri": uri}}},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "p"}}],
    });
    let chain = filter_in::<JwtAuthentication>(config, &context(does, set_of(&[signer.jwk()])));
    (chain, routed("/", &[("authorization", &token)]))
}

/// A session that has ended, and is to go on.
fn oauth2(does: Does) -> (Arc<Chain>, Stream) {
    let config = json!({"config": {
        "token_endpoint": {"uri": "https://as.test/token", "cluster": "as", "timeout": "2s"},
        "authorization_endpoint": "https://as.test/authorize",
        "redirect_uri": "https://example.com/callback",
        "redirect_path_matcher": {"path": {"exact": "/callback"}},
        "signout_path": {"path": {"exact": "/signout"}},
        "credentials": {"client_id": "me", "token_secret": {"name": "client"}, "hmac_secret": {"name": "hmac"}},
        "disable_token_encryption": true, "use_refresh_token": true,
        "deny_redirect_matcher": [{"name": "x-none", "present_match": true, "invert_match": true}],
    }});
    let tokens: Value = json!({"access_token": "a", "expires_in": 600});
    let (context, _) = with_secrets(context(does, tokens.to_string()), &[("client", "shh"), ("hmac", "key")]);
    (filter_in::<OAuth2>(config, &context), routed("/", &[("cookie", "RefreshToken=r")]))
}

fn ext_authz_by_http(does: Does) -> (Arc<Chain>, Stream) {
    let uri = json!({"uri": "http://authz.test", "cluster": "authz", "timeout": "2s"});
    let config = json!({"http_service": {"server_uri": uri}, "transport_api_version": "V3"});
    (filter_in::<ExtAuthz>(config, &context(does, String::new())), routed("/", &[]))
}

#[tokio::test(start_paused = true)]
async fn every_asker_refuses_without_an_answer() {
    for (name, make) in ASKERS {
        for does in [Does::Answers, Does::Sleeps, Does::IsDown, Does::AnswersAtLength, Does::Fails] {
            let (chain, mut stream) = make(does);
            let began = tokio::time::Instant::now();
            let refused = pass_waiting(&chain, &mut stream).await;
            assert_eq!(refused.is_none(), does == Does::Answers, "{name}: a service that {does:?}");
            // Its own time, and once more where it is asked again.
            assert!(began.elapsed() < Duration::from_secs(10), "{name}: {does:?} took {:?}", began.elapsed());
        }
    }
}
