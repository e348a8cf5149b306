//! Routes compiled to the model, with what they take from their service, plugin config and upstream.

use std::sync::Arc;

use serde_json::{Map, Value};
use sixfold_core::cluster::ClusterCell;
use sixfold_core::expr::Expr;
use sixfold_core::header_ops::HeaderOps;
use sixfold_core::matcher::Predicate;
use sixfold_core::plugin::Chain;
use sixfold_core::route::{Action, ClusterChoice, Forward, Ids, PathMatch, Route as CoreRoute, Timeouts};

use crate::item::network;
use crate::resource::{Id, Route, Service};
use crate::upstream::{Facing, seconds};

/// Everything that one compiled route is made of.
pub(crate) struct Parts<'a> {
    pub(crate) id: &'a Id,
    pub(crate) route: &'a Route,
    pub(crate) service: Option<(&'a Id, &'a Service)>,
    /// The cluster, unless neither route nor service name an upstream.
    pub(crate) upstream: Option<(Arc<ClusterCell>, &'a Facing)>,
    pub(crate) chain: Option<Arc<Chain>>,
}

/// Compiles a route.
///
/// # Errors
/// The field and the reason.
pub(crate) fn compile(parts: &Parts<'_>) -> Result<CoreRoute, (&'static str, String)> {
    let Parts { id, route, service, .. } = parts;
    Ok(CoreRoute {
        name: route.name.as_deref().unwrap_or_default().into(),
        ids: Ids {
            route: id.as_str().into(),
            service: service.map_or("", |(id, _)| id.as_str()).into(),
            service_name: service.and_then(|(_, service)| service.name.as_deref()).unwrap_or_default().into(),
            uris: route.paths().map(Into::into).collect(),
            hosts: hosts(route, service.map(|(_, service)| service)).into_iter().map(Into::into).collect(),
        },
        // The router has the URIs.
        path: PathMatch::Prefix(Box::default(), false),
        predicates: predicates(route)?,
        priority: route.priority,
        action: action(parts)?,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        chain: parts.chain.clone(),
        metadata: Map::new(),
        stats: None,
        body_buffer_limit: None,
    })
}

/// The hosts that a route is for: its own, else those of its service.
pub(crate) fn hosts(route: &Route, service: Option<&Service>) -> Vec<String> {
    let own: Vec<String> = route.own_hosts().map(str::to_owned).collect();
    match service.and_then(|service| service.hosts.clone()) {
        Some(hosts) if own.is_empty() => hosts,
        _ => own,
    }
}

/// In APISIX's order: methods, client addresses, variables. (Hosts are the router's.)
fn predicates(route: &Route) -> Result<Box<[Predicate]>, (&'static str, String)> {
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
    Ok(predicates.into())
}

fn action(parts: &Parts<'_>) -> Result<Action, (&'static str, String)> {
    // Plugins may answer all the same; a request that gets past them has nowhere to go: 503.
    let Some((cluster, facing)) = &parts.upstream else { return Ok(Action::NonForwarding) };
    let timeout = parts.route.timeout.unwrap_or(facing.timeout);
    let of_service = || parts.service.and_then(|(_, service)| service.enable_websocket);
    let websocket = parts.route.enable_websocket.or_else(of_service).unwrap_or(false);
    Ok(Action::Forward(Box::new(Forward {
        timeouts: Timeouts {
            connect: Some(seconds(timeout.connect)),
            send: Some(seconds(timeout.send)),
            read: Some(seconds(timeout.read)),
            ..Timeouts::default()
        },
        hash: facing.hash_policy().map_err(|reason| ("upstream.key", reason))?.into_iter().collect(),
        upgrades: Box::new([("websocket".into(), websocket)]),
        pass_host: facing.pass_host.clone(),
        ..Forward::to(ClusterChoice::Named(cluster.clone()))
    })))
}
