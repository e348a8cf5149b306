#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::*;

fn yaml(text: &str) -> Result<Node, ConfigError> {
    Node::parse(text, &Options::default())
}

fn json(text: &str) -> Result<Node, ConfigError> {
    Node::parse(text, &Options { format: Format::Json, ..Options::default() })
}

fn error(result: Result<Node, ConfigError>) -> String {
    result.expect_err("must be refused").to_string()
}

#[test]
fn both_notations_give_the_same_tree() {
    let from_yaml =
        yaml("a: [1, -2, 1.5, true, ~]\nb:\n  c: \"x\\ny\"\n  'd': 18446744073709551615\n").unwrap();
    let from_json =
        json("{\"a\": [1, -2, 1.5, true, null], \"b\": {\"c\": \"x\\ny\", \"d\": 18446744073709551615}}")
            .unwrap();
    assert_eq!(from_yaml.to_json(), from_json.to_json());
    assert_eq!(
        from_json.to_json().to_string(),
        "{\"a\":[1,-2,1.5,true,null],\"b\":{\"c\":\"x\\ny\",\"d\":18446744073709551615}}"
    );
    let keys: Vec<_> = from_yaml.as_object().unwrap().entries().iter().map(|e| e.key.as_str()).collect();
    assert_eq!(keys, ["a", "b"], "the order of the text is kept");
}

#[test]
fn every_key_and_value_has_its_place() {
    for (node, name) in [
        (yaml("ä: x\nlist:\n  - name: a\n  - name:   b\n").unwrap(), "yaml"),
        (json("{\"ä\":\"x\",\n\"list\":[\n    {\"name\": 1},{\"name\":   2}]}").unwrap(), "json"),
    ] {
        let list = node.as_object().unwrap().entry("list").unwrap();
        assert_eq!(list.key_place, Place::new(2, 1), "{name}");
        let items = list.value.as_array().unwrap();
        let second = items[1].as_object().unwrap().entry("name").unwrap();
        let expected = if name == "yaml" {
            (Place::new(4, 5), Place::new(4, 13))
        } else {
            (Place::new(3, 18), Place::new(3, 28))
        };
        assert_eq!((second.key_place, second.value.place), expected, "{name}");
    }
    let node = json("{\"ä\": 1}").unwrap();
    assert_eq!(node.get("ä").unwrap().place, Place::new(1, 7), "columns count characters");
}

#[test]
fn plain_scalars_follow_yaml_1_1() {
    let cases = [
        ("on", "true"),
        ("Off", "false"),
        ("YES", "true"),
        ("n", "\"n\""),
        ("Y", "\"Y\""),
        ("oN", "\"oN\""),
        ("null", "null"),
        ("~", "null"),
        ("0x1F", "31"),
        ("010", "8"),
        ("08", "8.0"),
        ("0o17", "15"),
        ("+7", "7"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("1e3", "1000.0"),
        (".5", "0.5"),
        ("1.2.3", "\"1.2.3\""),
        ("1.2.3.4", "\"1.2.3.4\""),
        (".inf", "\".inf\""),
        ("\"on\"", "\"on\""),
        ("!!str 5", "\"5\""),
        ("! 5", "\"5\""),
        ("!!int '5'", "5"),
        ("15s", "\"15s\""),
        ("2024-01-01", "\"2024-01-01\""),
        ("nan", "\"nan\""),
        ("infinity", "\"infinity\""),
        ("١", "\"١\""),
    ];
    for (text, expected) in cases {
        assert_eq!(
            yaml(&format!("a: {text}")).unwrap().get("a").unwrap().to_json().to_string(),
            expected,
            "{text}"
        );
    }
}

#[test]
fn wide_numbers_can_stay_text() {
    let options = Options { wide_numbers_as_text: true, ..Options::default() };
    let node = Node::parse("[1.5, 5000000000, 2147483647, -2147483648]", &options).unwrap();
    assert_eq!(node.to_json().to_string(), "[\"1.5\",\"5000000000\",2147483647,-2147483648]");
}

#[test]
fn duplicate_keys_are_refused() {
    assert_eq!(error(yaml("x:\n- a: 1\n  b: 2\n  a: 3\n")), "4:3: x[0].a: duplicate key, first given at 2:3");
    assert_eq!(
        error(json("{\"x\": [{\"a\": 1, \"a\": 2}]}")),
        "1:17: x[0].a: duplicate key, first given at 1:9"
    );
    let many: String = (0..50).map(|i| format!("k{i}: 1\n")).collect();
    assert_eq!(error(yaml(&format!("{many}k7: 2\n"))), "51:1: k7: duplicate key, first given at 8:1");
}

#[test]
fn anchors_aliases_and_merges() {
    let node = yaml("base: &b {x: 1, y: 2}\ncopy: *b\nown:\n  <<: *b\n  y: 3\n&k name: 5\nkeys:\n  *k : 6\n")
        .unwrap();
    assert_eq!(
        node.to_json().to_string(),
        "{\"base\":{\"x\":1,\"y\":2},\"copy\":{\"x\":1,\"y\":2},\"own\":{\"y\":3,\"x\":1},\"name\":5,\"keys\":{\"name\":6}}"
    );
    assert!(error(yaml("a: &a\n  b: *a\n")).starts_with("2:6: "));
    assert!(error(yaml("a: *nobody\n")).starts_with("1:4: invalid YAML"));
    assert_eq!(error(yaml("a:\n  <<: 1\n")), "2:3: <<: must be an object or an array of objects");
}

#[test]
fn alias_bombs_are_refused_quickly() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
        text.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
    }
    let start = Instant::now();
    assert!(error(yaml(&text)).contains("aliases add more than 262144 values"));
    assert!(start.elapsed() < Duration::from_secs(5));
    let long = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 100].join(", "));
    assert!(error(yaml(&long)).contains("aliases add more than"), "long strings count by length");
}

#[test]
fn depth_is_limited() {
    let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    assert!(json(&deep(128)).is_ok());
    assert_eq!(
        error(json(&deep(129))),
        format!("1:129: {}values are nested deeper than 128", path_of_zeros(128))
    );
    assert!(yaml(&deep(128)).is_ok());
    assert!(error(yaml(&deep(129))).contains("deeper than 128"));
    assert!(json(&"[".repeat(1_000_000)).is_err());
    assert!(yaml(&"[".repeat(1_000_000)).is_err());
    let block: String = (0..400).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    assert!(error(yaml(&block)).starts_with("12"), "refused near line 129");
    let aliases = format!("a: &a {}\nb: {}*a{}\n", deep(100), "[".repeat(100), "]".repeat(100));
    assert!(error(yaml(&aliases)).contains("deeper than 128"));
}

fn path_of_zeros(n: usize) -> String {
    format!("{}: ", "[0]".repeat(n))
}

#[test]
fn empty_and_half_written_documents_say_where() {
    for text in ["", "  \n", "# only a comment\n", "---\n"] {
        assert_eq!(error(yaml(text)), "1:1: the document is empty", "{text:?}");
        let allowed = Options { allow_empty: true, ..Options::default() };
        assert!(Node::parse(text, &allowed).unwrap().is_null());
    }
    assert_eq!(error(json(" ")), "1:1: the document is empty");
    assert!(json("null").unwrap().is_null());
    assert!(yaml("~").unwrap().is_null(), "a null that was written is a value");
    assert_eq!(
        error(json("{\"a\": [1,\n 2")),
        "2:3: a: invalid JSON: expected \",\" or \"]\" in the array that begins at 1:7, but the document ends"
    );
    assert_eq!(error(json("{\"a\": \"x")), "1:9: a: invalid JSON: the document ends inside a string");
    assert_eq!(
        error(json("{\"a\": 1} x")),
        "1:10: invalid JSON: unexpected text after the end of the document"
    );
    assert_eq!(
        error(json("{a: 1}")),
        "1:2: invalid JSON: expected a key in quotes in the object that begins at 1:1, found 'a'"
    );
    let half = error(yaml("a:\n  b: [1, 2\n"));
    assert!(half.contains("invalid YAML") && half.contains("the array that begins at 2:6"), "{half}");
    assert!(error(yaml("a: 1\n---\nb: 2\n")).contains("a second YAML document"));
    assert!(error(yaml("a: b: c\n")).starts_with("1:"));
}

#[test]
fn bad_json_is_refused() {
    for text in [
        "01",
        "1.",
        "-",
        "+1",
        "1e",
        "tru",
        "[1,]",
        "{\"a\":1,}",
        "\"\u{1}\"",
        "\"\\x\"",
        "\"\\ud800\"",
        "\"\\u12\"",
        "'a'",
        "NaN",
    ] {
        let error = json(text).expect_err(text);
        assert!(error.place.is_some(), "{text}");
    }
    assert_eq!(json("\"\\ud83d\\ude00\\u00e4\\/\"").unwrap().as_str(), Some("😀ä/"));
    assert_eq!(json("1e400").map(|n| n.to_json()).unwrap_or_default().to_string(), "null", "no infinities");
}

#[test]
fn size_is_limited() {
    let big = "x".repeat(50 << 20);
    assert_eq!(error(yaml(&big)), "1:1: the document has 52428800 bytes, more than the limit of 33554432");
    let options = Options { max_bytes: 3, format: Format::Json, ..Options::default() };
    assert!(Node::parse("[1]", &options).is_ok());
    assert!(Node::parse("[12]", &options).is_err());
}

#[test]
fn odd_yaml_is_refused() {
    assert!(error(yaml("a: !custom x\n")).contains("YAML tag !custom is not supported"));
    assert!(error(yaml("? [a, b]\n: 1\n")).contains("a key must be a string"));
    assert!(error(yaml("a: !!int x\n")).contains("does not fit its tag !!int"));
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Server {
    name: String,
    #[serde(default)]
    ports: Vec<u16>,
    mode: Option<Mode>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Mode {
    Fast,
    Slow { delay: f32 },
    Named(String),
}

fn server(text: &str) -> Result<Vec<Server>, ConfigError> {
    yaml(text).unwrap().deserialize()
}

#[test]
fn types_are_read_with_serde() {
    let servers = server("- {name: a, ports: [1, 65535], mode: fast}\n- {name: b, mode: {slow: {delay: 2}}}\n- {name: c, mode: {named: x}, labels: {on: 'y'}}\n").unwrap();
    assert_eq!(servers[0].ports, [1, 65535]);
    assert_eq!(servers[1].mode, Some(Mode::Slow { delay: 2.0 }));
    assert_eq!(servers[2].mode, Some(Mode::Named("x".into())));
    assert_eq!(servers[2].labels["on"], "y");
}

#[test]
fn serde_errors_have_path_and_place() {
    let refused = |text: &str| server(text).expect_err(text).to_string();
    assert_eq!(
        refused("- name: a\n- name: b\n  prots: []\n"),
        "3:3: [1].prots: unknown field; did you mean \"ports\"?"
    );
    assert_eq!(
        refused("- name: a\n  ports: [1, 70000]\n"),
        "2:14: [0].ports[1]: invalid value: integer `70000`, expected u16"
    );
    assert_eq!(refused("- name: off\n"), "1:9: [0].name: invalid type: boolean `false`, expected a string");
    assert_eq!(refused("-\n  ports: []\n"), "2:3: [0]: missing field `name`");
    assert_eq!(
        refused("- name: a\n  mode: fats\n"),
        "2:9: [0].mode: unknown value \"fats\"; did you mean \"fast\"?"
    );
    assert_eq!(
        refused("- name: a\n  mode: {slow: {delay: x}}\n"),
        "2:24: [0].mode.slow.delay: invalid type: string \"x\", expected f32"
    );
}

#[test]
fn the_type_key_comes_first() {
    let node = json("{\"b\": 1, \"@type\": \"t\", \"a\": 2}").unwrap();
    struct Keys;
    impl<'de> serde::de::Visitor<'de> for Keys {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a map")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Vec<String>, A::Error> {
            let mut keys = Vec::new();
            while let Some((key, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                keys.push(key);
            }
            Ok(keys)
        }
    }
    let keys = serde::Deserializer::deserialize_map(&node, Keys).unwrap();
    assert_eq!(keys, ["@type", "b", "a"]);
}

/// Generous bound for unoptimised builds on a busy machine; it is 20 ms to 60 ms in release.
#[test]
fn five_thousand_routes_are_read_quickly() {
    let routes: String = (0..5000)
        .map(|i| {
            format!(
                "  - id: \"route-{i}\"\n    uri: /service/{i}/*\n    methods: [GET, POST]\n    plugins:\n      limit-count: {{count: 10, time_window: 60, key: remote_addr}}\n    upstream:\n      type: roundrobin\n      nodes:\n        \"127.0.0.1:1980\": 1\n        \"127.0.0.2:1980\": 2\n"
            )
        })
        .collect();
    let text = format!("routes:\n{routes}#END\n");
    let start = Instant::now();
    let node = yaml(&text).unwrap();
    let elapsed = start.elapsed();
    assert_eq!(node.get("routes").unwrap().as_array().unwrap().len(), 5000);
    println!("{} bytes of YAML in {elapsed:?}", text.len());
    let text = node.to_json().to_string();
    let start = Instant::now();
    json(&text).unwrap();
    println!("{} bytes of JSON in {:?}", text.len(), start.elapsed());
    assert!(elapsed < Duration::from_secs(3));
}

#[test]
fn a_lenient_reader_takes_the_first_document_and_commas_at_the_end() {
    let text = "# c\n---\na: |\n  x\n---\nb: [\n";
    let lenient = Node::parse(text, &Options::envoy("e.yaml")).unwrap();
    assert_eq!(lenient.get("a").and_then(Node::as_str), Some("x\n"));
    assert_eq!(second_document(text), Some(Place::new(5, 1)));
    assert_eq!(second_document("# c\n\n---\na: 1\n...\n"), None);
    assert!(Node::parse(text, &Options::default()).unwrap_err().reason.contains("a second YAML document"));
    let json = "{\"a\": [1, 2,\n ], }";
    assert_eq!(
        Node::parse(json, &Options::envoy("e.json")).unwrap().to_json(),
        serde_json::json!({"a": [1, 2]})
    );
    assert!(Node::parse(json, &Options::for_file("e.json")).is_err());
    assert!(Node::parse("[,]", &Options::envoy("e.json")).is_err());
    assert!(Node::parse("[1,,]", &Options::envoy("e.json")).is_err());
}

/// Envoy refuses `name: n`, and `enabled: y` in a Struct is a boolean there; both were strings.
#[test]
fn single_letters_are_booleans_for_envoy_alone() {
    let text = "[y, n, Y, N, 'y', \"n\", ye, yes, nO]";
    let read = |options: Options| Node::parse(text, &options).unwrap().to_json();
    assert_eq!(
        read(Options::envoy("e.yaml")),
        serde_json::json!([true, false, true, false, "y", "n", "ye", true, "nO"])
    );
    assert_eq!(read(Options::default()), serde_json::json!(["y", "n", "Y", "N", "y", "n", "ye", true, "nO"]));
}
