//! Settings of routes that Envoy takes and no filter reads. Only of a bootstrap's own routes can it be told: others may serve
//! several listeners.

use std::collections::BTreeMap;
use std::sync::Arc;

use sixfold_core::document::{Node as DocumentNode, Options};
use sixfold_core::error::{ConfigError, nearest};
use sixfold_core::plugin::{FilterFactory, Registry};
use sixfold_xds_api::pb::envoy::config::listener::v3::Listener;
use sixfold_xds_api::pb::envoy::config::listener::v3::filter::ConfigType as NetworkConfig;
use sixfold_xds_api::pb::envoy::config::route::v3::route::Action;
use sixfold_xds_api::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use sixfold_xds_api::pb::envoy::config::route::v3::{RouteAction, RouteConfiguration};
use sixfold_xds_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager::RouteSpecifier, http_filter::ConfigType,
};
use sixfold_xds_api::pb::google::protobuf::Any;
use sixfold_xds_api::{any, bootstrap_with_faults};

use crate::filters::{self, Overrides};
use crate::places::place_of;
use crate::stats;

/// Filters of a connection manager by their names; what one takes from routes is not known of the router, of those that come
/// by themselves and of those that this binary does not have.
type Named<'a> = Vec<(&'a str, Option<&'a Arc<FilterFactory>>)>;

/// What is odd about a bootstrap, with file and place: statistics' settings without effect, and settings of filters in its
/// routes, those of a type that the filter of
/// their name does not take, and those for a filter that there is not while another one takes their type. The running
/// proxy passes both over, as Envoy does.
pub fn odd_settings(text: &str, file: &str, plugins: &Registry) -> Vec<ConfigError> {
    let Ok((bootstrap, _)) = bootstrap_with_faults(text, file) else { return Vec::new() };
    let root = DocumentNode::parse(text, &Options::envoy(file)).ok();
    let mut all = Vec::new();
    if let Some(fault) = bootstrap.stats_config.as_ref().and_then(stats::without_effect) {
        let fault = fault.in_key("stats_config");
        let place = root.as_ref().zip(fault.field.as_deref()).map(|(root, path)| place_of(root, path));
        let fault = ConfigError { place, ..fault };
        all.push(fault.in_file(file));
    }
    let listeners = bootstrap.static_resources.map(|resources| resources.listeners).unwrap_or_default();
    for (index, listener) in listeners.iter().enumerate() {
        for fault in of_listener(listener, plugins) {
            let path =
                format!("static_resources.listeners[{index}].{}", fault.field.as_deref().unwrap_or_default());
            let fault = match &root {
                Some(root) => fault.at(place_of(root, &path)),
                None => fault,
            };
            all.push(fault.in_resource(format!("listener \"{}\"", listener.name)).in_file(file));
        }
    }
    all
}

fn of_listener(listener: &Listener, plugins: &Registry) -> Vec<ConfigError> {
    let chains = listener.filter_chains.iter().enumerate();
    let chains = chains.map(|(index, chain)| (format!("filter_chains[{index}]"), chain));
    let default = listener.default_filter_chain.iter();
    let chains = chains.chain(default.map(|chain| ("default_filter_chain".to_owned(), chain)));
    let mut all = Vec::new();
    for (path, chain) in chains {
        for (index, filter) in chain.filters.iter().enumerate() {
            let Some(NetworkConfig::TypedConfig(config)) = &filter.config_type else { continue };
            let Ok(manager) = any::unpack::<HttpConnectionManager>(config) else { continue };
            let Some(RouteSpecifier::RouteConfig(table)) = &manager.route_specifier else { continue };
            let named = named(&manager.http_filters, plugins);
            for (level, settings) in levels(table) {
                let at = format!("{path}.filters[{index}].typed_config.route_config{level}");
                let odd = of_level(settings, &named).into_iter();
                all.extend(odd.map(|fault| fault.in_key("typed_per_filter_config").in_key(&at)));
            }
        }
    }
    all
}

fn named<'a>(filters: &'a [HttpFilter], plugins: &'a Registry) -> Named<'a> {
    let factory = |filter: &HttpFilter| match &filter.config_type {
        Some(ConfigType::TypedConfig(config)) => plugins.filter(&any::type_name(config).ok()?),
        _ => None,
    };
    filters.iter().map(|filter| (filter.name.as_str(), factory(filter))).collect()
}

/// What each level says, by its path in the table.
fn levels(table: &RouteConfiguration) -> Vec<(String, &Overrides)> {
    let mut all = vec![(String::new(), &table.typed_per_filter_config)];
    for (index, host) in table.virtual_hosts.iter().enumerate() {
        let host_path = format!(".virtual_hosts[{index}]");
        all.push((host_path.clone(), &host.typed_per_filter_config));
        for (index, route) in host.routes.iter().enumerate() {
            let path = format!("{host_path}.routes[{index}]");
            let members = match &route.action {
                Some(Action::Route(RouteAction {
                    cluster_specifier: Some(ClusterSpecifier::WeightedClusters(clusters)),
                    ..
                })) => clusters.clusters.as_slice(),
                _ => &[],
            };
            all.push((path.clone(), &route.typed_per_filter_config));
            all.extend(members.iter().enumerate().map(|(index, member)| {
                let path = format!("{path}.route.weighted_clusters.clusters[{index}]");
                (path, &member.typed_per_filter_config)
            }));
        }
    }
    all
}

fn of_level(settings: &Overrides, filters: &Named<'_>) -> Vec<ConfigError> {
    let sorted: BTreeMap<_, _> = settings.iter().collect();
    let odd = sorted.into_iter().filter_map(|(name, config)| {
        let reason = oddity(name, config, filters)?;
        Some(ConfigError::new(reason).in_key(name))
    });
    odd.collect()
}

fn oddity(name: &str, config: &Any, filters: &Named<'_>) -> Option<String> {
    let of_name: Vec<_> = filters.iter().filter(|(known, _)| *known == name).collect();
    let kind = filters::kind_of_settings(config);
    if of_name.is_empty() {
        let reads = |(_, factory): &&(&str, Option<&Arc<FilterFactory>>)| {
            factory.is_some_and(|factory| filters::reads(factory, config))
        };
        return match filters.iter().find(reads) {
            Some((meant, _)) => Some(format!(
                "no filter is called \"{name}\"; the one that takes settings of this type is called \"{meant}\""
            )),
            // What says no more than whether a filter runs has no type.
            None if kind.is_none() => {
                let near = nearest(name, filters.iter().map(|(name, _)| *name))?;
                Some(format!("no filter is called \"{name}\"; did you mean \"{near}\"?"))
            }
            None => None,
        };
    }
    let takes =
        |factory: &Option<&Arc<FilterFactory>>| factory.is_none_or(|factory| filters::reads(factory, config));
    if of_name.iter().any(|(_, factory)| takes(factory)) {
        return None;
    }
    Some(format!(
        "settings of type {} are passed over: the filter of this name takes none of that type",
        kind?
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::process;

    fn odd(of_host: &str, of_member: &str) -> Vec<String> {
        let manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        let text = format!(
            "static_resources:\n  listeners:\n  - name: l\n    filter_chains:\n    - filters:\n      - name: h\n        typed_config:\n          \
             '@type': {manager}\n          http_filters:\n          \
             - {{name: web, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb}}}}\n          \
             - {{name: own, config_discovery: {{type_urls: [x]}}}}\n          \
             - {{name: rules, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}}}\n          \
             route_config:\n            virtual_hosts:\n            - name: v\n              typed_per_filter_config: {{{of_host}}}\n              \
             routes:\n              - match: {{prefix: /}}\n                route:\n                  weighted_clusters:\n                    \
             clusters:\n                    - {{name: c, weight: 1, typed_per_filter_config: {{{of_member}}}}}\n"
        );
        let all = odd_settings(&text, "b.yaml", &process().compile.plugins);
        all.iter().map(ToString::to_string).collect()
    }

    // Nothing said that they change nothing.
    #[test]
    fn buckets_without_effect_are_told() {
        let text = "stats_config:\n  histogram_bucket_settings: [{match: {prefix: a}, buckets: [1]}]\n";
        let told = odd_settings(text, "b.yaml", &process().compile.plugins);
        let told: Vec<_> = told.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("b.yaml:2:3: stats_config.histogram_bucket_settings: has no effect"));
    }

    #[test]
    fn settings_that_nobody_reads_are_told_with_their_places() {
        let (at, cors) = (
            "filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0]",
            "'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
        );
        assert_eq!(odd(&format!("rules: {{{cors}}}, own: {{{cors}}}"), ""), [""; 0]);
        assert_eq!(
            odd(&format!("web: {{{cors}}}"), ""),
            [format!(
                "b.yaml:16:41: listener \"l\": {at}.typed_per_filter_config.web: settings of type \
                 envoy.extensions.filters.http.cors.v3.CorsPolicy are passed over: the filter of this name takes none of that type"
            )]
        );
        let wrapped = "'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig";
        for settings in [cors.to_owned(), format!("{wrapped}, config: {{{cors}}}")] {
            assert_eq!(
                odd("", &format!("rule: {{{settings}}}")),
                [format!(
                    "b.yaml:22:70: listener \"l\": {at}.routes[0].route.weighted_clusters.clusters[0].typed_per_filter_config.rule: \
                     no filter is called \"rule\"; the one that takes settings of this type is called \"rules\""
                )]
            );
        }
        let off =
            odd(&format!("wbe: {{{wrapped}, disabled: true}}, another: {{{wrapped}, disabled: true}}"), "");
        assert!(
            off.len() == 1 && off[0].ends_with("no filter is called \"wbe\"; did you mean \"web\"?"),
            "{off:?}"
        );
    }
}
