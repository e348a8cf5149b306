//! Route configurations: the table and its virtual hosts.

mod action;
mod answer;
mod cluster;
mod earlier;
mod entry;
mod hash;
mod inherited;
mod internal;
mod mirror;
mod template;
#[cfg(test)]
mod tests;

pub(crate) use cluster::{cell as cluster_cell, choices as clusters_of, named_by};
pub(crate) use earlier::Earlier;

use std::sync::Arc;

use prost::Name;
use sixfold_core::error::{ConfigContext, ConfigError, Faults, collect};
use sixfold_core::matching::Tree;
use sixfold_core::route::{MirrorPolicy, RequireTls, Route, RouteStats, VirtualCluster};
use sixfold_core::router::{HostRoutes, RouteList, RouteTable, TableOptions, VirtualHostOptions};
use sixfold_xds_api::pb::envoy::config::route::v3::virtual_host::TlsRequirementType;
use sixfold_xds_api::pb::envoy::config::route::v3::{
    Route as ProtoRoute, RouteConfiguration, RouteList as ProtoList, VirtualCluster as ProtoVirtualCluster,
    VirtualHost as ProtoHost,
};
use sixfold_xds_api::pb::xds::core::v3::TypedExtensionConfig;
use sixfold_xds_api::pb::xds::r#type::matcher::v3::Matcher;

use crate::context::Context;
use crate::filters::{HttpFilters, Level, Overrides};
use crate::retry;
use earlier::EarlierHost;
use inherited::{OfHost, OfTable};
use sixfold_xds_api::matching::{self, Data};
use sixfold_xds_api::refused;
use sixfold_xds_api::values::{Result, enum_value, header_name, not_empty, required};
use sixfold_xds_api::wire::decode;
use sixfold_xds_api::{any, header_ops, matcher, metadata, rate_limit, refuse};

/// Largest body of a direct response unless the table says otherwise, bytes.
const MAX_DIRECT_BODY: u32 = 4096;

/// What compiling a route knows: of the levels above it no more than what [`inherited`] says, and what is made of that.
pub(crate) struct Scope<'a> {
    pub(crate) context: &'a Context,
    pub(crate) filters: &'a HttpFilters,
    pub(crate) max_direct_body: usize,
    /// Whether clusters must exist.
    pub(crate) validate_clusters: bool,
    table_overrides: &'a Overrides,
    host: Option<OfHost<'a>>,
    /// Mirrors of routes that name none.
    mirrors: Option<&'a Arc<[MirrorPolicy]>>,
}

impl<'a> Scope<'a> {
    /// What is the same for all routes of a table.
    fn of_table(context: &'a Context, filters: &'a HttpFilters, table: OfTable<'a>) -> Scope<'a> {
        let OfTable { overrides, max_direct_body, validate_clusters, mirrors: _ } = table;
        Scope {
            context,
            filters,
            max_direct_body: max_direct_body.map_or(MAX_DIRECT_BODY, |value| value.value) as usize,
            validate_clusters: validate_clusters.map_or(context.validate_clusters, |value| value.value),
            table_overrides: overrides,
            host: None,
            mirrors: None,
        }
    }

    fn table_level(&self) -> Level<'_> {
        Level::new(self.table_overrides)
    }

    /// Whether a route of an earlier version may be taken over: where clusters must be there, those that it leads to still
    /// are. Compiled once more it says which is not.
    fn may_keep(&self, route: &Route) -> bool {
        let mut known = true;
        if self.validate_clusters {
            named_by(route, &mut |name| known = known && self.context.has_cluster(name).is_ok());
        }
        known
    }

    /// The same of a virtual host, whose own mirrors need not be those of its routes.
    fn may_keep_all(&self, host: &ProtoHost, routes: &HostRoutes) -> bool {
        !self.validate_clusters
            || host.request_mirror_policies.is_empty()
                && routes.routes().iter().all(|route| self.may_keep(route))
    }

    /// Name of the virtual host, for statistics.
    fn host_name(&self) -> &str {
        self.host.map_or("", |host| host.name)
    }
}

/// Compiles a route configuration for a connection manager with these filters.
///
/// A table is accepted or refused as a whole. `routes` are the encoded routes of each virtual host, which have been
/// taken out of `value`: they are decoded one at a time, but for those that an earlier version has already.
pub(crate) fn table(
    context: &Context,
    filters: &HttpFilters,
    value: &RouteConfiguration,
    routes: &[Vec<&[u8]>],
    earlier: Option<&Earlier<'_>>,
) -> Result<RouteTable> {
    let RouteConfiguration {
        name,
        virtual_hosts,
        vhds,
        internal_only_headers,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_add,
        request_headers_to_remove,
        most_specific_header_mutations_wins,
        // Of its routes.
        validate_clusters: _,
        max_direct_response_body_size_bytes: _,
        request_mirror_policies: _,
        cluster_specifier_plugins,
        ignore_port_in_host_matching,
        vhost_header,
        ignore_path_parameters_in_path_matching,
        typed_per_filter_config,
        // Nothing reads the metadata of a table.
        metadata: _,
        route_specifiers,
    } = value;
    let mut faults = Faults::default();
    faults.take(refused!(vhds, cluster_specifier_plugins, vhost_header, route_specifiers));
    let inherited = OfTable::new(value);
    let scope = Scope::of_table(context, filters, inherited);
    let mirrors = faults.take(mirror::policies(&scope, inherited.mirrors));
    let scope = Scope { mirrors: mirrors.as_ref(), ..scope };
    // Says what is wrong with settings of filters even if there is no route to use them.
    faults.take(filters.chain(&[Level::new(typed_per_filter_config)], name));
    let (request_headers, response_headers) = faults.take(header_ops::both(
        (request_headers_to_add, request_headers_to_remove),
        (response_headers_to_add, response_headers_to_remove),
    ));
    let internal_only = internal_only_headers.iter().map(|name| header_name(name, "internal_only_headers"));
    let options = TableOptions {
        ignore_port: *ignore_port_in_host_matching,
        ignore_path_parameters: *ignore_path_parameters_in_path_matching,
        request_headers,
        response_headers,
        most_specific_wins: *most_specific_header_mutations_wins,
        // The connection manager's chain is for requests that no route takes.
        chain: None,
        internal_only_headers: faults.take(collect(internal_only)),
    };
    let earlier = earlier.map(|earlier| earlier.hosts(value)).unwrap_or_default();
    let hosts = virtual_hosts.iter().zip(routes).enumerate().map(|(index, (host, routes))| {
        let scope = Scope { host: Some(OfHost::new(host)), ..scope };
        let earlier = earlier.get(&*host.name);
        let same = earlier.and_then(|earlier| earlier.whole(host, routes));
        if let Some(same) = same.filter(|same| scope.may_keep_all(host, same)) {
            return Ok((host.domains.clone(), same));
        }
        virtual_host(&scope, host, routes, earlier).in_index(index).in_key("virtual_hosts")
    });
    let hosts = faults.take(collect(hosts));
    faults.end(())?;
    RouteTable::new(name, options, hosts)
}

fn virtual_host(
    scope: &Scope<'_>,
    value: &ProtoHost,
    routes: &[&[u8]],
    earlier: Option<&EarlierHost<'_>>,
) -> Result<(Vec<String>, Arc<HostRoutes>)> {
    if value.matcher.is_some() && !routes.is_empty() {
        return Err(ConfigError::field("matcher", "must not be given together with routes"));
    }
    let mut faults = Faults::default();
    faults.take(refuse_unsupported(value));
    let mirrors = faults.take(mirror::policies(scope, OfHost::new(value).mirrors));
    let scope = &Scope { mirrors: mirrors.as_ref().or(scope.mirrors), ..*scope };
    faults.take(not_empty(&value.name, "name"));
    if value.domains.is_empty() {
        faults.take::<()>(Err(ConfigError::field("domains", "must not be empty")));
    }
    let options = host_options(scope, value, &mut faults);
    let earlier = earlier.map(|earlier| earlier.routes(value)).unwrap_or_default();
    let routes = routes.iter().enumerate().map(|(index, route)| {
        if let Some(same) = earlier.get(route).filter(|same| scope.may_keep(same)) {
            return Ok(Arc::clone(same));
        }
        let route = decode(route).and_then(|route| entry::route(scope, &route));
        route.map(Arc::new).in_index(index).in_key("routes")
    });
    let routes = faults.take(collect(routes));
    let tree = value.matcher.as_ref().map(|tree| route_tree(scope, tree)).transpose().in_key("matcher");
    let tree = faults.take(tree);
    faults.end(())?;
    let host = match tree {
        None => HostRoutes::new(&value.name, options, routes),
        Some(tree) => HostRoutes::of_tree(&value.name, options, tree),
    };
    Ok((value.domains.clone(), host))
}

/// A tree whose actions are routes, or lists of them.
fn route_tree(scope: &Scope<'_>, value: &Matcher) -> Result<Tree<RouteList>> {
    let mut act = |value: &TypedExtensionConfig| {
        let TypedExtensionConfig { name, typed_config } = value;
        let config = required(typed_config, "typed_config")?;
        let compiled = |route: &ProtoRoute| entry::route(scope, route).map(Arc::new);
        match any::type_name(config).in_key("typed_config")? {
            kind if kind == ProtoRoute::full_name() => {
                let route = any::unpack(config).and_then(|route| compiled(&route));
                route.in_key("typed_config").map(|route| RouteList::new(vec![route]))
            }
            kind if kind == ProtoList::full_name() => {
                let listed = |ProtoList { routes }| {
                    let routes = routes.iter().enumerate();
                    let routes = routes.map(|(index, route)| compiled(route).in_index(index));
                    collect(routes).in_key("routes").map(RouteList::new)
                };
                any::unpack(config).and_then(listed).in_key("typed_config")
            }
            other => Err(refuse::extension("action", name, &other)),
        }
    };
    matching::tree(value, Data::Route, &mut act)
}

/// Counts the fields of a virtual host: what is not read by any part of this module is refused here.
fn refuse_unsupported(value: &ProtoHost) -> Result<()> {
    let ProtoHost {
        name: _,
        domains: _,
        // Taken out before.
        routes: _,
        matcher: _,
        require_tls: _,
        virtual_clusters: _,
        rate_limits: _,
        request_headers_to_add: _,
        request_headers_to_remove: _,
        response_headers_to_add: _,
        response_headers_to_remove: _,
        // Settings of filters.
        cors: _,
        typed_per_filter_config: _,
        include_request_attempt_count: _,
        include_attempt_count_in_response: _,
        retry_policy: _,
        retry_policy_typed_config,
        // Of its routes.
        hedge_policy: _,
        include_is_timeout_retry_header: _,
        per_request_buffer_limit_bytes: _,
        request_body_buffer_limit: _,
        request_mirror_policies: _,
        metadata: _,
        route_specifiers,
    } = value;
    refused!(retry_policy_typed_config, route_specifiers)
}

fn host_options(scope: &Scope<'_>, value: &ProtoHost, faults: &mut Faults) -> VirtualHostOptions {
    let ProtoHost { metadata: host_metadata, .. } = value;
    let levels = [scope.table_level(), OfHost::new(value).level()];
    // Says what is wrong with settings of filters even if there is no route to use them. Requests without a route run none:
    // Envoy asks its route alone for them (`resolveMostSpecificPerFilterConfig`).
    faults.take(scope.filters.chain(&levels, &value.name));
    let (request_headers, response_headers) = faults.take(header_ops::both(
        (&value.request_headers_to_add, &value.request_headers_to_remove),
        (&value.response_headers_to_add, &value.response_headers_to_remove),
    ));
    let retry = value.retry_policy.as_ref().map(retry::policy).transpose().in_key("retry_policy");
    let clusters = value.virtual_clusters.iter().enumerate();
    let virtual_clusters = clusters
        .map(|(index, cluster)| virtual_cluster(scope, cluster).in_index(index).in_key("virtual_clusters"))
        .chain((!value.virtual_clusters.is_empty()).then(|| Ok(other_cluster(scope))));
    let limit = body_limit(&value.per_request_buffer_limit_bytes, &value.request_body_buffer_limit);
    VirtualHostOptions {
        require_tls: match faults.take(enum_value(value.require_tls, "require_tls")) {
            TlsRequirementType::None => RequireTls::None,
            TlsRequirementType::ExternalOnly => RequireTls::ExternalOnly,
            TlsRequirementType::All => RequireTls::All,
        },
        request_headers,
        response_headers,
        attempt_count: value.include_request_attempt_count,
        attempt_count_in_response: value.include_attempt_count_in_response,
        is_timeout_retry: value.include_is_timeout_retry_header,
        retry: faults.take(retry).map(Arc::new),
        body_buffer_limit: faults.take(limit),
        virtual_clusters: faults.take(collect(virtual_clusters)),
        chain: None,
        metadata: metadata::namespaces(host_metadata),
        rate_limits: faults.take(rate_limit::policies(
            &value.rate_limits,
            &scope.context.node.cluster,
            &scope.context.runtime,
            "rate_limits",
        )),
    }
}

/// `request_body_buffer_limit`, or its older form.
fn body_limit(
    old: &Option<sixfold_xds_api::pb::google::protobuf::UInt32Value>,
    new: &Option<sixfold_xds_api::pb::google::protobuf::UInt64Value>,
) -> Result<Option<u64>> {
    match (old, new) {
        (Some(_), Some(_)) => {
            let reason = "must not be given together with request_body_buffer_limit";
            Err(ConfigError::field("per_request_buffer_limit_bytes", reason))
        }
        (Some(old), None) => Ok(Some(u64::from(old.value))),
        (None, new) => Ok(new.as_ref().map(|new| new.value)),
    }
}

/// Counts what belongs to no virtual cluster; without a name for formatters, as in Envoy.
fn other_cluster(scope: &Scope<'_>) -> VirtualCluster {
    let prefix = format!("vhost.{}.vcluster.other.", scope.host_name());
    let stats = Arc::new(RouteStats::new(scope.context.compile.metrics(), &prefix));
    VirtualCluster { name: "".into(), headers: Vec::new(), stats }
}

fn virtual_cluster(scope: &Scope<'_>, value: &ProtoVirtualCluster) -> Result<VirtualCluster> {
    let ProtoVirtualCluster { headers, name } = value;
    if headers.is_empty() {
        return Err(ConfigError::field("headers", "must not be empty"));
    }
    let prefix = format!("vhost.{}.vcluster.{}.", scope.host_name(), not_empty(name, "name")?);
    Ok(VirtualCluster {
        name: name.as_str().into(),
        headers: matcher::headers(headers, "headers")?,
        stats: Arc::new(RouteStats::new(scope.context.compile.metrics(), &prefix)),
    })
}
