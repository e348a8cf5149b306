//! The edge as APISIX's nginx configuration has it (apisix/cli/ngx_tpl.lua, `http_access_phase`).

use super::trust::contains;
use crate::h1::hop;
use ipnet::IpNet;
use sixfold_core::hcm::{ClientAddress, HttpConnectionManager, Profile};
use sixfold_core::headers::{Headers, Known};
use sixfold_core::message::{Scheme, strip_port};
use sixfold_core::stream::{ResponseSource, Stream};
use std::net::{IpAddr, SocketAddr};

/// Finds the client's address and sets the X-Forwarded-* headers that plugins may still change.
pub(super) fn request(hcm: &HttpConnectionManager, stream: &mut Stream) {
    real_ip(&hcm.client_address, stream);
    stream.request.scheme = if stream.connection.tls.is_some() { Scheme::Https } else { Scheme::Http };
    remember(stream);
    let peer = stream.connection.remote.ip();
    let trusted = &hcm.client_address.trusted_addresses;
    if trusted.as_ref().is_some_and(|nets| !contains(nets, peer)) {
        stream.request.headers.remove(Known::X_FORWARDED_FOR);
    }
    forwarded(trusted.as_ref().is_some_and(|nets| contains(nets, peer)), stream);
}

/// nginx's realip module: a trusted peer tells the client's address.
fn real_ip(options: &ClientAddress, stream: &mut Stream) {
    let Some(name) = &options.real_ip_header else { return };
    if !contains(&options.real_ip_from, stream.connection.remote.ip()) {
        return;
    }
    let told = walk(&stream.request.headers, name, &options.real_ip_from, options.real_ip_recursive);
    if let Some(client) = told {
        stream.remote = client;
    }
}

/// The last address of a list, or the last that is not trusted.
fn walk(
    headers: &Headers,
    name: &sixfold_core::headers::HeaderName,
    trusted: &[IpNet],
    recursive: bool,
) -> Option<SocketAddr> {
    let lines: Vec<&[u8]> = headers.get_all(name).collect();
    let mut found = None;
    for entry in lines.iter().rev().flat_map(|line| line.rsplit(|b| *b == b',')) {
        let Some(address) = address(entry) else { break };
        found = Some(address);
        if !recursive || !contains(trusted, address.ip()) {
            break;
        }
    }
    found
}

/// An address with or without a port, as nginx reads it.
fn address(text: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(text.trim_ascii()).ok()?;
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0)).or_else(|_| text.parse()).ok()
}

/// Keeps what the client sent, for the `original_*` variables.
fn remember(stream: &mut Stream) {
    const KEPT: &[(Known, &str)] = &[
        (Known::X_FORWARDED_PROTO, "original_x_forwarded_proto"),
        (Known::X_FORWARDED_HOST, "original_x_forwarded_host"),
        (Known::X_FORWARDED_PORT, "original_x_forwarded_port"),
        (Known::X_FORWARDED_FOR, "original_x_forwarded_for"),
        (Known::FORWARDED, "original_forwarded"),
    ];
    for (name, variable) in KEPT {
        if let Some(value) = stream.request.headers.get(*name) {
            let value = value.to_vec();
            stream.set_var(variable, value);
        }
    }
}

/// X-Forwarded-Proto, -Host and -Port of this hop; a trusted peer's own ones stay.
fn forwarded(trusted: bool, stream: &mut Stream) {
    let own_port = stream.connection.local.port();
    let head = &mut stream.request;
    let mut put = |name: Known, value: &[u8]| {
        let stays = trusted && head.headers.get(name).is_some_and(|v| !v.is_empty());
        if !stays {
            head.headers.set(name, value);
        }
    };
    put(Known::X_FORWARDED_PROTO, head.scheme.as_str().as_bytes());
    // What is empty is not sent, as in nginx.
    if !head.authority.is_empty() {
        put(Known::X_FORWARDED_HOST, &head.authority);
    }
    let port = head.authority.get(strip_port(&head.authority).len() + 1..);
    match port.filter(|p| !p.is_empty() && p.iter().all(u8::is_ascii_digit)) {
        Some(port) => put(Known::X_FORWARDED_PORT, port),
        None => put(Known::X_FORWARDED_PORT, itoa::Buffer::new().format(own_port).as_bytes()),
    }
    if !trusted {
        head.headers.remove(Known::FORWARDED);
    }
}

/// What nginx does not pass on of an upstream's response unless it is told to (`ngx_http_proxy_hide_headers`): what
/// was meant for nginx itself.
pub(crate) fn hide_upstream_headers(headers: &mut Headers) {
    const HIDDEN: [&[u8]; 6] = [
        b"x-accel-redirect",
        b"x-accel-expires",
        b"x-accel-limit-rate",
        b"x-accel-buffering",
        b"x-accel-charset",
        b"x-pad",
    ];
    let hidden = |name: &[u8]| {
        matches!(name, [b'x' | b'X', ..]) && HIDDEN.iter().any(|hidden| name.eq_ignore_ascii_case(hidden))
    };
    if headers.iter().any(|(name, _)| hidden(name)) {
        headers.retain(|_, name, _| !hidden(name));
    }
}

/// Server and the list of upstream statuses.
pub(super) fn name_gateway(hcm: &HttpConnectionManager, stream: &mut Stream) {
    if let Some(server) = stream.response.headers.get(Known::SERVER)
        && stream.source == ResponseSource::Upstream
    {
        stream.upstream.server.clear();
        stream.upstream.server.extend_from_slice(server);
    }
    stream.response.headers.set(Known::SERVER, hcm.headers.server_name.as_bytes());
    upstream_status(hcm.show_upstream_status, stream);
}

/// What is left to do behind the plugins: what is the connection's alone, and the charset of texts.
pub(super) fn response(hcm: &HttpConnectionManager, stream: &mut Stream) {
    let upgraded = stream.response.status == 101;
    hop::strip_response(&mut stream.response.headers, upgraded, Profile::Apisix);
    if let Some(name) = &hcm.charset {
        charset(name, &mut stream.response.headers);
    }
}

/// `X-APISIX-Upstream-Status`: nginx's `$upstream_status`, when its last entry is a 5xx or it is always
/// wanted. An attempt without an answer counts as 502, or as the 504 that the client gets.
fn upstream_status(always: bool, stream: &mut Stream) {
    let failed = if stream.response.status == 504 { 504 } else { 502 };
    let status = |status: u16| if status == 0 { failed } else { status };
    let tried = &stream.upstream.tried;
    let Some(last) = tried.last().map(|t| status(t.status)) else { return };
    if !always && !(500..600).contains(&last) {
        return;
    }
    let list: Vec<String> = tried.iter().map(|t| status(t.status).to_string()).collect();
    stream.response.headers.set(Known::X_APISIX_UPSTREAM_STATUS, list.join(", ").as_bytes());
}

/// nginx's `charset`, for its default `charset_types`.
fn charset(name: &str, headers: &mut Headers) {
    const TYPES: &[&[u8]] = &[
        b"text/html",
        b"text/xml",
        b"text/plain",
        b"text/vnd.wap.wml",
        b"application/javascript",
        b"application/rss+xml",
    ];
    let Some(value) = headers.get(Known::CONTENT_TYPE) else { return };
    let media = value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    let has_charset = || value.windows(8).any(|part| part.eq_ignore_ascii_case(b"charset="));
    if TYPES.iter().any(|t| media.eq_ignore_ascii_case(t)) && !has_charset() {
        let with = [value, b"; charset=", name.as_bytes()].concat();
        headers.set(Known::CONTENT_TYPE, &with);
    }
}
