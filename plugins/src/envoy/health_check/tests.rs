#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::{self, Alone, now, response_header, stream};
use prost::Message;
use sixfold_core::cluster::{Address, Cluster, ClusterConfig, EdsHealth, HostConfig};
use sixfold_core::plugin::FilterConfig;
use sixfold_xds_api::pb::envoy::config::route::v3::HeaderMatcher as ProtoHeader;
use sixfold_xds_api::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::StringMatcher;
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use sixfold_xds_api::pb::envoy::r#type::v3::Percent;
use sixfold_xds_api::pb::google::protobuf::{BoolValue, Duration as ProtoDuration};

fn config(pass_through: bool) -> Config {
    let exact =
        StringMatcher { match_pattern: Some(MatchPattern::Exact("/healthz".into())), ..Default::default() };
    Config {
        pass_through_mode: Some(BoolValue { value: pass_through }),
        headers: vec![ProtoHeader {
            name: ":path".into(),
            header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exact)),
            ..ProtoHeader::default()
        }],
        ..Config::default()
    }
}

fn filter(config: &Config, context: &BuildContext) -> Result<Alone, ConfigError> {
    let encoded = config.encode_to_vec();
    factory().build(&FilterConfig { config: &encoded, ..FilterConfig::default() }, context).map(Alone::new)
}

fn context() -> BuildContext {
    BuildContext { local_cluster: "own".into(), ..testing::context() }
}

/// Status and details of the answer, if there is one.
fn asked(filter: &Alone, path: &str) -> Option<(u16, String)> {
    now(filter.access(&mut stream(path, &[]))).map(|reply| (reply.status, reply.details.into_owned()))
}

fn answer(status: u16, details: &str) -> Option<(u16, String)> {
    Some((status, details.to_owned()))
}

#[test]
fn who_asks_is_answered_and_the_others_go_on() {
    let context = BuildContext { scope: "http.h.".into(), ..context() };
    let filter = filter(&config(false), &context).unwrap();
    assert_eq!(asked(&filter, "/healthz"), answer(200, "health_check_ok"));
    assert_eq!(asked(&filter, "/other"), None);
    context.failing_checks.store(true, Relaxed);
    assert_eq!(asked(&filter, "/healthz"), answer(503, "health_check_failed"));
    let counted = |name| context.metrics.sum("http.h.health_check.", name);
    assert_eq!(["request_total", "ok", "failed"].map(counted), [2, 1, 1]);
    assert_eq!(asked(&filter, "/other"), None);
    let mut check = stream("/healthz", &[]);
    let reply = now(filter.access(&mut check)).unwrap();
    assert!(check.health_check, "logs and traces are not for it");
    assert_eq!(reply.flag, Some(Flag::LH));
    let mut other = stream("/other", &[]);
    for (stream, wanted) in [(&mut check, Some("own")), (&mut other, None)] {
        assert!(now(filter.header_filter(stream)).is_none());
        assert_eq!(response_header(stream, HEALTHCHECKED_CLUSTER), wanted);
    }
}

#[test]
fn checks_pass_through_while_the_proxy_is_well_and_their_answer_is_kept() {
    let context = BuildContext { scope: "http.h.".into(), ..context() };
    let cached = Config { cache_time: Some(ProtoDuration { seconds: 60, nanos: 0 }), ..config(true) };
    let filter = filter(&cached, &context).unwrap();
    let mut check = stream("/healthz", &[]);
    assert!(now(filter.access(&mut check)).is_none());
    check.response.status = 418;
    check.response.headers.set(DEGRADED, b"");
    assert!(now(filter.header_filter(&mut check)).is_none());
    assert_eq!(asked(&filter, "/healthz"), answer(418, "health_check_cached"));
    let counted = |name| context.metrics.sum("http.h.health_check.", name);
    let names = ["request_total", "ok", "failed", "degraded", "cached_response"];
    assert_eq!(names.map(counted), [1, 0, 1, 1, 1], "what goes on is not counted");
    context.failing_checks.store(true, Relaxed);
    assert_eq!(asked(&filter, "/healthz"), answer(503, "health_check_failed"));
}

#[test]
fn clusters_must_have_enough_endpoints_that_are_well() {
    let context = BuildContext { scope: "http.h.".into(), ..context() };
    let hosts = [(9, EdsHealth::Healthy), (10, EdsHealth::Unhealthy)].map(|(port, health)| HostConfig {
        health,
        ..HostConfig::new(Address::Ip(([127, 0, 0, 1], port).into()))
    });
    let cluster = Cluster::new(ClusterConfig::named("c"), hosts.into(), None, &context.metrics).unwrap();
    context.clusters.cell("c").swap(Some(cluster));
    let empty = Cluster::new(ClusterConfig::named("e"), Vec::new(), None, &context.metrics).unwrap();
    context.clusters.cell("e").swap(Some(empty));
    let mut filters = Vec::new();
    let mut share = |name: &str, value: f64| {
        let shares = [(name.to_owned(), Percent { value })].into();
        let config = Config { cluster_min_healthy_percentages: shares, ..config(false) };
        // Each is kept: statistics go with who counts them.
        filters.push(filter(&config, &context).unwrap());
        asked(&filters[filters.len() - 1], "/healthz")
    };
    assert_eq!(share("c", 50.9), answer(200, "health_check_ok"), "decimals do not count");
    assert_eq!(share("c", 51.0), answer(503, "health_check_failed_cluster_unhealthy"));
    assert_eq!(share("nobody", 0.0), answer(503, "health_check_failed_cluster_not_found"));
    assert_eq!(share("e", 1.0), answer(503, "health_check_failed_cluster_empty"));
    assert_eq!(share("e", 0.0), answer(200, "health_check_ok"));
    let counted = |name| context.metrics.sum("http.h.health_check.", name);
    let names =
        ["ok", "failed", "failed_cluster_not_found", "failed_cluster_empty", "failed_cluster_unhealthy"];
    assert_eq!(names.map(counted), [2, 3, 1, 1, 1]);
}

#[test]
fn what_envoy_refuses_is_refused() {
    let context = context();
    let refused = |config: &Config| filter(config, &context).err().map(|error| error.to_string());
    assert_eq!(refused(&Config::default()), Some("pass_through_mode: is missing".to_owned()));
    let cached = Config { cache_time: Some(ProtoDuration { seconds: 1, nanos: 0 }), ..config(false) };
    assert_eq!(refused(&cached), Some("cache_time: is for pass_through_mode".to_owned()));
}
