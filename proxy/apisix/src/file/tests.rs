#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;

use super::*;

fn none() -> EnvVars {
    EnvVars::Fixed(HashMap::new())
}

/// Section, position, line and content of every item.
fn shown(items: &[Item<'_>]) -> Vec<(String, usize, u32, String)> {
    let show = |item: &Item<'_>| {
        let node = item.parse().unwrap();
        (
            item.section.key().to_owned(),
            item.index,
            item.line + node.place.line - 1,
            node.to_json().to_string(),
        )
    };
    items.iter().map(show).collect()
}

/// Both ways of reading must agree wherever the split answers at all.
fn assert_same(text: &str) -> Vec<(String, usize, u32, String)> {
    let by_split = shown(&split(text).expect("the usual layout"));
    assert_eq!(by_split, shown(&parse(text, Format::Yaml, &none()).items));
    by_split
}

const USUAL: &str = "\
# a comment
routes:
  - id: 1 # one
    uri: /a

    # within
    desc: |
      - not an item
      #END of nothing
  -
    uri: /b
    upstream:
      nodes:
        - host: a
          port: 80

upstreams: # none here

services:
- id: s
  desc: 'it''s'
- {id: t}
#END
";

#[test]
fn the_usual_layout_is_split() {
    let items = assert_same(USUAL);
    let places: Vec<_> = items.iter().map(|(s, i, l, _)| (s.as_str(), *i, *l)).collect();
    assert_eq!(places, [("routes", 1, 3), ("routes", 2, 11), ("services", 1, 20), ("services", 2, 22)]);
    assert_eq!(items[0].3, r##"{"id":1,"uri":"/a","desc":"- not an item\n#END of nothing\n"}"##);
}

#[test]
fn lines_may_end_as_on_windows() {
    assert_eq!(assert_same(&USUAL.replace('\n', "\r\n")), assert_same(USUAL));
}

#[test]
fn places_are_those_of_the_item() {
    let items = split(USUAL).unwrap();
    let node = items[1].parse().unwrap();
    let port =
        node.get("upstream").and_then(|u| u.get("nodes")).and_then(|n| n.as_array()?.first()?.get("port"));
    // Lines count from the first of the item, and that is told apart.
    assert_eq!((items[1].line, port.unwrap().place), (10, Place::new(6, 17)));
}

#[test]
fn unusual_layouts_are_left_to_the_parser() {
    for text in [
        "{routes: []}",
        "routes: []\n",
        "routes: [{uri: /a}]\n",
        "routes:\n  a: 1\n",
        "routes:\n  - uri: /a\nroutes:\n  - uri: /b\n",
        "---\nroutes:\n  - uri: /a\n",
        "routes:\n  - uri: /a\n...\n",
        "\"routes\":\n  - uri: /a\n",
        "routes:\n    - uri: /a\n  - uri: /b\n",
        "unknown:\n  - a\n",
        "- routes\n",
        "routes:\n\t- uri: /a\n",
        "routes: &a\n  - uri: /a\n",
        "routes:#\n  - uri: /a\n",
        "routes:\n  # comment\n  uri: /a\n",
        "routes:\n  - {uri: /a,\r id: a}\n",
        // Found by fuzzing: the parser refuses these characters in comments too.
        "# \0\nroutes:\n  - uri: /a\n",
        "routes: # \u{1b}\n  - uri: /a\n",
        "routes:\n# \u{7f}\n  - uri: /a\n",
        "# \u{ffff}\n",
    ] {
        assert_eq!(split(text), None, "{text:?}");
    }
}

#[test]
fn a_split_inside_a_value_shows_as_an_item_that_does_not_parse() {
    for text in [
        "routes:\n  - uri: \"/a\n  - b\"\n",
        "routes:\n  - {uri: /a,\n  - b}\n",
        "routes:\n  - &a {uri: /a}\n  - *a\n",
        "routes:\n  - {uri: /a, upstream: &u {nodes: {}}}\n  - {uri: /b, upstream: *u}\n",
    ] {
        let items = split(text).unwrap();
        assert!(items.iter().any(|item| item.parse().is_none()), "{text:?}");
    }
}

#[test]
fn a_change_changes_one_fingerprint() {
    let before = split(USUAL).unwrap();
    let changed = USUAL.replace("uri: /b", "uri: /c");
    let after = split(&changed).unwrap();
    let differ: Vec<_> = before.iter().zip(&after).map(|(a, b)| a.fingerprint != b.fingerprint).collect();
    assert_eq!(differ, [false, true, false, false]);
}

#[test]
fn the_end_marker_is_asked_for_as_apisix_does() {
    for text in ["#END", "routes: []\n#END\n", "# x #END  \n \n", "a#END"] {
        assert!(is_complete(text), "{text:?}");
    }
    for text in ["", "#END x", "# END", "#EN", "#END\n\n\n\n\n\n\n\n\n\n\n"] {
        assert!(!is_complete(text), "{text:?}");
    }
}

#[test]
fn top_level_faults_have_a_place() {
    let errors = parse("route:\n  - {}\nssls: 1\n", Format::Yaml, &none()).errors;
    let texts = |errors: Vec<ConfigError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(errors), ["3:7: ssls: expected a list, found a number"]);
    // As in APISIX, where people keep anchors under keys of their own.
    let Whole { items, warnings, .. } = parse("route:\n  - {}\nssls: []\n", Format::Yaml, &none());
    assert_eq!(items, []);
    assert_eq!(texts(warnings), ["1:1: route: unknown field; did you mean \"routes\"?"]);
    assert!(!parse("[1]", Format::Json, &none()).errors.is_empty());
    assert_eq!(parse("", Format::Yaml, &none()).items, []);
    assert_eq!(parse("routes:\n", Format::Yaml, &none()).items, []);
}

#[test]
fn json_has_its_variables_replaced_in_values() {
    let environment = EnvVars::Fixed(HashMap::from([("W".to_owned(), "5".to_owned())]));
    let items = parse(r#"{"upstreams": [{"nodes": {"a:80": "${{W}}"}}]}"#, Format::Json, &environment).items;
    assert_eq!(items[0].parse().unwrap().to_json(), serde_json::json!({"nodes": {"a:80": 5}}));
}

#[test]
fn large_files_are_refused_unread() {
    let path = std::env::temp_dir().join(format!("sixfold-apisix-large-{}", std::process::id()));
    std::fs::File::create(&path).unwrap().set_len(50 << 20).unwrap();
    let error = read(&path).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    assert!(error.reason.contains("larger than the limit"), "{error}");
    assert!(read(&path).unwrap_err().reason.contains("can't be opened"));
}

/// Prints what `docs` and the design speak of; the bound is loose, for machines that do other things too.
#[test]
fn splitting_5000_routes_takes_milliseconds() {
    let mut text = String::from("routes:\n");
    for i in 0..5000 {
        text.push_str(&format!(
            "  - id: r{i}\n    uri: /api/v1/resource-{i}/*\n    hosts: [a{i}.example.com]\n    methods: [GET, POST]\n    \
             plugins:\n      proxy-rewrite:\n        regex_uri: [\"^/api/(.*)\", \"/$1\"]\n    upstream_id: u{i}\n"
        ));
    }
    let start = std::time::Instant::now();
    let items = split(&text).unwrap();
    let elapsed = start.elapsed();
    assert_eq!(items.len(), 5000);
    eprintln!("split and hash of 5,000 routes ({} KiB): {elapsed:?}", text.len() >> 10);
    assert!(elapsed.as_millis() < 200, "{elapsed:?}");
}

/// Both were told without a place.
#[test]
fn what_is_wrong_with_a_text_has_its_place() {
    let given = EnvVars::Fixed(HashMap::from([("GIVEN".to_owned(), "/a\n/b".to_owned())]));
    let text = "routes:\n  - {uri: '${{GIVEN}}',\n     id: \u{e9}${{NONE}}}\n# ${{MORE}}\n";
    let places: Vec<_> = substitute(text, &given).unset.into_iter().map(|error| error.place).collect();
    // The second was told once the first was mended.
    assert_eq!(places, [Some(Place::new(3, 11)), Some(Place::new(4, 3))]);
    let path = std::env::temp_dir().join(format!("sixfold-not-utf8-{}.yaml", std::process::id()));
    std::fs::write(&path, b"routes:\n  - \xff\n").unwrap();
    let error = read(&path).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(error.place, Some(Place::new(2, 5)), "{error}");
}

/// A fault behind a variable had the place that it has once the value is there.
#[test]
fn places_are_those_of_the_file_as_it_was_written() {
    let given = EnvVars::Fixed(HashMap::from([
        ("S".to_owned(), "x".to_owned()),
        ("L".to_owned(), "1\n2\n3".to_owned()),
    ]));
    let text = "a: ${{S}} b\nc: [${{S}}, ${{L}}, d]\n\u{e9}\u{e9}: ${{S}} e\n";
    let replaced = substitute(text, &given);
    for (now, written) in [
        ("a", "a"),
        ("x b", "${{S}} b"),
        (" b", " b"),
        ("c", "c"),
        ("2\n", "${{L}}"),
        ("d]", "d]"),
        ("e\n", "e\n"),
    ] {
        let place = |text: &str, part: &str| Place::behind(&text[..text.find(part).unwrap()]);
        assert_eq!(replaced.places.written(place(&replaced.text, now)), place(text, written), "{now}");
    }
    assert_eq!(substitute("a: b", &given).places.written(Place::new(1, 4)), Place::new(1, 4));
}

/// Each was counted from the beginning of the text.
#[test]
fn places_of_many_variables_are_counted_in_one_pass() {
    let text = "a: ${{A}}\n".repeat(200_000);
    let unset = substitute(&text, &EnvVars::Fixed(HashMap::new())).unset;
    assert_eq!(unset.last().and_then(|error| error.place), Some(Place::new(200_000, 4)));
}

/// The end of each was looked for up to the end of the text.
#[test]
fn references_that_do_not_end_are_none_at_once() {
    for text in
        ["a: ${{A\n".repeat(200_000), "a: ${{A:=\n".repeat(200_000), "a: ${{A b\n".repeat(200_000) + "}}"]
    {
        assert_eq!(substitute(&text, &none()).text, text);
    }
    let given = EnvVars::Fixed(HashMap::from([("A".to_owned(), "x".to_owned())]));
    assert_eq!(substitute("${{ A }}${{B:= ${{A }}${{A b}}${{A}", &given).text, "x${{A${{A b}}${{A}");
}
