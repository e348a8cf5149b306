#![allow(clippy::unwrap_used)]
use super::*;
use crate::pb::google::protobuf::StringValue;
use crate::testing::read;
use sixfold_core::connection::Connection;
use sixfold_core::matching::Subject;
use sixfold_core::stream::Stream;
use std::sync::Arc;

fn compiled(yaml: &str, data: Data) -> std::result::Result<Tree<String>, String> {
    let mut act = |value: &TypedExtensionConfig| {
        let text: StringValue = any::unpack(required(&value.typed_config, "typed_config")?)?;
        Ok(text.value)
    };
    tree(&read(yaml), data, &mut act).map_err(|error| error.to_string())
}

/// The end of a branch.
fn act(text: &str) -> String {
    format!(
        "{{action: {{name: a, typed_config: {{'@type': type.googleapis.com/google.protobuf.StringValue, value: {text}}}}}}}"
    )
}

fn extension(type_name: &str, fields: &str) -> String {
    format!("{{name: e, typed_config: {{'@type': type.googleapis.com/{type_name}, {fields}}}}}")
}

fn header(name: &str) -> String {
    extension("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", &format!("header_name: {name}"))
}

fn network(name: &str) -> String {
    extension(&format!("{NETWORK}{name}"), "")
}

fn list(input: &str, test: &str, then: &str) -> String {
    format!(
        "matcher_list: {{matchers: [{{predicate: {{single_predicate: {{input: {input}, {test}}}}}, on_match: {then}}}]}}"
    )
}

fn found(tree: &Tree<String>, headers: &[(&str, &str)]) -> Option<String> {
    let address = "10.1.2.3:1".parse().unwrap();
    let mut stream = Stream::new(Arc::new(Connection::plain(address, address)));
    for (name, value) in headers {
        stream.request.headers.push(name.as_bytes(), value.as_bytes());
    }
    tree.find(Subject::Stream(&stream)).cloned()
}

#[test]
fn every_form_of_tree_is_compiled() {
    let one = list(&header("x"), "value_match: {exact: '1'}", &act("one"));
    let tree = compiled(&format!("{{{one}, on_no_match: {}}}", act("rest")), Data::Request).unwrap();
    assert_eq!(found(&tree, &[("x", "1")]).as_deref(), Some("one"));
    assert_eq!(found(&tree, &[]).as_deref(), Some("rest"));
    let nested = format!("{{matcher: {{{one}}}}}");
    let exact = format!(
        "matcher_tree: {{input: {}, exact_match_map: {{map: {{a: {}, b: {nested}}}}}}}",
        header("y"),
        act("a")
    );
    let tree = compiled(&exact, Data::Route).unwrap();
    assert_eq!(found(&tree, &[("y", "a")]).as_deref(), Some("a"));
    assert_eq!(found(&tree, &[("y", "b"), ("x", "1")]).as_deref(), Some("one"));
    assert_eq!(found(&tree, &[("y", "b")]), None);
    let prefix = exact.replace("exact_match_map", "prefix_match_map");
    assert_eq!(found(&compiled(&prefix, Data::Route).unwrap(), &[("y", "ab")]).as_deref(), Some("a"));
    let ranges = format!(
        "range_matchers: [{{ranges: [{{address_prefix: 10.0.0.0, prefix_len: 8}}], on_match: {}, exclusive: true}}]",
        act("ten")
    );
    let ip = format!(
        "matcher_tree: {{input: {}, custom_match: {}}}",
        network("SourceIPInput"),
        extension("xds.type.matcher.v3.IPMatcher", &ranges)
    );
    assert_eq!(found(&compiled(&ip, Data::Connection).unwrap(), &[]).as_deref(), Some("ten"));
    let names = format!("domain_matchers: [{{domains: ['*.test'], on_match: {}}}]", act("test"));
    let names = format!(
        "matcher_tree: {{input: {}, custom_match: {}}}",
        header("x"),
        extension("xds.type.matcher.v3.ServerNameMatcher", &names)
    );
    assert_eq!(found(&compiled(&names, Data::Request).unwrap(), &[("x", "a.test")]).as_deref(), Some("test"));
    for test in [
        extension(
            "envoy.extensions.matching.input_matchers.ip.v3.Ip",
            "cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}], stat_prefix: s",
        ),
        extension(
            "envoy.extensions.matching.input_matchers.consistent_hashing.v3.ConsistentHashing",
            "modulo: 1",
        ),
    ] {
        let custom = list(&network("SourceIPInput"), &format!("custom_match: {test}"), &act("hit"));
        assert_eq!(found(&compiled(&custom, Data::Request).unwrap(), &[]).as_deref(), Some("hit"), "{test}");
    }
    let cel = extension(
        "xds.type.matcher.v3.CelMatcher",
        "expr_match: {cel_expr_string: \"'x' in request.headers\"}",
    );
    let attributes = extension("xds.type.matcher.v3.HttpAttributesCelMatchInput", "");
    let tree =
        compiled(&list(&attributes, &format!("custom_match: {cel}"), &act("cel")), Data::Request).unwrap();
    assert_eq!(found(&tree, &[("x", "")]).as_deref(), Some("cel"));
    assert_eq!(found(&tree, &[]), None);
    assert_eq!(found(&compiled("{}", Data::Request).unwrap(), &[]), None);
}

/// What Envoy's validation visitors allow, as `--mode validate` of Envoy 1.40 told.
#[test]
fn each_sort_of_data_has_its_inputs() {
    let text = "value_match: {exact: a}";
    let filter_state = extension(&format!("{NETWORK}FilterStateInput"), "key: k");
    let metadata = extension(&format!("{NETWORK}DynamicMetadataInput"), "filter: f, path: [{key: k}]");
    let ssl = extension(&format!("{SSL}UriSanInput"), "");
    let environment =
        extension("envoy.extensions.matching.common_inputs.environment_variable.v3.Config", "name: HOME");
    let response = extension("envoy.type.matcher.v3.HttpResponseHeaderMatchInput", "header_name: a");
    for (input, wanted) in [
        (header("a"), [true, true, false, false]),
        (response, [false; 4]),
        (network("SourceIPInput"), [false, true, true, true]),
        (network("ServerNameInput"), [false, true, true, true]),
        (network("SourceTypeInput"), [false, false, false, true]),
        (network("TransportProtocolInput"), [false, false, false, true]),
        (network("ApplicationProtocolInput"), [false, false, false, true]),
        (filter_state, [false, true, true, true]),
        (metadata, [false, true, false, false]),
        (ssl, [false, true, true, true]),
        (environment, [false, true, true, true]),
    ] {
        let taken = [Data::Route, Data::Request, Data::Connection, Data::Chain]
            .map(|data| compiled(&list(&input, text, &act("x")), data).is_ok());
        assert_eq!(taken, wanted, "{input}");
    }
}

#[test]
fn faults_are_told_at_their_place() {
    let x = header("x");
    let text = "value_match: {exact: a}";
    let long = "matcher_list.matchers[0]";
    let input = "predicate.single_predicate.input.typed_config";
    for (yaml, data, wanted) in [
        ("matcher_list: {}".to_owned(), Data::Request, "matcher_list.matchers: must not be empty".to_owned()),
        (
            format!("matcher_tree: {{input: {x}, exact_match_map: {{}}}}"),
            Data::Request,
            "matcher_tree.exact_match_map.map: must not be empty".to_owned(),
        ),
        (
            format!("matcher_tree: {{input: {x}}}"),
            Data::Request,
            "matcher_tree: one of exact_match_map, prefix_match_map, custom_match is missing".to_owned(),
        ),
        (
            format!(
                "matcher_tree: {{input: {}, custom_match: {}}}",
                network("SourceIPInput"),
                extension(
                    "xds.type.matcher.v3.IPMatcher",
                    "range_matchers: [{ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}, {address_prefix: ten}]}]"
                )
            ),
            Data::Connection,
            "matcher_tree.custom_match.typed_config.range_matchers[0].ranges[1].address_prefix: \"ten\""
                .to_owned(),
        ),
        (list(&x, text, "{}"), Data::Request, format!("{long}.on_match: one of matcher, action is missing")),
        (
            list(&x, text, &act("x").replace("{action", "{keep_matching: true, action")),
            Data::Request,
            format!("{long}.on_match.keep_matching: is not supported"),
        ),
        (
            list(&x, "value_match: {safe_regex: {google_re2: {}, regex: '('}}", &act("x")),
            Data::Request,
            format!("{long}.predicate.single_predicate.value_match.safe_regex.regex: "),
        ),
        (
            list(&network("SourceIPInput"), text, &act("x")),
            Data::Route,
            format!(
                "{long}.{input}: routes can be chosen by request headers only, not by {NETWORK}SourceIPInput"
            ),
        ),
        (
            list(&x, text, &act("x")),
            Data::Chain,
            format!(
                "{long}.{input}: input \"e\" of type envoy.type.matcher.v3.HttpRequestHeaderMatchInput is not supported"
            ),
        ),
        (
            list(
                &x,
                &format!(
                    "custom_match: {}",
                    extension("xds.type.matcher.v3.CelMatcher", "expr_match: {cel_expr_string: 'true'}")
                ),
                &act("x"),
            ),
            Data::Request,
            format!("{long}.predicate.single_predicate: the matcher is not for this input"),
        ),
        (
            list(
                &x,
                &format!("custom_match: {}", extension("google.protobuf.StringValue", "value: a")),
                &act("x"),
            ),
            Data::Request,
            format!(
                "{long}.predicate.single_predicate.custom_match.typed_config: input matcher \"e\" of type google.protobuf.StringValue is"
            ),
        ),
    ] {
        let told = compiled(&yaml, data).unwrap_err();
        assert!(told.starts_with(&wanted), "{told} is not {wanted}");
    }
}
