//! What is counted of TLS, under `ssl.` of a listener or a cluster (common/tls/stats.h, `logHandshake` in
//! common/tls/context_impl.cc).

use super::verify::Refusal;
use crate::connection::TlsInfo;
use crate::metrics::{Counter, Registry};
use rustls::{CertificateError, Error, OtherError};
use std::sync::OnceLock;

crate::stat_block! {
    /// Handshakes, and why those failed that did.
    pub struct HandshakeCounts {
        counters: [
            handshake, connection_error, session_reused, no_certificate,
            fail_verify_no_cert, fail_verify_error, fail_verify_san, fail_verify_cert_hash,
        ],
        gauges: [], histograms: [],
        zeros: [
            Counter "ocsp_staple_failed", Counter "ocsp_staple_omitted", Counter "ocsp_staple_requests",
            Counter "ocsp_staple_responses",
        ],
    }
}

crate::stat_block! {
    /// What was agreed on; a name is there from the first handshake on that agrees on it.
    pub struct AgreedCounts {
        counters: [
            v12 = "versions.TLSv1.2", v13 = "versions.TLSv1.3",
            aes128 = "ciphers.TLS_AES_128_GCM_SHA256", aes256 = "ciphers.TLS_AES_256_GCM_SHA384",
            chacha = "ciphers.TLS_CHACHA20_POLY1305_SHA256",
            ecdsa_aes128 = "ciphers.ECDHE-ECDSA-AES128-GCM-SHA256", ecdsa_aes256 = "ciphers.ECDHE-ECDSA-AES256-GCM-SHA384",
            ecdsa_chacha = "ciphers.ECDHE-ECDSA-CHACHA20-POLY1305",
            rsa_aes128 = "ciphers.ECDHE-RSA-AES128-GCM-SHA256", rsa_aes256 = "ciphers.ECDHE-RSA-AES256-GCM-SHA384",
            rsa_chacha = "ciphers.ECDHE-RSA-CHACHA20-POLY1305",
            x25519 = "curves.X25519", p256 = "curves.P-256", p384 = "curves.P-384", mlkem = "curves.X25519MLKEM768",
        ],
        gauges: [], histograms: [],
    }
}

crate::stat_block! {
    /// What Envoy has beside them of every transport socket, whether its secrets come by themselves or not.
    pub struct FactoryCounts {
        counters: [], gauges: [], histograms: [],
        zeros: [
            Counter "ssl_context_update_by_sds", Counter "upstream_context_secrets_not_ready",
            Counter "downstream_context_secrets_not_ready",
        ],
    }
}

/// Whose TLS is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsSide {
    /// A listener's.
    Server,
    /// A cluster's.
    Client,
}

/// Statistics of TLS of a listener or a cluster.
pub struct TlsStats {
    counts: HandshakeCounts,
    agreed: OnceLock<AgreedCounts>,
    /// Held so that its names are shown.
    _factory: FactoryCounts,
    registry: Registry,
    prefix: Box<str>,
}

/// Why a handshake failed, as far as it is counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// The peer has no certificate though one is required.
    NoCertificate,
    /// Nobody who is trusted vouches for the peer's certificate, or not any more.
    Certificate,
    /// None of its names is expected.
    Names,
    /// It is none of those that were pinned.
    Pins,
    /// Anything else.
    Other,
}

impl HandshakeFailure {
    /// Which one an error is.
    pub fn of(error: &Error) -> HandshakeFailure {
        match error {
            Error::NoCertificatesPresented => HandshakeFailure::NoCertificate,
            Error::InvalidCertificate(reason) => HandshakeFailure::of_certificate(reason),
            _ => HandshakeFailure::Other,
        }
    }

    fn of_certificate(reason: &CertificateError) -> HandshakeFailure {
        match reason {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                HandshakeFailure::Names
            }
            CertificateError::Other(OtherError(own)) => match own.downcast_ref::<Refusal>() {
                Some(Refusal::San(_)) => HandshakeFailure::Names,
                Some(Refusal::Pin(_)) => HandshakeFailure::Pins,
                None => HandshakeFailure::Certificate,
            },
            _ => HandshakeFailure::Certificate,
        }
    }
}

impl TlsStats {
    /// Zeros below `scope`, the prefix of a listener or a cluster.
    pub fn new(registry: &Registry, scope: &str, side: TlsSide) -> TlsStats {
        let factory = match side {
            TlsSide::Server => "server_ssl_socket_factory",
            TlsSide::Client => "client_ssl_socket_factory",
        };
        let prefix = format!("{scope}ssl.");
        TlsStats {
            counts: HandshakeCounts::new(registry, &prefix),
            agreed: OnceLock::new(),
            _factory: FactoryCounts::new(registry, &format!("{scope}{factory}.")),
            registry: registry.clone(),
            prefix: prefix.into(),
        }
    }

    /// Counts a handshake that has succeeded.
    pub fn count(&self, info: &TlsInfo) {
        self.counts.handshake().inc();
        if info.resumed {
            self.counts.session_reused().inc();
        }
        if info.peer.is_none() {
            self.counts.no_certificate().inc();
        }
        let agreed = self.agreed.get_or_init(|| AgreedCounts::sparse(&self.registry, &self.prefix));
        for (kind, value) in [("versions.", info.version), ("ciphers.", info.cipher), ("curves.", info.curve)]
        {
            count_one(agreed, kind, value);
        }
    }

    /// Counts one that has failed.
    pub fn count_failure(&self, failure: HandshakeFailure) {
        match failure {
            HandshakeFailure::NoCertificate => self.counts.fail_verify_no_cert(),
            HandshakeFailure::Certificate => self.counts.fail_verify_error(),
            HandshakeFailure::Names => self.counts.fail_verify_san(),
            HandshakeFailure::Pins => self.counts.fail_verify_cert_hash(),
            HandshakeFailure::Other => self.counts.connection_error(),
        }
        .inc();
    }

    /// The counters themselves.
    pub fn counts(&self) -> &HandshakeCounts {
        &self.counts
    }
}

/// Counts the one of a kind that is called so, if it is among those that are known.
fn count_one(agreed: &AgreedCounts, kind: &str, value: &str) {
    let Some(block) = agreed.block() else { return };
    let known = block.defs().iter().find(|def| def.name.strip_prefix(kind) == Some(value));
    known.into_iter().for_each(|def| Counter::new(Some(block), def.slot).inc());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Value;
    use std::sync::Arc;

    fn shown(registry: &Registry) -> Vec<(String, u64)> {
        let value = |value| match value {
            Value::Counter(n) | Value::Gauge(n) => n,
            Value::Histogram(seen) => seen.count,
        };
        registry.samples().into_iter().map(|sample| (sample.name, value(sample.value))).collect()
    }

    /// The names that Envoy has of a cluster with TLS before its first connection, and those that a handshake adds. Some
    /// were only there once they were counted, and what was agreed on was not counted at all.
    #[test]
    fn the_names_are_envoys() {
        let registry = Registry::new();
        let stats = TlsStats::new(&registry, "cluster.a.", TlsSide::Client);
        let names =
            |registry: &Registry| shown(registry).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let at_rest = [
            "client_ssl_socket_factory.downstream_context_secrets_not_ready",
            "client_ssl_socket_factory.ssl_context_update_by_sds",
            "client_ssl_socket_factory.upstream_context_secrets_not_ready",
            "ssl.connection_error",
            "ssl.fail_verify_cert_hash",
            "ssl.fail_verify_error",
            "ssl.fail_verify_no_cert",
            "ssl.fail_verify_san",
            "ssl.handshake",
            "ssl.no_certificate",
            "ssl.ocsp_staple_failed",
            "ssl.ocsp_staple_omitted",
            "ssl.ocsp_staple_requests",
            "ssl.ocsp_staple_responses",
            "ssl.session_reused",
        ]
        .map(|name| format!("cluster.a.{name}"));
        assert_eq!(names(&registry), at_rest);
        let (version, cipher, curve) = ("TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384", "X25519");
        stats.count(&TlsInfo { version, cipher, curve, resumed: true, ..TlsInfo::default() });
        let mut after: Vec<String> = at_rest.to_vec();
        after.extend(
            ["ciphers.ECDHE-ECDSA-AES256-GCM-SHA384", "curves.X25519", "versions.TLSv1.2"]
                .map(|name| format!("cluster.a.ssl.{name}")),
        );
        after.sort();
        assert_eq!(names(&registry), after);
        let counted: Vec<_> = shown(&registry).into_iter().filter(|(_, n)| *n > 0).collect();
        let expected = [
            "ciphers.ECDHE-ECDSA-AES256-GCM-SHA384",
            "curves.X25519",
            "handshake",
            "no_certificate",
            "session_reused",
            "versions.TLSv1.2",
        ];
        assert_eq!(counted, expected.map(|name| (format!("cluster.a.ssl.{name}"), 1)));
    }

    /// All of them were errors of the connection.
    #[test]
    fn each_reason_has_its_counter() {
        let of = |reason| HandshakeFailure::of(&Error::InvalidCertificate(reason));
        let own = |refusal: Refusal| of(CertificateError::Other(OtherError(Arc::new(refusal))));
        assert_eq!(own(Refusal::San(String::new())), HandshakeFailure::Names);
        assert_eq!(own(Refusal::Pin(String::new())), HandshakeFailure::Pins);
        assert_eq!(of(CertificateError::NotValidForName), HandshakeFailure::Names);
        assert_eq!(of(CertificateError::UnknownIssuer), HandshakeFailure::Certificate);
        assert_eq!(HandshakeFailure::of(&Error::NoCertificatesPresented), HandshakeFailure::NoCertificate);
        assert_eq!(HandshakeFailure::of(&Error::DecryptError), HandshakeFailure::Other);
        let registry = Registry::new();
        let stats = TlsStats::new(&registry, "listener.l.", TlsSide::Server);
        for failure in [
            HandshakeFailure::NoCertificate,
            HandshakeFailure::Certificate,
            HandshakeFailure::Names,
            HandshakeFailure::Pins,
            HandshakeFailure::Other,
        ] {
            stats.count_failure(failure);
        }
        let counted: Vec<_> = shown(&registry).into_iter().filter(|(_, n)| *n > 0).collect();
        let expected = [
            "connection_error",
            "fail_verify_cert_hash",
            "fail_verify_error",
            "fail_verify_no_cert",
            "fail_verify_san",
        ];
        assert_eq!(counted, expected.map(|name| (format!("listener.l.ssl.{name}"), 1)));
    }
}
