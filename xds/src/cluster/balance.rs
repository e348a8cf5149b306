//! How endpoints are chosen: `lb_policy` with its configuration, or `load_balancing_policy`.

use std::sync::Arc;
use std::time::Duration;

use sixfold_core::cluster::{BalanceConfig, LoadReports, Metric, Policy, ZoneAware};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_xds_api::pb::envoy::config::cluster::v3::cluster::common_lb_config::{
    ConsistentHashingLbConfig, LocalityConfigSpecifier, ZoneAwareLbConfig as OldZone,
};
use sixfold_xds_api::pb::envoy::config::cluster::v3::cluster::ring_hash_lb_config::HashFunction;
use sixfold_xds_api::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, LbConfig, LbPolicy, LeastRequestLbConfig,
    MaglevLbConfig, RingHashLbConfig, RoundRobinLbConfig, SlowStartConfig as OldSlowStart,
};
use sixfold_xds_api::pb::envoy::config::cluster::v3::{Cluster as ProtoCluster, LoadBalancingPolicy};
use sixfold_xds_api::pb::envoy::config::core::v3::{RuntimeDouble, TypedExtensionConfig};
use sixfold_xds_api::pb::envoy::extensions::load_balancing_policies::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin;
use sixfold_xds_api::pb::envoy::extensions::load_balancing_policies::common::v3::{
    ConsistentHashingLbConfig as NewHashing, LocalityLbConfig, SlowStartConfig,
    locality_lb_config::LocalityConfigSpecifier as NewLocality,
    locality_lb_config::ZoneAwareLbConfig as NewZone,
    locality_lb_config::zone_aware_lb_config::{ForceLocalZone, LocalityBasis},
};
use sixfold_xds_api::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use sixfold_xds_api::pb::envoy::extensions::load_balancing_policies::least_request::v3::least_request::SelectionMethod;
use sixfold_xds_api::pb::envoy::extensions::load_balancing_policies::maglev::v3::Maglev;
use sixfold_xds_api::pb::envoy::extensions::load_balancing_policies::random::v3::Random;
use sixfold_xds_api::pb::envoy::extensions::load_balancing_policies::ring_hash::v3::RingHash;
use sixfold_xds_api::pb::envoy::extensions::load_balancing_policies::ring_hash::v3::ring_hash::HashFunction as NewFunction;
use sixfold_xds_api::pb::envoy::extensions::load_balancing_policies::round_robin::v3::RoundRobin;
use sixfold_xds_api::pb::envoy::extensions::load_balancing_policies::subset::v3::Subset;
use sixfold_xds_api::pb::envoy::extensions::load_balancing_policies::wrr_locality::v3::WrrLocality;
use sixfold_xds_api::pb::envoy::r#type::v3::Percent;
use sixfold_xds_api::pb::google::protobuf::{Duration as ProtoDuration, UInt32Value, UInt64Value};
use sixfold_xds_api::{any, refuse};

use super::{original_dst, subset};
use crate::context::Context;
use sixfold_xds_api::values::{
    Result, bool_or, enum_value, optional_duration, required, runtime_double, u32_in, u64_or, whole_percent,
};

const PACKAGE: &str = "envoy.extensions.load_balancing_policies.";
const MIN_RING: u64 = 1024;
const MAX_RING: u64 = 8 << 20;

/// `is_of_known_type` says whether there is such a type of clusters: what another provides nobody can say.
pub(super) fn compile(
    context: &Context,
    value: &ProtoCluster,
    is_of_known_type: bool,
) -> Result<BalanceConfig> {
    let mut config = BalanceConfig { zone: zone_aware(context, None)?, ..BalanceConfig::default() };
    let mut use_hostname = false;
    if let Some(common) = &value.common_lb_config {
        use_hostname = common_options(context, common, &mut config).in_key("common_lb_config")?;
    }
    // Whole percents, wherever they are from (source/extensions/load_balancing_policies/common/load_balancer_impl.cc).
    let threshold =
        context.runtime.integer("upstream.healthy_panic_threshold", whole_percent(config.panic_threshold));
    config.panic_threshold = threshold.min(100) as f64;
    // Of what `load_balancing_policy` says by itself Envoy asks nothing.
    if use_hostname && !hashes_hostnames(value) {
        let field = "common_lb_config.consistent_hashing_lb_config.use_hostname_for_hashing";
        return Err(ConfigError::field(field, "is for clusters of type STRICT_DNS"));
    }
    let policy: LbPolicy = enum_value(value.lb_policy, "lb_policy")?;
    if !is_of_known_type && policy == LbPolicy::ClusterProvided {
        return Ok(config);
    }
    if let Some(of_cluster) = original_dst::policy(value, policy)? {
        config.policy = of_cluster;
        return Ok(config);
    }
    match (&value.load_balancing_policy, policy) {
        (Some(_), _) if value.lb_subset_config.is_some() => {
            let reason = "must not be given together with load_balancing_policy";
            return Err(ConfigError::field("lb_subset_config", reason));
        }
        (Some(list), _) => from_list(context, list, &mut config).in_key("load_balancing_policy")?,
        (None, LbPolicy::LoadBalancingPolicyConfig) => {
            return Err(ConfigError::field("load_balancing_policy", "is missing"));
        }
        (None, policy) => {
            config.policy =
                older(context, policy, value.lb_config.as_ref(), use_hostname, &mut config.slow_start)?
        }
    }
    if let Some(subsets) = &value.lb_subset_config {
        config.subsets = subset::older(subsets).in_key("lb_subset_config")?.map(Arc::new);
    }
    Ok(config)
}

/// Whether the endpoints are of a kind whose hostnames Envoy hashes. What `cluster_type` names is not, whatever it is.
fn hashes_hostnames(value: &ProtoCluster) -> bool {
    const STRICT_DNS: i32 = DiscoveryType::StrictDns as i32;
    matches!(value.cluster_discovery_type, Some(ClusterDiscoveryType::Type(STRICT_DNS)))
}

/// Tells whether hostnames are hashed.
fn common_options(context: &Context, value: &CommonLbConfig, config: &mut BalanceConfig) -> Result<bool> {
    let CommonLbConfig {
        healthy_panic_threshold,
        // Changes are never held back to be merged.
        update_merge_window: _,
        ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config,
        override_host_status,
        locality_config_specifier,
    } = value;
    refuse!(ignore_new_hosts_until_first_hc, close_connections_on_host_set_change, override_host_status);
    if let Some(percent) = healthy_panic_threshold {
        config.panic_threshold = percent.value;
    }
    match locality_config_specifier {
        None => {}
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => config.locality_weighted = true,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zone)) => {
            let OldZone { routing_enabled, min_cluster_size, fail_traffic_on_panic } = zone;
            config.fail_on_panic = *fail_traffic_on_panic;
            let zone = NewZone {
                routing_enabled: *routing_enabled,
                min_cluster_size: *min_cluster_size,
                ..NewZone::default()
            };
            config.zone = zone_aware(context, Some(&zone)).in_key("zone_aware_lb_config")?;
        }
    }
    let Some(ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor }) =
        consistent_hashing_lb_config
    else {
        return Ok(false);
    };
    let refused = || {
        refuse!(hash_balance_factor);
        Ok(())
    };
    refused().in_key("consistent_hashing_lb_config")?;
    Ok(*use_hostname_for_hashing)
}

type SlowStart = Option<(Duration, f64, f64)>;

fn older(
    context: &Context,
    policy: LbPolicy,
    value: Option<&LbConfig>,
    use_hostname: bool,
    slow_start: &mut SlowStart,
) -> Result<Policy> {
    Ok(match (policy, value) {
        (
            LbPolicy::RoundRobin,
            Some(LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config })),
        ) => {
            *slow_start = old_slow_start(context, slow_start_config).in_key("round_robin_lb_config")?;
            Policy::RoundRobin
        }
        (LbPolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(value))) => {
            let LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config } = value;
            *slow_start = old_slow_start(context, slow_start_config).in_key("least_request_lb_config")?;
            least_request(context, choice_count, active_request_bias, false)
                .in_key("least_request_lb_config")?
        }
        (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(value))) => {
            let RingHashLbConfig { minimum_ring_size, hash_function, maximum_ring_size } = value;
            let murmur = match enum_value(*hash_function, "hash_function").in_key("ring_hash_lb_config")? {
                HashFunction::XxHash => false,
                HashFunction::MurmurHash2 => true,
            };
            ring_hash(minimum_ring_size, maximum_ring_size, murmur, use_hostname)
                .in_key("ring_hash_lb_config")?
        }
        (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size }))) => {
            maglev(table_size, use_hostname).in_key("maglev_lb_config")?
        }
        // The configuration of another policy has no effect in Envoy either.
        (LbPolicy::RoundRobin, _) => Policy::RoundRobin,
        (LbPolicy::LeastRequest, _) => least_request(context, &None, &None, false)?,
        (LbPolicy::Random, _) => Policy::Random,
        (LbPolicy::RingHash, _) => ring_hash(&None, &None, false, use_hostname)?,
        (LbPolicy::Maglev, _) => maglev(&None, use_hostname)?,
        (LbPolicy::ClusterProvided | LbPolicy::LoadBalancingPolicyConfig, _) => {
            return Err(ConfigError::field(
                "lb_policy",
                format!("{} is not supported", policy.as_str_name()),
            ));
        }
    })
}

/// The first policy of the list that there is here, as Envoy does.
fn from_list(context: &Context, value: &LoadBalancingPolicy, config: &mut BalanceConfig) -> Result<()> {
    let mut unsupported = None;
    for (index, policy) in value.policies.iter().enumerate() {
        let extension = required(&policy.typed_extension_config, "typed_extension_config");
        let extension = extension.in_index(index).in_key("policies")?;
        let known = one_of_list(context, extension, config).in_key("typed_extension_config");
        match known.in_index(index).in_key("policies")? {
            None => return Ok(()),
            Some(error) => unsupported = unsupported.or(Some(error)),
        }
    }
    Err(unsupported.unwrap_or_else(|| ConfigError::field("policies", "must not be empty")))
}

/// `Some` with the complaint for a policy that there is not.
fn one_of_list(
    context: &Context,
    value: &TypedExtensionConfig,
    config: &mut BalanceConfig,
) -> Result<Option<ConfigError>> {
    let TypedExtensionConfig { name, typed_config } = value;
    let any = required(typed_config, "typed_config")?;
    let kind = any::type_name(any).in_key("typed_config")?;
    let compiled = match kind.strip_prefix(PACKAGE).unwrap_or_default() {
        "round_robin.v3.RoundRobin" => {
            any::unpack(any).and_then(|RoundRobin { slow_start_config, locality_lb_config }| {
                locality(context, &locality_lb_config, config)?;
                config.slow_start = new_slow_start(context, &slow_start_config)?;
                config.policy = Policy::RoundRobin;
                Ok(())
            })
        }
        "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin" => {
            any::unpack(any).and_then(|policy| client_side_weighted(context, &policy, config))
        }
        "random.v3.Random" => any::unpack(any).and_then(|Random { locality_lb_config }| {
            locality(context, &locality_lb_config, config)?;
            config.policy = Policy::Random;
            Ok(())
        }),
        "least_request.v3.LeastRequest" => {
            any::unpack(any).and_then(|policy| new_least_request(context, &policy, config))
        }
        "ring_hash.v3.RingHash" => any::unpack(any).and_then(|policy| new_ring_hash(&policy, config)),
        "maglev.v3.Maglev" => any::unpack(any).and_then(|policy| new_maglev(&policy, config)),
        "wrr_locality.v3.WrrLocality" => {
            any::unpack(any).and_then(|WrrLocality { endpoint_picking_policy }| {
                from_list(context, required(&endpoint_picking_policy, "endpoint_picking_policy")?, config)
                    .in_key("endpoint_picking_policy")?;
                config.locality_weighted = true;
                Ok(())
            })
        }
        "subset.v3.Subset" if config.subsets.is_none() => any::unpack(any).and_then(|value: Subset| {
            config.subsets = subset::newer(&value)?.map(Arc::new);
            from_list(context, required(&value.subset_lb_policy, "subset_lb_policy")?, config)
                .in_key("subset_lb_policy")
        }),
        _ => return Ok(Some(refuse::extension("load balancing policy", name, &kind))),
    };
    compiled.in_key("typed_config")?;
    Ok(None)
}

fn client_side_weighted(
    context: &Context,
    value: &ClientSideWeightedRoundRobin,
    config: &mut BalanceConfig,
) -> Result<()> {
    let ClientSideWeightedRoundRobin {
        enable_oob_load_report,
        oob_reporting_period,
        blackout_period,
        weight_expiration_period,
        weight_update_period,
        error_utilization_penalty,
        metric_names_for_computing_utilization,
        slow_start_config,
        oob_reporting_config: _,
    } = value;
    let enable_oob_load_report = &bool_or(enable_oob_load_report, false);
    refuse!(enable_oob_load_report);
    // Of a stream of reports, which there is not.
    optional_duration(oob_reporting_period, "oob_reporting_period")?;
    let defaults = LoadReports::default();
    config.slow_start = new_slow_start(context, slow_start_config)?;
    let period = |value: &Option<ProtoDuration>, field, default| {
        optional_duration(value, field).map(|period| period.unwrap_or(default))
    };
    config.policy = Policy::ClientSideWeighted(Arc::new(LoadReports {
        metrics: metric_names_for_computing_utilization.iter().filter_map(|name| Metric::of(name)).collect(),
        error_penalty: error_utilization_penalty
            .map_or(defaults.error_penalty, |penalty| penalty.value.into()),
        blackout: period(blackout_period, "blackout_period", defaults.blackout)?,
        expiration: period(weight_expiration_period, "weight_expiration_period", defaults.expiration)?,
        update: period(weight_update_period, "weight_update_period", defaults.update)?,
    }));
    Ok(())
}

fn new_least_request(context: &Context, value: &LeastRequest, config: &mut BalanceConfig) -> Result<()> {
    let LeastRequest {
        choice_count,
        active_request_bias,
        slow_start_config,
        locality_lb_config,
        enable_full_scan,
        selection_method,
    } = value;
    locality(context, locality_lb_config, config)?;
    config.slow_start = new_slow_start(context, slow_start_config)?;
    let scan = bool_or(enable_full_scan, false)
        || enum_value::<SelectionMethod>(*selection_method, "selection_method")? == SelectionMethod::FullScan;
    config.policy = least_request(context, choice_count, active_request_bias, scan)?;
    Ok(())
}

fn new_ring_hash(value: &RingHash, config: &mut BalanceConfig) -> Result<()> {
    let RingHash {
        hash_function,
        minimum_ring_size,
        maximum_ring_size,
        use_hostname_for_hashing,
        hash_balance_factor,
        consistent_hashing_lb_config,
        locality_weighted_lb_config,
    } = value;
    refuse!(hash_balance_factor);
    let murmur = match enum_value(*hash_function, "hash_function")? {
        NewFunction::DefaultHash | NewFunction::XxHash => false,
        NewFunction::MurmurHash2 => true,
    };
    let use_hostname = hashing(consistent_hashing_lb_config)? || *use_hostname_for_hashing;
    config.policy = ring_hash(minimum_ring_size, maximum_ring_size, murmur, use_hostname)?;
    config.locality_weighted |= locality_weighted_lb_config.is_some();
    Ok(())
}

fn new_maglev(value: &Maglev, config: &mut BalanceConfig) -> Result<()> {
    let Maglev { table_size, consistent_hashing_lb_config, locality_weighted_lb_config } = value;
    config.policy = maglev(table_size, hashing(consistent_hashing_lb_config)?)?;
    config.locality_weighted |= locality_weighted_lb_config.is_some();
    Ok(())
}

fn hashing(value: &Option<NewHashing>) -> Result<bool> {
    let Some(NewHashing { use_hostname_for_hashing, hash_balance_factor, hash_policy }) = value else {
        return Ok(false);
    };
    let refused = || {
        refuse!(hash_balance_factor, hash_policy);
        Ok(())
    };
    refused().in_key("consistent_hashing_lb_config")?;
    Ok(*use_hostname_for_hashing)
}

/// Zone-aware routing, which there is wherever there is a local cluster.
fn zone_aware(context: &Context, value: Option<&NewZone>) -> Result<Option<Arc<ZoneAware>>> {
    let default = NewZone::default();
    let NewZone {
        routing_enabled,
        min_cluster_size,
        fail_traffic_on_panic: _,
        force_locality_direct_routing,
        force_local_zone,
        locality_basis,
    } = value.unwrap_or(&default);
    let percent = whole_percent(routing_enabled.as_ref().map_or(100.0, |percent| percent.value));
    let least = |ForceLocalZone { min_size }: &ForceLocalZone| min_size.map_or(1, |size| size.value);
    let forced = force_local_zone.as_ref().map(least);
    let by_weight =
        enum_value::<LocalityBasis>(*locality_basis, "locality_basis")? == LocalityBasis::HealthyHostsWeight;
    let Some(local) = &context.local_cluster else { return Ok(None) };
    let runtime = &context.runtime;
    Ok(Some(Arc::new(ZoneAware {
        local: context.compile.clusters.cell(local),
        own: context.locality.clone(),
        enabled: runtime.integer("upstream.zone_routing.enabled", percent).min(100) as u32,
        min_size: runtime.integer("upstream.zone_routing.min_cluster_size", u64_or(min_cluster_size, 6)),
        force_own: forced.or(force_locality_direct_routing.then_some(1)),
        by_weight,
    })))
}

fn locality(context: &Context, value: &Option<LocalityLbConfig>, config: &mut BalanceConfig) -> Result<()> {
    match value.as_ref().and_then(|value| value.locality_config_specifier.as_ref()) {
        Some(NewLocality::LocalityWeightedLbConfig(_)) => config.locality_weighted = true,
        Some(NewLocality::ZoneAwareLbConfig(zone)) => {
            config.fail_on_panic = zone.fail_traffic_on_panic;
            let zone = zone_aware(context, Some(zone)).in_key("zone_aware_lb_config");
            config.zone = zone.in_key("locality_lb_config")?;
        }
        None => {}
    }
    Ok(())
}

fn least_request(
    context: &Context,
    choices: &Option<UInt32Value>,
    bias: &Option<RuntimeDouble>,
    full_scan: bool,
) -> Result<Policy> {
    Ok(Policy::LeastRequest {
        choices: u32_in(choices, 2, 2..=u32::MAX, "choice_count")?,
        full_scan,
        bias: runtime_double(&context.runtime, bias, 1.0),
    })
}

fn ring_hash(
    min: &Option<UInt64Value>,
    max: &Option<UInt64Value>,
    murmur: bool,
    use_hostname: bool,
) -> Result<Policy> {
    let (min_size, max_size) = (u64_or(min, MIN_RING), u64_or(max, MAX_RING));
    if max_size > MAX_RING {
        return Err(ConfigError::field("maximum_ring_size", format!("must be at most {MAX_RING}")));
    }
    if min_size > max_size {
        return Err(ConfigError::field("minimum_ring_size", "must not be larger than maximum_ring_size"));
    }
    Ok(Policy::RingHash { min_size, max_size, murmur, use_hostname })
}

fn maglev(size: &Option<UInt64Value>, use_hostname: bool) -> Result<Policy> {
    let table_size = u64_or(size, 65_537);
    // Only what is small enough is divided at all.
    let is_prime = |size: u64| (2..).take_while(|n| n * n <= size).all(|n| !size.is_multiple_of(n));
    if !(2..=5_000_011).contains(&table_size) || !is_prime(table_size) {
        return Err(ConfigError::field("table_size", "must be a prime number of at most 5000011"));
    }
    Ok(Policy::Maglev { table_size, use_hostname })
}

fn old_slow_start(context: &Context, value: &Option<OldSlowStart>) -> Result<SlowStart> {
    let Some(OldSlowStart { slow_start_window, aggression, min_weight_percent }) = value else {
        return Ok(None);
    };
    slow_start(context, slow_start_window, aggression, min_weight_percent).in_key("slow_start_config")
}

fn new_slow_start(context: &Context, value: &Option<SlowStartConfig>) -> Result<SlowStart> {
    let Some(SlowStartConfig { slow_start_window, aggression, min_weight_percent }) = value else {
        return Ok(None);
    };
    slow_start(context, slow_start_window, aggression, min_weight_percent).in_key("slow_start_config")
}

fn slow_start(
    context: &Context,
    window: &Option<ProtoDuration>,
    aggression: &Option<RuntimeDouble>,
    min: &Option<Percent>,
) -> Result<SlowStart> {
    let window = optional_duration(window, "slow_start_window")?.filter(|window| !window.is_zero());
    let aggression = runtime_double(&context.runtime, aggression, 1.0);
    if aggression.is_nan() || aggression < 0.0 {
        return Err(ConfigError::field("aggression", "must not be negative"));
    }
    let min = min.as_ref().map_or(10.0, |percent| percent.value);
    Ok(window.map(|window| (window, aggression, min)))
}
