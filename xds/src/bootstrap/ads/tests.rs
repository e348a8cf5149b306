#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use std::time::Duration;

use crate::ads::{BackoffConfig, Flavor, RateLimit, StreamConfig};
use crate::bootstrap;
use crate::rds::Source;
use crate::testing::process;

/// A bootstrap as pilot-agent writes it, with these settings of `ads_config` and this one of LDS.
fn bootstrap(ads_config: &str, lds: &str) -> String {
    format!(
        "node: {{id: sidecar~10.0.0.1~a.b~c, cluster: a.b, metadata: {{INSTANCE_IPS: 10.0.0.1}}}}\n\
         dynamic_resources: {{lds_config: {lds}, cds_config: {{ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3}}, \
         ads_config: {{{ads_config}}}}}\n\
         static_resources: {{clusters: [{{name: xds-grpc, type: STATIC, typed_extension_protocol_options: \
         {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{\"@type\": \
         type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
         {{http2_protocol_options: {{}}}}}}}}, load_assignment: {{cluster_name: xds-grpc, endpoints: [{{lb_endpoints: \
         [{{endpoint: {{address: {{pipe: {{path: ./etc/istio/proxy/XDS}}}}}}}}]}}]}}}}]}}\n"
    )
}

const ADS: &str = "api_type: DELTA_GRPC, transport_api_version: V3, set_node_on_first_message_only: true, \
                   grpc_services: [{envoy_grpc: {cluster_name: xds-grpc}}]";

fn load(ads_config: &str, lds: &str) -> std::result::Result<Ads, String> {
    let loaded = bootstrap::load(&bootstrap(ads_config, lds), "b.yaml", &process());
    loaded
        .map(|compiled| compiled.followed.ads)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

#[test]
fn a_control_plane_is_read_as_pilot_agent_names_it() {
    let both = |ads: Ads| (ads.config.ads.unwrap(), ads.target.unwrap(), ads.config);
    let (stream, target, config) = both(load(ADS, "{ads: {}}").unwrap());
    let backoff = BackoffConfig::default();
    assert_eq!(stream, StreamConfig { flavor: Flavor::Delta, node_always: false, backoff, rate: None });
    assert_eq!((&*config.node.id, &*config.node.user_agent_name), ("sidecar~10.0.0.1~a.b~c", "sixfold"));
    let fifteen = Some(Duration::from_secs(15));
    let all = |within| Wildcard { source: Source::Ads, within };
    assert_eq!(
        config.wildcards,
        BTreeMap::from([(Kind::Cluster, all(None)), (Kind::Listener, all(fifteen))])
    );
    assert!(config.statics.contains_key(&Key::of_name(Kind::Cluster, &"xds-grpc".into())));
    assert_eq!((&*target.grpc.cluster.name, &*target.grpc.authority), ("xds-grpc", "xds-grpc"));
    let ads = "api_type: GRPC, grpc_services: [{envoy_grpc: {cluster_name: xds-grpc, authority: istiod, \
               retry_policy: {retry_back_off: {base_interval: 1s}}}, initial_metadata: [{key: ClusterID, value: K}]}], \
               rate_limit_settings: {max_tokens: 3}";
    let (stream, target, _) = both(load(ads, "{ads: {}}").unwrap());
    let backoff = BackoffConfig { base: Duration::from_secs(1), max: Duration::from_secs(10) };
    let rate = Some(RateLimit { burst: 3, fill_rate: 10.0 });
    assert_eq!(stream, StreamConfig { flavor: Flavor::State, node_always: true, backoff, rate });
    assert_eq!(&*target.grpc.authority, "istiod");
    assert_eq!(target.metadata.get_str("clusterid"), Some("K"));
}

#[test]
fn what_is_not_supported_is_refused_by_its_field() {
    let grpc = |service: &str| format!("api_type: GRPC, grpc_services: [{service}]");
    let cases = [
        (
            ADS.to_owned(),
            "{api_config_source: {api_type: REST, cluster_names: [a]}}",
            "lds_config.api_config_source.api_type: REST is not supported",
        ),
        (
            ADS.to_owned(),
            "{path_config_source: {path: /none/lds.yaml}}",
            "lds_config.path_config_source.path: /none/lds.yaml: No such file or directory (os error 2)",
        ),
        (
            ADS.to_owned(),
            "{path: /none/lds.yaml}",
            "lds_config.path: /none/lds.yaml: No such file or directory",
        ),
        (
            "api_type: REST, cluster_names: [a]".to_owned(),
            "{ads: {}}",
            "ads_config.api_type: REST is not supported",
        ),
        ("api_type: GRPC".to_owned(), "{ads: {}}", "ads_config.grpc_services: there must be one, not 0"),
        (
            grpc("{envoy_grpc: {cluster_name: xds-grpc}}") + ", rate_limit_settings: {max_tokens: 0}",
            "{ads: {}}",
            "ads_config.rate_limit_settings.max_tokens: must be greater than 0",
        ),
        (
            grpc("{envoy_grpc: {cluster_name: other}}"),
            "{ads: {}}",
            "ads_config.grpc_services[0].envoy_grpc.cluster_name: unknown cluster \"other\" in static_resources",
        ),
        (
            // Ten times it was more than there can be, and the end of the thread.
            grpc(
                "{envoy_grpc: {cluster_name: xds-grpc, retry_policy: {retry_back_off: {base_interval: {seconds: 9223372036854775807}}}}}",
            ),
            "{ads: {}}",
            "ads_config.grpc_services[0].envoy_grpc.retry_policy.retry_back_off.base_interval: must be at most 315576000000s",
        ),
        (
            grpc("{google_grpc: {target_uri: a, stat_prefix: b}}"),
            "{ads: {}}",
            "ads_config.grpc_services[0].google_grpc: is not supported, envoy_grpc is",
        ),
    ];
    for (ads, lds, expected) in cases {
        let Err(error) = load(&ads, lds) else { panic!("{ads} is taken") };
        assert!(error.contains(&format!("dynamic_resources.{expected}")), "{error}");
    }
}

/// The first alone was, and who mended that was told of the next.
#[test]
fn all_that_is_wrong_is_told_together() {
    let faults = |dynamic: &str, node: &str| {
        let text = format!("{node}dynamic_resources: {{{dynamic}}}\n");
        let Err(errors) = bootstrap::load(&text, "b.yaml", &process()) else { panic!("{text} is taken") };
        errors.iter().filter_map(|error| error.field.clone()).collect::<Vec<_>>()
    };
    let node = "node: {id: a, cluster: b}\n";
    assert_eq!(
        faults("cds_config: {ads: {}}, lds_config: {ads: {}}", node),
        ["dynamic_resources.cds_config.ads", "dynamic_resources.lds_config.ads"]
    );
    // Who asks is one matter, however many ask so.
    assert_eq!(
        faults("cds_config: {path: /none/c}, lds_config: {path: /none/l}, ads_config: {api_type: REST}", ""),
        [
            "dynamic_resources.cds_config",
            "dynamic_resources.cds_config.path",
            "dynamic_resources.lds_config.path",
            "dynamic_resources.ads_config.api_type"
        ]
    );
}
