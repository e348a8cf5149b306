#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, clippy::panic)]
use super::*;
use crate::testing::{self, Alone, Service, context_with, finish, message, now, request_header, stream};
use bytes::Bytes;
use prost::Message;
use sixfold_core::plugin::CalloutResponse;
use std::collections::BTreeMap;

fn config(members: Value) -> Value {
    let mut config = json!({
        "token_endpoint": {"uri": "https://as.test/token", "cluster": "as", "timeout": "1s"},
        "authorization_endpoint": "https://as.test/authorize?a=b",
        "redirect_uri": "https://%REQ(:authority)%/callback",
        "redirect_path_matcher": {"path": {"exact": "/callback"}},
        "signout_path": {"path": {"exact": "/signout"}},
        "credentials": {"client_id": "me", "token_secret": {"name": "client"}, "hmac_secret": {"name": "hmac"}},
        "forward_bearer_token": true,
    });
    config.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    json!({"config": config})
}

fn filter_with(members: Value, answer: Option<(u16, Value)>) -> (Alone, Arc<Service>, BuildContext) {
    let answer = answer.map(|(status, body)| CalloutResponse {
        status,
        headers: Headers::new(),
        body: Bytes::from(body.to_string()),
    });
    let (context, service) = context_with(answer);
    let (context, _) = testing::with_secrets(context, &[("client", "shh\n"), ("hmac", "key")]);
    let bytes = message::<Config>(config(members)).encode_to_vec();
    (testing::filter_in(&factory(), &bytes, &[], &context).unwrap(), service, context)
}

/// Cookies that an answer sets, by name, with what is set of each.
fn cookies(headers: &Headers) -> BTreeMap<String, String> {
    let line = |line: &[u8]| {
        let line = String::from_utf8(line.to_vec()).unwrap();
        let (pair, _) = line.split_once(';').unwrap();
        let (name, value) = pair.split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    };
    headers.get_all(Known::SET_COOKIE).map(line).filter(|(_, value)| value != "deleted").collect()
}

fn cookie_line(cookies: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("; ")
}

fn location(reply: &LocalReply) -> String {
    reply.headers.get_str("location").unwrap().to_owned()
}

fn parameter(url: &str, name: &str) -> String {
    let query = url.split_once('?').unwrap().1.as_bytes();
    String::from_utf8(query::parameter(Some(query), name.as_bytes()).unwrap().into_owned()).unwrap()
}

/// Sends a user to sign in and has them come back; the answer to that, and the session's cookies.
async fn sign_in(filter: &Alone) -> (LocalReply, BTreeMap<String, String>) {
    let sent = now(filter.access(&mut stream("/a?b=c", &[]))).unwrap();
    let state = parameter(&location(&sent), "state");
    let line = cookie_line(&cookies(&sent.headers));
    let mut s = stream(&format!("/callback?code=c%2f1&state={state}"), &[("cookie", &line)]);
    let back = finish(filter.access(&mut s)).await.unwrap();
    let session = cookies(&back.headers);
    (back, session)
}

fn tokens() -> (u16, Value) {
    (200, json!({"access_token": "acc", "id_token": "idt", "refresh_token": "ref", "expires_in": 3600}))
}

#[tokio::test]
async fn users_sign_in_and_are_known_afterwards() {
    let (filter, service, context) = filter_with(json!({}), Some(tokens()));
    let sent = now(filter.access(&mut stream("/a?b=c", &[("authorization", "Bearer own")]))).unwrap();
    assert_eq!((sent.status, &*sent.details), (302, "oauth.missing_credentials"));
    let to = location(&sent);
    assert!(to.starts_with("https://as.test/authorize?a=b&client_id=me&code_challenge="), "{to}");
    assert_eq!(parameter(&to, "redirect_uri"), "https://example.com/callback");
    assert_eq!(
        (parameter(&to, "scope"), parameter(&to, "code_challenge_method")),
        ("user".into(), "S256".into())
    );
    assert_eq!(cookies(&sent.headers).len(), 4);

    let (back, session) = sign_in(&filter).await;
    assert_eq!(
        (back.status, &*location(&back), &*back.details),
        (302, "http://example.com/a?b=c", "oauth.logged_in")
    );
    let asked = service.asked.lock().pop().unwrap();
    let form = String::from_utf8(asked.body.to_vec()).unwrap();
    let begins = "grant_type=authorization_code&code=c%2F1&client_id=me&client_secret=shh&redirect_uri=https%3A%2F%2Fexample.com%2Fcallback&code_verifier=";
    assert!(form.starts_with(begins), "{form}");
    assert_eq!(
        session.keys().collect::<Vec<_>>(),
        ["BearerToken", "IdToken", "OauthExpires", "OauthHMAC", "RefreshToken"]
    );
    assert!(!session["BearerToken"].contains("acc"), "tokens are encrypted");

    let line = format!("{}; other=1; OauthNonce.1=x", cookie_line(&session));
    let mut s = stream("/a", &[("cookie", &line)]);
    assert!(now(filter.access(&mut s)).is_none());
    assert_eq!(request_header(&s, "authorization"), Some("Bearer acc"));
    assert_eq!(request_header(&s, "cookie"), Some("BearerToken=acc; IdToken=idt; other=1"));
    let count = |name: &str| context.metrics.sum("", name);
    assert_eq!((count("oauth_success"), count("oauth_unauthorized_rq"), count("oauth_failure")), (2, 2, 0));
}

#[tokio::test]
async fn cookies_of_others_are_none() {
    let (filter, _, _) = filter_with(json!({"use_refresh_token": false}), Some(tokens()));
    let (_, session) = sign_in(&filter).await;
    let with = |name: &str, value: &str| {
        let mut changed = session.clone();
        changed.insert(name.to_owned(), value.to_owned());
        changed
    };
    let far = "9999999999";
    let mut without = session.clone();
    without.remove("OauthHMAC");
    let cases = [
        with("BearerToken", "eve"),
        with("OauthExpires", far),
        with("IdToken", ""),
        with("OauthHMAC", "AAAA"),
        without,
    ];
    for (index, changed) in cases.iter().enumerate() {
        let mut s = stream("/a", &[("cookie", &cookie_line(changed))]);
        assert_eq!(now(filter.access(&mut s)).unwrap().status, 302, "{index}");
    }
    // Signed for another host.
    let mut s = stream("/a", &[("cookie", &cookie_line(&session))]);
    s.request.authority = b"evil.com".to_vec();
    assert_eq!(now(filter.access(&mut s)).unwrap().status, 302);
    let mut s = stream("/a", &[("cookie", &cookie_line(&session))]);
    assert!(now(filter.access(&mut s)).is_none());
}

#[tokio::test]
async fn callbacks_must_belong_to_a_flow_of_the_browser() {
    let (filter, service, _) = filter_with(json!({}), Some(tokens()));
    let sent = now(filter.access(&mut stream("/a", &[]))).unwrap();
    let (to, own) = (location(&sent), cookies(&sent.headers));
    let state = parameter(&to, "state");
    let line = cookie_line(&own);
    let forged = |url: &str| {
        let text = json!({"url": url, "csrf_token": "1.2", "flow_id": "1"}).to_string();
        jwt::to_base64url(text)
    };
    for (target, cookies, details) in [
        ("/callback".to_owned(), &*line, "Code_or_state_query_param_does_not_exist"),
        ("/callback?error=denied".to_owned(), &line, "OAuth_server_returned_an_error"),
        ("/callback?code=1&state=%".to_owned(), &line, "State_query_param_is_not_a_valid_JSON"),
        (
            "/callback?code=1&state=e30".to_owned(),
            &line,
            "State_query_param_does_not_contain_url_or_CSRF_token",
        ),
        (format!("/callback?code=1&state={state}"), "", "CSRF_token_validation_failed"),
        (
            format!("/callback?code=1&state={}", forged("https://evil.com/")),
            "OauthNonce=1.2",
            "CSRF_token_validation_failed",
        ),
    ] {
        let mut s = stream(&target, &[("cookie", cookies)]);
        let reply = now(filter.access(&mut s)).unwrap();
        assert_eq!(
            (reply.status, &reply.body[..], &*reply.details),
            (401, FAILED.as_bytes(), details),
            "{target}"
        );
    }
    // What becomes a part of a response's cookies has no room for anything else.
    let text = json!({"url": "x", "csrf_token": own["OauthNonce"], "flow_id": "1\r\nx: y"}).to_string();
    let target = format!("/callback?code=1&state={}", jwt::to_base64url(text));
    let reply = now(filter.access(&mut stream(&target, &[("cookie", &line)]))).unwrap();
    assert_eq!(&*reply.details, "CSRF_token_validation_failed");
    assert!(reply.headers.get(Known::SET_COOKIE).is_none());
    let nonces: BTreeMap<String, String> = own
        .iter()
        .filter(|(name, _)| name.starts_with("OauthNonce"))
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect();
    for (extra, details) in [
        ("", "Code_verifier_cookie_is_missing_in_the_request"),
        ("; CodeVerifier=AAAA", "Failed_to_decrypt_code_verifier"),
    ] {
        let cookies = format!("{}{extra}", cookie_line(&nonces));
        let mut s = stream(&format!("/callback?code=1&state={state}"), &[("cookie", &cookies)]);
        let reply = now(filter.access(&mut s)).unwrap();
        assert_eq!(&*reply.details, details);
        assert_eq!(reply.headers.get_all(Known::SET_COOKIE).count(), 4, "the flow's cookies are forgotten");
    }
    assert!(service.asked.lock().is_empty());
}

#[tokio::test]
async fn servers_that_give_no_tokens_refuse() {
    for (answer, details) in [
        (None, "Failed_to_get_access_token_due_to_HTTP_request_failure"),
        (Some((500, json!({}))), "Failed_to_get_access_token"),
        (Some((200, json!([]))), "Failed_to_parse_oauth_response_body"),
        (
            Some((200, json!({"access_token": "a; b", "expires_in": 1}))),
            "Failed_to_parse_oauth_response_body",
        ),
        (Some((200, json!({"expires_in": 1}))), "No_access_token_found_in_the_token_exchange_response"),
        (
            Some((200, json!({"access_token": "a"}))),
            "No_default_or_explicit_access_token_expiration_found_in_the_token_exchange_response",
        ),
    ] {
        let (filter, _, _) = filter_with(json!({}), answer);
        let (reply, _) = sign_in(&filter).await;
        assert_eq!((reply.status, &*reply.details), (401, details));
    }
}

#[tokio::test]
async fn tokens_are_refreshed_on_the_way() {
    let (filter, service, _) = filter_with(
        json!({"credentials": {
        "client_id": "me", "token_secret": {"name": "client"}, "hmac_secret": {"name": "hmac"},
    }, "auth_type": "BASIC_AUTH"}),
        Some(tokens()),
    );
    let sealed = Secret(b"key").encrypt("old").unwrap();
    let mut s = stream("/a", &[("cookie", &format!("RefreshToken={sealed}; x=1"))]);
    assert!(finish(filter.access(&mut s)).await.is_none());
    let asked = service.asked.lock().pop().unwrap();
    assert_eq!(&asked.body[..], b"grant_type=refresh_token&refresh_token=old");
    assert_eq!(asked.headers.get_str("authorization"), Some("Basic bWU6c2ho"));
    assert_eq!(request_header(&s, "authorization"), Some("Bearer acc"));
    assert_eq!(request_header(&s, "cookie"), Some("x=1; BearerToken=acc; IdToken=idt"));
    assert!(now(filter.header_filter(&mut s)).is_none());
    let session = cookies(&s.response.headers);
    let mut again = stream("/a", &[("cookie", &cookie_line(&session))]);
    assert!(now(filter.access(&mut again)).is_none(), "the new cookies are good");
    // Without an answer the user signs in anew.
    let mut s = stream("/a", &[("cookie", "RefreshToken=old")]);
    assert_eq!(finish(filter.access(&mut s)).await.unwrap().status, 302);
}

/// A client kept an identity of its own choice when the server gave it no other one.
#[tokio::test]
async fn what_a_refresh_does_not_give_nobody_has() {
    let answer = (200, json!({"access_token": "acc", "refresh_token": "ref", "expires_in": 3600}));
    let (filter, _, _) = filter_with(json!({"forward_id_token": {"header": "x-id"}}), Some(answer));
    let sealed = Secret(b"key").encrypt("old").unwrap();
    let line = format!("IdToken=root; RefreshToken={sealed}; BearerToken=mine; y=2");
    let mut s = stream("/a", &[("cookie", &line), ("x-id", "root"), ("X_Id", "root")]);
    assert!(finish(filter.access(&mut s)).await.is_none());
    assert_eq!(request_header(&s, "cookie"), Some("y=2; BearerToken=acc"));
    assert_eq!((request_header(&s, "x-id"), request_header(&s, "x_id")), (None, None));
    // The browser is to forget it too, or its next request is none of the session.
    assert!(now(filter.header_filter(&mut s)).is_none());
    let forgets = |line: &[u8]| line.starts_with(b"IdToken=deleted;");
    assert_eq!(s.response.headers.get_all(Known::SET_COOKIE).filter(|line| forgets(line)).count(), 1);
}

#[tokio::test]
async fn id_tokens_go_on_in_the_header_that_is_named() {
    for (header, bearer, expected) in [
        ("x-id", true, "idt"),
        ("authorization", false, "Bearer idt"),
        ("Authorization", false, "Bearer idt"),
    ] {
        let members = json!({"forward_id_token": {"header": header}, "forward_bearer_token": bearer});
        let (filter, _, _) = filter_with(members, Some(tokens()));
        let (_, session) = sign_in(&filter).await;
        let mut s = stream("/a", &[("cookie", &cookie_line(&session)), ("authorization", "Bearer own")]);
        assert!(now(filter.access(&mut s)).is_none());
        assert_eq!(request_header(&s, header), Some(expected));
        assert_eq!(request_header(&s, "authorization") == Some("Bearer acc"), bearer);
    }
}

/// Every cookie was looked for among all before it.
#[test]
fn many_cookies_cost_as_much_each_as_few() {
    let headers = |count: usize| {
        let pairs: Vec<String> = (0..count).map(|n| format!("c{n}=")).collect();
        let mut headers = Headers::new();
        headers.push(b"cookie", pairs.join(";").as_bytes());
        (headers, count)
    };
    let time = |(headers, count): &(Headers, usize)| {
        let begin = std::time::Instant::now();
        assert_eq!(Jar::of(headers).names().count(), *count);
        begin.elapsed()
    };
    // The machine may be busy with other tests: the best of many turns counts.
    let (few, many) = (headers(2_000), headers(64_000));
    let best = |of: &(Headers, usize)| (0..12).map(|_| time(of)).min().unwrap();
    let (few, many) = (best(&few), best(&many));
    assert!(many < few * 256, "32 times as many, 1,024 times the pairs: {few:?}, {many:?}");
}

#[test]
fn requests_may_pass_be_refused_or_go_on_without_a_user() {
    let members = json!({
        "pass_through_matcher": [{"name": "x-pass"}], "deny_redirect_matcher": [{"name": "x-ajax"}],
        "allow_failed_matcher": [{"name": "x-any"}], "forward_id_token": {"header": "x-id"},
    });
    let (filter, _, _) = filter_with(members, None);
    let said = [
        ("x-pass", "1"),
        ("authorization", "Bearer own"),
        ("x-envoy-oauth-status", "ok"),
        ("X_Envoy_Oauth_Status", "ok"),
        ("x-id", "own"),
        ("X.ID", "own"),
    ];
    let mut s = stream("/a", &said);
    assert!(now(filter.access(&mut s)).is_none());
    assert_eq!(s.request.headers.len(), 2, "{:?}", s.request.headers);
    assert_eq!((request_header(&s, "authorization"), request_header(&s, STATUS)), (Some("Bearer own"), None));
    assert_eq!(now(filter.access(&mut stream("/a", &[("x-ajax", "1")]))).unwrap().status, 401);
    let mut s = stream(
        "/a",
        &[
            ("x-any", "1"),
            ("cookie", "BearerToken=t; OauthHMAC=h; x=1"),
            ("authorization", "Bearer own"),
            ("x-id", "own"),
        ],
    );
    assert!(now(filter.access(&mut s)).is_none());
    assert_eq!((request_header(&s, "cookie"), request_header(&s, STATUS)), (Some("x=1"), Some("failed")));
    assert_eq!((request_header(&s, "authorization"), request_header(&s, "x-id")), (None, None));
    // A callback never reaches the upstream.
    assert_eq!(now(filter.access(&mut stream("/callback", &[("x-any", "1")]))).unwrap().status, 401);
}

#[test]
fn users_sign_out() {
    let (filter, _, _) = filter_with(json!({}), None);
    let mut s = stream("/signout?a", &[("cookie", "OauthNonce.1=2; x=1")]);
    let reply = now(filter.access(&mut s)).unwrap();
    assert_eq!(
        (reply.status, &*location(&reply), &*reply.details),
        (302, "http://example.com/", "oauth.sign_out")
    );
    let deleted = |name: &str| {
        let line = format!("{name}=deleted; path=/; expires=Thu, 01 Jan 1970 00:00:00 GMT");
        reply.headers.get_all(Known::SET_COOKIE).any(|of| of == line.as_bytes())
    };
    let names = ["OauthHMAC", "BearerToken", "IdToken", "RefreshToken", "OauthExpires", "OauthNonce.1"];
    assert!(names.iter().all(|name| deleted(name)) && !deleted("x"));
    let members = json!({
        "auth_scopes": ["openid"], "end_session_endpoint": "https://as.test/out",
        "post_logout_redirect_uri": {"uri": "https://%REQ(:authority)%/bye"},
    });
    let (filter, _, _) = filter_with(members, None);
    let reply = now(filter.access(&mut stream("/signout", &[("cookie", "IdToken=tok&a")]))).unwrap();
    let expected = "https://as.test/out?id_token_hint=tok%26a&client_id=me&post_logout_redirect_uri=https%3A%2F%2Fexample.com%2Fbye";
    assert_eq!(location(&reply), expected);
}

#[test]
fn users_are_sent_to_allowed_hosts_alone() {
    let (filter, _, _) =
        filter_with(json!({"allowed_redirect_domains": ["*.Example.com", "app.test"]}), None);
    for (host, status) in [
        ("a.example.com", 302),
        ("app.test:8443", 302),
        ("example.com", 401),
        ("evil.com", 401),
        ("x@app.test", 401),
    ] {
        let mut s = stream("/a", &[]);
        s.request.authority = host.as_bytes().to_vec();
        assert_eq!(now(filter.access(&mut s)).unwrap().status, status, "{host}");
    }
}

/// What an empty key signs, anybody can sign: a cookie of the client's own was taken for a session.
#[test]
fn secrets_that_are_empty_refuse() {
    let (context, secrets) = testing::with_secrets(testing::context(), &[("client", "x"), ("hmac", "")]);
    let bytes = message::<Config>(config(json!({}))).encode_to_vec();
    let filter = testing::filter_in(&factory(), &bytes, &[], &context).unwrap();
    let status = || now(filter.access(&mut stream("/a", &[]))).unwrap().status;
    assert_eq!(status(), 503);
    secrets["hmac"].replace(b"key".as_slice().into());
    assert_eq!(status(), 302);
    for secret in ["hmac", "client"] {
        secrets[secret].replace(Box::default());
        assert_eq!(status(), 503, "{secret}");
        secrets[secret].replace(b"key".as_slice().into());
    }
    assert_eq!(status(), 302);
}

#[test]
fn routes_have_configurations_of_their_own_or_none() {
    let (context, _) = testing::with_secrets(testing::context(), &[("client", "x"), ("hmac", "key")]);
    let nothing = Config::default().encode_to_vec();
    let off = testing::filter_in(&factory(), &nothing, &[], &context).unwrap();
    assert!(now(off.access(&mut stream("/a", &[]))).is_none());
    let of_route = message::<OAuth2PerRoute>(config(json!({}))).encode_to_vec();
    let on = testing::filter_in(&factory(), &nothing, &[of_route], &context).unwrap();
    assert_eq!(now(on.access(&mut stream("/a", &[]))).unwrap().status, 302);
}

#[test]
fn what_is_wrong_is_told_at_its_field() {
    let (context, _) = testing::with_secrets(testing::context(), &[("client", "x"), ("hmac", "key")]);
    for (members, field) in [
        (json!({"authorization_endpoint": "as.test"}), "config.authorization_endpoint"),
        (json!({"token_endpoint": null}), "config.token_endpoint"),
        (json!({"redirect_uri": "%NOPE%"}), "config.redirect_uri"),
        (json!({"signout_path": {}}), "config.signout_path.path"),
        (json!({"preserve_authorization_header": true}), "config.preserve_authorization_header"),
        (json!({"forward_id_token": {"header": "Authorization"}}), "config.forward_id_token.header"),
        (
            json!({
                "forward_id_token": {"header": "authorization"}, "forward_bearer_token": false,
                "preserve_authorization_header": true,
            }),
            "config.forward_id_token.header",
        ),
        (
            json!({"forward_id_token": {"header": "x-id"}, "pass_through_matcher": [{"name": "X-Id"}]}),
            "config.pass_through_matcher[0].name",
        ),
        (json!({"end_session_endpoint": "https://as.test/out"}), "config.end_session_endpoint"),
        (json!({"auth_type": "PRIVATE_KEY_JWT"}), "config.auth_type"),
        (
            json!({"credentials": {"client_id": "me", "token_secret": {"name": "none"}}}),
            "config.credentials.token_secret",
        ),
        (
            json!({"credentials": {"client_id": "me", "token_secret": {"name": "client"}}}),
            "config.credentials.hmac_secret",
        ),
    ] {
        let bytes = message::<Config>(config(members)).encode_to_vec();
        let error = testing::filter_in(&factory(), &bytes, &[], &context).err().unwrap();
        assert!(error.starts_with(field), "{error}");
    }
}

#[test]
fn what_is_encrypted_is_read_by_its_secret_alone() {
    let (one, other) = (Secret(b"one"), Secret(b"other"));
    let sealed = one.encrypt("text").unwrap();
    assert_ne!(sealed, one.encrypt("text").unwrap(), "each has a vector of its own");
    assert_eq!(one.decrypt(sealed.as_bytes()).as_deref(), Some("text"));
    assert_ne!(other.decrypt(sealed.as_bytes()).as_deref(), Some("text"));
    for bad in ["", "AAAA", "%", &sealed[..22], &"A".repeat(22)] {
        assert_eq!(one.decrypt(bad.as_bytes()), None, "{bad}");
    }
    assert!(one.has_signed(b"m", one.sign(b"m").as_bytes()) && !one.has_signed(b"m", b""));
}
