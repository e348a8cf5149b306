//! Bootstraps of several resources.

/// A resource in one line, by the list it belongs to.
pub struct Resource {
    list: &'static str,
    text: String,
}

/// A listener that serves HTTP by these routes, upgrades to WebSocket among them.
pub fn listener(name: &str, port: u16, routes: &str) -> Resource {
    let extensions = "type.googleapis.com/envoy.extensions.filters";
    let router = format!("{{name: router, typed_config: {{\"@type\": {extensions}.http.router.v3.Router}}}}");
    let manager = format!(
        "{{\"@type\": {extensions}.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: {name}, \
         upgrade_configs: [{{upgrade_type: websocket}}], http_filters: [{router}], \
         route_config: {{virtual_hosts: [{{name: v, domains: [\"*\"], routes: [{routes}]}}]}}}}"
    );
    let text = format!(
        "{{name: {name}, address: {}, filter_chains: [{{filters: [{{name: hcm, typed_config: {manager}}}]}}]}}",
        address(port)
    );
    Resource { list: "listeners", text }
}

/// A cluster of one endpoint.
pub fn cluster(name: &str, port: u16) -> Resource {
    let endpoint = format!("{{endpoint: {{address: {}}}}}", address(port));
    let text = format!(
        "{{name: {name}, connect_timeout: 5s, \
         load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{endpoint}]}}]}}}}"
    );
    Resource { list: "clusters", text }
}

fn address(port: u16) -> String {
    format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}")
}

/// A bootstrap of these, with the administration on a port.
pub fn bootstrap_of(admin: u16, resources: &[Resource]) -> String {
    let mut text = format!("admin: {{address: {}}}\nstatic_resources:\n", address(admin));
    for list in ["listeners", "clusters"] {
        text.push_str(&format!("  {list}:\n"));
        for resource in resources.iter().filter(|resource| resource.list == list) {
            text.push_str(&format!("  - {}\n", resource.text));
        }
    }
    text
}
