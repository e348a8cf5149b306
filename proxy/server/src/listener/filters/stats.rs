//! What listener filters have found, as Envoy counts it.

use super::{http_inspector, proxy_protocol, tls_inspector};
use sixfold_core::listener::ListenerFilter;
use sixfold_core::metrics::Registry;
use sixfold_core::proxy_protocol::Version;
use std::sync::OnceLock;

sixfold_core::stat_block! {
    /// Statistics under `tls_inspector.`.
    pub struct TlsInspectorStats {
        counters: [
            alpn_found, alpn_not_found, client_hello_too_large, sni_found, sni_not_found, tls_found, tls_not_found,
        ],
        gauges: [],
        histograms: [bytes_processed],
    }
}

sixfold_core::stat_block! {
    /// Statistics under `http_inspector.`.
    pub struct HttpInspectorStats {
        counters: [http10_found, http11_found, http2_found, http_not_found, read_error], gauges: [], histograms: [],
    }
}

sixfold_core::stat_block! {
    /// Statistics under `proxy_proto.`.
    pub struct ProxyProtocolStats {
        counters: [
            not_found_allowed, not_found_disallowed,
            v1_found = "versions.v1.found", v1_disallowed = "versions.v1.disallowed", v1_error = "versions.v1.error",
            v2_found = "versions.v2.found", v2_disallowed = "versions.v2.disallowed", v2_error = "versions.v2.error",
        ],
        gauges: [],
        histograms: [],
    }
}

sixfold_core::stat_block! {
    /// Connections without a good header, under no prefix.
    pub struct ProxyErrors { counters: [downstream_cx_proxy_proto_error], gauges: [], histograms: [] }
}

/// Of all listeners, each from the first listener on that has the filter.
#[derive(Default)]
pub(crate) struct FilterStats {
    tls: OnceLock<TlsInspectorStats>,
    http: OnceLock<HttpInspectorStats>,
    proxy: OnceLock<ProxyProtocolStats>,
    proxy_errors: OnceLock<ProxyErrors>,
}

impl FilterStats {
    fn proxy_errors(&self, registry: &Registry) -> &ProxyErrors {
        self.proxy_errors.get_or_init(|| ProxyErrors::new(registry, ""))
    }

    fn proxy(&self, registry: &Registry) -> &ProxyProtocolStats {
        self.proxy_errors(registry);
        self.proxy.get_or_init(|| ProxyProtocolStats::new(registry, "proxy_proto."))
    }

    /// A connection is closed for its header, or since it has none.
    pub(crate) fn proxy_failed(&self, registry: &Registry) {
        self.proxy_errors(registry).downstream_cx_proxy_proto_error().inc();
    }

    fn tls_stats(&self, registry: &Registry) -> &TlsInspectorStats {
        self.tls.get_or_init(|| TlsInspectorStats::new(registry, "tls_inspector."))
    }

    /// Shows the names of these filters: they are there before the first connection.
    pub(crate) fn show(&self, registry: &Registry, filters: &[ListenerFilter]) {
        for filter in filters {
            match filter {
                ListenerFilter::TlsInspector => _ = self.tls_stats(registry),
                ListenerFilter::HttpInspector => _ = self.http_stats(registry),
                ListenerFilter::ProxyProtocol { .. } => _ = self.proxy(registry),
                ListenerFilter::Except(_, filter) => self.show(registry, std::slice::from_ref(&**filter)),
                ListenerFilter::OriginalDst | ListenerFilter::OriginalSrc(_) => {}
            }
        }
    }

    /// What the TLS inspector has found in the first `bytes`.
    pub(super) fn tls(&self, registry: &Registry, bytes: usize, outcome: &tls_inspector::Outcome) {
        let stats = self.tls_stats(registry);
        match outcome {
            tls_inspector::Outcome::NeedsMore => return,
            tls_inspector::Outcome::NotTls => stats.tls_not_found().inc(),
            tls_inspector::Outcome::TooLarge => stats.client_hello_too_large().inc(),
            tls_inspector::Outcome::Tls(hello) => {
                stats.tls_found().inc();
                match &hello.server_name {
                    Some(_) => stats.sni_found().inc(),
                    None => stats.sni_not_found().inc(),
                }
                match hello.protocols.is_empty() {
                    false => stats.alpn_found().inc(),
                    true => stats.alpn_not_found().inc(),
                }
            }
        }
        stats.bytes_processed().record(bytes as u64);
    }

    fn http_stats(&self, registry: &Registry) -> &HttpInspectorStats {
        self.http.get_or_init(|| HttpInspectorStats::new(registry, "http_inspector."))
    }

    /// What the HTTP inspector has found.
    pub(super) fn http(&self, registry: &Registry, outcome: &http_inspector::Outcome) {
        let stats = self.http_stats(registry);
        match outcome {
            http_inspector::Outcome::NeedsMore => {}
            http_inspector::Outcome::NotHttp => stats.http_not_found().inc(),
            http_inspector::Outcome::TooLong => stats.read_error().inc(),
            http_inspector::Outcome::Http("http/1.0") => stats.http10_found().inc(),
            http_inspector::Outcome::Http("http/1.1") => stats.http11_found().inc(),
            http_inspector::Outcome::Http(_) => stats.http2_found().inc(),
        }
    }

    /// The connection ended before the HTTP inspector knew.
    pub(super) fn http_unread(&self, registry: &Registry) {
        self.http_stats(registry).read_error().inc();
    }

    /// What a PROXY protocol header was, and whether it is taken.
    pub(super) fn header(&self, registry: &Registry, version: Version, allowed: bool) {
        let stats = self.proxy(registry);
        match (version, allowed) {
            (Version::V1, true) => stats.v1_found().inc(),
            (Version::V1, false) => stats.v1_disallowed().inc(),
            (Version::V2, true) => stats.v2_found().inc(),
            (Version::V2, false) => stats.v2_disallowed().inc(),
        }
    }

    /// What came in the place of a header.
    pub(super) fn no_header(
        &self,
        registry: &Registry,
        seen: &[u8],
        outcome: &proxy_protocol::Outcome,
        allowed: bool,
    ) {
        let stats = self.proxy(registry);
        match outcome {
            proxy_protocol::Outcome::Absent if allowed => stats.not_found_allowed().inc(),
            proxy_protocol::Outcome::Absent => stats.not_found_disallowed().inc(),
            _ if seen.starts_with(b"PROXY") => stats.v1_error().inc(),
            _ => stats.v2_error().inc(),
        }
    }
}
