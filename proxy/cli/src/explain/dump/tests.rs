#![allow(clippy::unwrap_used)]
use super::*;

#[test]
fn what_a_dump_does_not_tell_is_taken_out() {
    let any = |kind: &str, mut rest: Value| {
        rest["@type"] = format!("type.googleapis.com/envoy.{kind}").into();
        rest
    };
    let manager = any(
        "hcm",
        json!({"rds": {"route_config_name": "r", "config_source": {"path": "/none"}}, "access_log": [1]}),
    );
    let chain =
        json!({"transport_socket": {"name": "tls"}, "filters": [{"name": "hcm", "typed_config": manager}]});
    let listener = any("config.listener.v3.Listener", json!({"name": "l", "filter_chains": [chain]}));
    let cluster = any(
        "config.cluster.v3.Cluster",
        json!({
            "name": "c", "type": "EDS", "eds_cluster_config": {"service_name": "s", "eds_config": {"ads": {}}},
            "transport_socket": {"name": "tls"},
        }),
    );
    let dump = json!({"configs": [
        {"@type": "x/envoy.admin.v3.BootstrapConfigDump", "bootstrap": {"node": {"id": "n", "metadata": {"A": 1}}}},
        {"@type": "x/envoy.admin.v3.ListenersConfigDump", "dynamic_listeners": [{"active_state": {"listener": listener}}]},
        {"@type": "x/envoy.admin.v3.ClustersConfigDump", "dynamic_active_clusters": [{"cluster": cluster}]},
        {"@type": "x/envoy.admin.v3.RoutesConfigDump",
         "dynamic_route_configs": [{"route_config": any("config.route.v3.RouteConfiguration", json!({"name": "r"}))}]},
        {"@type": "x/envoy.admin.v3.EndpointsConfigDump",
         "dynamic_endpoint_configs": [{"endpoint_config": {"@type": "x", "cluster_name": "s", "endpoints": [7]}}]},
    ]});
    let parts = Parts::read(&dump.to_string()).unwrap();
    assert_eq!(parts.bootstrap(), json!({"node": {"id": "n"}}));
    let chain = &parts.listeners[0]["filter_chains"][0];
    assert!(chain.get("transport_socket").is_none());
    let manager = &chain["filters"][0]["typed_config"];
    assert_eq!(manager["rds"], json!({"route_config_name": "r", "config_source": {"ads": {}}}));
    assert!(manager.get("access_log").is_none());
    assert_eq!(parts.routes, [json!({"name": "r"})]);
    let expected =
        json!({"name": "c", "type": "STATIC", "load_assignment": {"cluster_name": "c", "endpoints": [7]}});
    assert_eq!(parts.clusters, [expected]);
}

#[test]
fn what_is_no_dump_is_told() {
    assert!(Parts::read("{").is_err());
    assert_eq!(Parts::read("{}").err().unwrap().to_string(), "configs: is missing: this is no config_dump");
}
