#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../../../fuzz/stable.rs"]
mod stable;

const WORDS: &[&str] = &[
    "routes:\n",
    "\n- ",
    "\n  - ",
    "id: 1\n",
    "uri: /a/*\n",
    "upstream:\n",
    "nodes:\n",
    "#END\n",
    "|\n",
    "\"",
    "'",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "---\n",
    "...\n",
    "\t",
    "${{A:=",
    "}}",
    "<<: ",
    "? ",
    ": ",
    "!!str ",
    "\r\n",
    "ssls:\n",
    "services:\n",
    "plugins:\n",
    "hosts: [a]\n",
    "\"upstreams\": [",
    "\u{feff}",
];

#[test]
fn fuzz_target_apisix_load() {
    stable::run("apisix_load", WORDS, super::load);
}
