//! The tags that Envoy finds in names by itself (source/common/config/well_known_names.cc). It reads a name as words
//! between dots: of a resource whose own name holds dots, the first of its words alone is the tag.

use super::tags::Found;

/// A tag, and the name as words in which it is found: `$` is the tag, `*` any one word, `**` at the end one or more.
/// Those that are more exact come first.
const RULES: [(&str, &str); 24] = [
    ("envoy_rbac_policy_name", "http.*.rbac.policy.$.**"),
    ("envoy_rbac_policy_name", "http.*.rbac.*.policy.$.**"),
    ("envoy_rbac_http_prefix", "http.*.rbac.$.**"),
    ("envoy_grpc_bridge_method", "cluster.*.grpc.*.$.**"),
    ("envoy_grpc_bridge_service", "cluster.*.grpc.$.**"),
    ("envoy_http_user_agent", "http.*.user_agent.$.**"),
    ("envoy_virtual_cluster", "vhost.*.vcluster.$.**"),
    ("envoy_route", "vhost.*.route.$.**"),
    ("envoy_fault_downstream_cluster", "http.*.fault.$.**"),
    ("envoy_ext_authz_prefix", "cluster.*.ext_authz.$.**"),
    ("envoy_ext_authz_prefix", "http.*.ext_authz.$.**"),
    ("envoy_tcp_prefix", "tcp.$.**"),
    ("envoy_udp_prefix", "udp.$.**"),
    ("envoy_clientssl_prefix", "auth.clientssl.$.**"),
    ("envoy_ratelimit_prefix", "ratelimit.$.**"),
    ("envoy_cluster_name", "cluster.$.**"),
    ("envoy_http_conn_manager_prefix", "http.$.**"),
    ("envoy_virtual_host", "vhost.$.**"),
    ("envoy_local_http_ratelimit_prefix", "$.http_local_rate_limit.**"),
    ("envoy_local_network_ratelimit_prefix", "local_rate_limit.$.**"),
    ("envoy_local_listener_ratelimit_prefix", "listener_local_ratelimit.$.**"),
    ("envoy_xds_resource_name", "sds.$.**"),
    ("envoy_connection_limit_prefix", "connection_limit.$.**"),
    ("envoy_rbac_prefix", "$.rbac.**"),
];

/// Finds all of them.
pub(super) fn find(found: &mut Found<'_>) {
    response_code(found);
    of_tls(found);
    of_listener(found);
    of_routes(found);
    of_proxy_protocol(found);
    let first = found.name.split('.').next().unwrap_or_default();
    for (tag, words) in RULES {
        let (head, _) = words.split_once('.').unwrap_or_default();
        if head != "$" && head != first {
            continue;
        }
        let Some((start, end)) = place(words, found.name) else { continue };
        // What is counted by policy has its word before the policy's name.
        if tag != "envoy_rbac_http_prefix" || found.name.get(start..end) != Some("policy") {
            found.take_word(tag, start, end);
        }
    }
}

/// Where the tag is in a name of these words.
fn place(words: &str, name: &str) -> Option<(usize, usize)> {
    let (mut at, mut tag) = (0, None);
    for word in words.split('.') {
        let rest = name.get(at..).filter(|rest| !rest.is_empty())?;
        if word == "**" {
            break;
        }
        let end = at + rest.find('.').unwrap_or(rest.len());
        match word {
            "$" => tag = Some((at, end)),
            "*" => {}
            word if name.get(at..end) == Some(word) => {}
            _ => return None,
        }
        at = end + 1;
    }
    tag
}

/// `_200` is a response code, `_2xx` a class of them.
fn response_code(found: &mut Found<'_>) {
    let Some((stem, code)) = found.name.rsplit_once("_rq_") else { return };
    let at = stem.len() + "_rq".len();
    match code.as_bytes() {
        [b'0'..=b'9', b'x', b'x'] => {
            found.take("envoy_response_code_class", (at + 1, at + 2), (at + 1, at + 2))
        }
        [b'0'..=b'9', b'0'..=b'9', b'0'..=b'9'] => {
            found.take("envoy_response_code", (at + 1, at + 4), (at, at + 4));
        }
        _ => {}
    }
}

/// What TLS was agreed on: what follows `ssl.ciphers.` and the like.
fn of_tls(found: &mut Found<'_>) {
    let Some((scope, rest)) = found.name.split_once(".ssl.") else { return };
    let Some((kind, value)) = rest.split_once('.') else { return };
    let tag = match (kind, scope.starts_with("cluster.")) {
        ("ciphers", true) => "cipher_suite",
        ("ciphers", false) => "envoy_ssl_cipher",
        ("curves", _) => "envoy_ssl_curve",
        ("sigalgs", _) => "envoy_ssl_sigalg",
        ("versions", _) => "envoy_ssl_version",
        _ => return,
    };
    let (end, length) = (found.name.len(), value.len());
    found.take(tag, (end - length, end), (end - length - 1, end));
}

/// `listener.ADDRESS.` and in it `http.PREFIX.`; the address of the admin interface is none.
fn of_listener(found: &mut Found<'_>) {
    const START: usize = "listener.".len();
    let Some(rest) = found.name.strip_prefix("listener.") else { return };
    if let Some(at) = found.name.find(".http.").map(|at| at + ".http.".len())
        && let Some(length) = found.name.get(at..).and_then(|rest| rest.find('.'))
    {
        found.take_word("envoy_http_conn_manager_prefix", at, at + length);
    }
    let Some(length) = address(rest).or_else(|| rest.find('.')) else { return };
    if rest.get(..length) != Some("admin") {
        found.take_word("envoy_listener_address", START, START + length);
    }
}

/// The length of `1.2.3.4_80` before a dot: the one address with dots.
fn address(rest: &str) -> Option<usize> {
    let (at, _) = rest.match_indices('.').nth(3)?;
    let (ip, port) = rest.get(..at)?.rsplit_once('_')?;
    let is_one = ip.parse::<std::net::Ipv4Addr>().is_ok() && port.parse::<u16>().is_ok();
    is_one.then_some(at)
}

/// `proxy_proto.versions.v1.`, of which the tag is the number alone.
fn of_proxy_protocol(found: &mut Found<'_>) {
    const START: &str = "proxy_proto.";
    const VERSION: &str = "versions.v";
    let Some(rest) = found.name.strip_prefix(START).and_then(|rest| rest.strip_prefix(VERSION)) else {
        return;
    };
    let at = START.len() + VERSION.len();
    if rest.as_bytes().first().is_some_and(u8::is_ascii_digit) && rest.as_bytes().get(1) == Some(&b'.') {
        found.take("envoy_proxy_protocol_version", (at, at + 1), (START.len(), at + 2));
    }
}

/// `http.PREFIX.rds.NAME.` where the name may hold dots, but nothing stranger.
fn of_routes(found: &mut Found<'_>) {
    let Some((start, _)) = place("http.*.rds.$.**", found.name) else { return };
    let Some(end) = found.name.rfind('.').filter(|end| *end > start) else { return };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if found.name.get(start..end).is_some_and(|name| name.bytes().all(plain)) {
        found.take_word("envoy_rds_route_config", start, end);
    }
}
