#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod consumers;
mod faults;
mod in_force;
mod metadata;
mod properties;
mod streams;

use std::time::Duration;

use sixfold_core::cluster::ClusterPolicy;
use sixfold_core::route::{Action, ClusterChoice, Forward, ForwardOptions, PassHost};

use super::*;
use crate::config::PluginNames;
use crate::store::Resources;
use crate::testing::{self, TextSource};

fn resources(text: &str) -> Resources<'_> {
    Resources { text, format: Format::Yaml, name: "apisix.yaml" }
}

fn update(source: &mut TextSource, text: &str) -> Diff {
    source.change(resources(text)).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn faults(text: &str) -> Vec<String> {
    let mut source = testing::source("");
    let errors = source.change(resources(text)).map(|_| ()).unwrap_err();
    errors.iter().map(ToString::to_string).collect()
}

/// What a diff touches, in short.
fn touched(diff: &Diff) -> Vec<String> {
    let sign = |is_there: bool| if is_there { "+" } else { "-" };
    let clusters = diff.clusters.iter().map(|(name, cluster)| format!("{}{name}", sign(cluster.is_some())));
    let tables =
        diff.route_tables.iter().map(|(key, table)| format!("{}table {}", sign(table.is_some()), key.name));
    let listeners = diff.listeners.iter().map(|(name, l)| format!("{}listener {name}", sign(l.is_some())));
    let mut all: Vec<_> = clusters.chain(tables).chain(listeners).collect();
    all.sort();
    all
}

/// The cluster that a route sends to.
fn target(source: &TextSource, id: &str) -> Option<String> {
    let route = source.route(id).unwrap();
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

/// Clusters of upstreams that plugins bring come, change and go with their resource, and keep what did not change.
#[test]
fn upstreams_of_plugins_are_clusters_of_their_resource() {
    let mut source = testing::source("apisix: {node_listen: 9080, enable_ipv6: false, ssl: {enable: false}}");
    let text = |one: &str, two: &str| {
        let plugins = format!("{{bring: {{one: {{nodes: {{'127.0.0.1:{one}': 1}}}}{two}}}}}");
        format!(
            "routes:\n  - {{id: a, uri: /a, plugins: {plugins}, upstream: {{nodes: {{'127.0.0.1:1': 1}}}}}}\n#END\n"
        )
    };
    let two = ", two: {nodes: {'127.0.0.1:3': 1}, pass_host: node, timeout: {connect: 1, send: 2, read: 3}}";
    let diff = update(&mut source, &text("2", two));
    let clusters = |diff: &Diff| -> Vec<String> {
        touched(diff).into_iter().filter(|touched| touched.contains("routes/a")).collect()
    };
    assert_eq!(clusters(&diff), ["+routes/a", "+routes/a/one", "+routes/a/two"]);
    let two_is = |diff: &Diff| {
        let cluster = diff.clusters.iter().find(|(name, _)| &**name == "routes/a/two").unwrap();
        cluster.1.clone().unwrap()
    };
    // How requests are sent to it is known to the cluster, for it may be chosen by any route.
    let manner = two_is(&diff).config.manner.clone().unwrap();
    let manner = manner.downcast::<ForwardOptions>().unwrap();
    assert_eq!(manner.pass_host, PassHost::Node);
    assert_eq!(manner.timeouts.read, Some(Duration::from_secs(3)));
    assert!(!manner.own_timeouts);
    assert_eq!(clusters(&update(&mut source, &text("4", two))), ["+routes/a/one"]);
    assert_eq!(clusters(&update(&mut source, &text("4", ""))), ["-routes/a/two"]);
    let wrong = text("4", ", two: {nodes: {'127.0.0.1:3': x}, retries: 1, type: none}");
    let refused = source.update(resources(&wrong)).unwrap();
    assert!(clusters(&refused.diff).is_empty());
    let said = refused.refused.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(said.contains("plugins.bring.two.nodes"), "{said}");
    assert_eq!(clusters(&update(&mut source, "routes: []\n#END\n")), ["-routes/a", "-routes/a/one"]);
}

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
    let route = source.route("c").unwrap();
    assert_eq!((&*route.ids.route, &*route.ids.service, &*route.ids.service_name), ("c", "s", "shop"));
    let names: Vec<_> = route.chain.as_ref().unwrap().members().iter().map(|member| &*member.name).collect();
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
    let route = Arc::downgrade(source.route("a").unwrap());
    let diff = update(&mut source, &BASE.replace("uri: /a", "uri: /a2"));
    assert!(route.upgrade().is_some(), "freeing it must not delay the change");
    drop(diff);
    assert!(route.upgrade().is_none());
}

#[test]
fn a_change_touches_what_depends_on_it() {
    let mut source = testing::source("");
    update(&mut source, BASE);
    let kept = source.route("a").unwrap().clone();
    let node = BASE.replace("127.0.0.1:80: 1", "127.0.0.1:80: 5");
    assert_eq!(touched(&update(&mut source, &node)), ["+upstreams/1"]);
    assert!(Arc::ptr_eq(&kept, source.route("a").unwrap()));
    let uri = node.replace("uri: /b/*", "uri: /bb/*");
    assert_eq!(touched(&update(&mut source, &uri)), ["+table apisix"]);
    assert!(Arc::ptr_eq(&kept, source.route("a").unwrap()));
    let service = uri.replace("name: shop", "name: store");
    assert_eq!(touched(&update(&mut source, &service)), ["+table apisix"]);
    assert_eq!(&*source.route("c").unwrap().ids.service_name, "store");
    let moved = service.replace("service_id: s, upstream: {nodes: {'127.0.0.1:81': 1}}", "upstream_id: 1");
    assert_eq!(touched(&update(&mut source, &moved)), ["+table apisix", "-routes/b"]);
    // The timeouts of an upstream are the routes' business.
    let slow = moved.replace("- id: 1\n", "- id: 1\n    timeout: {connect: 1, send: 1, read: 1}\n");
    assert_eq!(touched(&update(&mut source, &slow)), ["+table apisix", "+upstreams/1"]);
    assert!(!Arc::ptr_eq(&kept, source.route("a").unwrap()));
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
    let chain = |id: &str| source.route(id).unwrap().chain.clone().unwrap();
    assert_eq!(chain("a").members().len(), 1);
    assert_eq!(&*chain("c").members()[0].name, "prometheus");
    assert!(Arc::ptr_eq(&chain("a"), source.global_chain().unwrap()));
}

/// The change of a text with so many new faults.
fn update_rest(source: &mut TextSource, text: &str, faults: usize) -> Diff {
    let update = source.update(resources(text)).unwrap();
    assert_eq!(update.refused.len(), faults, "{:?}", update.refused);
    update.diff
}

#[test]
fn what_others_need_is_not_removed() {
    let mut source = testing::source("");
    update(&mut source, BASE);
    let without = BASE.replace("  - id: 1\n    nodes:\n      127.0.0.1:80: 1\n", "");
    let removed = source.update(resources(&without)).unwrap();
    assert!(removed.diff.is_empty());
    assert_eq!(
        removed.refused[0].to_string(),
        "apisix.yaml:2:22: route \"a\": upstream_id: there is no upstream \"1\""
    );
    // It goes when nobody needs it any more.
    let diff = update_rest(&mut source, &without.replace("upstream_id: 1", "service_id: s"), 0);
    assert_eq!(touched(&diff), ["+table apisix", "-upstreams/1"]);
}

/// `#END` alone took everything away; APISIX fails to parse it and stays with what it has.
#[test]
fn a_file_that_holds_nothing_changes_nothing() {
    let mut source = testing::source("");
    update(&mut source, BASE);
    for text in ["#END\n", "# later\n\n#END\n", ""] {
        let update = source.update(resources(text)).unwrap();
        assert!(update.diff.is_empty() && update.warnings.len() == 1, "{update:?}");
    }
    assert!(source.route("a").is_some());
    assert_eq!(update(&mut source, "routes:\n#END\n").clusters.len(), 3);
    // At the start there is nothing to stay with.
    assert_eq!(update(&mut testing::source(""), "#END\n").route_tables.len(), 1);
}

#[test]
fn of_duplicate_ids_the_last_one_counts() {
    let mut source = testing::source("");
    let text = "routes:\n  - {id: a, uri: /, plugins: {}}\n  - {id: 'a', uri: /b, plugins: {}}\n";
    let update = source.update(resources(text)).unwrap();
    assert_eq!(
        update.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "apisix.yaml:3:1: route \"a\": id: found duplicate id a in routes, first given at line 2: this one counts"
        ]
    );
    assert_eq!(&*source.route("a").unwrap().ids.uris[0], "/b");
    // A number and its text are one id, and kinds are told apart.
    let text = "upstreams:\n  - {id: 1, nodes: {}}\n  - {id: '1', nodes: {}}\nservices:\n  - {id: 1}\n";
    assert_eq!(testing::source("").update(resources(text)).unwrap().warnings.len(), 1);
}

/// Habits of real files, all of which APISIX takes.
#[test]
fn what_apisix_takes_is_taken() {
    for (text, warnings) in [
        ("routes:\n  - {id: a, uri: /, plugins: {other: }}\n", 0),
        ("routes:\n  - {id: a, uri: /, plugins: [], methods: {}}\n", 0),
        ("routes:\n  - {id: a, uri: /, plugins: {other: []}}\n  -\n", 1),
        ("x-mine: &up {nodes: {'127.0.0.1:80': 1}}\nroutes:\n  - {id: a, uri: /, upstream: *up}\n", 1),
        ("ssls: []\nroutes:\n  - {id: a, uri: /, plugins: {}}\nssls: []\n", 1),
        ("routes:\n  - id: a\n    uri: /b\n    uri: /\n    plugins: {}\n", 1),
    ] {
        let mut source = testing::source("");
        let update = source.update(resources(text)).unwrap();
        assert_eq!((update.refused, update.warnings.len()), (Vec::new(), warnings), "{text}");
        assert_eq!(&*source.route("a").unwrap().ids.uris[0], "/", "{text}");
    }
    assert!(faults("global_rules:\n  - plugins: {prometheus: {}}\n")[0].contains("\"id\" is required"));
}

/// A change of all members of a group was held against what they were before, and refused.
#[test]
fn members_of_a_group_agree_among_themselves() {
    let mut source = testing::source("");
    let text = |counts: [u8; 3]| {
        let route = |(id, count)| {
            format!("  - {{id: {id}, uri: /{id}{count}, plugins: {{agree: {{group: g, count: {count}}}}}}}\n")
        };
        format!("routes:\n{}", ["a", "b", "c"].into_iter().zip(counts).map(route).collect::<String>())
    };
    let uris = |source: &TextSource| {
        ["a", "b", "c"].map(|id| source.route(id).map(|route| route.ids.uris[0].to_string()))
    };
    let some = |uris: [&str; 3]| uris.map(|uri| Some(uri.to_owned()));
    update(&mut source, &text([1, 1, 1]));
    update(&mut source, &text([2, 2, 2]));
    assert_eq!(uris(&source), some(["/a2", "/b2", "/c2"]));
    // Those that stay are right.
    let refused = source.update(resources(&text([3, 2, 3]))).unwrap().refused;
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(
        refused[0].to_string().ends_with("route \"a\": plugins.agree.group: group conf mismatched"),
        "{refused:?}"
    );
    assert_eq!(uris(&source), some(["/a2", "/b2", "/c2"]));
    // The last one of them to change takes the others with it.
    update(&mut source, &text([3, 3, 3]));
    assert_eq!(uris(&source), some(["/a3", "/b3", "/c3"]));
    assert_eq!(source.update(resources(&text([4, 5, 4]))).unwrap().refused.len(), 3);
    assert_eq!(uris(&source), some(["/a3", "/b3", "/c3"]));
    // At the start the first is right.
    let mut fresh = testing::source("");
    assert_eq!(fresh.update(resources(&text([1, 2, 1]))).unwrap().refused.len(), 1);
    assert_eq!(uris(&fresh), [Some("/a1".to_owned()), None, Some("/c1".to_owned())]);
}

#[test]
fn a_route_that_is_off_takes_no_part() {
    let mut source = testing::source("");
    update(&mut source, "routes:\n  - {id: a, uri: /, plugins: {}, status: 0}\n");
    assert!(source.route("a").is_none());
}

#[test]
fn the_files_own_list_of_plugins_counts() {
    let mut source = testing::source("plugins: [marker]");
    let route = "routes:\n  - {id: a, uri: /, plugins: {other: {}}}\n";
    assert!(source.change(resources(route)).is_err());
    update(&mut source, &format!("{route}plugins:\n  - name: other\n  - {{name: late, stream: true}}\n"));
    // What was valid with that list is looked at again without it.
    assert!(source.change(resources(route)).is_err());
}

#[test]
fn a_wrong_list_of_plugins_leaves_the_one_of_before() {
    let mut source = testing::source("plugins: [marker]");
    let route = |id: &str, plugin: &str| {
        format!("routes:\n  - {{id: {id}, uri: /{id}, plugins: {{{plugin}: {{text: x}}}}}}\n")
    };
    let wrong = "plugins:\n  - {name: other, stream: marker}\n";
    // That of config.yaml, and then what the file said itself.
    let text = format!("{}{wrong}", route("a", "marker"));
    let told = source.update(resources(&text)).unwrap().warnings;
    let reason = told.first().map(ToString::to_string).unwrap_or_default();
    assert!(reason.contains("plugins[0]") && reason.contains("expected boolean, got string"), "{told:?}");
    assert!(reason.ends_with("stays as it was") && source.route("a").is_some(), "{reason}");
    assert!(source.change(resources(&format!("{}{wrong}", route("b", "other")))).is_err());
    update(&mut source, &format!("{}plugins:\n  - name: other\n", route("c", "other")));
    update(&mut source, &format!("{}{wrong}", route("d", "other")));
    assert!(source.route("d").is_some());
}

/// A gateway had to be started again for it.
#[test]
fn lists_of_plugins_that_are_read_again_are_in_force() {
    let config = |text: &str| Config::standalone(text, &testing::environment()).unwrap();
    let asked = Arc::new(parking_lot::Mutex::new(Ok(config("plugins: [marker]"))));
    let answers = asked.clone();
    let reloads = Arc::new(Reloads::new(config("plugins: [marker]"), move || answers.lock().clone()));
    let woken = Arc::new(parking_lot::Mutex::new(0));
    let counted = woken.clone();
    reloads.wakes(Arc::new(move || *counted.lock() += 1));
    let mut source = testing::source("plugins: [marker]");
    source.source.follow(reloads.clone());
    let text = "routes:\n  - {id: a, uri: /a, plugins: {marker: {text: again}}}\n  - {id: b, uri: /b, plugins: {other: {}}}\n";
    let refused = source.update(resources(text)).unwrap().refused;
    assert!(refused[0].to_string().contains("[other]"), "{refused:?}");
    let built = || testing::built().into_iter().filter(|(_, of)| of["text"] == "again").count();
    let before = built();
    // The same lists again: nothing is to be done.
    reloads.reload().unwrap();
    assert!(source.update(resources(text)).unwrap().diff.is_empty());
    *asked.lock() = Err("broken".to_owned());
    assert_eq!(reloads.reload(), Err("broken".to_owned()));
    assert_eq!(*woken.lock(), 0);
    *asked.lock() = Ok(config("plugins: [marker, other]"));
    reloads.reload().unwrap();
    assert_eq!(*woken.lock(), 1);
    let update = source.update(resources(text)).unwrap();
    assert!(update.refused.is_empty() && source.route("b").is_some(), "{:?}", update.refused);
    // What others say of it is the same, so nobody is built again.
    assert_eq!(built(), before);
    *asked.lock() = Ok(config("plugins: [marker, other]\nplugin_attr: {marker: {x: 1}}"));
    reloads.reload().unwrap();
    assert!(!source.update(resources(text)).unwrap().diff.is_empty());
    assert_eq!(built(), before + 1);
    assert!(source.update(resources(text)).unwrap().diff.is_empty());
    // What is not written any more stays as it was.
    *asked.lock() = Ok(config("plugin_attr: {marker: {y: 2}}"));
    reloads.reload().unwrap();
    let current = reloads.current();
    assert_eq!(current.plugin_attr["marker"], serde_json::json!({"x": 1, "y": 2}));
    assert_eq!(current.plugins.http, Some(PluginNames::from_iter(["marker", "other"])));
    // The file's own list stays the one that counts.
    let own = format!("{text}plugins:\n  - name: marker\n");
    assert_eq!(source.update(resources(&own)).unwrap().refused.len(), 1);
    *asked.lock() = Ok(config("plugins: [other]"));
    reloads.reload().unwrap();
    source.update(resources(&own)).unwrap();
    let catalog = source.state.catalog.clone().unwrap();
    let known = |name: &str| catalog.factories().any(|factory| factory.name == name);
    assert!(source.route("a").is_some() && known("marker") && !known("other"));
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
    let diff = source.change(Resources { text: json, format: Format::Json, name: "apisix.json" }).unwrap();
    assert_eq!(touched(&diff), ["+table apisix"]);
}

#[test]
fn files_are_read_from_a_directory() {
    let directory = std::env::temp_dir().join(format!("sixfold-apisix-load-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (config, resources) = (directory.join("config.yaml"), directory.join("apisix.yaml"));
    std::fs::write(&config, "deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}\n")
        .unwrap();
    let read = || load(load_config(&config, &EnvVars::Process)?, &config, testing::context());
    let missing = read().map(|_| ()).unwrap_err();
    assert!(missing[0].to_string().contains("apisix.yaml: can't be opened"), "{missing:?}");
    std::fs::write(&resources, BASE).unwrap();
    let Loaded { mut source, update, .. } = read().unwrap();
    assert_eq!(update.diff.clusters.len(), 3);
    // Half of the file is no file.
    std::fs::write(&resources, BASE.trim_end().trim_end_matches("#END")).unwrap();
    let half = source.pull().map(|_| ()).unwrap_err();
    assert!(half[0].reason.contains("#END"), "{half:?}");
    std::fs::write(&resources, "routes:\n#END\n").unwrap();
    assert_eq!(source.pull().unwrap().diff.clusters.len(), 3);
    std::fs::remove_dir_all(&directory).unwrap();
}

/// Each route and each upstream had all of it for itself: 2 KB for every route that brings an upstream.
#[test]
fn what_is_said_alike_is_kept_once() {
    let mut source = testing::source("");
    let route = |id: &str, more: &str, upstream: &str| {
        format!("  - {{id: {id}, uri: /{id}{more}, upstream: {{nodes: {{'127.0.0.1:80': 1}}{upstream}}}}}\n")
    };
    let all = [
        route("a", "", ""),
        route("b", "", ", type: roundrobin"),
        route("c", ", enable_websocket: true", ", retries: 3"),
        route("d", "", ", timeout: {connect: 60, send: 60, read: 9}"),
        route("e", ", timeout: {connect: 60, send: 60, read: 9}", ""),
    ];
    update(&mut source, &format!("routes:\n{}#END\n", all.concat()));
    let parts = |id: &str| match &source.route(id).unwrap().action {
        Action::Forward(Forward { cluster: ClusterChoice::Named(cell), options }) => {
            (options.clone(), source.cluster(&cell.name).config.policy.clone())
        }
        other => panic!("{other:?}"),
    };
    let ((a, b), (c, d, e)) = ((parts("a"), parts("b")), (parts("c"), parts("d"), parts("e")));
    assert!(Arc::ptr_eq(&a.0, &b.0) && Arc::ptr_eq(&a.1, &b.1));
    assert!(!Arc::ptr_eq(&a.0, &c.0) && !Arc::ptr_eq(&a.1, &c.1));
    assert!(!Arc::ptr_eq(&a.0, &d.0), "another time to read is no other policy of the cluster");
    assert!(Arc::ptr_eq(&a.1, &d.1) && Arc::ptr_eq(&a.1, &e.1));
    // A route that says the timeouts itself keeps them whatever upstream a plugin chooses.
    assert_eq!((d.0.timeouts.read, d.0.own_timeouts), (e.0.timeouts.read, false));
    assert!(e.0.own_timeouts);
    assert_eq!((a.0.upgrades[0].1, c.0.upgrades[0].1), (false, true));
    assert_eq!(
        (a.0.timeouts.read, d.0.timeouts.read),
        (Some(Duration::from_secs(60)), Some(Duration::from_secs(9)))
    );
    let retries = |policy: &ClusterPolicy| policy.retry.as_ref().unwrap().num_retries;
    assert_eq!((retries(&a.1), retries(&c.1)), (0, 3));
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
    let kept = source.route("r2999").unwrap().clone();
    let changed = text("/second/*");
    let start = std::time::Instant::now();
    let diff = update(&mut source, &changed);
    let one = start.elapsed();
    eprintln!("5,000 routes: {all:?}; one of them changed: {one:?}");
    assert_eq!(touched(&diff), ["+table apisix"]);
    assert!(Arc::ptr_eq(&kept, source.route("r2999").unwrap()));
    assert!(one < all, "{one:?} {all:?}");
}

/// Of a resource the first fault was told, of its plugins the first each, and nothing of what it refers to.
#[test]
fn all_that_is_wrong_with_a_resource_is_told_at_once() {
    let mut source = testing::source("");
    let text = "routes:
  - id: a
    uri: /a
    host: a
    hosts: [b]
    methods: [GET, GTE]
    vars: [[a, '~~', '(']]
    upstream_id: none
    service_id: s
    plugins:
      marker: {text: 1, count: x}
      other: {}
      nothing: {}
    upstream: {nodes: {'h:80': 1}, type: chash}
  - id: b
    upstream: {nodes: {'h:80': -1}, type: 5}
services:
  - {id: s, upstream_id: none, script: x}
#END
";
    let told = source.update(Resources { text, format: Format::Yaml, name: "apisix.yaml" }).unwrap().refused;
    let places: Vec<_> = told.iter().map(|error| error.place.unwrap().line).collect();
    assert_eq!(places, [5, 6, 7, 8, 9, 11, 11, 13, 14, 15, 16, 16, 18, 18], "{told:#?}");
    let reasons: Vec<_> = told.iter().map(|error| &*error.reason).collect();
    assert!(reasons[1].ends_with("matches none of the enum values; did you mean \"GET\"?"), "{reasons:#?}");
    assert_eq!(reasons[3], "there is no upstream \"none\"");
    assert_eq!(reasons[4], "service \"s\" is wrong itself");
}
