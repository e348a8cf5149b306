//! Envoy's choice of a virtual host by the request's host (common/router/config_impl.cc `findVirtualHost`).

use super::HostRoutes;
use crate::error::{ConfigContext, ConfigError, collect};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::Arc;

type Map = HashMap<Box<[u8]>, Arc<HostRoutes>>;

/// Domains of a table: exact names, `*.suffix`, `prefix.*`, and the one for all others. As in Envoy any other star is a
/// character like another, which no host has, and the empty domain is for requests with an empty host.
#[derive(Debug, Default)]
pub(super) struct Domains {
    exact: Map,
    /// By length of the text without its star, longest first.
    suffixes: Vec<(usize, Map)>,
    prefixes: Vec<(usize, Map)>,
    any: Option<Arc<HostRoutes>>,
    all: Vec<Arc<HostRoutes>>,
}

impl Domains {
    pub(super) fn new(hosts: Vec<(Vec<String>, Arc<HostRoutes>)>) -> Result<Domains, ConfigError> {
        let mut domains = Domains::default();
        let mut faults = Vec::new();
        for (index, (names, host)) in hosts.into_iter().enumerate() {
            for (at, name) in names.iter().enumerate() {
                let added = domains.add(name, &host).map_err(ConfigError::new);
                faults.push(added.in_index(at).in_key("domains").in_index(index).in_key("virtual_hosts"));
            }
            domains.all.push(host);
        }
        collect(faults)?;
        domains.suffixes.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
        domains.prefixes.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
        Ok(domains)
    }

    fn add(&mut self, name: &str, host: &Arc<HostRoutes>) -> Result<(), String> {
        let lower = name.to_ascii_lowercase();
        let old = if lower == "*" {
            self.any.replace(host.clone())
        } else if let Some(suffix) = lower.strip_prefix('*') {
            insert(&mut self.suffixes, suffix, host)
        } else if let Some(prefix) = lower.strip_suffix('*') {
            insert(&mut self.prefixes, prefix, host)
        } else {
            self.exact.insert(lower.as_bytes().into(), host.clone())
        };
        match old {
            Some(_) if lower == "*" => Err("only a single wildcard domain is permitted".to_owned()),
            Some(other) => {
                Err(format!("duplicate domain \"{name}\", also of virtual host \"{}\"", other.host.name))
            }
            None => Ok(()),
        }
    }

    /// The virtual hosts in the configuration's order.
    pub(super) fn all(&self) -> &[Arc<HostRoutes>] {
        &self.all
    }

    /// The virtual host for `authority`, with its port as sent.
    #[inline]
    pub(super) fn find(&self, authority: &[u8], ignore_port: bool) -> Option<&Arc<HostRoutes>> {
        self.lookup(authority, ignore_port).map(|(_, host)| host)
    }

    /// The same, with the kind of domain that it was found by.
    #[inline]
    pub(super) fn lookup(&self, authority: &[u8], ignore_port: bool) -> Option<(Domain, &Arc<HostRoutes>)> {
        let any = || self.any.as_ref().map(|host| (Domain::Any, host));
        if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            return any();
        }
        let host = if ignore_port { crate::message::strip_port(authority) } else { authority };
        let host: SmallVec<[u8; 64]> = host.iter().map(u8::to_ascii_lowercase).collect();
        let exact = self.exact.get(&host[..]).map(|found| (Domain::Exact, found));
        exact
            .or_else(|| {
                let tail = |len: usize| host.len().checked_sub(len).and_then(|at| host.get(at..));
                longest(&self.suffixes, host.len(), tail).map(|(len, found)| (Domain::Suffix(len), found))
            })
            .or_else(|| {
                let found = longest(&self.prefixes, host.len(), |len| host.get(..len));
                found.map(|(len, found)| (Domain::Prefix(len), found))
            })
            .or_else(any)
    }
}

/// The kind of domain that a host has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// The whole host.
    Exact,
    /// A star, and the host's last bytes, so many of them.
    Suffix(usize),
    /// The host's first bytes, so many of them, and a star.
    Prefix(usize),
    /// The one for all hosts.
    Any,
}

impl Domain {
    /// As it was configured, in lower case, for the host that has met it.
    pub fn shown(self, host: &[u8]) -> String {
        let text =
            |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).to_ascii_lowercase();
        match self {
            Domain::Exact => text(Some(host)),
            Domain::Suffix(len) => format!("*{}", text(host.get(host.len().saturating_sub(len)..))),
            Domain::Prefix(len) => format!("{}*", text(host.get(..len))),
            Domain::Any => "*".to_owned(),
        }
    }
}

fn insert(lists: &mut Vec<(usize, Map)>, text: &str, host: &Arc<HostRoutes>) -> Option<Arc<HostRoutes>> {
    let at = lists.iter().position(|(len, _)| *len == text.len()).unwrap_or_else(|| {
        lists.push((text.len(), Map::new()));
        lists.len() - 1
    });
    lists[at].1.insert(text.as_bytes().into(), host.clone())
}

/// The first list with the part of the host that `part` cuts out; the star stands for one byte or more.
fn longest<'a, 'h>(
    lists: &'a [(usize, Map)],
    host_len: usize,
    part: impl Fn(usize) -> Option<&'h [u8]>,
) -> Option<(usize, &'a Arc<HostRoutes>)> {
    let mut shorter = lists.iter().filter(|(len, _)| *len < host_len);
    shorter.find_map(|(len, map)| Some((*len, map.get(part(*len)?)?)))
}
