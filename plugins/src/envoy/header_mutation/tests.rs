#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, Alone, request_header, response_header, stream};

fn built(config: &str, levels: &[&str]) -> Result<Alone, String> {
    testing::filter_of::<Config, HeaderMutationPerRoute>(&factory(), config, levels)
}

/// An addition that takes the place of what is there.
fn set(key: &str, value: &str) -> String {
    format!(
        "{{append: {{header: {{key: '{key}', value: '{value}'}}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}}}}"
    )
}

#[tokio::test]
async fn changes_see_those_before_them() {
    let changes = [
        &set("x-a", "%REQ(x-old)%"),
        "{remove: x-old}",
        &set("x-b", "%REQ(x-a)%-%REQ(x-old)%"),
        "{remove_on_match: {key_matcher: {prefix: x-drop}}}",
    ];
    let config = format!("mutations: {{request_mutations: [{}]}}", changes.join(", "));
    let filter = built(&config, &[]).unwrap();
    let mut stream = stream("/p?q", &[("x-old", "1"), ("X-Drop-Me", "2")]);
    assert!(filter.access(&mut stream).await.is_none());
    assert_eq!(request_header(&stream, "x-a"), Some("1"));
    assert_eq!(request_header(&stream, "x-b"), Some("1-"));
    assert!(!stream.request.headers.contains("x-drop-me") && !stream.request.headers.contains("x-old"));
}

#[tokio::test]
async fn parameters_are_changed_and_written_in_order() {
    let put = |key: &str, value: &str, action: &str| {
        format!("{{append: {{record: {{key: {key}, value: '{value}'}}, action: {action}}}}}")
    };
    let changes = [
        put("b", "%REQ(x)%", "APPEND_IF_EXISTS_OR_ADD"),
        put("c", "new", "OVERWRITE_IF_EXISTS_OR_ADD"),
        put("d", "new", "OVERWRITE_IF_EXISTS"),
        put("e", "new", "ADD_IF_ABSENT"),
        put("b", "no", "ADD_IF_ABSENT"),
        "{remove: z}".to_owned(),
    ];
    let config = format!("mutations: {{query_parameter_mutations: [{}]}}", changes.join(", "));
    let filter = built(&config, &[]).unwrap();
    for (from, to) in [("/p?z=1&c=2&b=1&a", "/p?a=&b=1&b=v&c=new&e=new"), ("/p", "/p?b=v&c=new&e=new")] {
        let mut stream = stream(from, &[("x", "v")]);
        filter.access(&mut stream).await;
        assert_eq!(stream.request.target.full(), to.as_bytes());
    }
    // What would end the target, or the parameter, is encoded.
    let mut stream = stream("/p?k=a%20b&%62=1&", &[("x", "v &/%")]);
    filter.access(&mut stream).await;
    assert_eq!(stream.request.target.full(), b"/p?%62=1&b=v%20%26%2F%25&c=new&e=new&k=a%20b");
    let gone = built("mutations: {query_parameter_mutations: [{remove: a}]}", &[]).unwrap();
    let mut stream = testing::stream("/p?a=1", &[]);
    gone.access(&mut stream).await;
    assert_eq!(stream.request.target.full(), b"/p");
}

#[tokio::test]
async fn every_level_has_its_turn() {
    let of = |level: &str| {
        format!(
            "mutations: {{response_mutations: [{}, {{append: {{header: {{key: x-all, value: {level}}}}}}}]}}",
            set("x-last", level)
        )
    };
    let last = async |config: &str| {
        let filter = built(config, &[&of("host"), &of("route")]).unwrap();
        let mut stream = stream("/", &[]);
        filter.header_filter(&mut stream).await;
        let all: Vec<_> = stream.response.headers.get_all("x-all").map(<[u8]>::to_vec).collect();
        (response_header(&stream, "x-last").unwrap().to_owned(), String::from_utf8(all.join(&b' ')).unwrap())
    };
    assert_eq!(last(&of("own")).await, ("host".to_owned(), "own route host".to_owned()));
    let wins = format!("{}\nmost_specific_header_mutations_wins: true", of("own"));
    assert_eq!(last(&wins).await, ("route".to_owned(), "own host route".to_owned()));
}

#[test]
fn trailers_are_changed_too() {
    let config = format!(
        "mutations: {{response_trailers_mutations: [{}], request_trailers_mutations: [{{remove: t}}]}}",
        set("x-t", "%RESP(x-r)%"),
    );
    let filter = built(&config, &[]).unwrap();
    let mut stream = stream("/", &[]);
    stream.response.headers.push(b"x-r", b"r");
    stream.response_trailers.push(b"a", b"b");
    stream.request_trailers.push(b"t", b"b");
    filter.trailers(&mut stream);
    assert_eq!(stream.response_trailers.get("x-t"), Some(&b"r"[..]));
    assert!(stream.request_trailers.is_empty());
}

#[test]
fn wrong_changes_are_refused_by_name() {
    let refused = |changes: &str| built(&format!("mutations: {{{changes}}}"), &[]).err().unwrap();
    for (changes, reason) in [
        (
            "request_mutations: [{remove: ':path'}]",
            "mutations.request_mutations[0].remove: \":path\": pseudo headers and host may not be changed here",
        ),
        (
            "response_mutations: [{append: {header: {key: ':path', value: x}}}]",
            "mutations.response_mutations[0].append.header.key: \":path\": pseudo headers and host may not be changed here",
        ),
        (
            "request_mutations: [{append: {header: {key: x, value: '%NO_SUCH%'}}}]",
            "mutations.request_mutations[0].append.header.value: ",
        ),
        (
            "query_parameter_mutations: [{}]",
            "mutations.query_parameter_mutations[0].remove: must not be empty",
        ),
        (
            "query_parameter_mutations: [{append: {record: {key: k, value: 1}}}]",
            "mutations.query_parameter_mutations[0].append.record.value: must be a text",
        ),
        (
            "request_mutations: [{remove_on_match: {}}]",
            "mutations.request_mutations[0].remove_on_match.key_matcher: is missing",
        ),
    ] {
        let error = refused(changes);
        assert!(error.starts_with(reason), "{error}");
    }
}
