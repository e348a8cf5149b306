#![allow(clippy::unwrap_used)]
use super::*;

#[test]
fn what_came_by_itself_becomes_static() {
    let any = |kind: &str, mut rest: Value| {
        rest["@type"] = format!("type.googleapis.com/envoy.{kind}").into();
        rest
    };
    let manager = any(
        "hcm",
        json!({"rds": {"route_config_name": "r", "config_source": {"ads": {}}}, "access_log": [1]}),
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
    let made = bootstrap(&dump.to_string()).unwrap();
    assert_eq!(made["node"], json!({"id": "n"}));
    let chain = &made["static_resources"]["listeners"][0]["filter_chains"][0];
    assert!(chain.get("transport_socket").is_none());
    let manager = &chain["filters"][0]["typed_config"];
    assert_eq!(manager["route_config"], json!({"name": "r"}));
    assert!(manager.get("rds").is_none() && manager.get("access_log").is_none());
    let expected =
        json!({"name": "c", "type": "STATIC", "load_assignment": {"cluster_name": "c", "endpoints": [7]}});
    assert_eq!(made["static_resources"]["clusters"][0], expected);
}

#[test]
fn what_is_no_dump_is_told() {
    assert!(bootstrap("{").is_err());
    assert_eq!(bootstrap("{}").unwrap_err().to_string(), "configs: is missing: this is no config_dump");
}
