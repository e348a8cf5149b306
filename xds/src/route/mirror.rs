//! Mirrors of a route, a virtual host or a table.

use std::sync::Arc;

use sixfold_core::error::{ConfigContext, ConfigError, Faults, collect};
use sixfold_core::header_ops::HeaderOps;
use sixfold_core::route::{MirrorHost, MirrorPolicy};
use sixfold_xds_api::header_ops;
use sixfold_xds_api::pb::envoy::config::common::mutation_rules::v3::{
    HeaderMutation, header_mutation::Action,
};
use sixfold_xds_api::pb::envoy::config::route::v3::route_action::RequestMirrorPolicy;
use sixfold_xds_api::values::{Result, one_of, runtime_fraction};

use super::{Scope, cluster};

/// What they are called at each level.
pub(super) const FIELD: &str = "request_mirror_policies";

/// The policies of a level; `None`, which takes those of the level above, when it has none.
pub(super) fn policies(
    scope: &Scope<'_>,
    values: &[RequestMirrorPolicy],
) -> Result<Option<Arc<[MirrorPolicy]>>> {
    let policies = values.iter().enumerate().map(|(index, value)| policy(scope, value).in_index(index));
    let policies = collect(policies).in_key(FIELD)?;
    Ok((!policies.is_empty()).then(|| policies.into()))
}

fn policy(scope: &Scope<'_>, value: &RequestMirrorPolicy) -> Result<MirrorPolicy> {
    let RequestMirrorPolicy {
        cluster: name,
        cluster_header,
        runtime_fraction: fraction,
        // Nothing is traced.
        trace_sampled: _,
        disable_shadow_host_suffix_append,
        request_headers_mutations,
        host_rewrite_literal,
    } = value;
    let mut faults = Faults::default();
    let cluster = faults.keep(cluster::name_or_header(scope, name, cluster_header, "cluster"));
    let fraction = fraction.as_ref().map(|fraction| runtime_fraction(&scope.context.runtime, fraction));
    let fraction = faults.take(fraction.transpose().in_key("runtime_fraction"));
    let changes = request_headers_mutations.iter().enumerate();
    let changes = collect(changes.map(|(index, value)| change(value).in_index(index)));
    let changes: Vec<HeaderOps> = faults.take(changes.in_key("request_headers_mutations"));
    let host = match (host_rewrite_literal.as_str(), disable_shadow_host_suffix_append) {
        ("", false) => MirrorHost::Suffixed,
        ("", true) => MirrorHost::Kept,
        (host, _) => MirrorHost::Literal(host.as_bytes().into()),
    };
    let cluster = faults.kept(cluster)?;
    faults.end(MirrorPolicy { cluster, fraction, changes: changes.into(), host })
}

/// One change, for its place among the others.
fn change(value: &HeaderMutation) -> Result<HeaderOps> {
    match one_of::<HeaderMutation, _>(&value.action, "action")? {
        Action::Remove(name) => header_ops::without(name, "remove"),
        Action::Append(addition) => header_ops::one(addition).in_key("append"),
        Action::RemoveOnMatch(_) => Err(ConfigError::field("remove_on_match", "is not supported")),
    }
}
