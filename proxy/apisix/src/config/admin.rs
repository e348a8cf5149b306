//! `deployment.admin`: the API that resources are written by.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

/// The Admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// `admin_listen`, 127.0.0.1:9180 by default (APISIX listens on every address).
    pub address: SocketAddr,
    /// `admin_key_required`, on by default: who has no key gets nothing.
    pub key_required: bool,
    /// `admin_key`; when there is none and one is required, one is generated and kept beside the store.
    pub keys: Vec<AdminKey>,
    /// `enable_admin_cors`, on by default: pages of other origins may ask.
    pub cors: bool,
    /// `allow_admin`: peers that are answered, 127.0.0.0/24 by default; `None` for all.
    pub allow: Option<Vec<IpNet>>,
    /// `https_admin` with the files of `admin_api_mtls`.
    pub tls: Option<AdminTls>,
    /// `admin_api_version`, v3 by default: the form of answers.
    pub version: ApiVersion,
    /// Whether `apisix.proxy_mode` has streams, without which there are no stream routes.
    pub stream: bool,
}

/// The form of the Admin API's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiVersion {
    /// `node` and `action`, as etcd's own API once had them; any name but `v3` stands for it.
    V2,
    /// `v3`.
    V3,
}

/// A key and what it is good for.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminKey {
    /// Whose it is, for people.
    pub name: String,
    /// What a request must show.
    pub key: String,
    /// What its owner may do.
    pub role: Role,
}

/// What the owner of a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Admin,
    /// Reading.
    Viewer,
}

/// TLS of the Admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminTls {
    /// `admin_ssl_cert`: PEM.
    pub certificate: PathBuf,
    /// `admin_ssl_cert_key`: PEM.
    pub key: PathBuf,
    /// `admin_ssl_ca_cert`: who vouches for clients, which then must show a certificate.
    pub authority: Option<PathBuf>,
}

/// Without the key.
impl fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminKey").field("name", &self.name).field("role", &self.role).finish_non_exhaustive()
    }
}
