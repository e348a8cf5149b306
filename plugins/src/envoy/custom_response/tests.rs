#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, Alone, context, stream};

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
    stream.details = "via_upstream".into();
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

#[test]
fn redirects_are_refused_by_name() {
    let redirect = on("HttpResponseStatusCodeMatchInput", "503", "status_code: 200").replace(
        "local_response_policy.v3.LocalResponsePolicy, status_code: 200",
        "redirect_policy.v3.RedirectPolicy, uri: 'http://a/'",
    );
    let error = built(&redirect, &[]).err().unwrap();
    assert!(error.contains("custom response policy \"a\" of type "), "{error}");
}
