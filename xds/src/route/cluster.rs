//! Which cluster a route sends to.

use std::sync::Arc;

use sixfold_core::cluster::{ClusterCell, Criteria};
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::matcher::HeaderTarget;
use sixfold_core::route::{Action, ClusterChoice, Route, WeightedCluster, WeightedClusters};
use sixfold_xds_api::pb::envoy::config::core::v3::Metadata;
use sixfold_xds_api::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use sixfold_xds_api::pb::envoy::config::route::v3::weighted_cluster::{
    ClusterWeight, RandomValueSpecifier, cluster_weight,
};
use sixfold_xds_api::pb::envoy::config::route::v3::{RouteAction, WeightedCluster as ProtoWeighted};

use super::Scope;
use crate::context::Context;
use crate::filters::Level;
use sixfold_xds_api::values::{Result, one_of, required};
use sixfold_xds_api::{header_ops, metadata};

/// The cell of a cluster's name. `known` are the names that there must be, if that is checked.
pub(crate) fn cell(context: &Context, validate: bool, name: &str) -> Result<Arc<ClusterCell>> {
    if validate {
        context.has_cluster(name)?;
    }
    Ok(context.compile.clusters.cell(name))
}

/// Tells the names of the clusters that a route leads to, and of those that get copies.
pub(crate) fn named_by(route: &Route, told: &mut impl FnMut(&Arc<str>)) {
    let Action::Forward(forward) = &route.action else { return };
    choices(&forward.cluster, told);
    let mirrors = forward.mirrors.iter().flat_map(|mirrors| mirrors.iter());
    mirrors.for_each(|mirror| choices(&mirror.cluster, told));
}

/// The same of a choice.
pub(crate) fn choices(choice: &ClusterChoice, told: &mut impl FnMut(&Arc<str>)) {
    match choice {
        ClusterChoice::Named(cell) => told(&cell.name),
        ClusterChoice::Weighted(weighted) => {
            weighted.clusters.iter().for_each(|member| choices(&member.cluster, told));
        }
        ClusterChoice::Header(..) => {}
    }
}

/// `cluster_specifier` of a route, whose `metadata_match` members of weighted clusters add to.
pub(super) fn choice(
    scope: &Scope<'_>,
    value: &Option<ClusterSpecifier>,
    metadata_match: &Option<Metadata>,
    levels: &[Level<'_>],
) -> Result<ClusterChoice> {
    Ok(match one_of::<RouteAction, _>(value, "cluster_specifier")? {
        ClusterSpecifier::Cluster(name) => name_or_header(scope, name, "", "cluster")?,
        ClusterSpecifier::ClusterHeader(header) => name_or_header(scope, "", header, "cluster_header")?,
        ClusterSpecifier::WeightedClusters(value) => ClusterChoice::Weighted(Box::new(
            weighted(scope, value, metadata_match, levels).in_key("weighted_clusters")?,
        )),
        ClusterSpecifier::ClusterSpecifierPlugin(_) => {
            return Err(ConfigError::field("cluster_specifier_plugin", "is not supported"));
        }
        ClusterSpecifier::InlineClusterSpecifierPlugin(_) => {
            return Err(ConfigError::field("inline_cluster_specifier_plugin", "is not supported"));
        }
    })
}

/// A cluster by its name or by a header that holds the name; `field` is where the name would stand.
pub(super) fn name_or_header(
    scope: &Scope<'_>,
    name: &str,
    header: &str,
    field: &str,
) -> Result<ClusterChoice> {
    match (name, header) {
        ("", "") => Err(ConfigError::field(field, "must not be empty")),
        (name, "") => {
            Ok(ClusterChoice::Named(cell(scope.context, scope.validate_clusters, name).in_key(field)?))
        }
        ("", header) => {
            let header = HeaderTarget::of_request(header);
            Ok(ClusterChoice::Header(header.into(), scope.context.compile.clusters.clone()))
        }
        _ => Err(ConfigError::field("cluster_header", format!("must not be given together with {field}"))),
    }
}

fn weighted(
    scope: &Scope<'_>,
    value: &ProtoWeighted,
    metadata_match: &Option<Metadata>,
    levels: &[Level<'_>],
) -> Result<WeightedClusters> {
    let of_route = metadata::criteria(metadata_match);
    // `total_weight` is ignored by Envoy too; the sum of the weights counts.
    let ProtoWeighted { clusters, total_weight: _, runtime_key_prefix, random_value_specifier } = value;
    if clusters.is_empty() {
        return Err(ConfigError::field("clusters", "must not be empty"));
    }
    let members = clusters.iter().enumerate().map(|(index, value)| {
        member(scope, value, runtime_key_prefix, &of_route, levels).in_index(index).in_key("clusters")
    });
    let clusters: Box<[WeightedCluster]> = collect(members)?.into();
    let total = clusters.iter().fold(0u64, |total, member| total.saturating_add(member.weight));
    if total == 0 || total > u64::from(u32::MAX) {
        return Err(ConfigError::field(
            "clusters",
            "the sum of the weights must be between 1 and 4294967295",
        ));
    }
    let (random_header, use_hash) = match random_value_specifier {
        Some(RandomValueSpecifier::HeaderName(name)) => (Some(HeaderTarget::of_request(name)), false),
        Some(RandomValueSpecifier::UseHashPolicy(on)) => (None, on.value),
        None => (None, false),
    };
    Ok(WeightedClusters { clusters, total, random_header, use_hash })
}

fn member(
    scope: &Scope<'_>,
    value: &ClusterWeight,
    runtime_prefix: &str,
    of_route: &Criteria,
    levels: &[Level<'_>],
) -> Result<WeightedCluster> {
    let ClusterWeight {
        name,
        cluster_header,
        weight,
        metadata_match,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        typed_per_filter_config,
        host_rewrite_specifier,
    } = value;
    let configured = u64::from(required(weight, "weight")?.value);
    let weight = match runtime_prefix {
        "" => configured,
        prefix => scope.context.runtime.integer(&format!("{prefix}.{name}"), configured),
    };
    let chain = if typed_per_filter_config.is_empty() {
        None
    } else {
        let mut levels = levels.to_vec();
        levels.push(Level::new(typed_per_filter_config).named(name));
        scope.filters.chain(&levels, name)?
    };
    let (request_headers, response_headers) = header_ops::both(
        (request_headers_to_add, request_headers_to_remove),
        (response_headers_to_add, response_headers_to_remove),
    )?;
    Ok(WeightedCluster {
        cluster: name_or_header(scope, name, cluster_header, "name")?,
        weight,
        request_headers,
        response_headers,
        host_rewrite: host_rewrite_specifier
            .as_ref()
            .map(|cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host)| host.as_str().into()),
        metadata_match: of_route.merged(metadata::criteria(metadata_match).iter()),
        chain,
    })
}
