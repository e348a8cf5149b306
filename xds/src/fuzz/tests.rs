#![allow(clippy::unwrap_used)]

use sixfold_core::compile::CompileContext;
use sixfold_core::plugin::Registry;

use crate::bootstrap::{ProcessContext, load};

#[path = "../../../proxy/fuzz/stable.rs"]
mod stable;

const WORDS: &[&str] = &[
    "static_resources:\n",
    "listeners:\n",
    "clusters:\n",
    "\n- ",
    "\n  - ",
    "name: a\n",
    "address: {socket_address: {address: 127.0.0.1, port_value: 0}}\n",
    "filter_chains:\n",
    "\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
    "typed_config:\n",
    "match: {prefix: /}",
    "safe_regex: {regex: \"a|b\"}",
    "route: {cluster: a}",
    "timeout: 1s",
    "-0.5s",
    "retry_policy: {retry_on: 5xx}",
    "weighted_clusters: {clusters: []}",
    "load_assignment:\n",
    "lb_policy: RING_HASH\n",
    "domains: [\"*\"]",
    "null",
    "4294967296",
    "1e400",
    ".inf",
    "0x10",
    "\"",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "<<: ",
    "%REQ(A?B):1%",
    "%",
    "\t",
    "---\n",
    "\u{feff}",
];

#[test]
fn fuzz_target_xds_text() {
    let words = [
        "resources {",
        "}",
        "<",
        ">",
        "[",
        "]",
        ":",
        ";",
        "[type.googleapis.com/envoy.config.route.v3.Route]",
        "name: ",
        "\"",
        "'",
        "\\",
        "\\x4",
        "# ",
        "value { ",
    ];
    stable::run("xds_text", &words, super::resources_in_text);
}

#[test]
fn fuzz_target_xds_bootstrap() {
    stable::run("xds_bootstrap", WORDS, super::bootstrap);
}

/// Mutations of a bootstrap that is refused in its first line would reach nothing.
#[test]
fn the_corpus_holds_what_is_taken() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../proxy/fuzz/corpus/xds_bootstrap");
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let faults =
            load(&text, "envoy.yaml", &ProcessContext::new(CompileContext::detached(Registry::default())))
                .err();
        assert_eq!(faults, None, "{}", path.display());
    }
}
