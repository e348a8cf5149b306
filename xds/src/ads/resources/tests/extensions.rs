//! Configurations of filters that come by themselves.

use sixfold_xds_api::pb::google::protobuf::Duration as ProtoDuration;

use super::*;

/// An HTTP filter whose configuration comes by itself.
fn discovered(name: &str, rest: &str) -> String {
    let web = "type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb";
    let source = "config_source: {ads: {}, initial_fetch_timeout: 3s}";
    let filter = format!("{{name: {name}, config_discovery: {{{source}, type_urls: [{web}]{rest}}}}}");
    listener("l", "r").replace(ROUTER, &format!("{filter}, {ROUTER}"))
}

fn extension(name: &str, kind: &str, rest: &str) -> String {
    let types = "type.googleapis.com/envoy.extensions.filters.http";
    format!("{{name: {name}, typed_config: {{\"@type\": {types}.{kind}{rest}}}}}")
}

const WEB: &str = "grpc_web.v3.GrpcWeb";

impl Proxy {
    /// The filters that requests to the listener go through.
    fn chain(&self) -> Vec<String> {
        let listeners = self.model.listeners();
        let filter = listeners.first().map(|listener| &listener.chains[0].filter);
        let Some(NetworkFilter::Http(manager)) = filter else { return Vec::new() };
        crate::testing::shown(&manager.chain)
    }
}

#[test]
fn a_filter_gets_its_configuration_by_itself() {
    let mut proxy = Proxy::new();
    let asked = proxy.bring::<ProtoListener>(&[("l", &discovered("web", ""))], &[]);
    assert_eq!(asked, ["+web", "+r", "ok"]);
    proxy.bring::<RouteConfiguration>(&[("r", &routes("r", "a"))], &[]);
    assert_eq!(proxy.listeners(), [""; 0], "it waits for its filter");
    // One that can't be made, or is of another type, is refused, which ends the wait: it has none.
    let unknown = "extension \"web\": typed_config: HTTP filter";
    let answer = proxy.bring::<TypedExtensionConfig>(&[("web", &extension("web", "cors.v3.Cors", ""))], &[]);
    assert!(answer[0].starts_with(unknown) || answer[0].contains("Cors"), "{answer:?}");
    assert_eq!(proxy.chain(), ["web [Access]"], "it answers by itself");
    let missing = proxy.model.listeners()[0].clone();
    assert_eq!(proxy.bring::<TypedExtensionConfig>(&[("web", &extension("web", WEB, ""))], &[]), ["ok"]);
    let listener = proxy.model.listeners()[0].clone();
    assert!(!Arc::ptr_eq(&missing, &listener), "it came into force with its listener");
    assert_ne!(missing.chains[0].fingerprint, listener.chains[0].fingerprint, "whose connections drain");
    assert_eq!(proxy.leads_to("r").as_deref(), Some("a"), "with the routes there are");
    // The same again is no change, and another name is not what was asked for.
    let before = proxy.model.listeners()[0].clone();
    proxy.bring::<TypedExtensionConfig>(&[("web", &extension("web", WEB, ""))], &[]);
    assert!(Arc::ptr_eq(&before, &proxy.model.listeners()[0]));
    // It goes with its listener.
    assert_eq!(proxy.bring::<ProtoListener>(&[], &["l"]), ["+-web", "+-r", "ok"]);
}

/// It was refused, whatever secret it named.
#[test]
fn a_configuration_may_name_a_secret() {
    let mut proxy = Proxy::new();
    let api = "api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds}}]}";
    let credential =
        crate::testing::injector(&format!("name: s, sds_config: {{{api}, resource_api_version: V3}}"));
    let injector = "filters.http.credential_injector.v3.CredentialInjector";
    let listener = discovered("credential", "").replace("filters.http.grpc_web.v3.GrpcWeb", injector);
    proxy.bring::<ProtoListener>(&[("l", &listener)], &[]);
    proxy.bring::<RouteConfiguration>(&[("r", &routes("r", "a"))], &[]);
    assert_eq!(proxy.bring::<TypedExtensionConfig>(&[("credential", &credential)], &[]), ["ok"]);
    assert_eq!(proxy.chain(), ["credential [Access]"]);
    let named = |proxy: &Proxy| {
        let shown = proxy.context.sds.shown();
        shown.iter().map(|(key, ..)| key.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(named(&proxy), ["s"]);
    // Another that names none that there is changes nothing.
    let answer =
        proxy.bring::<TypedExtensionConfig>(&[("credential", &crate::testing::injector("name: none"))], &[]);
    assert!(answer[0].contains("there is no secret \"none\""), "{answer:?}");
    assert_eq!(named(&proxy), ["s"]);
}

/// It was accepted, and the listener was without routes from then on.
#[test]
fn a_configuration_that_does_not_go_with_the_routes_is_refused() {
    let mut proxy = Proxy::new();
    let listener =
        discovered("js", "").replace("envoy.extensions.filters.http.grpc_web.v3.GrpcWeb", "test.Json");
    proxy.bring::<ProtoListener>(&[("l", &listener)], &[]);
    let settings = format!("js: {{{JSON}, value: {{}}}}");
    proxy.bring::<RouteConfiguration>(&[("r", &routes_saying(&settings))], &[]);
    let sent = |own: &str| format!("{{name: js, typed_config: {{{JSON}, value: {{{own}}}}}}}");
    assert_eq!(proxy.bring::<TypedExtensionConfig>(&[("js", &sent(""))], &[]), ["ok"]);
    let before = proxy.model.listeners()[0].clone();
    let answer = proxy.bring::<TypedExtensionConfig>(&[("js", &sent("alone: true"))], &[]);
    assert!(answer[0].contains("route configuration \"r\""), "{answer:?}");
    assert!(Arc::ptr_eq(&before, &proxy.model.listeners()[0]));
    assert_eq!(proxy.leads_to("r").as_deref(), Some("a"));
}

#[test]
fn a_filter_waits_for_its_configuration_as_long_as_it_is_told_to() {
    let default =
        format!(", default_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.{WEB}}}");
    for (rest, waits) in [
        (String::new(), true),
        (default.clone(), true),
        (format!("{default}, apply_default_config_without_warming: true"), false),
    ] {
        let mut proxy = Proxy::new();
        proxy.bring::<RouteConfiguration>(&[("r", &routes("r", "a"))], &[]);
        proxy.bring::<ProtoListener>(&[("l", &discovered("web", &rest))], &[]);
        proxy.bring::<RouteConfiguration>(&[("r", &routes("r", "a"))], &[]);
        assert_eq!(proxy.listeners().is_empty(), waits, "{rest}");
        proxy.pass(Duration::from_secs(3));
        assert_eq!(proxy.chain().len(), 1, "{rest}");
    }
    let mut proxy = Proxy::new();
    let at_once = discovered("web", ", apply_default_config_without_warming: true");
    let answer = proxy.bring::<ProtoListener>(&[("l", &at_once)], &[]);
    assert!(
        answer[0].contains("apply_default_config_without_warming: needs default_config (HTTP"),
        "{answer:?}"
    );
}

const TEN: ProtoDuration = ProtoDuration { seconds: 10, nanos: 0 };
/// A type of filter without handlers, and its fields.
const COMPRESSOR: &str = "compressor.v3.Compressor";
const GZIP: &str = ", compressor_library: {name: g, typed_config: {\"@type\": \
    type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip}}";

/// A filter that may be of either type, and is of the second (which has no handlers) while nothing has come.
fn with_default(name: &str) -> String {
    let types = "type.googleapis.com/envoy.extensions.filters.http";
    let default = format!(", default_config: {{\"@type\": {types}.{COMPRESSOR}{GZIP}}}");
    discovered(name, &default).replace("type_urls: [", &format!("type_urls: [{types}.{COMPRESSOR}, "))
}

/// It stayed known, and every later update of the listener was refused for it.
#[test]
fn a_configuration_that_was_refused_is_no_part_of_what_comes_later() {
    let mut proxy = Proxy::new();
    proxy.bring::<ProtoListener>(&[("l", &discovered("web", ""))], &[]);
    proxy.bring::<TypedExtensionConfig>(&[("web", &extension("web", WEB, ""))], &[]);
    proxy.bring::<RouteConfiguration>(&[("r", &routes("r", "a"))], &[]);
    let before = proxy.model.listeners()[0].clone();
    let other = extension("web", "router.v3.Router", "");
    for _ in 0..2 {
        let answer = proxy.bring::<TypedExtensionConfig>(&[("web", &other)], &[]);
        let reason = "http.router.v3.Router, which is none of type_urls";
        assert!(answer[0].starts_with("listener \"l\": ") && answer[0].contains(reason), "{answer:?}");
        assert!(Arc::ptr_eq(&before, &proxy.model.listeners()[0]));
    }
    let changed = discovered("web", "").replace("stat_prefix: s", "stat_prefix: t");
    assert_eq!(proxy.bring::<ProtoListener>(&[("l", &changed)], &[]), ["ok"]);
    let now = proxy.model.listeners()[0].clone();
    assert!(!Arc::ptr_eq(&before, &now) && proxy.chain() == ["web [Access]"]);
    // One that was never good leaves nothing behind either.
    proxy.bring::<ProtoListener>(&[("l", &discovered("new", ""))], &[]);
    let answer =
        proxy.bring::<TypedExtensionConfig>(&[("new", &extension("new", "router.v3.Router", ""))], &[]);
    assert!(answer.last().unwrap().contains("none of type_urls"), "{answer:?}");
    let changed = discovered("new", "").replace("stat_prefix: s", "stat_prefix: t");
    assert_eq!(proxy.bring::<ProtoListener>(&[("l", &changed)], &[]), ["ok"]);
}

/// One of two listeners had the new one, the other refused it.
#[test]
fn a_configuration_is_taken_by_all_that_name_it_or_by_none() {
    let mut proxy = Proxy::new();
    let second = with_default("web").replace("name: l,", "name: m,");
    proxy.bring::<ProtoListener>(&[("l", &discovered("web", "")), ("m", &second)], &[]);
    proxy.bring::<TypedExtensionConfig>(&[("web", &extension("web", WEB, ""))], &[]);
    proxy.bring::<RouteConfiguration>(&[("r", &routes("r", "a"))], &[]);
    let before = proxy.model.listeners();
    let answer = proxy.bring::<TypedExtensionConfig>(&[("web", &extension("web", COMPRESSOR, GZIP))], &[]);
    assert!(answer[0].contains("none of type_urls"), "{answer:?}");
    let now = proxy.model.listeners();
    assert!(before.iter().zip(&now).all(|(before, now)| Arc::ptr_eq(before, now)) && now.len() == 2);
    // One that comes later and is no filter of that type goes on without, and so does not stand in the way of others.
    let third = discovered("web", "").replace("name: l,", "name: n,").replace(WEB, "router.v3.Router");
    assert_eq!(proxy.bring::<ProtoListener>(&[("n", &third)], &[]), ["ok"]);
    assert_eq!(proxy.listeners(), ["l", "m", "n"]);
}

/// The filter went on with it, though the control plane had taken it away or its time was over.
#[test]
fn a_filter_whose_configuration_has_gone_is_what_it_was_without() {
    for (listener, without) in
        [(discovered("web", ""), vec!["web [Access]"]), (with_default("web"), vec!["web []"])]
    {
        let mut proxy = Proxy::new();
        proxy.bring::<ProtoListener>(&[("l", &listener)], &[]);
        proxy.bring::<RouteConfiguration>(&[("r", &routes("r", "a"))], &[]);
        proxy.pass(Duration::from_secs(3));
        assert_eq!(proxy.chain(), without);
        let none = proxy.model.listeners()[0].chains[0].fingerprint;
        for by_time in [false, true] {
            let mut web = resource::<TypedExtensionConfig>("web", &extension("web", WEB, ""));
            web.ttl = by_time.then_some(TEN);
            assert_eq!(proxy.bring_all::<TypedExtensionConfig>(vec![web], &[]), ["ok"]);
            assert_eq!(proxy.chain(), ["web [Access]"]);
            assert_ne!(proxy.model.listeners()[0].chains[0].fingerprint, none);
            if by_time {
                proxy.pass(Duration::from_secs(10));
            } else {
                assert_eq!(proxy.bring::<TypedExtensionConfig>(&[], &["web"]), ["ok"]);
            }
            assert_eq!(proxy.chain(), without);
            assert_eq!(proxy.model.listeners()[0].chains[0].fingerprint, none);
        }
        // Who comes later does not wait for it.
        let second = listener.replace("name: l,", "name: m,");
        proxy.bring::<ProtoListener>(&[("l", &listener), ("m", &second)], &[]);
        assert_eq!(proxy.listeners(), ["l", "m"]);
    }
}
