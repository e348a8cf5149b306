#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use sixfold_core::route::{Action, ClusterChoice};

use super::*;
use crate::testing;

fn resources(text: &str) -> Resources<'_> {
    Resources { text, format: Format::Yaml, name: "apisix.yaml" }
}

fn update(source: &mut Source, text: &str) -> Diff {
    source.update(resources(text)).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn faults(text: &str) -> Vec<String> {
    let mut source = testing::source("");
    let errors = source.update(resources(text)).map(|_| ()).unwrap_err();
    errors.iter().map(ToString::to_string).collect()
}

/// What a diff touches, in short.
fn touched(diff: &Diff) -> Vec<String> {
    let sign = |is_there: bool| if is_there { "+" } else { "-" };
    let clusters = diff.clusters.iter().map(|(name, cluster)| format!("{}{name}", sign(cluster.is_some())));
    let tables =
        diff.route_tables.iter().map(|(name, table)| format!("{}table {name}", sign(table.is_some())));
    let listeners = diff.listeners.iter().map(|(name, l)| format!("{}listener {name}", sign(l.is_some())));
    let mut all: Vec<_> = clusters.chain(tables).chain(listeners).collect();
    all.sort();
    all
}

/// The cluster that a route sends to.
fn target(source: &Source, id: &str) -> Option<String> {
    let route = source.compiled.route(id).unwrap();
    match &route.action {
        Action::Forward(forward) => match &forward.cluster {
            ClusterChoice::Named(cell) => Some(cell.name.to_string()),
            other => panic!("{other:?}"),
        },
        Action::NonForwarding => None,
        other => panic!("{other:?}"),
    }
}

const BASE: &str = "\
routes:
  - {id: a, uri: /a, upstream_id: 1}
  - {id: b, uri: /b/*, service_id: s, upstream: {nodes: {'127.0.0.1:81': 1}}}
  - {id: c, uri: /c, service_id: s, plugins: {late: {}}}
services:
  - {id: s, name: shop, upstream: {nodes: {'127.0.0.1:82': 1}}, plugins: {other: {}}, hosts: [shop.example.com]}
upstreams:
  - id: 1
    nodes:
      127.0.0.1:80: 1
#END
";

#[test]
fn the_first_update_brings_everything() {
    let mut source = testing::source("apisix: {node_listen: 9080, enable_ipv6: false, ssl: {enable: false}}");
    let diff = update(&mut source, BASE);
    assert_eq!(
        touched(&diff),
        ["+listener http/0.0.0.0:9080", "+routes/b", "+services/s", "+table apisix", "+upstreams/1",]
    );
    assert_eq!(target(&source, "a").as_deref(), Some("upstreams/1"));
    assert_eq!(target(&source, "b").as_deref(), Some("routes/b"));
    assert_eq!(target(&source, "c").as_deref(), Some("services/s"));
    let route = source.compiled.route("c").unwrap();
    assert_eq!((&*route.ids.route, &*route.ids.service, &*route.ids.service_name), ("c", "s", "shop"));
    let names: Vec<_> = route.chain.as_ref().unwrap().names().iter().map(|name| &**name).collect();
    assert_eq!(names, ["other", "late"]);
}

#[test]
fn the_same_again_changes_nothing() {
    let mut source = testing::source("");
    update(&mut source, BASE);
    assert!(update(&mut source, BASE).is_empty());
    // Nor does another spelling of the same layout.
    assert!(touched(&update(&mut source, &BASE.replace("#END", "# comment\n#END"))).len() <= 1);
}

#[test]
fn what_is_replaced_is_freed_with_the_diff() {
    let mut source = testing::source("");
    update(&mut source, BASE);
    let route = Arc::downgrade(&source.compiled.route("a").unwrap());
    let diff = update(&mut source, &BASE.replace("uri: /a", "uri: /a2"));
    assert!(route.upgrade().is_some(), "freeing it must not delay the change");
    drop(diff);
    assert!(route.upgrade().is_none());
}

#[test]
fn a_change_touches_what_depends_on_it() {
    let mut source = testing::source("");
    update(&mut source, BASE);
    let kept = source.compiled.route("a").unwrap();
    let node = BASE.replace("127.0.0.1:80: 1", "127.0.0.1:80: 5");
    assert_eq!(touched(&update(&mut source, &node)), ["+upstreams/1"]);
    assert!(Arc::ptr_eq(&kept, &source.compiled.route("a").unwrap()));
    let uri = node.replace("uri: /b/*", "uri: /bb/*");
    assert_eq!(touched(&update(&mut source, &uri)), ["+table apisix"]);
    assert!(Arc::ptr_eq(&kept, &source.compiled.route("a").unwrap()));
    let service = uri.replace("name: shop", "name: store");
    assert_eq!(touched(&update(&mut source, &service)), ["+table apisix"]);
    assert_eq!(&*source.compiled.route("c").unwrap().ids.service_name, "store");
    let moved = service.replace("service_id: s, upstream: {nodes: {'127.0.0.1:81': 1}}", "upstream_id: 1");
    assert_eq!(touched(&update(&mut source, &moved)), ["+table apisix", "-routes/b"]);
    // The timeouts of an upstream are the routes' business.
    let slow = moved.replace("- id: 1\n", "- id: 1\n    timeout: {connect: 1, send: 1, read: 1}\n");
    assert_eq!(touched(&update(&mut source, &slow)), ["+table apisix", "+upstreams/1"]);
    assert!(!Arc::ptr_eq(&kept, &source.compiled.route("a").unwrap()));
}

#[test]
fn plugins_of_unchanged_resources_are_not_built_again() {
    let mut source = testing::source("");
    let text = BASE.replace("plugins: {other: {}}", "plugins: {marker: {text: built-once}}");
    update(&mut source, &text);
    update(&mut source, &text.replace("uri: /c", "uri: /d"));
    let times = testing::built().iter().filter(|(_, config)| config["text"] == "built-once").count();
    assert_eq!(times, 1);
    assert!(
        testing::built()
            .iter()
            .any(|(resource, config)| { resource == "/apisix/services/s" && config["text"] == "built-once" })
    );
}

#[test]
fn global_rules_reach_every_route_and_requests_without_one() {
    let mut source = testing::source("");
    update(&mut source, BASE);
    let text = BASE.replace("#END", "global_rules:\n  - {id: 1, plugins: {prometheus: {}}}\n#END");
    assert_eq!(touched(&update(&mut source, &text)), ["+table apisix"]);
    let chain = |id: &str| source.compiled.route(id).unwrap().chain.clone().unwrap();
    assert_eq!(chain("a").names().len(), 1);
    assert_eq!(&*chain("c").names()[0], "prometheus");
    assert!(Arc::ptr_eq(&chain("a"), source.compiled.global_chain().unwrap()));
}

#[test]
fn a_bad_file_changes_nothing() {
    let mut source = testing::source("");
    update(&mut source, BASE);
    let bad = BASE.replace("uri: /a,", "uri: 5,").replace("'127.0.0.1:82': 1", "'127.0.0.1:83': 1");
    assert!(source.update(resources(&bad)).is_err());
    assert!(update(&mut source, BASE).is_empty());
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
        ["apisix.yaml:4:5: route \"arr_1\": uid: additional properties forbidden, found uid"]
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
    assert_eq!(
        faults("routes:\n  - uri: /a\n    plugins: {}\n    filter_func: 'function(vars) return true end'\n"),
        ["apisix.yaml:4:5: route \"arr_1\": filter_func: not supported: Lua is not run"]
    );
}

#[test]
fn duplicate_ids_are_refused() {
    assert_eq!(
        faults("routes:\n  - {id: a, uri: /, plugins: {}}\n  - {id: 'a', uri: /b, plugins: {}}\n"),
        ["apisix.yaml:3:1: route \"a\": id: found duplicate id a in routes, first given at line 2"]
    );
    // A number and its text are one id.
    assert_eq!(faults("upstreams:\n  - {id: 1, nodes: {}}\n  - {id: '1', nodes: {}}\n").len(), 1);
    let mut source = testing::source("");
    update(&mut source, "routes:\n  - {id: a, uri: /, plugins: {}}\nservices:\n  - {id: a}\n");
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
    let errors = source.update(resources(moved)).map(|_| ()).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "apisix.yaml:6:5: route \"a\": upstream_id: there is no upstream \"7\""
    );
}

#[test]
fn kinds_without_a_user_are_refused_by_name() {
    for (kind, item) in [
        ("consumers", "{username: jack}"),
        ("consumer_groups", "{id: g, plugins: {}}"),
        ("stream_routes", "{id: 1}"),
        ("protos", "{id: 1, content: 'x'}"),
        ("secrets", "{id: vault/1}"),
        ("plugin_metadata", "{id: prometheus}"),
    ] {
        let faults = faults(&format!("{kind}:\n  - {item}\n"));
        assert_eq!(faults.len(), 1);
        assert!(faults[0].contains(&format!("{kind} are not supported")), "{faults:?}");
    }
}

#[test]
fn a_route_that_is_off_takes_no_part() {
    let mut source = testing::source("");
    update(&mut source, "routes:\n  - {id: a, uri: /, plugins: {}, status: 0}\n");
    assert!(source.compiled.route("a").is_none());
}

#[test]
fn the_files_own_list_of_plugins_counts() {
    let mut source = testing::source("plugins: [marker]");
    let route = "routes:\n  - {id: a, uri: /, plugins: {other: {}}}\n";
    assert!(source.update(resources(route)).is_err());
    update(&mut source, &format!("{route}plugins:\n  - name: other\n  - {{name: late, stream: true}}\n"));
    // What was valid with that list is looked at again without it.
    assert!(source.update(resources(route)).is_err());
    assert!(faults("plugins:\n  - {nam: x}\n")[0].contains("plugins[0]"));
}

#[test]
fn layouts_that_can_not_be_split_mean_the_same() {
    let shared = "\
routes:
  - {id: a, uri: /a, upstream: &up {nodes: {'127.0.0.1:80': 1}}}
  - {id: b, uri: /b, upstream: *up}
";
    let mut source = testing::source("");
    let diff = update(&mut source, shared);
    assert!(touched(&diff).contains(&"+routes/b".to_owned()));
    assert!(update(&mut source, shared).is_empty());
    let flow = "{routes: [{id: a, uri: /a, plugins: {}}]}";
    assert_eq!(touched(&update(&mut source, flow)), ["+table apisix", "-routes/a", "-routes/b"]);
    let json = r#"{"routes": [{"id": "a", "uri": "/b", "plugins": {}}]}"#;
    let diff = source.update(Resources { text: json, format: Format::Json, name: "apisix.json" }).unwrap();
    assert_eq!(touched(&diff), ["+table apisix"]);
}

#[test]
fn files_are_read_from_a_directory() {
    let directory = std::env::temp_dir().join(format!("sixfold-apisix-load-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (config, resources) = (directory.join("config.yaml"), directory.join("apisix.yaml"));
    std::fs::write(&config, "deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}\n")
        .unwrap();
    let read = || load(load_config(&config, &Environment::Process)?, &config, testing::setup());
    let missing = read().map(|_| ()).unwrap_err();
    assert!(missing[0].to_string().contains("apisix.yaml: can't be opened"), "{missing:?}");
    std::fs::write(&resources, BASE).unwrap();
    let Loaded { mut source, diff } = read().unwrap();
    assert_eq!(diff.clusters.len(), 3);
    // Half of the file is no file.
    std::fs::write(&resources, BASE.trim_end().trim_end_matches("#END")).unwrap();
    let half = source.reload().map(|_| ()).unwrap_err();
    assert!(half[0].reason.contains("#END"), "{half:?}");
    std::fs::write(&resources, "routes:\n#END\n").unwrap();
    assert_eq!(source.reload().unwrap().clusters.len(), 3);
    std::fs::remove_dir_all(&directory).unwrap();
}

/// One changed route of 5,000: prints what the change costs; the bound is loose for busy machines.
#[test]
fn one_changed_route_of_5000_is_cheap() {
    let text = |uri: &str| {
        let mut text = String::from("routes:\n");
        for i in 0..5000 {
            let uri = if i == 3000 { uri.to_owned() } else { format!("/r{i}/*") };
            text.push_str(&format!(
                "  - id: r{i}\n    uri: {uri}\n    upstream_id: u\n    plugins:\n      other: {{}}\n"
            ));
        }
        text + "upstreams:\n  - {id: u, nodes: {'127.0.0.1:80': 1}}\n#END\n"
    };
    let mut source = testing::source("");
    let start = std::time::Instant::now();
    update(&mut source, &text("/first/*"));
    let all = start.elapsed();
    let kept = source.compiled.route("r2999").unwrap();
    let changed = text("/second/*");
    let start = std::time::Instant::now();
    let diff = update(&mut source, &changed);
    let one = start.elapsed();
    eprintln!("5,000 routes: {all:?}; one of them changed: {one:?}");
    assert_eq!(touched(&diff), ["+table apisix"]);
    assert!(Arc::ptr_eq(&kept, &source.compiled.route("r2999").unwrap()));
    assert!(one < all, "{one:?} {all:?}");
}

/// A file of a few resources in random states.
fn random_file(rng: &mut fastrand::Rng) -> String {
    let mut text = String::from("routes:\n");
    for id in ["a", "b", "c", "d"] {
        let target = match rng.u8(..5) {
            0 => "upstream_id: u".to_owned(),
            1 => "service_id: s".to_owned(),
            2 => format!("upstream: {{nodes: {{'10.0.0.{}:80': 1}}}}", rng.u8(1..4)),
            3 => "plugins: {late: {}}\n    service_id: s".to_owned(),
            _ => continue,
        };
        let (uri, status) = (rng.u8(..3), u8::from(rng.u8(..5) > 0));
        text.push_str(&format!("  - id: {id}\n    uri: /{uri}/*\n    status: {status}\n    {target}\n"));
    }
    let (service, upstream) = (rng.u8(1..4), rng.u8(1..4));
    text.push_str(&format!(
        "services:\n  - id: s\n    name: n{service}\n    upstream: {{nodes: {{'10.0.1.{service}:80': 1}}}}\n\
         upstreams:\n  - id: u\n    nodes: {{'10.0.2.{upstream}:80': 1}}\n    retries: {}\n",
        rng.u8(..3)
    ));
    if rng.bool() {
        text.push_str("global_rules:\n  - {id: g, plugins: {prometheus: {}}}\n");
    }
    text
}

/// What a model holds, in words that two models share.
fn shown(model: &mut Model) -> Vec<String> {
    let clusters = model.clusters().all().into_iter().map(|cluster| {
        let hosts: Vec<_> = cluster.hosts.load().iter().map(|m| m.host.label.to_string()).collect();
        let retries = cluster.config.retry.as_ref().map(|retry| retry.num_retries);
        format!("{} {hosts:?} {retries:?}", cluster.config.name)
    });
    let mut all: Vec<String> = clusters.collect();
    let table = model.table_cell(ROUTE_TABLE).load().expect("a table");
    let mut routes: Vec<_> = table
        .routes()
        .map(|route| {
            format!("{} {} {:?} {:?}", route.ids.route, route.ids.service_name, route.chain, route.action)
        })
        .collect();
    routes.sort();
    all.extend(routes);
    all.extend(model.listeners().map(|listener| listener.name.to_string()));
    all
}

#[test]
fn changes_one_after_the_other_lead_where_a_fresh_start_leads() {
    let fresh = |text: &str| {
        let mut model = Model::new(Arc::default());
        let mut source = testing::source("");
        source.setup.clusters = model.clusters().clone();
        model.apply(update(&mut source, text));
        (model, source)
    };
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut model, mut source) = fresh("routes:\n");
    for step in 0..300 {
        let text = random_file(&mut rng);
        model.apply(update(&mut source, &text));
        let (mut expected, _source) = fresh(&text);
        assert_eq!(shown(&mut model), shown(&mut expected), "step {step}:\n{text}");
        assert!(update(&mut source, &text).is_empty(), "step {step}");
    }
}
