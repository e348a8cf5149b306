//! `ssl`: certificates shown to clients, and those shown to upstreams.

use serde::Deserialize;

use super::{Id, Labels};

/// Certificates and who they are for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ssl {
    /// In apisix.yaml the position in the list stands in for an absent one.
    pub id: Option<Id>,
    /// For people.
    pub desc: Option<String>,
    /// For people and tools.
    pub labels: Option<Labels>,
    /// Seconds since the epoch.
    #[serde(default, deserialize_with = "super::optional_integer")]
    pub create_time: Option<i64>,
    /// Seconds since the epoch.
    #[serde(default, deserialize_with = "super::optional_integer")]
    pub update_time: Option<i64>,
    /// Who sees it.
    #[serde(rename = "type")]
    pub usage: SslType,
    /// PEM, or a reference to a secret.
    pub cert: String,
    /// PEM, or a reference to a secret.
    pub key: String,
    /// A server name; this or `snis`.
    pub sni: Option<String>,
    /// Several server names.
    pub snis: Option<Vec<String>>,
    /// Further certificates, of other key types.
    #[serde(default)]
    pub certs: Vec<String>,
    /// Their keys.
    #[serde(default)]
    pub keys: Vec<String>,
    /// Verification of clients.
    pub client: Option<ClientVerification>,
    /// Whether it is in use.
    #[serde(deserialize_with = "super::enabled")]
    pub status: bool,
    /// TLS versions instead of the listener's.
    pub ssl_protocols: Option<Vec<String>>,
}

/// Who sees a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SslType {
    /// Upstreams.
    Client,
    /// Clients.
    Server,
}

/// How clients are verified.
#[derive(Debug, Clone, Deserialize)]
pub struct ClientVerification {
    /// PEM of the authorities.
    pub ca: String,
    /// Intermediates at most.
    #[serde(deserialize_with = "super::integer")]
    pub depth: i64,
    /// Paths that are served without a certificate.
    pub skip_mtls_uri_regex: Option<Vec<String>>,
}

impl Ssl {
    /// The server names, of `sni` or of `snis`.
    pub fn server_names(&self) -> impl Iterator<Item = &str> {
        self.sni.iter().chain(self.snis.iter().flatten()).map(String::as_str)
    }

    /// Every certificate with its key.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let first = std::iter::once((self.cert.as_str(), self.key.as_str()));
        first.chain(self.certs.iter().zip(&self.keys).map(|(cert, key)| (cert.as_str(), key.as_str())))
    }
}
