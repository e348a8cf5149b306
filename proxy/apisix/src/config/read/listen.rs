//! The addresses that are listened on.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use sixfold_core::document::Value;

use super::{Field, Reader};
use crate::config::ListenAddress;

impl Reader<'_> {
    /// Those for plain text and those for TLS.
    pub(super) fn listeners(&mut self, apisix: &Field<'_>) -> (Vec<ListenAddress>, Vec<ListenAddress>) {
        let ipv6 = self.flag(&apisix.key("enable_ipv6"));
        let mut http = self.listen_list(&apisix.key("node_listen"), "apisix.node_listen", 9080, ipv6);
        let proxied = apisix.key("proxy_protocol");
        if let Some(port) = self.port(&proxied.key("listen_http_port")) {
            let list = "apisix.proxy_protocol.listen_http_port";
            http.extend(
                any_address(port, ipv6)
                    .map(|ip| ListenAddress { proxy_protocol: true, ..listen(ip, list, 0) }),
            );
        }
        let ssl = apisix.key("ssl");
        let mut https = Vec::new();
        if self.flag(&ssl.key("enable")) {
            https = self.listen_list(&ssl.key("listen"), "apisix.ssl.listen", 9443, ipv6);
            if let Some(port) = self.port(&proxied.key("listen_https_port")) {
                let list = "apisix.proxy_protocol.listen_https_port";
                https.extend(
                    any_address(port, ipv6)
                        .map(|ip| ListenAddress { proxy_protocol: true, ..listen(ip, list, 0) }),
                );
            }
        }
        (http, https)
    }

    /// A port, a list of ports, or a list of `{ip, port}`.
    fn listen_list(
        &mut self,
        field: &Field<'_>,
        list: &'static str,
        default_port: u16,
        ipv6: bool,
    ) -> Vec<ListenAddress> {
        let mut addresses = Vec::new();
        let entries = match field.node.map(|node| &node.value) {
            Some(Value::Array(_)) => field.items(),
            Some(_) => vec![field.clone()],
            None => Vec::new(),
        };
        for (index, entry) in entries.into_iter().enumerate() {
            let any = |port| any_address(port, ipv6).map(move |address| listen(address, list, index));
            if !matches!(entry.node.map(|node| &node.value), Some(Value::Object(_))) {
                let port = self.port(&entry);
                addresses.extend(port.into_iter().flat_map(any));
                continue;
            }
            self.listen_keys(&entry);
            let port = match entry.key("port").node {
                Some(_) => self.port(&entry.key("port")),
                None => Some(default_port),
            };
            let Some(port) = port else { continue };
            match entry.key("ip").node {
                Some(_) => {
                    let ip = self.ip(&entry.key("ip"));
                    addresses.extend(ip.map(|ip| listen(SocketAddr::new(ip, port), list, index)));
                }
                None => addresses.extend(any(port)),
            }
        }
        addresses
    }

    fn listen_keys(&mut self, entry: &Field<'_>) {
        self.unknown_keys(entry, &["ip", "port", "enable_http2", "enable_http3"]);
        if self.flag(&entry.key("enable_http3")) {
            self.fault(&entry.key("enable_http3"), "not supported: HTTP/3 is not part of the gateway");
        }
        if entry.key("enable_http2").node.is_some() {
            self.fault(&entry.key("enable_http2"), "APISIX removed it in favour of apisix.enable_http2");
        }
    }
}

/// Every address of this machine, with the twin for IPv6 that APISIX adds.
fn any_address(port: u16, ipv6: bool) -> impl Iterator<Item = SocketAddr> {
    let v6 = ipv6.then(|| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    std::iter::once(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).chain(v6)
}

fn listen(address: SocketAddr, list: &'static str, index: usize) -> ListenAddress {
    ListenAddress { address, proxy_protocol: false, list, index }
}
