//! Routes compiled to the model, with what they take from their service, plugin config and upstream.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use sixfold_core::cluster::ClusterCell;
use sixfold_core::expr::Expr;
use sixfold_core::header_ops::HeaderOps;
use sixfold_core::metadata::Metadata;
use sixfold_core::plugin::Chain;
use sixfold_core::route::{
    self, Action, ClusterChoice, DirectResponse, Forward, ForwardOptions, Ids, PathMatch, Predicate,
    Route as CoreRoute,
};
use sixfold_core::router::{ApisixRoute, ApisixRouter};

use crate::item::network;
use crate::resource::{Id, Route};
use crate::shared::Shared;
use crate::source::ServiceParts;
use crate::upstream::{Forwarding, Timeouts};

/// What a route has by itself. It is read from the resource once, and later taken from the compiled route.
#[derive(Clone)]
pub(crate) struct Template {
    name: Arc<str>,
    uris: Box<[Box<str>]>,
    hosts: Box<[Box<str>]>,
    predicates: Arc<[Predicate]>,
    priority: i64,
}

/// What a compiled route does not tell of its resource, and is needed to compile it again.
#[derive(Debug, Clone)]
pub(crate) struct Linkage {
    /// Whether it takes part in routing.
    pub(crate) enabled: bool,
    /// Fingerprint of what the template was read from.
    pub(crate) print: u64,
    own_hosts: bool,
    timeouts: Option<Timeouts>,
    websocket: Option<bool>,
}

/// What a route is linked with.
pub(crate) struct Parts<'a> {
    pub(crate) id: &'a Id,
    pub(crate) linkage: &'a Linkage,
    pub(crate) service: Option<(&'a Id, &'a ServiceParts)>,
    /// The cluster, unless neither route nor service name an upstream.
    pub(crate) upstream: Option<(Arc<ClusterCell>, &'a Forwarding)>,
    /// What it refers to and is not there.
    pub(crate) lacks: Option<Lack>,
    pub(crate) chain: Option<Arc<Chain>>,
    /// Those of other routes.
    pub(crate) options: &'a Shared<Manner, ForwardOptions>,
}

/// A resource that a route refers to and is not there: its requests are answered as APISIX answers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lack {
    PluginConfig,
    Service,
    Upstream,
}

impl Lack {
    fn status(self) -> u16 {
        match self {
            Lack::PluginConfig => 503,
            Lack::Service => 404,
            Lack::Upstream => 502,
        }
    }
}

/// What the options of a route that forwards are made of.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Manner {
    /// The upstream's, with the route's own timeouts.
    forwarding: Forwarding,
    websocket: bool,
    /// The timeouts are the route's.
    own_timeouts: bool,
}

impl Template {
    /// From a resource.
    ///
    /// # Errors
    /// The field and the reason.
    pub(crate) fn of(route: &Route, router: ApisixRouter) -> Result<Template, (&'static str, String)> {
        let field = if route.uri.is_some() { "uri" } else { "uris" };
        for uri in route.paths() {
            ApisixRoute::check_uri(uri, router).map_err(|reason| (field, reason))?;
        }
        Ok(Template {
            name: route.name.as_deref().map(Into::into).unwrap_or_default(),
            uris: route.paths().map(Into::into).collect(),
            hosts: route.own_hosts().map(Into::into).collect(),
            predicates: predicates(route)?,
            priority: route.priority,
        })
    }

    /// Of a route that was compiled before.
    pub(crate) fn again(compiled: &CoreRoute, linkage: &Linkage) -> Template {
        Template {
            name: compiled.name.clone(),
            uris: compiled.ids.uris.clone(),
            hosts: if linkage.own_hosts { compiled.ids.hosts.clone() } else { Box::default() },
            predicates: compiled.predicates.clone(),
            priority: compiled.priority,
        }
    }

    /// The compiled route.
    ///
    /// # Errors
    /// A key of consistent hashing that can't be read; [`ForwardOptions::hash_policy`] tells it of every upstream.
    pub(crate) fn link(self, parts: &Parts<'_>) -> Result<CoreRoute, String> {
        let service = parts.service;
        // The hosts that a route is for: its own, else those of its service.
        let of_service = service.and_then(|(_, service)| service.hosts.clone());
        let hosts = if parts.linkage.own_hosts { self.hosts } else { of_service.unwrap_or_default() };
        Ok(CoreRoute {
            name: self.name,
            ids: Ids {
                route: parts.id.text().clone(),
                service: service.map(|(id, _)| id.text().clone()).unwrap_or_default(),
                service_name: service.map(|(_, service)| service.name.clone()).unwrap_or_default(),
                uris: self.uris,
                hosts,
            },
            // The router has the URIs.
            path: PathMatch::Prefix(Box::default(), false),
            predicates: self.predicates,
            priority: self.priority,
            action: action(parts)?,
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
            chain: parts.chain.clone(),
            metadata: Metadata::default(),
            stats: None,
            rare: None,
        })
    }
}

impl Linkage {
    pub(crate) fn of(route: &Route, print: u64) -> Linkage {
        Linkage {
            enabled: route.status,
            print,
            own_hosts: route.own_hosts().next().is_some(),
            timeouts: route.timeout.map(Into::into),
            websocket: route.enable_websocket,
        }
    }
}

/// In APISIX's order: methods, client addresses, variables. (Hosts are the router's.)
fn predicates(route: &Route) -> Result<Arc<[Predicate]>, (&'static str, String)> {
    let mut predicates = Vec::new();
    if !route.methods.is_empty() {
        let methods = route.methods.iter().map(|method| http::Method::from_bytes(method.as_bytes()));
        let methods = methods.collect::<Result<_, _>>().map_err(|e| ("methods", e.to_string()))?;
        predicates.push(Predicate::Methods(methods));
    }
    let networks: Box<[_]> = route.client_addresses().filter_map(network).collect();
    if !networks.is_empty() {
        predicates.push(Predicate::RemoteAddresses(networks));
    }
    if let Some(vars) = route.vars.as_ref().filter(|vars| !vars.is_empty()) {
        let expr = Expr::new(&Value::Array(vars.clone())).map_err(|e| ("vars", e.to_string()))?;
        predicates.push(Predicate::Vars(expr));
    }
    // An empty list is the same for all.
    Ok(if predicates.is_empty() { Arc::default() } else { predicates.into() })
}

fn action(parts: &Parts<'_>) -> Result<Action, String> {
    if let Some(lack) = parts.lacks {
        let answer = DirectResponse { status: lack.status(), body: Bytes::new(), body_format: None };
        return Ok(Action::Direct(Box::new(answer)));
    }
    // Plugins may answer all the same; a request that gets past them has nowhere to go: 503.
    let Some((cluster, forwarding)) = &parts.upstream else { return Ok(Action::NonForwarding) };
    let timeouts = parts.linkage.timeouts.unwrap_or(forwarding.timeouts);
    let of_service = || parts.service.and_then(|(_, service)| service.websocket);
    let websocket = parts.linkage.websocket.or_else(of_service).unwrap_or(false);
    let manner = Manner {
        forwarding: Forwarding { timeouts, ..Forwarding::clone(forwarding) },
        websocket,
        own_timeouts: parts.linkage.timeouts.is_some(),
    };
    let options = parts.options.get(manner, Manner::options)?;
    Ok(Action::Forward(Forward { cluster: ClusterChoice::Named(cluster.clone()), options }))
}

impl Manner {
    /// That of an upstream which a plugin may choose, whatever the route.
    pub(crate) fn of_chosen(forwarding: &Forwarding) -> Manner {
        Manner { forwarding: forwarding.clone(), websocket: false, own_timeouts: false }
    }

    pub(crate) fn options(&self) -> Result<ForwardOptions, String> {
        let Manner { forwarding, websocket, own_timeouts } = self;
        let Timeouts { connect, send, read } = forwarding.timeouts;
        Ok(ForwardOptions {
            timeouts: route::Timeouts {
                connect: Some(connect),
                send: Some(send),
                read: Some(read),
                silence: forwarding.silence,
                ..route::Timeouts::default()
            },
            own_timeouts: *own_timeouts,
            hash: forwarding.hash_policy()?.into_iter().collect(),
            upgrades: Box::new([("websocket".into(), *websocket)]),
            pass_host: forwarding.pass_host.clone(),
            ..ForwardOptions::default()
        })
    }
}
