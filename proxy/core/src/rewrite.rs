//! What a request and a response become on their way through the router: header changes of every level,
//! host, path, and what tells the upstream how they were (common/router/config_impl.cc
//! `finalizeRequestHeaders`, `finalizeResponseHeaders`; APISIX's `proxy_set_header` lines).

#[cfg(test)]
mod tests;

use crate::cluster::{Address, Host};
use crate::flags::Flag;
use crate::hcm::{HttpConnectionManager, Profile, RouterOptions};
use crate::header_ops::{HeaderOps, Side};
use crate::headers::{Known, KnownSet};
use crate::message::Scheme;
use crate::plugin::LocalReply;
use crate::regex::{Regex, Rewrite};
use crate::retry::RetryOn;
use crate::route::{Forward, HostRewrite, PassHost, PathRewrite, Route, TemplatePart, WeightedCluster};
use crate::router::{PathMatch, TableOptions, VirtualHost};
use crate::stream::Stream;
use std::sync::Arc;

/// Makes the request ready for its cluster. What a weighted cluster changes comes first, its host included; then
/// header changes, so that they see the host as it is without the route's rule, and the old path; then that rule,
/// which sees the old path too; then the path.
///
/// `upgrading` keeps Connection and Upgrade in APISIX's profile; Envoy's has settled them at the edge.
pub fn finalize_request(
    table: Option<&TableOptions>,
    route: &Route,
    forward: &Forward,
    member: Option<&WeightedCluster>,
    hcm: &HttpConnectionManager,
    upgrading: bool,
    stream: &mut Stream,
) {
    // Most change nothing, and a count that all workers share is not for nothing.
    let virtual_host =
        stream.virtual_host.as_ref().filter(|v| !v.options.request_headers.is_empty()).cloned();
    if let Some(member) = member {
        member.request_headers.apply(stream, Side::Request);
        if let Some(host) = &member.host_rewrite {
            // The route's changes see it, and the route's own rule has the last word. Envoy announces the old host
            // only for that one.
            set_host(host.as_bytes(), forward.append_x_forwarded_host, false, stream);
        }
    }
    let levels = Levels { table, virtual_host: virtual_host.as_ref(), route: Some(route) };
    levels.apply(stream, Side::Request);
    let announce = !hcm.router.suppress_envoy_headers && hcm.profile == Profile::Envoy;
    rewrite_host(forward, announce, stream);
    if let Some(rewrite) = forward.path_rewrite.as_deref() {
        rewrite_path(&route.path, rewrite, announce, stream);
    }
    if hcm.profile == Profile::Apisix {
        apisix_headers(upgrading, stream);
    }
}

/// Header changes on an answer that was made here: 503 UH, redirects, direct responses, those of filters. A member of
/// weighted clusters belongs to the route from the start in Envoy, so that its changes are made to each of them.
pub fn finalize_response(table: Option<&TableOptions>, stream: &mut Stream) {
    let route = stream.route.clone();
    let choice = route.as_deref().and_then(Route::leads_to);
    let member = choice.and_then(|choice| stream.upstream.drawn.member(choice));
    finalize_upstream_response(table, member, stream);
}

/// Header changes on a response of an upstream.
pub fn finalize_upstream_response(
    table: Option<&TableOptions>,
    member: Option<&WeightedCluster>,
    stream: &mut Stream,
) {
    let virtual_host =
        stream.virtual_host.as_ref().filter(|v| !v.options.response_headers.is_empty()).cloned();
    let route = stream.route.as_ref().filter(|r| !r.response_headers.is_empty()).cloned();
    let levels = Levels { table, virtual_host: virtual_host.as_ref(), route: route.as_deref() };
    // A member stands before the levels, whichever of them is to have the last word.
    if let Some(member) = member {
        member.response_headers.apply(stream, Side::Response);
    }
    levels.apply(stream, Side::Response);
}

/// The levels that change headers.
struct Levels<'a> {
    table: Option<&'a TableOptions>,
    virtual_host: Option<&'a Arc<VirtualHost>>,
    route: Option<&'a Route>,
}

impl Levels<'_> {
    /// Route, virtual host, table; the reverse when the most specific level is to have the last word.
    fn apply(&self, stream: &mut Stream, side: Side) {
        let pick = |request, response| -> &HeaderOps {
            match side {
                Side::Request | Side::RequestTrailers => request,
                Side::Response | Side::ResponseTrailers => response,
            }
        };
        let mut ops = [
            self.route.map(|r| pick(&r.request_headers, &r.response_headers)),
            self.virtual_host.map(|v| pick(&v.options.request_headers, &v.options.response_headers)),
            self.table.map(|t| pick(&t.request_headers, &t.response_headers)),
        ];
        if self.table.is_some_and(|t| t.most_specific_wins) {
            ops.reverse();
        }
        for ops in ops.into_iter().flatten().filter(|ops| !ops.is_empty()) {
            ops.apply(stream, side);
        }
    }
}

fn rewrite_host(forward: &Forward, announce: bool, stream: &mut Stream) {
    let host = match forward.host_rewrite.as_deref() {
        None | Some(HostRewrite::Endpoint) => return,
        Some(HostRewrite::Literal(host)) => host.to_vec(),
        Some(HostRewrite::Header(target)) => match target.values(&stream.request).next() {
            Some(value) if !value.is_empty() => value.to_vec(),
            _ => return,
        },
        Some(HostRewrite::PathRegex(regex, rewrite)) => replace(regex, rewrite, stream.request.target.path()),
        Some(HostRewrite::Format(format)) => {
            let mut host = Vec::new();
            format.write_log(stream, &mut host);
            host
        }
    };
    set_host(&host, forward.append_x_forwarded_host, announce, stream);
}

/// Replaces the host; the old one goes to `x-envoy-original-host`, and to `x-forwarded-host` if it is not
/// the last one there (common/http/utility.cc `updateAuthority`).
fn set_host(host: &[u8], append_forwarded: bool, announce: bool, stream: &mut Stream) {
    let head = &mut stream.request;
    let old = std::mem::replace(&mut head.authority, host.to_vec());
    if old.is_empty() {
        return;
    }
    if append_forwarded {
        let last =
            head.headers.get(Known::X_FORWARDED_HOST).and_then(|v| v.split(|b| *b == b',').next_back());
        if last != Some(&old) {
            head.headers.join(Known::X_FORWARDED_HOST, b",", &old);
        }
    }
    if announce {
        head.headers.set(Known::X_ENVOY_ORIGINAL_HOST, &old);
    }
}

fn rewrite_path(matched: &PathMatch, rewrite: &PathRewrite, announce: bool, stream: &mut Stream) {
    let path = match rewrite {
        PathRewrite::Prefix(prefix) => replace_prefix(matched, prefix, stream.request.target.path()),
        PathRewrite::Regex(regex, rewrite) => replace(regex, rewrite, stream.request.target.path()),
        PathRewrite::Format(format) => {
            let mut path = Vec::new();
            format.write_header(stream, &mut path);
            path
        }
        PathRewrite::Template(parts) => fill(parts, stream),
    };
    let old = stream.request.target.full();
    if stream.original_target.is_empty() {
        stream.original_target.extend_from_slice(old);
    }
    if announce {
        stream.request.headers.set(Known::X_ENVOY_ORIGINAL_PATH, old);
    }
    stream.request.target.set_path(&path);
}

/// The path with the text that matched replaced: the prefix, or all of it where the whole path matched.
pub(crate) fn replace_prefix(matched: &PathMatch, replacement: &[u8], path: &[u8]) -> Vec<u8> {
    let rest = match matched {
        PathMatch::Prefix(prefix, _) | PathMatch::SeparatedPrefix(prefix, _) => path.get(prefix.len()..),
        _ => None,
    };
    [replacement, rest.unwrap_or_default()].concat()
}

/// The text with every match replaced; itself when there is none.
pub(crate) fn replace(regex: &Regex, rewrite: &Rewrite, text: &[u8]) -> Vec<u8> {
    regex.replace_all(text, rewrite).unwrap_or_else(|| text.to_vec())
}

fn fill(parts: &[TemplatePart], stream: &Stream) -> Vec<u8> {
    let mut path = Vec::new();
    for part in parts {
        match part {
            TemplatePart::Text(text) => path.extend_from_slice(text),
            TemplatePart::Capture(name) => {
                let value = stream.captures.iter().find(|(n, _)| n == name);
                path.extend_from_slice(value.map_or(&[], |(_, value)| value));
            }
        }
    }
    path
}

/// `auto_host_rewrite`: the endpoint's name becomes the host, if it has one. `suppress` leaves
/// `x-envoy-original-host` out.
pub fn endpoint_host(
    forward: &Forward,
    member: Option<&WeightedCluster>,
    host: &Host,
    suppress: bool,
    stream: &mut Stream,
) {
    let wanted = matches!(forward.host_rewrite.as_deref(), Some(HostRewrite::Endpoint));
    if !wanted || host.hostname.is_empty() || member.is_some_and(|m| m.host_rewrite.is_some()) {
        return;
    }
    // The host the client sent was announced with the first attempt.
    let first = stream.upstream.attempts <= 1;
    set_host(host.hostname.as_bytes(), forward.append_x_forwarded_host && first, !suppress && first, stream);
}

/// APISIX's Host for the upstream: the client's, a plugin's `upstream_host`, the node's name with its port
/// unless that is the scheme's, or a fixed one (`pass_host`). What the client sent stays in the variables
/// `host` and `http_host`.
pub fn apisix_host(forward: &Forward, host: &Host, scheme: Scheme, stream: &mut Stream) {
    let upstream = match &forward.pass_host {
        PassHost::Rewrite(text) => text.as_bytes().to_vec(),
        PassHost::Node => node_host(&host.address, &host.hostname, scheme),
        PassHost::Pass => match stream.var("upstream_host") {
            Some(text) if !text.is_empty() => text.to_vec(),
            _ => return,
        },
    };
    if !matches!(forward.pass_host, PassHost::Pass) && stream.var("upstream_host").is_some() {
        // The upstream's own rule has the last word.
        stream.set_var("upstream_host", upstream.clone());
    }
    if stream.request.authority == upstream {
        return;
    }
    if stream.var("http_host").is_none() {
        let plain = stream.request.server_name().to_ascii_lowercase();
        let sent = std::mem::take(&mut stream.request.authority);
        stream.set_var("host", plain);
        stream.set_var("http_host", sent);
    }
    stream.request.authority = upstream;
}

/// What a node is called in Host by `pass_host: node`: its name, or its address, with its port unless that is the scheme's.
pub fn node_host(address: &Address, hostname: &str, scheme: Scheme) -> Vec<u8> {
    let (name, port) = match address {
        Address::Ip(address) => (None, address.port()),
        Address::Name(name, port) => (Some(name.as_str()), *port),
        Address::Unix(_) => (Some("localhost"), scheme.default_port()),
    };
    let mut out = match (hostname, name, address) {
        ("", Some(name), _) => name.as_bytes().to_vec(),
        ("", None, Address::Ip(std::net::SocketAddr::V6(v6))) => format!("[{}]", v6.ip()).into_bytes(),
        ("", None, Address::Ip(address)) => address.ip().to_string().into_bytes(),
        (hostname, _, _) => hostname.as_bytes().to_vec(),
    };
    if port != scheme.default_port() && crate::message::strip_port(&out).len() == out.len() {
        out.push(b':');
        out.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
    }
    out
}

/// What nginx keeps from upstreams, Connection and Upgrade of a request that asks for no WebSocket among it.
const HOP_BY_HOP: KnownSet = KnownSet::of(&[
    Known::CONNECTION,
    Known::UPGRADE,
    Known::KEEP_ALIVE,
    Known::TRANSFER_ENCODING,
    Known::TE,
    Known::EXPECT,
]);

/// The headers that APISIX's nginx configuration sets towards every upstream.
fn apisix_headers(upgrading: bool, stream: &mut Stream) {
    crate::path::restore_target(stream);
    let ip = stream.remote_ip().to_string();
    let (own, of_upgrades) = (
        [Known::KEEP_ALIVE, Known::TRANSFER_ENCODING, Known::TE, Known::EXPECT],
        [Known::CONNECTION, Known::UPGRADE],
    );
    if stream.request.headers.may_have(&HOP_BY_HOP) {
        own.into_iter().for_each(|name| stream.request.withhold(name));
        of_upgrades.into_iter().filter(|_| !upgrading).for_each(|name| stream.request.withhold(name));
    }
    // To plugins and logs they are the client's as they were.
    stream.request.withhold(Known::X_REAL_IP);
    if stream.request.headers.get_all(Known::X_FORWARDED_FOR).nth(1).is_some() {
        stream.request.withhold(Known::X_FORWARDED_FOR);
    }
    stream.upstream.is_told_of_client = true;
    let headers = &mut stream.request.headers;
    headers.retain(|known, _, _| match known {
        Some(Known::CONNECTION | Known::UPGRADE) => upgrading,
        Some(Known::KEEP_ALIVE | Known::TRANSFER_ENCODING | Known::TE | Known::EXPECT) => false,
        _ => true,
    });
    headers.set(Known::X_REAL_IP, ip.as_bytes());
    let lines: Vec<&[u8]> = headers.get_all(Known::X_FORWARDED_FOR).chain([ip.as_bytes()]).collect();
    let forwarded = lines.join(&b", "[..]);
    headers.set(Known::X_FORWARDED_FOR, &forwarded);
}

/// Envoy's `strict_check_headers`: an `x-envoy-*` header that does not parse is answered with 400 IH.
pub fn strict_check(options: &RouterOptions, stream: &Stream) -> Option<LocalReply> {
    options.strict_check_headers.iter().find_map(|name| {
        let value = stream.request.headers.get(name)?;
        let text = std::str::from_utf8(value).ok();
        let is_good = match name.known() {
            Some(Known::X_ENVOY_RETRY_ON | Known::X_ENVOY_RETRY_GRPC_ON) => {
                text.is_some_and(|t| RetryOn::parse(t).1.is_empty())
            }
            _ => text.is_some_and(|t| t.parse::<u64>().is_ok()),
        };
        if is_good {
            return None;
        }
        let body =
            format!("invalid header '{}' with value '{}'", name.as_str(), String::from_utf8_lossy(value));
        let details = format!("request_headers_failed_strict_check{{{}}}", name.as_str());
        let mut reply = LocalReply::new(400, body, details);
        reply.flag = Some(Flag::IH);
        Some(reply)
    })
}
