#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::bootstrap::load;
use crate::testing::process;

fn faults(text: &str) -> Vec<String> {
    let faults = load(text, "envoy.yaml", &process()).err().unwrap_or_default();
    faults.iter().map(ToString::to_string).collect()
}

/// The first was told alone, at the place of its layer.
#[test]
fn every_key_and_layer_that_is_wrong_is_told_where_it_stands() {
    let text = "layered_runtime:
  layers:
  - name: one
    static_layer:
      upstream.use_retry: 10
      fault: {http: {abort: {abort_percent: 5}}}
      a: [1]
  - name: one
    rtds_layer: {name: x, rtds_config: {ads: {}}}
  - name: d
    disk_layer: {symlink_root: /srv}
";
    let expected = [
        "envoy.yaml:5:7: layered_runtime.layers[0].static_layer.upstream.use_retry: is not supported",
        "envoy.yaml:6:30: layered_runtime.layers[0].static_layer.fault.http.abort.abort_percent: is not supported",
        "envoy.yaml:7:7: layered_runtime.layers[0].static_layer.a: is no value that a key may have",
        "envoy.yaml:8:5: layered_runtime.layers[1].name: layer \"one\" is given twice",
        "envoy.yaml:9:5: layered_runtime.layers[1].rtds_layer: is not supported",
        "envoy.yaml:11:5: layered_runtime.layers[2].disk_layer: is not supported",
    ];
    assert_eq!(faults(text), expected);
}

/// Envoy's own example of an edge was refused for both keys.
#[test]
fn limits_of_connections_are_taken() {
    let layer =
        |keys: &str| format!("layered_runtime: {{layers: [{{name: s, static_layer: {{{keys}}}}}]}}\n");
    let limit = |text: &str| {
        let compiled = load(text, "envoy.yaml", &process()).unwrap_or_else(|faults| panic!("{faults:?}"));
        compiled.overload.and_then(|overload| overload.connections).map(|limit| limit.max)
    };
    let of_one = "envoy: {resource_limits: {listener: {example: {connection_limit: 10000}}}}";
    let of_all = "overload.global_downstream_max_connections: 50000";
    assert_eq!(limit(&layer(&format!("{of_one}, {of_all}"))), Some(50_000));
    let told = "layered_runtime.layers[0].static_layer.envoy.resource_limits.listener.example.connection_limit: has no effect";
    assert!(crate::left_out().iter().any(|notice| notice.starts_with(told)), "{:?}", crate::left_out());
    assert_eq!(limit(&layer("overload: {global_downstream_max_connections: 2147483647}")), None);
    // It was passed over for a listener that is there, too.
    let listener = "static_resources: {listeners: [{name: example, address: {socket_address: {address: 127.0.0.1, port_value: 1}}, filter_chains: [{filters: [{name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: c}}]}]}], clusters: [{name: c}]}\n";
    let faults =
        load(&format!("{}{listener}", layer(of_one)), "envoy.yaml", &process()).map(|_| ()).unwrap_err();
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert!(
        faults.len() == 1 && faults[0].contains("example.connection_limit: is not supported: the filter"),
        "{faults:?}"
    );
    // Where a monitor limits them, the key says nothing.
    let monitor = "overload_manager: {resource_monitors: [{name: m, typed_config: {'@type': type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig, max_active_downstream_connections: 7}}]}\n";
    assert_eq!(limit(&format!("{}{monitor}", layer(of_all))), Some(7));
}
