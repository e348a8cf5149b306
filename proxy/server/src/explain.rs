//! What a connection and a request would meet, for people who ask (`sixfold explain`): the choice of listener and filter
//! chain, and what happens to a request before its route is chosen, by the very code that serves.

use crate::drain::Drain;
use crate::http;
use crate::listener::{ActiveListener, ListenerTable};
use sixfold_core::hcm::HttpConnectionManager;
use sixfold_core::listener::{FilterChain, Listener, MatchInput};
use sixfold_core::plugin::LocalReply;
use sixfold_core::router::RouteTable;
use sixfold_core::stream::Stream;
use std::net::SocketAddr;
use std::sync::Arc;

/// Listeners, none of which is open.
pub struct Listeners {
    table: ListenerTable,
    all: Vec<Arc<ActiveListener>>,
}

impl Listeners {
    /// These.
    pub fn new(listeners: impl IntoIterator<Item = Arc<Listener>>) -> Listeners {
        let root = Drain::new();
        let active = listeners.into_iter().map(|listener| ActiveListener::new(listener, None, &root, 0));
        let all: Vec<_> = active.map(Arc::new).collect();
        Listeners { table: ListenerTable::new(all.iter()), all }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.all.iter().map(|active| &active.config)
    }

    /// The listener of this address, else that of every address on its port.
    pub fn at(&self, address: SocketAddr) -> Option<&Arc<Listener>> {
        self.table.find(address).map(|active| &active.config)
    }

    /// The filter chain that takes a connection to the listener of this name; `None` is none.
    pub fn chain(&self, listener: &str, input: &MatchInput<'_>) -> Option<&Arc<FilterChain>> {
        let active = self.all.iter().find(|active| *active.config.name == *listener)?;
        active.choose(input).map(|chosen| &chosen.chain)
    }
}

/// The answer to a request for which the routes of its virtual host were not looked through to the end.
pub fn unsearched() -> LocalReply {
    http::unsearched()
}

/// Makes a request ready for the choice of its route, as it is made ready when it comes; an answer ends it here.
pub fn admit(
    hcm: &HttpConnectionManager,
    table: Option<&RouteTable>,
    stream: &mut Stream,
) -> Option<LocalReply> {
    let options = table.and_then(RouteTable::options_of_requests);
    let has_host = !stream.request.authority.is_empty();
    http::admit(hcm, options.as_deref(), http::Head { has_host, followed: false }, stream)
}
