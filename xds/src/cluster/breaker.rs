//! Circuit breakers.

use sixfold_core::cluster::{BreakerLimits, RetryBudget};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::runtime::Runtime;
use sixfold_xds_api::pb::envoy::config::cluster::v3::CircuitBreakers;
use sixfold_xds_api::pb::envoy::config::cluster::v3::circuit_breakers::{
    Thresholds, thresholds::RetryBudget as ProtoBudget,
};
use sixfold_xds_api::pb::envoy::config::core::v3::RoutingPriority;

use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, enum_value, u32_or};

/// A budget that says nothing else.
const BUDGET: RetryBudget = RetryBudget { percent: 20.0, min_concurrency: 3 };

/// Limits of a cluster.
pub(super) struct Limits {
    /// Of ordinary requests.
    pub(super) default: BreakerLimits,
    /// Of those with priority HIGH.
    pub(super) high: BreakerLimits,
    /// Whether statistics say what each of the two still allows.
    pub(super) tracks_remaining: [bool; 2],
    /// Connections to each endpoint.
    pub(super) host_connections: u32,
}

/// Limits as configured, or as the runtime has them.
pub(super) fn limits(runtime: &Runtime, cluster: &str, value: Option<&CircuitBreakers>) -> Result<Limits> {
    let none = CircuitBreakers::default();
    let CircuitBreakers { thresholds, per_host_thresholds } = value.unwrap_or(&none);
    let (mut limits, mut tracks_remaining) = ((None, None), [false; 2]);
    for (index, value) in thresholds.iter().enumerate() {
        let (priority, compiled) = threshold(value).in_index(index).in_key("thresholds")?;
        let [default, high] = &mut tracks_remaining;
        let (place, tracks) = match priority {
            RoutingPriority::Default => (&mut limits.0, default),
            RoutingPriority::High => (&mut limits.1, high),
        };
        // As in Envoy, the first of a priority counts.
        if place.is_none() {
            (*place, *tracks) = (Some(compiled), value.track_remaining);
        }
    }
    let keyed = |priority, limits: Option<BreakerLimits>| {
        with_runtime(runtime, &format!("circuit_breakers.{cluster}.{priority}"), limits.unwrap_or_default())
    };
    Ok(Limits {
        default: keyed("default", limits.0),
        high: keyed("high", limits.1),
        tracks_remaining,
        host_connections: host_connections(per_host_thresholds).in_key("per_host_thresholds")?,
    })
}

/// Runtime keys take the place of numbers (source/common/upstream/resource_manager_impl.h).
fn with_runtime(runtime: &Runtime, prefix: &str, limits: BreakerLimits) -> BreakerLimits {
    let whole = |key: &str, default: u32| {
        let value = runtime.integer(&format!("{prefix}.{key}"), default.into());
        u32::try_from(value).unwrap_or(u32::MAX)
    };
    let budget_key = |key: &str| format!("{prefix}.retry_budget.{key}");
    let keyed = ["budget_percent", "min_retry_concurrency"].iter().any(|key| runtime.has(&budget_key(key)));
    BreakerLimits {
        max_connections: whole("max_connections", limits.max_connections),
        max_pending: whole("max_pending_requests", limits.max_pending),
        max_requests: whole("max_requests", limits.max_requests),
        max_retries: whole("max_retries", limits.max_retries),
        // A key alone is a budget.
        retry_budget: limits.retry_budget.or(keyed.then_some(BUDGET)).map(|budget| RetryBudget {
            percent: runtime.number(&budget_key("budget_percent"), budget.percent).clamp(0.0, 100.0),
            min_concurrency: whole("retry_budget.min_retry_concurrency", budget.min_concurrency),
        }),
    }
}

/// Only the number of connections can be limited, and only for the default priority (the last one given counts
/// nothing: source/common/upstream/upstream_impl.cc takes the first of each priority).
fn host_connections(values: &[Thresholds]) -> Result<u32> {
    let mut limit = None;
    for (index, value) in values.iter().enumerate() {
        let Thresholds {
            priority,
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
            retry_budget,
            track_remaining,
            max_connection_pools,
        } = value;
        let refused = || {
            refuse!(
                max_pending_requests,
                max_requests,
                max_retries,
                retry_budget,
                track_remaining,
                max_connection_pools
            );
            Ok(())
        };
        refused().in_index(index)?;
        let priority: RoutingPriority = enum_value(*priority, "priority").in_index(index)?;
        if priority == RoutingPriority::Default {
            limit.get_or_insert(u32_or(max_connections, u32::MAX));
        }
    }
    Ok(limit.unwrap_or(u32::MAX))
}

fn threshold(value: &Thresholds) -> Result<(RoutingPriority, BreakerLimits)> {
    let Thresholds {
        priority,
        max_connections,
        max_pending_requests,
        max_requests,
        max_retries,
        retry_budget,
        // Kept beside the limits.
        track_remaining: _,
        max_connection_pools,
    } = value;
    refuse!(max_connection_pools);
    let default = BreakerLimits::default();
    let limits = BreakerLimits {
        max_connections: u32_or(max_connections, default.max_connections),
        max_pending: u32_or(max_pending_requests, default.max_pending),
        max_requests: u32_or(max_requests, default.max_requests),
        max_retries: u32_or(max_retries, default.max_retries),
        retry_budget: retry_budget.as_ref().map(budget).transpose().in_key("retry_budget")?,
    };
    Ok((enum_value(*priority, "priority")?, limits))
}

fn budget(value: &ProtoBudget) -> Result<RetryBudget> {
    let ProtoBudget { budget_percent, budget_interval, min_retry_concurrency } = value;
    refuse!(budget_interval);
    let percent = budget_percent.as_ref().map_or(BUDGET.percent, |percent| percent.value);
    if !(0.0..=100.0).contains(&percent) {
        return Err(ConfigError::field("budget_percent", "must be between 0 and 100"));
    }
    Ok(RetryBudget { percent, min_concurrency: u32_or(min_retry_concurrency, BUDGET.min_concurrency) })
}
