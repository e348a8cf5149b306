#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
use super::{brought, factory};
use crate::testing::{Alone, build, context, now, stream};
use serde_json::{Value, json};
use sixfold_core::cluster::{Cluster, ClusterConfig};
use sixfold_core::metrics::Registry;
use sixfold_core::plugin::BuildContext;
use std::collections::BTreeMap;

/// A context with these clusters.
fn with(names: &[&str]) -> BuildContext {
    let context = context();
    for name in names {
        let cluster = Cluster::new(ClusterConfig::named(name), Vec::new(), None, &Registry::new()).unwrap();
        context.clusters.cell(name).swap(Some(cluster));
    }
    context
}

fn split(config: Value, context: &BuildContext) -> Alone {
    build("traffic-split", &config, context).unwrap()
}

/// Where a request goes; "own" is the route's own upstream, and what is neither is the answer's text.
fn goes(plugin: &Alone, target: &str) -> String {
    let mut s = stream(target, &[]);
    match now(plugin.access(&mut s)) {
        Some(reply) => format!("{} {}", reply.status, String::from_utf8_lossy(&reply.body)),
        None => s.upstream.destination.map_or("own".to_owned(), |cell| cell.name.to_string()),
    }
}

fn shares(plugin: &Alone, n: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    (0..n).for_each(|_| *shares.entry(goes(plugin, "/")).or_default() += 1);
    shares
}

#[test]
fn requests_are_split_by_weight() {
    let context = with(&["upstreams/1", "upstreams/a"]);
    let config = json!({"rules": [{"weighted_upstreams": [
        {"upstream_id": 1, "weight": 3},
        {"upstream": {"nodes": {"127.0.0.1:1": 1}}, "weight": 2},
        {"upstream_id": "a", "weight": 0},
        {"weight": 5},
    ]}]});
    let expected = [("own", 50), ("routes/1/traffic-split/0/1", 20), ("upstreams/1", 30)];
    let expected: BTreeMap<String, usize> = expected.map(|(name, n)| (name.to_owned(), n)).into();
    assert_eq!(shares(&split(config, &context), 100), expected);
    // The weight is 1 where none is said, and the last one of what is there twice.
    let config = json!({"rules": [{"weighted_upstreams": [
        {"upstream_id": "1", "weight": 9}, {"upstream_id": 1}, {"weight": 7}, {},
    ]}]});
    let halves: BTreeMap<String, usize> = [("own".to_owned(), 50), ("upstreams/1".to_owned(), 50)].into();
    assert_eq!(shares(&split(config, &context), 100), halves);
}

/// Who asked where a request goes was told the route's own upstream alone.
#[test]
fn where_requests_go_is_foretold() {
    let context = with(&["upstreams/1"]);
    let config = json!({"rules": [
        {"match": [{"vars": [["arg_a", "==", "1"]]}], "weighted_upstreams": [{"upstream_id": 1, "weight": 3}, {"weight": 1}]},
        {"match": [{"vars": [["arg_a", "==", "2"]]}], "weighted_upstreams": [{"upstream_id": 7}]},
    ]});
    let plugin = split(config, &context);
    let foretold = |plugin: &Alone, target: &str| {
        let member = plugin.chain.members().iter().find(|member| &*member.name == "plugin").unwrap();
        member.plugin.foretell(&stream(target, &[])).unwrap()
    };
    let told = |target: &str| foretold(&plugin, target);
    let both = ["sends 75 % to cluster \"upstreams/1\"", "leaves 25 % to the route's own upstream"];
    assert_eq!(told("/?a=1"), both);
    assert_eq!(told("/?a=2"), ["answers 500: there is no upstream \"7\""]);
    assert!(foretold(&split(json!({"rules": []}), &context), "/").is_empty());
}

#[test]
fn the_first_rule_that_is_meant_decides() {
    let context = with(&["upstreams/1", "upstreams/2", "upstreams/3"]);
    let to = |id: u32| json!([{ "upstream_id": id }]);
    let config = json!({"rules": [
        {"match": [{"vars": [["arg_a", "==", "1"]]}, {"vars": [["arg_b", "==", "1"]]}], "weighted_upstreams": to(1)},
        {"match": [{"vars": [["arg_a", "==", "2"], ["arg_b", "==", "2"]]}], "weighted_upstreams": to(2)},
        {"match": [], "weighted_upstreams": to(3)},
    ]});
    let plugin = split(config, &context);
    let ask = |target: &str| goes(&plugin, target);
    assert_eq!([ask("/?a=1"), ask("/?b=1"), ask("/?a=2&b=2")], ["upstreams/1", "upstreams/1", "upstreams/2"]);
    assert_eq!(ask("/?a=2"), "own");
    let unmatched = json!({"rules": [{"match": [], "weighted_upstreams": to(3)}]});
    assert_eq!(goes(&split(unmatched, &context), "/"), "upstreams/3");
    for nothing in [json!({}), json!({"rules": []}), json!({"rules": [{}]})] {
        assert_eq!(goes(&split(nothing, &context), "/"), "own");
    }
}

#[test]
fn upstreams_that_are_not_there_are_told() {
    let config = json!({"rules": [{"weighted_upstreams": [{"upstream_id": "gone"}, {}]}]});
    let plugin = split(config, &context());
    assert_eq!(goes(&plugin, "/"), "500 failed to fetch upstream info by upstream id: gone");
}

#[test]
fn upstreams_that_stand_in_rules_are_brought() {
    let config = json!({"rules": [{"weighted_upstreams": [
        {"upstream_id": 1, "upstream": {"nodes": {}}, "weight": 1},
        {"upstream": {"nodes": {"a:1": 1}, "type": "chash", "key": "k", "checks": {}, "retries": 7}, "weight": 1},
    ]}]});
    let brought = brought(&config);
    let [one] = &brought[..] else { unreachable!("{}", brought.len()) };
    assert_eq!(
        (one.name.as_str(), one.field.as_str()),
        ("traffic-split/0/1", "rules[0].weighted_upstreams[1].upstream")
    );
    assert_eq!(one.config, json!({"type": "chash", "key": "k", "nodes": {"a:1": 1}}));
    assert!(factory().needs_upstreams());
}

#[test]
fn bad_configurations_are_refused() {
    let error = |rule: Value| build("traffic-split", &json!({ "rules": [rule] }), &context()).err().unwrap();
    let vars = error(json!({"match": [{"vars": [["a", "<>", 1]]}]}));
    let said = "failed to validate the 'vars' expression: invalid operator '<>'";
    assert_eq!(vars, format!("rules[0].match[0].vars: {said}"));
    assert!(error(json!({"match": [{}]})).contains("failed to validate the 'vars' expression"));
}
