//! Circuit breakers.

use sixfold_core::cluster::{BreakerLimits, RetryBudget};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_xds_api::pb::envoy::config::cluster::v3::CircuitBreakers;
use sixfold_xds_api::pb::envoy::config::cluster::v3::circuit_breakers::{
    Thresholds, thresholds::RetryBudget as ProtoBudget,
};
use sixfold_xds_api::pb::envoy::config::core::v3::RoutingPriority;

use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, enum_value, u32_or};

/// Limits of ordinary requests and of those with priority HIGH.
pub(super) fn limits(value: Option<&CircuitBreakers>) -> Result<(BreakerLimits, BreakerLimits)> {
    let Some(CircuitBreakers { thresholds, per_host_thresholds }) = value else {
        return Ok(Default::default());
    };
    refuse!(per_host_thresholds);
    let mut limits = (None, None);
    for (index, value) in thresholds.iter().enumerate() {
        let (priority, compiled) = threshold(value).in_index(index).in_key("thresholds")?;
        let place = match priority {
            RoutingPriority::Default => &mut limits.0,
            RoutingPriority::High => &mut limits.1,
        };
        // As in Envoy, the first of a priority counts.
        place.get_or_insert(compiled);
    }
    Ok((limits.0.unwrap_or_default(), limits.1.unwrap_or_default()))
}

fn threshold(value: &Thresholds) -> Result<(RoutingPriority, BreakerLimits)> {
    let Thresholds {
        priority,
        max_connections,
        max_pending_requests,
        max_requests,
        max_retries,
        retry_budget,
        // Gauges of what is left; the counts and limits they come from are there anyway.
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
    let percent = budget_percent.as_ref().map_or(20.0, |percent| percent.value);
    if !(0.0..=100.0).contains(&percent) {
        return Err(ConfigError::field("budget_percent", "must be between 0 and 100"));
    }
    Ok(RetryBudget { percent, min_concurrency: u32_or(min_retry_concurrency, 3) })
}
