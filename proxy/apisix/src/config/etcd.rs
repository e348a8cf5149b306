//! How an etcd is reached.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// `deployment.etcd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `host`: the members that are asked, one after the other.
    pub hosts: Vec<EtcdHost>,
    /// `prefix`: what keys begin with, without a `/` at its end; `/apisix` by default.
    pub prefix: String,
    /// `timeout`: bounds a request, connecting included; 30 s by default.
    pub timeout: Duration,
    /// `watch_timeout`: a watch that was silent for so long is asked whether it still is one; 50 s by default.
    pub watch_timeout: Duration,
    /// `resync_delay`: how long to wait after an error, and up to half of it more; 5 s by default.
    pub resync_delay: Duration,
    /// `health_check_timeout`: a member that failed is left alone for so long while there are others; 10 s by default.
    pub health_check_timeout: Duration,
    /// `startup_retry`: attempts beside the first one when the gateway starts; 2 by default.
    pub startup_retry: u32,
    /// `user` and `password`.
    pub user: Option<EtcdUser>,
    /// `tls`, for members whose address begins with `https`.
    pub tls: EtcdTls,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdHost {
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Its name or address; an IPv6 address without brackets.
    pub name: String,
    /// Its port, 2379 by default.
    pub port: u16,
}

/// Who asks.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdUser {
    /// `user`.
    pub name: String,
    /// `password`.
    pub password: String,
}

/// TLS towards etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdTls {
    /// `cert` and `key`: PEM files of the certificate that is shown.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// `verify`: whether the member's certificate is verified, by `apisix.ssl.ssl_trusted_certificate`; on by default.
    pub verify: bool,
    /// `sni`: the name that is sent and verified in place of the member's own.
    pub sni: Option<String>,
}

impl EtcdHost {
    /// Reads `http://NAME:PORT` or `https://NAME:PORT`.
    pub(super) fn read(text: &str) -> Option<EtcdHost> {
        let (scheme, rest) = text.split_once("://")?;
        let tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let authority = rest.trim_end_matches('/');
        let (name, port) = match authority.rsplit_once(':') {
            Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, port.parse().ok()?),
            _ => (authority, 2379),
        };
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let is_name = !name.is_empty() && !name.contains(['/', '?', '#', '@', ' ']);
        is_name.then(|| EtcdHost { tls, name: name.to_owned(), port })
    }

    /// `NAME:PORT`, as it stands in a URI.
    pub(crate) fn authority(&self) -> String {
        match self.name.contains(':') {
            true => format!("[{}]:{}", self.name, self.port),
            false => format!("{}:{}", self.name, self.port),
        }
    }
}

/// As it is written.
impl fmt::Display for EtcdHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

/// Without the password.
impl fmt::Debug for EtcdUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdUser").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hosts_are_uris() {
        let shown = |text: &str| EtcdHost::read(text).map(|host| host.to_string());
        for (text, host) in [
            ("http://127.0.0.1:2379", "http://127.0.0.1:2379"),
            ("https://etcd.example/", "https://etcd.example:2379"),
            ("http://[::1]:1", "http://[::1]:1"),
            ("http://[::1]", "http://[::1]:2379"),
        ] {
            assert_eq!(shown(text).as_deref(), Some(host), "{text}");
        }
        for text in ["127.0.0.1:2379", "ftp://a:1", "http://", "http://a:x", "http://a/b", "http://u@a"] {
            assert_eq!(shown(text), None, "{text}");
        }
    }
}
