//! Listeners: what is listened on, certificates, and the connection managers with their routes.

use super::chain::{self, chains};
use super::virtual_host::Hosts;
use super::{Import, socket_address, type_of};
use crate::import::document::{field, fields, items_of, text_of, texts_of, truth_of, whole_of};
use crate::import::ordered::{self, Entry};
use crate::import::report::Part;
use serde_json::{Map, Value, json};
use sixfold_core::document::Node;

/// What a connection manager says of all its routes.
#[derive(Debug, Default)]
pub(super) struct Manager {
    /// What tells its requests from those of others.
    pub(super) vars: Vec<Value>,
    pub(super) websocket: bool,
    /// Whether a filter of its connections may keep them out, for which there is nothing here.
    pub(super) closed: bool,
}

impl Import {
    pub(super) fn listeners(&mut self, resources: &Node) -> Vec<Value> {
        let listeners = items_of(resources, "listeners");
        let is_http =
            |listener: &&Node| chains(listener).iter().any(|chain| managers(chain).next().is_some());
        let by_port = listeners.iter().filter(is_http).count() > 1;
        let mut all: Vec<Hosts> = Vec::new();
        for listener in listeners {
            all.extend(self.listener(listener, by_port));
        }
        // Those of one name are one list; a request of another port does not fit.
        let mut merged: Vec<(Vec<String>, Vec<Entry>)> = Vec::new();
        for Hosts { names, entries } in all {
            match merged.iter_mut().find(|(known, _)| *known == names) {
                Some((_, known)) => known.extend(entries),
                None => merged.push((names, entries)),
            }
        }
        let mut routes = Vec::new();
        for (names, mut entries) in merged {
            if !names.is_empty() {
                entries
                    .iter_mut()
                    .for_each(|entry| drop(entry.route.insert("hosts".to_owned(), json!(names))));
            }
            routes.extend(ordered::routes(&entries, &mut self.ids));
        }
        routes
    }

    fn listener(&mut self, node: &Node, by_port: bool) -> Vec<Hosts> {
        let name = text_of(node, "name").unwrap_or_else(|| format!("of line {}", node.place.line));
        let mut part = self.part(format!("listener \"{name}\""), node);
        for entry in fields(node) {
            listener_field(&entry.key, entry.key_place, node, &mut part);
        }
        let Some((address, port)) = field(node, "address").and_then(socket_address) else {
            part.unsupported("address", node.place, "there are addresses of IP with a port alone");
            self.out.take(part);
            return Vec::new();
        };
        let mut found = Vec::new();
        let (mut is_tls, mut is_plain, mut is_http) = (false, false, false);
        let all = chains(node);
        for chain in &all {
            let Some(mut vars) = chain::conditions(chain, all.len() == 1, &mut part) else { continue };
            if by_port {
                vars.push(json!(["server_port", "==", port.to_string()]));
            }
            let closed = chain::is_guarded(chain, &mut part);
            let secure = self.certificates(chain, &mut part);
            for manager in managers(chain) {
                is_http = true;
                is_tls |= secure;
                is_plain |= !secure;
                let hosts = self.manager(manager, &vars, closed);
                found.extend(hosts);
            }
            if !closed {
                self.tcp(chain, port, secure, &mut part);
            }
        }
        let listen = json!({"ip": address, "port": port});
        match (is_http, is_tls, is_plain) {
            (true, true, true) => {
                part.manual(
                    "filter_chains",
                    node.place,
                    "with TLS and without on one port: TLS alone is taken over",
                );
                self.ports.tls.push(listen);
            }
            (true, true, _) => self.ports.tls.push(listen),
            (true, false, _) => self.ports.plain.push(listen),
            (false, ..) => {}
        }
        self.out.take(part);
        found
    }

    /// Certificates of a chain, for the names that it is chosen by; answers whether there is TLS.
    fn certificates(&mut self, chain: &Node, part: &mut Part) -> bool {
        let socket = field(chain, "transport_socket").and_then(|socket| field(socket, "typed_config"));
        let Some(context) = socket.or_else(|| field(chain, "tls_context")) else { return false };
        if type_of(context) == "RawBuffer" {
            return false;
        }
        let place = context.place;
        let common = field(context, "common_tls_context");
        let named = field(chain, "filter_chain_match").map(|matches| texts_of(matches, "server_names"));
        let names = named.filter(|names| !names.is_empty()).unwrap_or_else(|| domains_of(chain));
        for entry in common.into_iter().flat_map(fields) {
            match entry.key.as_str() {
                "tls_certificates" | "alpn_protocols" => {}
                "tls_params" => {
                    part.approximate("tls_params", entry.key_place, "one setting for all: apisix.ssl")
                }
                "validation_context" | "combined_validation_context" => {}
                key => part.manual(key, entry.key_place, "write an ssl with the certificate and its key"),
            }
        }
        let authority = common.and_then(|common| {
            let context = field(common, "validation_context")?;
            super::data(field(context, "trusted_ca")?, &self.root)
        });
        let asks = truth_of(context, "require_client_certificate", false);
        for pair in common.map_or(&[][..], |common| items_of(common, "tls_certificates")) {
            let of = |name: &str| super::data(field(pair, name)?, &self.root);
            let (Some(cert), Some(key)) = (of("certificate_chain"), of("private_key")) else {
                part.manual(
                    "tls_certificates",
                    pair.place,
                    "its files can't be read: write an ssl with them",
                );
                continue;
            };
            if names.is_empty() {
                let note = "no name is asked for: write an ssl with the names that are";
                part.manual("tls_certificates", pair.place, note);
                continue;
            }
            let id = self.ids.id(&format!("certificate-{}", self.ssls.len() + 1));
            let mut ssl = Map::from_iter([
                ("id".to_owned(), Value::from(id)),
                ("snis".to_owned(), json!(names)),
                ("cert".to_owned(), cert.into()),
                ("key".to_owned(), key.into()),
            ]);
            match (asks, &authority) {
                (true, Some(authority)) => {
                    ssl.insert("client".to_owned(), json!({"ca": authority}));
                    part.exact("require_client_certificate");
                }
                (true, None) => {
                    let note = "the certificate is left out: write an ssl with `client.ca`";
                    part.manual("require_client_certificate", place, note);
                    continue;
                }
                _ => {}
            }
            self.ssls.push(Value::Object(ssl));
            part.exact("tls_certificates");
        }
        true
    }

    /// A connection manager with its routes.
    fn manager(&mut self, node: &Node, vars: &[Value], closed: bool) -> Vec<Hosts> {
        let prefix = text_of(node, "stat_prefix").unwrap_or_default();
        let mut part = self.part(format!("connection manager \"{prefix}\""), node);
        for entry in fields(node) {
            manager_field(&entry.key, entry.key_place, node, &mut part);
        }
        let upgrades = items_of(node, "upgrade_configs");
        let websocket = upgrades.iter().any(|one| super::word_of(one, "upgrade_type") == "WEBSOCKET");
        let manager = Manager { vars: vars.to_vec(), websocket, closed };
        let filters = self.filters(node);
        self.out.take(part);
        match field(node, "route_config") {
            Some(table) => {
                let table = table.clone();
                self.route_table(&table, &manager, &filters)
            }
            None => Vec::new(),
        }
    }

    /// `tcp_proxy` as a stream route of the port.
    fn tcp(&mut self, chain: &Node, port: u16, secure: bool, part: &mut Part) {
        for filter in items_of(chain, "filters") {
            let config = field(filter, "typed_config").unwrap_or(filter);
            if type_of(config) != "TcpProxy" {
                continue;
            }
            let cluster = text_of(config, "cluster").unwrap_or_default();
            let names = field(chain, "filter_chain_match").map(|matches| texts_of(matches, "server_names"));
            let names = names.unwrap_or_default();
            let upstream = self.upstream(&cluster, &super::cluster::Use::default());
            let (Some(upstream), false) = (upstream, secure) else {
                part.manual("tcp_proxy", filter.place, "write stream_routes (docs/reference/streams.md)");
                continue;
            };
            let mut route = Map::from_iter([
                ("id".to_owned(), Value::from(self.ids.id(&format!("stream-{port}")))),
                ("server_port".to_owned(), port.into()),
                ("upstream_id".to_owned(), upstream.into()),
            ]);
            if !names.is_empty() {
                part.manual(
                    "tcp_proxy",
                    filter.place,
                    "names are seen where TLS ends alone: write stream_routes",
                );
                continue;
            }
            route.insert("desc".to_owned(), text_of(config, "stat_prefix").unwrap_or_default().into());
            let address = format!("0.0.0.0:{port}");
            if !self.ports.streams.contains(&address) {
                self.ports.streams.push(address);
            }
            self.stream_routes.push(Value::Object(route));
            part.approximate("tcp_proxy", filter.place, "on all addresses of the machine");
        }
    }
}

fn managers(chain: &Node) -> impl Iterator<Item = &Node> {
    items_of(chain, "filters").iter().filter_map(|filter| {
        let config = field(filter, "typed_config")?;
        (type_of(config) == "HttpConnectionManager").then_some(config)
    })
}

/// Names of the virtual hosts of a chain that a certificate may be for.
fn domains_of(chain: &Node) -> Vec<String> {
    let tables = managers(chain).filter_map(|manager| field(manager, "route_config"));
    let mut names = Vec::new();
    for host in tables.flat_map(|table| items_of(table, "virtual_hosts")) {
        for domain in texts_of(host, "domains") {
            let bare = domain.split(':').next().unwrap_or_default();
            let is_name = bare.len() > 1 && !bare.trim_start_matches("*.").contains('*');
            if is_name && !names.iter().any(|known| known == bare) {
                names.push(bare.to_owned());
            }
        }
    }
    names
}

fn listener_field(key: &str, place: sixfold_core::error::Place, node: &Node, part: &mut Part) {
    match key {
        "name"
        | "address"
        | "filter_chains"
        | "default_filter_chain"
        | "traffic_direction"
        | "metadata"
        | "reuse_port"
        | "enable_reuse_port"
        | "per_connection_buffer_limit_bytes"
        | "tcp_backlog_size"
        | "stat_prefix"
        | "freebind"
        | "listener_filters_timeout"
        | "continue_on_listener_filters_timeout"
        | "connection_balance_config"
        | "socket_options"
        | "drain_type"
        | "ignore_global_conn_limit"
        | "bind_to_port" => part.exact(key),
        "listener_filters" => {
            for filter in items_of(node, "listener_filters") {
                let config = field(filter, "typed_config");
                match config.map(type_of).unwrap_or_default().as_str() {
                    "TlsInspector" | "HttpInspector" => part.exact(key),
                    "ProxyProtocol" => {
                        let note = "write apisix.proxy_protocol of config.yaml";
                        part.manual("listener_filters", filter.place, note);
                    }
                    other => part.unsupported(
                        &format!("listener_filters {other}"),
                        filter.place,
                        "there is no counterpart",
                    ),
                }
            }
        }
        "access_log" => part.approximate(key, place, "nginx_config.http.access_log"),
        "additional_addresses" => part.manual(key, place, "write them into apisix.node_listen"),
        _ => part.unknown(key, place),
    }
}

fn manager_field(key: &str, place: sixfold_core::error::Place, node: &Node, part: &mut Part) {
    match key {
        "@type" => {}
        "stat_prefix"
        | "codec_type"
        | "route_config"
        | "http_filters"
        | "http_protocol_options"
        | "normalize_path"
        | "http2_protocol_options"
        | "common_http_protocol_options"
        | "generate_request_id"
        | "add_user_agent"
        | "merge_slashes"
        | "path_with_escaped_slashes_action"
        | "strip_matching_host_port"
        | "strip_any_host_port"
        | "stream_idle_timeout"
        | "drain_timeout"
        | "delayed_close_timeout"
        | "preserve_external_request_id"
        | "request_headers_timeout"
        | "max_request_headers_kb"
        | "server_header_transformation"
        | "upgrade_configs"
        | "via"
        | "internal_address_config"
        | "skip_xff_append"
        | "always_set_request_id_in_response"
        | "http3_protocol_options"
        | "original_ip_detection_extensions" => part.exact(key),
        "request_timeout" => part.approximate(key, place, "nginx_config.http.client_body_timeout"),
        "use_remote_address" if truth_of(node, key, false) => part.exact(key),
        "use_remote_address" | "xff_num_trusted_hops"
            if whole_of(node, "xff_num_trusted_hops").unwrap_or(0) == 0 =>
        {
            part.exact(key)
        }
        "use_remote_address" | "xff_num_trusted_hops" => {
            let note = "write nginx_config.http.real_ip_from and real_ip_header, or the plugin real-ip";
            part.manual(key, place, note);
        }
        "access_log" => {
            part.approximate(key, place, "nginx_config.http.access_log_format has variables of nginx")
        }
        "server_name" => part.approximate(key, place, "Server is APISIX's"),
        "tracing" => part.unsupported(key, place, "there is no tracing of APISIX's routes"),
        "rds" | "scoped_routes" => {
            part.manual(
                key,
                place,
                "routes of a control plane are not in the file: `sixfold envoy` follows it",
            );
        }
        "local_reply_config" => part.unsupported(key, place, "answers of the gateway's own are as they are"),
        "forward_client_cert_details" | "set_current_client_cert_details" => {
            part.manual(key, place, "write proxy-rewrite with `$ssl_client_raw_cert`");
        }
        _ => part.unknown(key, place),
    }
}
