//! Listeners in use.
//!
//! The control thread opens and closes them ([`manager`]); each worker accepts connections on its own
//! sockets and takes them through listener filters, chain choice and TLS to the chain's network filter.

mod accept;
mod connection;
pub mod filters;
pub(crate) mod manager;
#[cfg(test)]
mod tests;
mod udp;

pub(crate) use accept::{Adopted, Closing, accept};
pub use manager::BoundAddresses;

use crate::drain::{Drain, DrainStrategy};
use crate::http;
use arc_swap::ArcSwap;
use sixfold_core::listener::{BindAddress, FilterChain, Listener, MatchInput, NetworkFilter};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// A listener as it is configured now, with the drains of its connections.
pub(crate) struct ActiveListener {
    pub(crate) config: Arc<Listener>,
    chains: Vec<ActiveChain>,
    default: Option<ActiveChain>,
    /// Above those of the chains.
    pub(crate) drain: Drain,
    /// Below it, for each worker, that of connections whose chain is not chosen yet.
    waiting: Arc<[Drain]>,
}

/// A filter chain in use.
pub(crate) struct ActiveChain {
    pub(crate) chain: Arc<FilterChain>,
    /// Its connection manager, where it ends in one.
    http: Option<http::Manager>,
    drain: Drain,
    /// One below it for each worker.
    workers: Arc<[Drain]>,
}

impl ActiveChain {
    /// The drain of its connections on a worker.
    fn drain_of(&self, worker: usize) -> Drain {
        self.workers.get(worker).unwrap_or(&self.drain).clone()
    }
}

/// One drain below another for each worker, so that connections of two workers never meet at a lock.
fn each(drain: &Drain, workers: usize) -> Arc<[Drain]> {
    (0..workers).map(|_| drain.child()).collect()
}

/// What a listening socket serves now; replaced when its listener changes.
pub(crate) struct Slot(pub(crate) ArcSwap<ActiveListener>);

impl ActiveListener {
    /// A listener that takes the place of `previous`: chains that stay the same keep the drains of their
    /// connections, all of them unless the listener's shape has changed.
    pub(crate) fn new(
        config: Arc<Listener>,
        previous: Option<&ActiveListener>,
        root: &Drain,
        workers: usize,
    ) -> ActiveListener {
        let previous = previous.filter(|p| p.config.shape == config.shape);
        let drain = previous.map_or_else(|| root.child(), |p| p.drain.clone());
        let waiting = previous.map_or_else(|| each(&drain, workers), |p| p.waiting.clone());
        let mut left: Vec<&ActiveChain> = previous.into_iter().flat_map(ActiveListener::all).collect();
        let mut adopt = |chain: &Arc<FilterChain>| {
            let same =
                |c: &&ActiveChain| c.chain.fingerprint == chain.fingerprint && c.chain.name == chain.name;
            let http = match &chain.filter {
                NetworkFilter::Http(hcm) => Some(http::Manager::new(hcm.clone()).sparing(config.spared.load)),
                _ => None,
            };
            match left.iter().position(same).map(|at| left.swap_remove(at)) {
                Some(old) => ActiveChain {
                    chain: chain.clone(),
                    http,
                    drain: old.drain.clone(),
                    workers: old.workers.clone(),
                },
                None => {
                    let own = drain.child();
                    ActiveChain { chain: chain.clone(), http, workers: each(&own, workers), drain: own }
                }
            }
        };
        let chains = config.chains.iter().map(&mut adopt).collect();
        let default = config.default_chain.as_ref().map(&mut adopt);
        ActiveListener { chains, default, drain, waiting, config }
    }

    /// The drain of connections on a worker that its listener filters look at.
    fn waiting(&self, worker: usize) -> Drain {
        self.waiting.get(worker).unwrap_or(&self.drain).clone()
    }

    /// Whom a connection of this listener belongs to once `now` is in its place: to that one where no more than chains
    /// have changed, else still to this one, with which it drains.
    fn as_of(self: Arc<Self>, now: Arc<ActiveListener>) -> Arc<ActiveListener> {
        if self.drain.is(&now.drain) { now } else { self }
    }

    /// The chain of a listener that has but one.
    fn only_chain(&self) -> Option<&ActiveChain> {
        self.chains.first().or(self.default.as_ref())
    }

    fn all(&self) -> impl Iterator<Item = &ActiveChain> {
        self.chains.iter().chain(&self.default)
    }

    /// Drains what `next` does not go on with.
    fn retire(&self, next: &ActiveListener, strategy: DrainStrategy, time: Duration) {
        if !self.drain.is(&next.drain) {
            self.drain.start(strategy, Some(time));
            return;
        }
        for chain in self.all().filter(|old| !next.all().any(|new| new.drain.is(&old.drain))) {
            chain.drain.start(strategy, Some(time));
        }
    }

    /// The chain for a connection.
    pub(crate) fn choose(&self, input: &MatchInput<'_>) -> Option<&ActiveChain> {
        match self.config.chains.find(input) {
            Some(at) => at.and_then(|at| self.chains.get(at)),
            None => self.default.as_ref(),
        }
    }
}

/// Listeners by their addresses, those that do not bind among them.
#[derive(Default)]
pub(crate) struct ListenerTable(HashMap<SocketAddr, Arc<ActiveListener>>);

impl ListenerTable {
    pub(crate) fn new<'a>(listeners: impl Iterator<Item = &'a Arc<ActiveListener>>) -> ListenerTable {
        let mut table = HashMap::new();
        for listener in listeners {
            for address in &listener.config.addresses {
                if let Some(ip) = address.ip() {
                    table.insert(ip, listener.clone());
                }
                // Clients of IPv4 have addresses of IPv4, also where a socket of IPv6 has accepted them.
                if let BindAddress::DualStack(ip) = address
                    && ip.ip().is_unspecified()
                {
                    table
                        .entry((Ipv4Addr::UNSPECIFIED, ip.port()).into())
                        .or_insert_with(|| listener.clone());
                }
            }
        }
        ListenerTable(table)
    }

    /// The listener for a connection that was meant for `address`: its own, else that of every address on
    /// its port.
    pub(crate) fn find(&self, address: SocketAddr) -> Option<&Arc<ActiveListener>> {
        let all: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.0.get(&address).or_else(|| self.0.get(&SocketAddr::new(all, address.port())))
    }
}
