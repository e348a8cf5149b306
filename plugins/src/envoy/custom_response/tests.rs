#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, Alone, context, stream};
use sixfold_core::stream::Stream;

fn built(config: &str, levels: &[&str]) -> Result<Alone, String> {
    testing::filter_of_in::<Config, Config>(&factory(), config, levels, &context())
}

/// A matcher of one condition that leads to a policy.
fn on(input: &str, value: &str, policy: &str) -> String {
    let types = "type.googleapis.com/envoy";
    let action = format!(
        "{{name: a, typed_config: {{'@type': {types}.extensions.http.custom_response.local_response_policy.v3.LocalResponsePolicy, {policy}}}}}"
    );
    format!(
        "custom_response_matcher: {{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{input: {{name: i, typed_config: {{'@type': {types}.type.matcher.v3.{input}}}}}, value_match: {{exact: '{value}'}}}}}}, on_match: {{action: {action}}}}}]}}}}"
    )
}

async fn answer(filter: &Alone, status: u16) -> Option<LocalReply> {
    let mut stream = stream("/", &[]);
    stream.response.status = status;
    stream.response.headers.push(b"x-kind", b"special");
    stream.details = Some("via_upstream".into());
    let reply = filter.header_filter(&mut stream).await;
    // It does not look at its own answer.
    assert!(reply.is_none() || filter.header_filter(&mut stream).await.is_none());
    reply
}

#[tokio::test]
async fn responses_are_found_by_status_class_and_header() {
    let policy = "status_code: 202, body: {inline_string: text}, body_format: {text_format_source: {inline_string: '<%LOCAL_REPLY_BODY% %RESPONSE_CODE%>'}}, response_headers_to_add: [{header: {key: x-a, value: b}}]";
    for (input, value) in [
        ("HttpResponseStatusCodeMatchInput", "503"),
        ("HttpResponseStatusCodeClassMatchInput", "5xx"),
        ("HttpResponseHeaderMatchInput, header_name: x-kind", "special"),
    ] {
        let filter = built(&on(input, value, policy), &[]).unwrap();
        let reply = answer(&filter, 503).await.unwrap();
        assert_eq!(
            (reply.status, &reply.body[..], &*reply.details),
            (202, &b"<text 503>"[..], ""),
            "{input}"
        );
        assert_eq!(reply.headers.get("x-a"), Some(&b"b"[..]));
    }
    let other = built(&on("HttpResponseStatusCodeMatchInput", "503", policy), &[]).unwrap();
    assert!(answer(&other, 502).await.is_none());
}

#[tokio::test]
async fn the_most_specific_level_that_finds_something_decides() {
    let code = "HttpResponseStatusCodeMatchInput";
    let own = on(code, "404", "body: {inline_string: own}");
    let level = on(code, "503", "body: {inline_string: level}, preserve_response_code_details: true");
    let filter = built(&own, &[&level]).unwrap();
    let text =
        async |status| answer(&filter, status).await.map(|reply| (reply.status, reply.body, reply.details));
    assert_eq!(text(503).await, Some((503, "level".into(), "via_upstream".into())));
    assert_eq!(text(404).await, Some((404, "own".into(), "".into())));
    assert_eq!(text(500).await, None);
}

const REDIRECT: &str =
    "type.googleapis.com/envoy.extensions.http.custom_response.redirect_policy.v3.RedirectPolicy";

/// A matcher of 404 that leads to another request.
fn redirecting(policy: &str) -> String {
    on("HttpResponseStatusCodeMatchInput", "404", policy).replace(
        "type.googleapis.com/envoy.extensions.http.custom_response.local_response_policy.v3.LocalResponsePolicy",
        REDIRECT,
    )
}

fn asked(filter: &Alone, stream: &mut Stream) -> Option<Box<sixfold_core::plugin::Recreated>> {
    use sixfold_core::plugin::{HeadPhase, Outcome};
    let mut outcome = std::pin::pin!(filter.chain.run(HeadPhase::HeaderFilter, stream));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::future::Future::poll(outcome.as_mut(), &mut context) {
        std::task::Poll::Ready(Outcome::Recreate(_, request)) => Some(request),
        _ => None,
    }
}

#[test]
fn another_request_answers() {
    let policy = "uri: 'https://pages.test/404?x#f', request_headers_to_add: [{header: {key: x-asked, value: '%RESPONSE_CODE%'}}], response_headers_to_add: [{header: {key: x-page, value: '1'}}]";
    for (policy, scheme, authority, target) in [
        (policy, "https", "pages.test", "/404?x"),
        ("redirect_action: {path_redirect: /p}", "http", "example.com", "/p?b"),
        ("redirect_action: {host_redirect: h, port_redirect: 81, strip_query: true}", "http", "h:81", "/a"),
    ] {
        let filter = built(&redirecting(policy), &[]).unwrap();
        let mut stream = stream("/a?b", &[("content-length", "3")]);
        stream.request.method = "POST".parse().unwrap();
        stream.response.status = 404;
        let request = asked(&filter, &mut stream).unwrap();
        let head = &request.head;
        assert_eq!(
            (head.scheme.as_str(), &*head.authority, head.target.full()),
            (scheme, authority.as_bytes(), target.as_bytes())
        );
        assert_eq!((head.method.as_str(), head.headers.get("content-length")), ("GET", None));
        // Nothing came of it.
        assert!(asked(&filter, &mut stream).is_none());
        // Its response keeps the status.
        let mut next = testing::stream("/404", &[]);
        next.answer_for(request.answers_for.clone());
        next.response.status = 200;
        assert!(asked(&filter, &mut next).is_none());
        assert_eq!(next.response.status, 404);
        assert_eq!(next.response.headers.get("x-page"), policy.contains("x-page").then_some(&b"1"[..]));
        assert_eq!(head.headers.get("x-asked"), policy.contains("x-asked").then_some(&b"404"[..]));
    }
}

#[test]
fn redirects_that_lead_nowhere_are_refused() {
    for (policy, reason) in [
        ("uri: /relative", "uri: \"/relative\" is no URL of http or https"),
        ("redirect_action: {prefix_rewrite: /}", "redirect_action.prefix_rewrite: has no meaning here"),
        ("redirect_action: {path_redirect: '/a#b'}", "redirect_action.path_redirect: must have no fragment"),
        (
            "redirect_action: {https_redirect: true}",
            "redirect_action: one of host_redirect and path_redirect is missing",
        ),
        ("uri: 'http://h/', status_code: 1000", "status_code: "),
        (
            "uri: 'http://h/', modify_request_headers_action: {name: a}",
            "modify_request_headers_action: is not supported",
        ),
    ] {
        let error = built(&redirecting(policy), &[]).map(drop).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}
