//! Where a request or a connection goes to where its cluster does not say it.

use sixfold_core::cluster::{Cluster, Discovery};
use sixfold_core::stream::Stream;
use std::net::SocketAddr;

/// Where an ORIGINAL_DST cluster connects to for a stream: the address in the header, unless there is none that can
/// be read, else the one that the connection was meant for (source/extensions/clusters/original_dst).
pub(crate) fn destination(cluster: &Cluster, stream: &Stream) -> Option<SocketAddr> {
    let Discovery::OriginalDst(original) = &cluster.config.discovery else { return None };
    let named = original.header.as_ref().and_then(|header| header.values(&stream.request).next());
    let by_header = named.and_then(|value| {
        let address = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
        if address.is_none() {
            cluster.stats.original_dst_host_invalid().inc();
        }
        address
    });
    let connection = &stream.connection;
    let mut address = by_header.or_else(|| connection.local_restored.then_some(connection.local))?;
    if let Some(port) = original.port {
        address.set_port(port);
    }
    Some(address)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use sixfold_core::cluster::{ClusterConfig, OriginalDestination};
    use sixfold_core::connection::Connection;
    use sixfold_core::matcher::HeaderTarget;
    use sixfold_core::metrics::Registry;
    use std::sync::Arc;

    #[test]
    fn the_destination_is_what_the_header_or_else_the_connection_says() {
        let of = |restored: bool, header: Option<&str>, original: OriginalDestination| {
            let mut config = ClusterConfig::named("c");
            config.discovery = Discovery::OriginalDst(original);
            let cluster = Cluster::new(config, Vec::new(), None, &Registry::new()).unwrap();
            let (remote, local) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
            let connection = Connection { local_restored: restored, ..Connection::plain(remote, local) };
            let mut stream = Stream::new(Arc::new(connection));
            if let Some(value) = header {
                let name = sixfold_core::headers::HeaderName::new("x-to").unwrap();
                stream.request.headers.append(&name, value.as_bytes());
            }
            let found = destination(&cluster, &stream).map(|address| address.to_string());
            (found.unwrap_or_default(), cluster.stats.original_dst_host_invalid().get())
        };
        let by_connection = OriginalDestination::default;
        let by_header = || OriginalDestination { header: Some(HeaderTarget::of_request("x-to")), port: None };
        let told = |address: &str, invalid| (address.to_owned(), invalid);
        assert_eq!(of(true, None, by_connection()), told("10.0.0.2:2", 0));
        assert_eq!(of(false, None, by_connection()), told("", 0), "it was meant for us");
        assert_eq!(
            of(true, Some("10.0.0.3:3"), by_connection()),
            told("10.0.0.2:2", 0),
            "nobody asks the header"
        );
        assert_eq!(of(false, Some("10.0.0.3:3"), by_header()), told("10.0.0.3:3", 0));
        assert_eq!(of(true, Some("[::1]:3"), by_header()), told("[::1]:3", 0));
        assert_eq!(of(true, Some("host:3"), by_header()), told("10.0.0.2:2", 1));
        assert_eq!(
            of(true, None, OriginalDestination { port: Some(9), ..by_header() }),
            told("10.0.0.2:9", 0)
        );
    }
}
