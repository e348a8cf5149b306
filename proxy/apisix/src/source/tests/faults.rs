//! What is wrong: where that is told, and what stays.
use super::*;

/// The whole file was refused for one item.
#[test]
fn a_wrong_item_keeps_its_last_good_value_and_the_others_change() {
    let mut source = testing::source("");
    update(&mut source, BASE);
    let kept = source.route("a").unwrap().clone();
    let bad = BASE.replace("uri: /a,", "uri: 5,").replace("'127.0.0.1:82': 1", "'127.0.0.1:83': 1");
    let taken = source.update(resources(&bad)).unwrap();
    assert_eq!(touched(&taken.diff), ["+services/s"]);
    assert_eq!(taken.refused.len(), 1, "{:?}", taken.refused);
    assert!(
        taken.refused[0].to_string().starts_with("apisix.yaml:2:13: route \"a\": uri: "),
        "{:?}",
        taken.refused
    );
    assert!(Arc::ptr_eq(&kept, source.route("a").unwrap()));
    // It is told once, and forgotten when it is mended.
    let again = source.update(resources(&bad)).unwrap();
    assert!(again.diff.is_empty() && again.refused.is_empty());
    assert_eq!(touched(&update(&mut source, &bad.replace("uri: 5,", "uri: /e,"))), ["+table apisix"]);
    assert_eq!(&*source.route("a").unwrap().ids.uris[0], "/e");
}

#[test]
fn at_start_a_wrong_item_is_left_out_with_what_needs_it() {
    let mut source = testing::source("");
    let text = BASE.replace("name: shop", "nam: shop").replace("uri: /a,", "uri: /a, uid: 1,");
    let update = source.update(resources(&text)).unwrap();
    let refused: Vec<_> = update.refused.iter().map(ToString::to_string).collect();
    assert_eq!(
        refused,
        [
            "apisix.yaml:2:22: route \"a\": uid: additional properties forbidden, found uid; did you mean \"id\"?",
            "apisix.yaml:3:24: route \"b\": service_id: service \"s\" is wrong itself",
            "apisix.yaml:4:22: route \"c\": service_id: service \"s\" is wrong itself",
            "apisix.yaml:6:13: service \"s\": nam: additional properties forbidden, found nam; did you mean \"name\"?",
        ]
    );
    let answers = |source: &TextSource| matches!(source.route("b").unwrap().action, Action::Direct(_));
    assert!(source.route("a").is_none() && answers(&source));
    assert!(touched(&update.diff).contains(&"+upstreams/1".to_owned()));
    // Once the service is right, what is without it is whole.
    let diff = update_rest(&mut source, &text.replace("nam: shop", "name: shop"), 0);
    assert_eq!(touched(&diff), ["+services/s", "+table apisix"]);
    assert!(!answers(&source) && target(&source, "c").is_some() && source.route("a").is_none());
}

#[test]
fn faults_name_file_place_resource_field_and_reason() {
    assert_eq!(
        faults("routes:\n  - id: a\n    uri: 5\n    plugins: {}\n"),
        [
            "apisix.yaml:3:5: route \"a\": uri: property \"uri\" validation failed: wrong type: expected string, got number"
        ]
    );
    assert_eq!(
        faults("routes:\n  - uri: /\n    plugins: {}\n    uid: 1\n"),
        [
            "apisix.yaml:4:5: route \"arr_1\": uid: additional properties forbidden, found uid; did you mean \"id\"?"
        ]
    );
    assert_eq!(
        faults("routes:\n  - uri: /\n    plugins: {}\n    host: a\n    hosts: [a]\n"),
        ["apisix.yaml:5:5: route \"arr_1\": hosts: only one of host or hosts is allowed"]
    );
    assert_eq!(
        faults("upstreams:\n  - id: u\n    nodes:\n      - host: a\n        weight: 1\n        port: 0\n")
            .len(),
        1
    );
    assert_eq!(
        faults("routes:\n  - uri: /a\n    plugins:\n      marker: {text: 1}\n      none: {}\n"),
        [
            "apisix.yaml:4:16: route \"arr_1\": plugins.marker.text: failed to check the configuration of plugin marker \
         err: property \"text\" validation failed: wrong type: expected string, got number",
            "apisix.yaml:5:7: route \"arr_1\": plugins.none: unknown plugin [none]",
        ]
    );
    assert_eq!(faults("routes:\n  - uri: /a\n    plugins: {}\n    vars: [[a, '<>', 1]]\n").len(), 1);
    // What the schema has told is not told again, and what it lets pass is told.
    let of = |field: &str| faults(&format!("routes:\n  - uri: /a\n    plugins: {{}}\n    {field}\n"));
    let one = of("remote_addr: localhost");
    assert!(one.len() == 1 && one[0].contains("remote_addr: property \"remote_addr\" validation"), "{one:?}");
    assert_eq!(
        of("remote_addr: 999.0.0.0/8"),
        ["apisix.yaml:4:5: route \"arr_1\": remote_addr: invalid ip address: 999.0.0.0/8"]
    );
    let several = of("remote_addrs: [10.0.0.1, localhost, 999.0.0.0/8]");
    assert_eq!(several.len(), 2, "{several:?}");
    assert!(several[0].contains("remote_addrs[1]: property"), "{several:?}");
    assert_eq!(
        several[1],
        "apisix.yaml:4:41: route \"arr_1\": remote_addrs[2]: invalid ip address: 999.0.0.0/8"
    );
    // Each was compared with all that were told.
    let many: String = (0..50_000).map(|n| format!("999.{}.{}.0/8, ", n / 250, n % 250)).collect();
    assert_eq!(of(&format!("remote_addrs: [{many}10.0.0.1]")).len(), 50_000);
    assert_eq!(
        faults("routes:\n  - uri: /a\n    plugins: {}\n    filter_func: 'function(vars) return true end'\n"),
        [
            "apisix.yaml:4:5: route \"arr_1\": filter_func: not supported: Lua is not run; `vars` tells requests apart \
          (docs/plugins/without-lua.md)"
        ]
    );
}

#[test]
fn missing_references_are_refused() {
    assert_eq!(
        faults(
            "routes:\n  - id: a\n    uri: /\n    service_id: s\n    upstream_id: 7\n    plugin_config_id: p\n\
             upstreams:\n  - id: 1\n    scheme: https\n    nodes: {}\n    tls: {client_cert_id: c}\n"
        ),
        [
            "apisix.yaml:4:5: route \"a\": service_id: there is no service \"s\"",
            "apisix.yaml:5:5: route \"a\": upstream_id: there is no upstream \"7\"",
            "apisix.yaml:6:5: route \"a\": plugin_config_id: there is no plugin config \"p\"",
            "apisix.yaml:11:11: upstream \"1\": client_cert_id: there is no ssl \"c\"",
        ]
    );
    // The place is right, too, for an item that was read before and has moved.
    let mut source = testing::source("");
    update(
        &mut source,
        "routes:\n  - id: a\n    uri: /\n    upstream_id: 7\nupstreams:\n  - {id: 7, nodes: {}}\n",
    );
    let moved = "# one\n# two\nroutes:\n  - id: a\n    uri: /\n    upstream_id: 7\n";
    let errors = source.change(resources(moved)).map(|_| ()).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "apisix.yaml:6:5: route \"a\": upstream_id: there is no upstream \"7\""
    );
}

/// What a plugin says of its configuration stood at the first line of the resource.
#[test]
fn a_plugin_that_can_not_be_built_is_told_where_it_stands() {
    let mut source = testing::source("");
    let text = "routes:\n  - id: a\n    uri: /a\n    plugins:\n      other: {}\n      marker:\n        text: unbuildable\n\
                \x20   upstream: {nodes: {'127.0.0.1:80': 1}}\n#END\n";
    let refused = source.update(resources(text)).unwrap().refused;
    let refused: Vec<_> = refused.iter().map(ToString::to_string).collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].starts_with("apisix.yaml:7:9: route \"a\": plugins.marker.text: "), "{refused:?}");
}

/// It was a `-` in each line.
#[test]
fn an_unknown_variable_of_the_access_log_is_an_error_of_its_key() {
    let mut source = testing::source("nginx_config:\n  http:\n    access_log_format: '$remote_addr $foo'\n");
    let errors = source.update(resources("routes: []\n#END\n")).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "config.yaml:4:5: nginx_config.http.access_log_format: unknown variable \"$foo\""
    );
}

/// By its position an item without an id was taken for another one: what had been deleted stayed, and what was right
/// went, when the same edit made a mistake.
#[test]
fn a_wrong_item_without_an_id_does_not_keep_what_stood_in_its_place() {
    let item = |uri: &str, rest: &str| {
        format!("  - {{uri: {uri}, upstream: {{nodes: {{'127.0.0.1:80': 1}}}}{rest}}}\n")
    };
    let list = |items: &[String]| format!("routes:\n{}#END\n", items.concat());
    let uris = |source: &TextSource| {
        let uri = |n| source.route(&format!("arr_{n}")).map(|route| route.ids.uris[0].to_string());
        (1..4).filter_map(uri).collect::<Vec<_>>()
    };
    let (secret, a, b) = (item("/secret", ""), item("/a", ""), item("/b", ""));
    let bad = |uri: &str| item(uri, ", nonsense: 1");
    let mut source = testing::source("");
    update(&mut source, &list(&[secret.clone(), a.clone(), b.clone()]));
    // At its own position it keeps its last good value.
    let taken = source.update(resources(&list(&[secret.clone(), a.clone(), bad("/b")]))).unwrap();
    assert_eq!((taken.refused.len(), uris(&source)), (1, vec!["/secret".into(), "/a".into(), "/b".into()]));
    // Elsewhere it has none, and the others are what the file says.
    let taken = source.update(resources(&list(&[a, bad("/b")]))).unwrap();
    assert_eq!((taken.refused.len(), uris(&source)), (1, vec!["/a".into()]));
    assert!(touched(&taken.diff).contains(&"-routes/arr_3".to_owned()), "{:?}", touched(&taken.diff));
    update(&mut source, &list(&[secret.clone(), b.clone()]));
    source.update(resources(&list(&[bad("/b")]))).unwrap();
    assert!(uris(&source).is_empty(), "{:?}", uris(&source));
    // Two that are told apart by their conditions alone, as canaries are.
    let canary =
        |version: &str, rest: &str| item("/x", &format!(", vars: [[arg_v, '==', '{version}']]{rest}"));
    update(&mut source, &list(&[canary("one", ""), canary("two", "")]));
    source.update(resources(&list(&[canary("two", ", nonsense: 1")]))).unwrap();
    assert!(uris(&source).is_empty(), "{:?}", uris(&source));
    // What only does not fit together with the others is no better.
    update(&mut source, &list(&[secret, b]));
    let lost = item("/b", ", service_id: nowhere");
    source.update(resources(&list(std::slice::from_ref(&lost)))).unwrap();
    assert_eq!(uris(&source), ["/b"], "its requests are answered with an error");
    let service = format!("services:\n  - {{id: nowhere}}\n{}", list(&[lost]));
    update(&mut source, &service);
    assert_eq!(uris(&source), ["/b"]);
}

/// They were left out, and their requests found another route, which may let pass what they guard.
#[test]
fn what_refers_to_nothing_answers_with_an_error_until_it_is_there() {
    let mut source = testing::source("");
    let routes = "routes:
  - {id: u, uri: /u, upstream_id: 1, plugins: {late: {}}}
  - {id: s, uri: /s, service_id: s, plugins: {late: {}}}
  - {id: p, uri: /p, plugin_config_id: p, upstream: {nodes: {'127.0.0.1:80': 1}}}
  - {id: t, uri: /t, service_id: t}
";
    let services = "services:\n  - {id: t, upstream_id: 2}\n";
    let text = format!("{routes}{services}");
    let status = |source: &TextSource, id: &str| match &source.route(id).unwrap().action {
        Action::Direct(direct) => direct.status,
        _ => 0,
    };
    let told = |source: &mut TextSource, text: &str| source.update(resources(text)).unwrap().refused.len();
    assert_eq!(told(&mut source, &text), 4);
    assert_eq!(["u", "s", "p", "t"].map(|id| status(&source, id)), [502, 404, 503, 502]);
    assert!(source.chain_of("u").is_some(), "plugins that guard it do so");
    assert!(source.chain_of("s").is_none() && source.chain_of("t").is_none());
    assert_eq!(told(&mut source, &text), 0, "once");
    assert_eq!(told(&mut source, &format!("# moved\n{text}")), 0);
    assert_eq!(source.source.state.refused.len(), 4);
    // One after the other comes.
    let upstreams = "upstreams:\n  - {id: 1, nodes: {'127.0.0.1:81': 1}}\n";
    assert_eq!(told(&mut source, &format!("{text}{upstreams}")), 0);
    assert_eq!(["u", "s", "p", "t"].map(|id| status(&source, id)), [0, 404, 503, 502]);
    assert_eq!(source.source.state.refused.len(), 3);
    let all = format!(
        "{routes}{services}  - {{id: s, upstream_id: 1}}\n{upstreams}  - {{id: 2, nodes: {{'127.0.0.1:82': 1}}}}\n\
         plugin_configs:\n  - {{id: p, plugins: {{late: {{}}}}}}\n"
    );
    assert_eq!(told(&mut source, &all), 0);
    assert_eq!(["u", "s", "p", "t"].map(|id| status(&source, id)), [0; 4]);
    assert!(source.source.state.refused.is_empty() && source.chain_of("p").is_some());
    // What is better known stays.
    assert_eq!(
        told(&mut source, &all.replace("{id: u, uri: /u, upstream_id: 1", "{id: u, uri: /u, upstream_id: 9")),
        1
    );
    assert_eq!(status(&source, "u"), 0);
}

/// What variables that are not set hide was said not to be there.
#[test]
fn nothing_is_missing_that_a_variable_may_stand_for() {
    let route = "{id: a, uri: /a, upstream_id: 1, service_id: 2}";
    let told = |name: &str, text: &str| {
        let file = format!("sixfold-hidden-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(file);
        std::fs::write(&path, text).unwrap();
        let environment = EnvVars::Fixed(Default::default());
        let found = crate::validate_resources(&path, Registry::default(), environment);
        std::fs::remove_file(&path).unwrap();
        let all: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        let (unset, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|one| one.contains("can't find environment variable"));
        assert_eq!(unset.len(), 1, "{text}: {unset:?}");
        others.iter().map(|one| one.rsplit_once(": ").unwrap().1.to_owned()).collect::<Vec<_>>()
    };
    let (upstream, service) = ("there is no upstream \"1\"", "there is no service \"2\"");
    for (rest, expected) in [
        ("upstreams: ${{UPS}}\n", vec![service]),
        ("upstreams:\n  - ${{UPS}}\n", vec![service]),
        ("upstreams:\n  - {id: '${{U}}', nodes: {'127.0.0.1:80': 1}}\n", vec![service]),
        ("upstreams:\n  - {'${{K}}': 1, nodes: {'127.0.0.1:80': 1}}\n", vec![service]),
        ("services:\n  - id: s${{S}}\n", vec![upstream]),
        ("'${{SEC}}':\n  - {id: 1, nodes: {'127.0.0.1:80': 1}}\n", vec![]),
        // Nothing of it is what they are called.
        ("upstreams:\n  - {id: 3, name: '${{N}}', nodes: {'127.0.0.1:80': 1}}\n", vec![upstream, service]),
    ] {
        let text = format!("routes:\n  - {route}\n{rest}#END\n");
        assert_eq!(told("f.yaml", &text), expected, "{text}");
    }
    let json = r#"{"routes": [{"id": "a", "uri": "/a", "upstream_id": "1", "service_id": "2"}], "upstreams": "${{U}}"}"#;
    assert_eq!(told("f.json", json), [service]);
}
