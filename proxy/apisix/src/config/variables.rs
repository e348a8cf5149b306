//! Variables that nginx and APISIX have and that are empty here, so that one in an access log is told from a typo.

/// By name: those of nginx's modules, and those that APISIX declares for its plugins.
const NAMES: &[&str] = &[
    "document_root",
    "gzip_ratio",
    "http2",
    "http3",
    "limit_conn_status",
    "limit_rate",
    "limit_req_status",
    "pipe",
    "proxy_internal_body_length",
    "proxy_protocol_server_addr",
    "proxy_protocol_server_port",
    "realpath_root",
    "request_body_file",
    "request_filename",
    "request_port",
    "upstream_last_addr",
    "upstream_queue_time",
    "uid_got",
    "uid_set",
];

/// By what they begin with.
const PREFIXES: &[&str] = &[
    "geoip_",
    "graphql_",
    "llm_",
    "proxy_protocol_tlv_",
    "ssl_",
    "tcpinfo_",
    "upstream_cache_",
    "upstream_cookie_",
    "upstream_mirror_",
    "upstream_trailer_",
];

/// Whether nginx or APISIX has it.
pub(crate) fn is_declared(name: &str) -> bool {
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}
