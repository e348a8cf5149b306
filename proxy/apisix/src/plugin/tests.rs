#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::future::Future;

use serde_json::json;
use sixfold_core::plugin::{BuildContext, HeadPhase, Outcome};

use super::*;
use crate::testing;

fn catalog(enabled: Option<&[&str]>) -> Catalog {
    let http = enabled.map(|names| names.iter().map(|n| (*n).to_owned()).collect());
    let enabled = EnabledPlugins { http, streams: None };
    let attributes = BTreeMap::from([("marker".to_owned(), json!({"a": 1}))]);
    Catalog::new(&testing::registry(), &enabled, &attributes)
}

fn check(plugins: Value) -> Result<Vec<PluginConfig>, Vec<String>> {
    let Value::Object(plugins) = plugins else { panic!("no object") };
    let (accepted, refused) = catalog(None).check(On::Requests, &plugins, &testing::environment());
    let told = |v: &Violation| {
        let hint = v.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
        format!("{}: {}{hint}", schema::display_path(&v.path), v.message)
    };
    if refused.is_empty() { Ok(accepted) } else { Err(refused.iter().map(told).collect()) }
}

fn set(plugins: Value, resource: &str) -> PluginSet {
    let set = PluginSet::build(&check(plugins).unwrap(), resource, &testing::build_context(), None);
    PluginSet::clone(&set.unwrap())
}

fn names(global: &PluginSet, route: &PluginSet) -> Vec<String> {
    let global = GlobalPlugins::new(None, global.clone());
    let chain = ChainCache::default().chain(&global, route);
    chain.map(|chain| chain.members().iter().map(|m| m.name.to_string()).collect()).unwrap_or_default()
}

#[test]
fn configurations_are_checked_in_apisixs_words() {
    let accepted = check(json!({"marker": {"text": "x"}})).unwrap();
    assert_eq!(accepted[0].config, json!({"text": "x", "count": 7}));
    assert_eq!(*accepted[0].attributes, json!({"a": 1}));
    for (plugins, message) in [
        (json!({"none": {}}), "none: unknown plugin [none]"),
        // A plugin that APISIX has read like a typo, and a typo got no hint.
        (json!({"key-auth": {}}), "key-auth: unknown plugin [key-auth]; not supported yet"),
        (
            json!({"limit-cuont": {}}),
            "limit-cuont: unknown plugin [limit-cuont]; did you mean \"limit-count\"?",
        ),
        (json!({"envoy.filter": {}}), "envoy.filter: unknown plugin [envoy.filter]"),
        (json!({"marker": 1}), "marker: invalid plugin conf 1 for plugin [marker]"),
        (
            json!({"marker": {}}),
            "marker: failed to check the configuration of plugin marker err: property \"text\" is required",
        ),
        (
            json!({"marker": {"text": 1}}),
            "marker.text: failed to check the configuration of plugin marker err: property \"text\" validation \
             failed: wrong type: expected string, got number",
        ),
        (
            json!({"marker": {"text": "x", "_meta": {"disabled": true}}}),
            "marker._meta.disabled: failed to check the configuration of plugin marker err: property \"_meta\" \
             validation failed: additional properties forbidden, found disabled; did you mean \"disable\"?",
        ),
    ] {
        assert_eq!(check(plugins).err().unwrap(), [message]);
    }
    let lua = check(json!({"marker": {"text": "x", "_meta": {"pre_function": "return 1"}}})).err().unwrap();
    assert!(lua[0].contains("Lua is not run"), "{lua:?}");
    let filter =
        check(json!({"marker": {"text": "x", "_meta": {"filter": [["a", "<>", 1]]}}})).err().unwrap();
    let words = "marker._meta.filter: failed to validate the 'vars' expression: invalid operator '<>'";
    assert_eq!(filter, [words]);
}

/// As in APISIX, which says so in its log.
#[test]
fn references_that_lead_to_nothing_stay_as_they_are() {
    let plugins = json!({"marker": {"text": "$env://NOT_SET"}, "other": {"a": ["$secret://vault/1/a"]}});
    let (accepted, refused) =
        catalog(None).check(On::Requests, plugins.as_object().unwrap(), &testing::environment());
    assert!(refused.is_empty(), "{refused:?}");
    let of = |name: &str| accepted.iter().find(|plugin| plugin.factory.name == name).unwrap();
    assert_eq!(of("marker").config["text"], "$env://NOT_SET");
    let said = |name: &str| of(name).unresolved[0].message.clone();
    assert_eq!(said("marker"), "$env://NOT_SET: the variable NOT_SET is not set");
    assert!(said("other").contains("secret managers are not supported"));
}

#[test]
fn a_plugin_that_is_not_enabled_is_unknown() {
    let plugins = json!({"marker": {"text": "x"}});
    let plugins = plugins.as_object().unwrap();
    assert!(!catalog(Some(&["other"])).check(On::Requests, plugins, &testing::environment()).1.is_empty());
    assert!(
        catalog(Some(&["marker", "no-such-plugin"]))
            .check(On::Requests, plugins, &testing::environment())
            .1
            .is_empty()
    );
}

#[test]
fn a_disabled_plugin_does_not_run_whatever_its_configuration() {
    let off = set(json!({"marker": {"_meta": {"disable": true}}}), "/apisix/routes/1");
    assert_eq!(names(&off, &off), [] as [&str; 0]);
    // Nor does the one that it takes the place of.
    let service = set(json!({"marker": {"text": "x"}, "late": {}}), "/apisix/services/1");
    assert_eq!(names(&PluginSet::default(), &merge([&off, &service].into_iter())), ["late"]);
}

#[test]
fn chains_are_ordered_by_priority_with_global_rules_first() {
    let route = set(json!({"marker": {"text": "x"}, "other": {}, "late": {}}), "/apisix/routes/1");
    let global = set(json!({"late": {}}), "/apisix/global_rules/1");
    let none = PluginSet::default();
    assert_eq!(names(&none, &route), ["other", "marker", "late"]);
    assert_eq!(names(&global, &route), ["late", "other", "marker", "late"]);
    let lifted = set(json!({"late": {"_meta": {"priority": 5000}}, "other": {}}), "/apisix/routes/1");
    assert_eq!(names(&none, &lifted), ["late", "other"]);
    assert_eq!(names(&none, &none), [] as [&str; 0]);
}

#[test]
fn prometheus_runs_once() {
    let (one, other) =
        (set(json!({"prometheus": {}}), "a"), set(json!({"prometheus": {}, "other": {}}), "b"));
    assert_eq!(names(&one, &other), ["other", "prometheus"]);
    assert_eq!(names(&one, &PluginSet::default()), ["prometheus"]);
}

#[test]
fn a_plugin_of_two_global_rules_runs_in_neither() {
    let (one, other) = (set(json!({"late": {}, "other": {}}), "a"), set(json!({"late": {}}), "b"));
    let merged = PluginSet::of_global_rules([&one, &other].into_iter());
    assert_eq!(names(&merged, &PluginSet::default()), ["other"]);
}

#[test]
fn route_goes_before_plugin_config_before_service() {
    let route = set(json!({"marker": {"text": "route"}}), "precedence");
    let plugin_config = set(json!({"marker": {"text": "config"}, "other": {}}), "p");
    let service = set(json!({"other": {}, "late": {}}), "s");
    let merged = merge([&route, &plugin_config, &service].into_iter());
    assert_eq!(names(&PluginSet::default(), &merged), ["other", "marker", "late"]);
    let texts = testing::built();
    let marker = texts.iter().rfind(|(resource, _)| resource == "precedence").unwrap();
    assert_eq!(marker.1, json!({"text": "route", "count": 7}));
}

#[test]
fn equal_chains_are_one() {
    let mut cache = ChainCache::default();
    let (none, service) = (GlobalPlugins::default(), set(json!({"late": {}}), "s"));
    let one = cache.chain(&none, &merge([&service].into_iter())).unwrap();
    let other = cache.chain(&none, &merge([&service].into_iter())).unwrap();
    assert!(Arc::ptr_eq(&one, &other));
    let different = cache.chain(&none, &set(json!({"late": {}}), "t")).unwrap();
    assert!(!Arc::ptr_eq(&one, &different));
    drop((one, other));
    cache.sweep();
    assert!(cache.chain(&none, &service).is_some());
}

#[test]
fn a_build_error_names_its_plugin() {
    let plugins = check(json!({"marker": {"text": "unbuildable"}})).unwrap();
    let context: BuildContext = testing::build_context();
    let error = PluginSet::build(&plugins, "r", &context, None).err().unwrap();
    let text = "marker.text: failed to check the configuration of plugin marker err: can't be built";
    assert_eq!(error.to_string(), text);
}

/// Runs `access` and answers the status and the body of the refusal.
fn refusal(plugins: Value, target: &str) -> Option<(u16, String)> {
    let chain = ChainCache::default().chain(&GlobalPlugins::default(), &set(plugins, "r")).unwrap();
    let mut stream = testing::stream("a.com", target, None);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut answer = None;
    // Twice, as the filter's answer is kept between phases.
    for _ in 0..2 {
        let run = std::pin::pin!(chain.run(HeadPhase::Access, &mut stream));
        answer = match run.poll(&mut context) {
            std::task::Poll::Ready(Outcome::Respond(reply)) => {
                Some((reply.status, String::from_utf8(reply.body.to_vec()).unwrap()))
            }
            std::task::Poll::Ready(_) => None,
            std::task::Poll::Pending => panic!("nothing to wait for"),
        };
    }
    answer
}

#[test]
fn meta_filters_requests_and_replaces_bodies() {
    let refusing = |meta: Value| json!({"refuse": {"_meta": meta}});
    assert_eq!(refusal(json!({"refuse": {}}), "/"), Some((403, "no".to_owned())));
    let filter = json!({"filter": [["arg_a", "==", "1"]]});
    assert_eq!(refusal(refusing(filter.clone()), "/?a=1"), Some((403, "no".to_owned())));
    assert_eq!(refusal(refusing(filter), "/?a=2"), None);
    let text = json!({"error_response": "text"});
    assert_eq!(refusal(refusing(text), "/"), Some((403, "text".to_owned())));
    let object = json!({"error_response": {"message": "x"}});
    assert_eq!(refusal(refusing(object.clone()), "/"), Some((403, "{\"message\":\"x\"}\n".to_owned())));
    assert_eq!(
        refusal(json!({"refuse": {"status": 200, "_meta": object}}), "/"),
        Some((200, "no".to_owned()))
    );
}

/// What a store keeps encrypted is handed on decrypted, and a file's as it is written.
#[test]
fn what_is_kept_encrypted_is_decrypted() {
    let of = |provider: &str| {
        let text =
            format!("deployment: {{role: traditional, role_traditional: {{config_provider: {provider}}}}}");
        let config = Config::parse(&text, "config.yaml", &testing::environment()).unwrap();
        let mut value = json!({"plugins": {"seal": {"secret": "+kOEVUuRc5rC5ZwvvAMLwg=="}}});
        let key = Key::new(Kind::Route, "1");
        Decryption::new(&config, &testing::registry()).open(&key, &mut value);
        value["plugins"]["seal"]["secret"].as_str().unwrap().to_owned()
    };
    assert_eq!([of("embedded"), of("yaml")], ["bar", "+kOEVUuRc5rC5ZwvvAMLwg=="]);
}

/// Those of a stream route were encrypted by the fields of the plugin for requests, and nobody decrypted them.
#[test]
fn plugins_of_stream_routes_are_kept_as_they_are_sent() {
    let config = Config::parse("{}", "config.yaml", &testing::environment()).unwrap();
    let catalog = catalog(None).encrypted(&config);
    let kept = |kind| {
        let mut value = json!({"plugins": {"seal": {"secret": "bar"}}});
        catalog.turn(Turn::Seal, &Key::new(kind, "1"), &mut value);
        value["plugins"]["seal"]["secret"].as_str().unwrap().to_owned()
    };
    assert_eq!([kept(Kind::Route), kept(Kind::StreamRoute)], ["+kOEVUuRc5rC5ZwvvAMLwg==", "bar"]);
}

#[test]
fn faults_are_in_the_words_of_what_a_plugin_runs_for() {
    let told = |on: On| {
        let plugins = json!({"seal": {"_meta": {"disable": 1}}, "nobody": {}});
        let (_, refused) = catalog(None).check(on, plugins.as_object().unwrap(), &testing::environment());
        refused.into_iter().map(|fault| fault.message).collect::<Vec<_>>()
    };
    let of_meta = "property \"_meta\" validation failed: ";
    for (on, words) in [
        (On::Requests, "failed to check the configuration of plugin seal err: "),
        (On::Streams, "failed to check the configuration of stream plugin [seal]: "),
    ] {
        let told = told(on);
        assert!(told[0].starts_with(&format!("{words}{of_meta}")), "{told:?}");
        assert_eq!(told[1], "unknown plugin [nobody]");
    }
}
