//! APISIX's real-ip: the client's address is what a variable says.

use crate::shared::addresses::Addresses;
use serde::Deserialize;
use sixfold_core::error::ConfigContext;
use sixfold_core::format::Variable;
use sixfold_core::headers::Known;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::net::{IpAddr, SocketAddr};

pub(crate) fn factory() -> ApisixFactory {
    ApisixFactory::new("real-ip", 23000, include_str!("../../schemas/real-ip.json"), RealIp::build)
}

#[derive(Deserialize)]
struct Config {
    source: String,
    trusted_addresses: Option<Vec<String>>,
    recursive: bool,
}

struct RealIp {
    source: Source,
    /// Peers that are believed; all where there is no list.
    trusted: Option<Addresses>,
}

enum Source {
    Variable(Variable),
    /// The last address of X-Forwarded-For, or the last that is not trusted.
    ForwardedFor {
        recursive: bool,
    },
}

impl RealIp {
    fn build(config: Config, _: &BuildContext) -> Built {
        let Config { source, trusted_addresses, recursive } = config;
        let trusted = trusted_addresses.as_deref().map(Addresses::new).transpose();
        let source = match source.as_str() {
            "http_x_forwarded_for" => Source::ForwardedFor { recursive },
            name => Source::Variable(Variable::parse(name)),
        };
        let real_ip = RealIp { source, trusted: trusted.in_key("trusted_addresses")? };
        Ok(Plugin::of(real_ip).rewrite(RealIp::rewrite).build())
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.as_ref().is_none_or(|trusted| trusted.contains(address))
    }

    /// The address that the request tells; nothing, or nothing that is one, changes nothing.
    fn told(&self, stream: &Stream) -> Option<SocketAddr> {
        match &self.source {
            Source::Variable(variable) => address(&variable.get(stream)?),
            Source::ForwardedFor { recursive } => {
                let list = stream.request.headers.get_all(Known::X_FORWARDED_FOR).last()?;
                address(self.last_of(list, *recursive && self.trusted.is_some()))
            }
        }
    }

    fn last_of<'a>(&self, list: &'a [u8], recursive: bool) -> &'a [u8] {
        let mut found = list;
        for entry in list.rsplit(|byte| *byte == b',') {
            found = entry.trim_ascii_start();
            let text = std::str::from_utf8(found).ok();
            let trusted = text.and_then(|text| text.parse().ok()).is_some_and(|ip| self.trusts(ip));
            if !(recursive && trusted) {
                break;
            }
        }
        found
    }

    fn rewrite(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        if self.trusts(stream.remote.ip())
            && let Some(address) = self.told(stream)
        {
            stream.remote = address;
        }
        Step::Continue
    }
}

/// An address with or without a port, which is 0 then.
fn address(text: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(text).ok()?;
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(ip, 0));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(host, behind)| (host, behind.strip_prefix(':')))?,
        None => text.rsplit_once(':').map(|(host, port)| (host, Some(port)))?,
    };
    // A port that is no number is none, and one that there can't be spoils the address.
    let port = port
        .and_then(|port| port.parse::<i64>().ok())
        .map_or(Some(0), |port| u16::try_from(port).ok().filter(|port| *port > 0))?;
    Some(SocketAddr::new(host.parse().ok()?, port))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::testing::{build, context, now, plugin, stream};
    use serde_json::{Value, json};

    /// The client's address for a request from 10.1.2.3:4000.
    #[allow(clippy::needless_pass_by_value)]
    fn client(config: Value, target: &str, headers: &[(&str, &str)]) -> String {
        let mut s = stream(target, headers);
        assert!(now(plugin("real-ip", &config).rewrite(&mut s)).is_none());
        s.remote.to_string()
    }

    #[test]
    fn a_variable_tells_the_address() {
        let by = |value: &str| client(json!({"source": "http_xff"}), "/", &[("xff", value)]);
        for (told, address) in [
            ("1.1.1.1", "1.1.1.1:0"),
            ("1.1.1.1:7090", "1.1.1.1:7090"),
            ("1.1.1.1:x", "1.1.1.1:0"),
            ("::1", "[::1]:0"),
            ("[::1]", "[::1]:0"),
            ("[::1]:80", "[::1]:80"),
            // What is none changes nothing.
            ("1.1.1.1:65536", "10.1.2.3:4000"),
            ("1.1.1.1:0", "10.1.2.3:4000"),
            ("1.1.1.1:-1", "10.1.2.3:4000"),
            ("1.1.1.1.1", "10.1.2.3:4000"),
            ("localhost", "10.1.2.3:4000"),
            ("localhost:80", "10.1.2.3:4000"),
            ("[::1", "10.1.2.3:4000"),
            ("", "10.1.2.3:4000"),
        ] {
            assert_eq!(by(told), address, "{told}");
        }
        assert_eq!(client(json!({"source": "arg_realip"}), "/?realip=2.2.2.2", &[]), "2.2.2.2:0");
        assert_eq!(client(json!({"source": "arg_realip"}), "/", &[]), "10.1.2.3:4000");
    }

    #[test]
    fn only_those_who_are_trusted_are_believed() {
        let by = |trusted: &[&str]| {
            client(json!({"source": "http_xff", "trusted_addresses": trusted}), "/", &[("xff", "1.1.1.1")])
        };
        assert_eq!([by(&["10.0.0.0/8"]), by(&["10.1.2.4", "::/0"])], ["1.1.1.1:0", "10.1.2.3:4000"]);
    }

    #[test]
    fn the_last_address_of_a_list_counts() {
        let config = json!({"source": "http_x_forwarded_for"});
        let by = |values: &[&str]| {
            let headers: Vec<_> = values.iter().map(|value| ("X-Forwarded-For", *value)).collect();
            client(config.clone(), "/", &headers)
        };
        assert_eq!(by(&["3.3.3.3"]), "3.3.3.3:0");
        assert_eq!(by(&["3.3.3.3, 2.2.2.2,  1.1.1.1"]), "1.1.1.1:0");
        assert_eq!(by(&["3.3.3.3, 2.2.2.2", "1.1.1.1, 4.4.4.4"]), "4.4.4.4:0");
        assert_eq!(by(&["1.1.1.1, "]), "10.1.2.3:4000");
        assert_eq!(by(&[]), "10.1.2.3:4000");
    }

    #[test]
    fn lists_are_walked_past_those_who_are_trusted() {
        let by = |trusted: &[&str], value: &str| {
            let config =
                json!({"source": "http_x_forwarded_for", "trusted_addresses": trusted, "recursive": true});
            client(config, "/", &[("X-Forwarded-For", value)])
        };
        let trusted = ["10.0.0.0/8", "192.128.0.0/16"];
        assert_eq!(by(&trusted, "127.0.0.2, 192.128.1.1, 10.9.9.9"), "127.0.0.2:0");
        assert_eq!(by(&trusted, "192.128.1.1, 10.9.9.9"), "192.128.1.1:0");
        assert_eq!(by(&trusted, "127.0.0.2, junk, 10.9.9.9"), "10.1.2.3:4000");
        let all = json!({"source": "http_x_forwarded_for", "recursive": true});
        assert_eq!(client(all, "/", &[("X-Forwarded-For", "3.3.3.3, 2.2.2.2")]), "2.2.2.2:0");
    }

    #[test]
    fn bad_addresses_are_refused() {
        let config = json!({"source": "http_xff", "trusted_addresses": ["127.0.0.1", "::/129"]});
        let refused = build("real-ip", &config, &context()).err().unwrap();
        assert_eq!(refused, "trusted_addresses[1]: invalid ip address: ::/129");
    }
}
