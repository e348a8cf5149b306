//! Where streams come in.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use sixfold_core::document::{Node, Value};
use sixfold_core::error::ConfigError;
use sixfold_core::listener::BindAddress;

use super::{Field, Reader};
use crate::config::{ProxyMode, StreamListen, StreamProxy};

const KEYS: [&str; 4] = ["addr", "tls", "proxy_protocol", "proxy_protocol_to_upstream"];

impl Reader<'_> {
    pub(super) fn proxy_mode(&mut self, field: &Field<'_>) -> ProxyMode {
        self.required(field, "http, stream or http&stream", ProxyMode::Http, |value| match value {
            Value::String(text) => match text.as_str() {
                "http" => Some(ProxyMode::Http),
                "stream" => Some(ProxyMode::Stream),
                "http&stream" => Some(ProxyMode::HttpAndStream),
                _ => None,
            },
            _ => None,
        })
    }

    /// `apisix.stream_proxy`. APISIX does not look at it when its mode has no streams.
    pub(super) fn stream_proxy(&mut self, apisix: &Field<'_>, mode: ProxyMode) -> StreamProxy {
        let field = apisix.key("stream_proxy");
        let proxied = apisix.key("proxy_protocol");
        let defaults = (
            self.flag_or(&proxied.key("enable_tcp_pp"), false),
            self.flag_or(&proxied.key("enable_tcp_pp_to_upstream"), false),
        );
        let streams = StreamProxy {
            tcp: self.stream_list(&field.key("tcp"), "apisix.stream_proxy.tcp", defaults),
            udp: self.stream_list(&field.key("udp"), "apisix.stream_proxy.udp", (false, false)),
        };
        let Some(node) = field.node.filter(|_| !streams.is_empty()) else { return streams };
        if mode.has_streams() {
            return streams;
        }
        let reason = "has no effect: apisix.proxy_mode is http; write stream or http&stream";
        self.reports.push(ConfigError::field(&field.path, reason).at(node.place));
        StreamProxy::default()
    }

    fn stream_list(
        &mut self,
        field: &Field<'_>,
        list: &'static str,
        (proxied, to_upstream): (bool, bool),
    ) -> Vec<StreamListen> {
        self.optional(field, "a list of ports and addresses", |value| {
            matches!(value, Value::Array(_)).then_some(())
        });
        let (mut listens, is_udp) = (Vec::new(), list.ends_with("udp"));
        for (index, entry) in field.items().into_iter().enumerate() {
            let mut listen = StreamListen {
                address: BindAddress::Ip(any_address(0)),
                tls: false,
                proxy_protocol: proxied,
                proxy_protocol_to_upstream: to_upstream,
                list,
                index,
            };
            let mut place = entry.clone();
            if !is_udp && entry.node.and_then(Node::as_object).is_some() {
                self.unknown_keys(&entry, &KEYS);
                listen.tls = self.flag_or(&entry.key("tls"), false);
                listen.proxy_protocol = self.flag_or(&entry.key("proxy_protocol"), proxied);
                let to_upstream_field = entry.key("proxy_protocol_to_upstream");
                listen.proxy_protocol_to_upstream = self.flag_or(&to_upstream_field, to_upstream);
                place = entry.key("addr");
                if place.node.is_none() {
                    self.fault(&entry, "addr is required");
                }
            }
            let wanted =
                "a port, a range of ports such as \"9100-9110\", or one of these behind an IP address";
            let addresses = self.optional(&place, wanted, addresses).unwrap_or_default();
            listens.extend(addresses.into_iter().map(|address| StreamListen { address, ..listen.clone() }));
        }
        listens
    }

    /// Reports the keys of an object that nobody knows.
    pub(super) fn unknown_keys(&mut self, entry: &Field<'_>, known: &[&'static str]) {
        let object = entry.node.and_then(Node::as_object);
        for item in object.map(|object| object.entries()).unwrap_or_default() {
            if !known.contains(&item.key.as_str()) {
                let error = ConfigError::unknown_key(&item.key, known.iter().copied())
                    .in_key(&format!("{}.{}", entry.path, item.key));
                self.reports.push(error.at(item.key_place));
            }
        }
    }
}

fn any_address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
}

/// nginx's `listen` of a stream: `9100`, `127.0.0.1:9100`, `[::1]:9100`, `*:9100`, ranges of ports, and `unix:PATH`.
fn addresses(value: &Value) -> Option<Vec<BindAddress>> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return None,
    };
    if let Some(path) = text.strip_prefix("unix:") {
        return (!path.is_empty()).then(|| vec![BindAddress::Unix(PathBuf::from(path))]);
    }
    let (ip, ports) = match text.rsplit_once(':') {
        None => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), text.as_str()),
        Some(("*", ports)) => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), ports),
        Some((ip, ports)) => (ip.trim_matches(['[', ']']).parse().ok()?, ports),
    };
    let address = |port| BindAddress::Ip(SocketAddr::new(ip, port));
    Some(ports_of(ports)?.map(address).collect())
}

fn ports_of(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}
