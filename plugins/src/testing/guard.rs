//! What whoever guards paths must withstand: a path that is one to him and another to the upstream. A new one enters by a line in
//! [`GUARDS`].

use super::authenticator::{filter, filter_in};
use super::grpc::{GrpcService, Reply};
use super::{Answering, pass_waiting, routed, with_secrets};
use prost::Message;
use serde_json::json;
use sixfold_core::hcm::{EscapedSlashes, PathOptions};
use sixfold_core::headers::Headers;
use sixfold_core::path::{Prepared, prepare};
use sixfold_core::plugin::{BuildContext, CalloutRequest, CalloutResponse, Chain};
use sixfold_xds_api::pb::envoy::extensions::filters::http::{
    ext_authz::v3::ExtAuthz, jwt_authn::v3::JwtAuthentication, oauth2::v3::OAuth2, rbac::v3::Rbac,
};
use sixfold_xds_api::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use sixfold_xds_api::pb::google::rpc::Status;
use std::sync::Arc;

type Make = fn() -> Arc<Chain>;

/// Each lets requests pass for whatever is not below `/admin`, and those for `/public`.
const GUARDS: [(&str, Make); 7] = [
    ("rbac that denies", rbac_that_denies),
    ("rbac that allows", rbac_that_allows),
    ("rbac that allows what is not", rbac_that_allows_others),
    ("jwt_authn", jwt_authn),
    ("oauth2", oauth2),
    ("ext_authz", ext_authz),
    ("ext_authz by HTTP", ext_authz_by_http),
];

/// The only policy is about these permissions.
fn rbac(action: &str, permission: serde_json::Value) -> Arc<Chain> {
    filter::<Rbac>(json!({"rules": {"action": action, "policies": {"p": {
        "permissions": [permission], "principals": [{"any": true}]}}}}))
}

fn below(path: &str) -> serde_json::Value {
    let is = |path: serde_json::Value| json!({"url_path": {"path": path}});
    json!({"or_rules": {"rules": [is(json!({"exact": path})), is(json!({"prefix": format!("{path}/")})), is(json!({"prefix": format!("{path};")}))]}})
}

fn rbac_that_denies() -> Arc<Chain> {
    rbac("DENY", below("/admin"))
}

fn rbac_that_allows() -> Arc<Chain> {
    rbac("ALLOW", below("/public"))
}

fn rbac_that_allows_others() -> Arc<Chain> {
    rbac("ALLOW", json!({"not_rule": below("/admin")}))
}

/// Below `/admin` a token is wanted, and none is there.
fn jwt_authn() -> Arc<Chain> {
    filter::<JwtAuthentication>(json!({
        "providers": {"p": {"issuer": "i", "local_jwks": {"inline_string": r#"{"keys": [{"kty": "oct", "k": "AAAA"}]}"#}}},
        "rules": [{"match": {"path": "/admin"}, "requires": {"provider_name": "p"}},
            {"match": {"prefix": "/admin/"}, "requires": {"provider_name": "p"}},
            {"match": {"prefix": "/admin;"}, "requires": {"provider_name": "p"}}],
    }))
}

/// Whoever is not below `/admin` need not sign in, and nobody is sent away for that.
fn oauth2() -> Arc<Chain> {
    let (context, _) = with_secrets(super::context(), &[("client", "shh"), ("hmac", "key")]);
    let below = |path: &str| {
        let regex = format!("{path}([/;?].*)?");
        json!({"name": ":path", "string_match": {"safe_regex": {"regex": regex}}, "invert_match": true})
    };
    filter_in::<OAuth2>(
        json!({"config": {
            "token_endpoint": {"uri": "https://as.test/token", "cluster": "as", "timeout": "1s"},
            "authorization_endpoint": "https://as.test/authorize",
            "redirect_uri": "https://example.com/callback",
            "redirect_path_matcher": {"path": {"exact": "/callback"}},
            "signout_path": {"path": {"exact": "/signout"}},
            "credentials":
                {"client_id": "me", "token_secret": {"name": "client"}, "hmac_secret": {"name": "hmac"}},
            "pass_through_matcher": [below("/admin")],
            "deny_redirect_matcher": [{"name": "x-none", "present_match": true, "invert_match": true}],
        }}),
        &context,
    )
}

/// What a service takes a path for that looks at the bytes it is told.
fn is_admin(path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    path == "/admin" || path.starts_with("/admin/") || path.starts_with("/admin;")
}

fn ext_authz() -> Arc<Chain> {
    let service = GrpcService::new(|message| {
        let told = CheckRequest::decode(message).unwrap().attributes.unwrap().request.unwrap().http.unwrap();
        assert_eq!(told.headers[":path"], told.path);
        let status = Status { code: if is_admin(&told.path) { 7 } else { 0 }, ..Status::default() };
        Reply::Message(CheckResponse { status: Some(status), ..CheckResponse::default() }.encode_to_vec())
    });
    let config =
        json!({"grpc_service": {"envoy_grpc": {"cluster_name": "authz"}}, "transport_api_version": "V3"});
    filter_in::<ExtAuthz>(config, &service.context())
}

fn ext_authz_by_http() -> Arc<Chain> {
    let answer = |request: &CalloutRequest| {
        let path = request.target.as_deref().unwrap().strip_prefix(b"/check").unwrap();
        let status = if is_admin(std::str::from_utf8(path).unwrap()) { 403 } else { 200 };
        CalloutResponse { status, headers: Headers::new(), body: bytes::Bytes::new() }
    };
    let context = BuildContext { callout: Arc::new(Answering(answer)), ..super::context() };
    let config = json!({
        "http_service": {"path_prefix": "/check",
            "server_uri": {"uri": "http://authz.test", "cluster": "authz", "timeout": "1s"}},
        "transport_api_version": "V3",
    });
    filter_in::<ExtAuthz>(config, &context)
}

/// All that is done to paths that can be: what a mesh has with `pathNormalization: DECODE_AND_MERGE_SLASHES`.
fn strictest() -> PathOptions {
    PathOptions {
        normalize: true,
        merge_slashes: true,
        escaped_slashes: EscapedSlashes::UnescapeAndForward,
        ..PathOptions::default()
    }
}

/// What a server takes a path for that decodes it, joins slashes, and resolves dots, whatever parameters they have.
fn taken_for(path: &[u8]) -> Vec<String> {
    let mut decoded = Vec::new();
    let mut at = 0;
    while let Some(byte) = path.get(at) {
        let digits = path.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *byte == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    let mut segments = Vec::new();
    for segment in String::from_utf8_lossy(&decoded).split(['/', '\\']) {
        match segment.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment.to_owned()),
        }
    }
    segments
}

/// Ways to write a path whose segments are these.
fn spellings(segments: [&str; 2]) -> Vec<String> {
    let [first, last] = segments;
    let mut spelled = Vec::new();
    let slashes = [
        "/",
        "//",
        "///",
        "/./",
        "/%2e/",
        "%2F",
        "%2f",
        "/%2F",
        "%5C",
        "\\",
        "%5c/",
        "/.;a=b/",
        "/x/../",
        "/x/%2e%2E/",
        "/x/.%2e/",
        "/x/..;/",
        "/x%2f..%2F",
        "/x/..%5c",
    ];
    let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    for name in [
        first.to_owned(),
        encoded(first),
        format!("{first};a=b"),
        format!("{first};"),
        format!("%61{}", &first[1..]),
    ] {
        for before in slashes {
            for between in slashes.iter().step_by(3) {
                for lead in ["", "/", "/public", "/public/..", "/..", "/%2e%2e", "/public/%2e.;x"] {
                    let end = ["", "?q=/public"];
                    spelled.extend(end.map(|end| format!("{lead}{before}{name}{between}{last}{end}")));
                }
            }
        }
    }
    spelled
}

#[tokio::test]
async fn every_guard_sees_the_path_that_the_upstream_sees() {
    for (name, make) in GUARDS {
        let guard = make();
        let (mut passed, mut refused) = (0, 0);
        for path in spellings(["admin", "x"]).into_iter().chain(spellings(["bdmin", "x"])) {
            let mut s = routed(&path, &[]);
            if prepare(&strictest(), &mut s) != Prepared::Ready {
                refused += 1;
                continue;
            }
            let seen = s.request.target.full().to_vec();
            let passes = pass_waiting(&guard, &mut s).await.is_none();
            let forwarded = taken_for(s.request.target.path());
            assert_eq!(s.request.target.full(), seen, "{name}: {path} is sent on as it was judged");
            if passes {
                let is_admin = forwarded.first().is_some_and(|first| first == "admin");
                assert!(!is_admin, "{name}: {path} goes on as {}", String::from_utf8_lossy(&seen));
                passed += 1;
            } else {
                refused += 1;
            }
        }
        assert!(passed > 100 && refused > 100, "{name}: {passed} passed, {refused} were refused");
        for open in ["/public", "/public/a%20b?x=/admin", "/public;a=b"] {
            assert!(pass_waiting(&guard, &mut routed(open, &[])).await.is_none(), "{name}: {open}");
        }
    }
}

/// What is not normalised is judged byte by byte, and sent on so.
#[tokio::test]
async fn every_guard_leaves_paths_as_they_are() {
    for (name, make) in GUARDS {
        let guard = make();
        for path in
            ["/admin", "/admin/", "/admin/../admin/x", "/admin//x", "/admin/%2e%2e/public", "/admin?public"]
        {
            let mut s = routed(path, &[]);
            assert!(pass_waiting(&guard, &mut s).await.is_some(), "{name}: {path}");
            assert_eq!(s.request.target.full(), path.as_bytes(), "{name}");
        }
    }
}
