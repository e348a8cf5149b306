//! `overload_manager`: what is measured, and what is done under load.

use std::time::Duration;

use sixfold_core::error::{ConfigContext, ConfigError, Faults, collect};
use sixfold_core::overload::{Act, Action, Least, Limit, Settings, Threshold, Timer, Trigger};
use sixfold_core::runtime::Runtime;
use sixfold_xds_api::pb::envoy::config::overload::v3::scale_timers_overload_action_config::scale_timer::OverloadAdjust;
use sixfold_xds_api::pb::envoy::config::overload::v3::scale_timers_overload_action_config::{
    ScaleTimer, TimerType,
};
use sixfold_xds_api::pb::envoy::config::overload::v3::trigger::TriggerOneof;
use sixfold_xds_api::pb::envoy::config::overload::v3::{
    OverloadAction, OverloadManager, ResourceMonitor, ScaleTimersOverloadActionConfig, ScaledTrigger,
    ShrinkHeapConfig, ThresholdTrigger, Trigger as ProtoTrigger, resource_monitor::ConfigType,
};
use sixfold_xds_api::pb::envoy::extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig;
use sixfold_xds_api::pb::envoy::extensions::resource_monitors::fixed_heap::v3::FixedHeapConfig;
use sixfold_xds_api::values::{Result, duration, enum_value, not_empty, one_of, positive_duration, required};
use sixfold_xds_api::{any, refuse, refused};

/// From here on a limit of connections counts for none: no process has so many descriptors.
const UNLIMITED: u64 = i32::MAX as u64;

/// The older limit of connections, where no monitor limits them, and how its statistics are called.
const OF_RUNTIME: &str = "overload.global_downstream_max_connections";
const OF_RUNTIME_NAME: &str = "global_downstream_max_connections";

/// How often monitors look.
const REFRESH: Duration = Duration::from_secs(1);

/// How often memory is given back.
const SHRINK: Duration = Duration::from_secs(10);

/// `None` where nothing is ever done, as by what pilot-agent writes: a limit of connections that limits nothing.
///
/// # Errors
/// Monitors and actions that there are not, triggers without a monitor, what is named twice, a second limit of
/// connections.
pub(super) fn compile(value: Option<&OverloadManager>, runtime: &Runtime) -> Result<Option<Settings>> {
    let none = OverloadManager::default();
    let OverloadManager {
        refresh_interval,
        resource_monitors,
        actions,
        loadshed_points,
        buffer_factory_config,
    } = value.unwrap_or(&none);
    refuse!(loadshed_points, buffer_factory_config);
    let refresh = positive_duration(refresh_interval, REFRESH, "refresh_interval")?;
    let mut settings = Settings { refresh, ..Settings::default() };
    let (mut names, mut faults) = (Vec::new(), Faults::default());
    for (index, value) in resource_monitors.iter().enumerate() {
        let added = monitor(value, &mut names, &mut settings);
        faults.take(added.in_index(index).in_key("resource_monitors"));
    }
    // An action of a monitor that is no good has no fault of its own.
    faults.end(())?;
    let of_runtime = || runtime.whole(OF_RUNTIME).map(|max| Limit { name: OF_RUNTIME_NAME.to_owned(), max });
    settings.connections = settings.connections.or_else(of_runtime).filter(|limit| limit.max < UNLIMITED);
    for (index, value) in actions.iter().enumerate() {
        let action = action(value, &mut settings).in_index(index).in_key("actions")?;
        settings.actions.push(action);
    }
    let acts = settings.connections.is_some() || !settings.heaps.is_empty();
    Ok(acts.then_some(settings))
}

fn monitor<'v>(value: &'v ResourceMonitor, names: &mut Vec<&'v str>, settings: &mut Settings) -> Result<()> {
    let ResourceMonitor { name, config_type } = value;
    if names.contains(&not_empty(name, "name")?) {
        return Err(ConfigError::field("name", format!("\"{name}\" is given twice")));
    }
    names.push(name);
    let Some(ConfigType::TypedConfig(config)) = config_type else {
        return Err(ConfigError::field("typed_config", "is missing"));
    };
    match any::type_name(config).in_key("typed_config")?.as_str() {
        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig" => {
            let DownstreamConnectionsConfig { max_active_downstream_connections: most } =
                any::unpack(config).in_key("typed_config")?;
            let limit = u64::try_from(most).ok().filter(|most| *most > 0).ok_or_else(|| {
                ConfigError::field("max_active_downstream_connections", "must be more than 0")
                    .in_key("typed_config")
            })?;
            if settings.connections.is_some() {
                let reason = "connections are limited by another monitor already";
                return Err(ConfigError::field("typed_config", reason));
            }
            settings.connections = Some(Limit { name: name.clone(), max: limit });
        }
        "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig" => {
            let FixedHeapConfig { max_heap_size_bytes: max, max_heap_size_bytes_runtime } =
                any::unpack(config).in_key("typed_config")?;
            let max_heap_size_bytes_runtime = &max_heap_size_bytes_runtime;
            refused!(max_heap_size_bytes_runtime).in_key("typed_config")?;
            if max == 0 {
                let missing = ConfigError::field("max_heap_size_bytes", "must be more than 0");
                return Err(missing.in_key("typed_config"));
            }
            settings.heaps.push(Limit { name: name.clone(), max });
        }
        other => return Err(refuse::extension("resource monitor", name, other)),
    }
    Ok(())
}

fn action(value: &OverloadAction, settings: &mut Settings) -> Result<Action> {
    let OverloadAction { name, triggers, typed_config } = value;
    let act = match name.as_str() {
        "envoy.overload_actions.stop_accepting_requests" => Act::StopAcceptingRequests,
        "envoy.overload_actions.disable_http_keepalive" => Act::DisableKeepAlive,
        "envoy.overload_actions.stop_accepting_connections" => Act::StopAcceptingConnections,
        "envoy.overload_actions.reject_incoming_connections" => Act::RejectConnections,
        "envoy.overload_actions.shrink_heap" => Act::ShrinkHeap,
        "envoy.overload_actions.reduce_timeouts" => Act::ReduceTimeouts,
        other => return Err(ConfigError::field("name", format!("action \"{other}\" is not supported"))),
    };
    if settings.actions.iter().any(|action| action.act == act) {
        return Err(ConfigError::field("name", format!("\"{name}\" is given twice")));
    }
    match act {
        Act::ShrinkHeap => {
            let config = typed_config.as_ref().map(any::unpack).transpose().in_key("typed_config")?;
            // All that can be given back is.
            let ShrinkHeapConfig { timer_interval, max_unfreed_memory_bytes: _ } = config.unwrap_or_default();
            settings.shrink =
                positive_duration(&timer_interval, SHRINK, "timer_interval").in_key("typed_config")?;
        }
        Act::ReduceTimeouts => {
            let config = required(typed_config, "typed_config")?;
            let ScaleTimersOverloadActionConfig { timer_scale_factors } =
                any::unpack(config).in_key("typed_config")?;
            for (index, factor) in timer_scale_factors.iter().enumerate() {
                let scaled = scale(factor, settings).in_index(index).in_key("timer_scale_factors");
                scaled.in_key("typed_config")?;
            }
        }
        _ => {
            refuse!(typed_config);
        }
    }
    if triggers.is_empty() {
        return Err(ConfigError::field("triggers", "must not be empty"));
    }
    let triggers = triggers.iter().enumerate();
    let triggers = triggers.map(|(index, value)| trigger(value, &settings.heaps).in_index(index));
    let triggers = collect(triggers).in_key("triggers")?;
    for (index, trigger) in triggers.iter().enumerate() {
        if triggers.iter().take(index).any(|before| before.heap == trigger.heap) {
            let twice = ConfigError::field("name", "has a trigger already");
            return Err(twice.in_index(index).in_key("triggers"));
        }
    }
    Ok(Action { act, name: name.clone(), triggers })
}

fn scale(value: &ScaleTimer, settings: &mut Settings) -> Result<()> {
    let ScaleTimer { timer, overload_adjust } = value;
    let timer = match enum_value(*timer, "timer")? {
        TimerType::HttpDownstreamConnectionIdle => Timer::ConnectionIdle,
        TimerType::HttpDownstreamStreamIdle => Timer::StreamIdle,
        TimerType::TransportSocketConnect => Timer::Handshake,
        other => {
            return Err(ConfigError::field("timer", format!("{} is not supported", other.as_str_name())));
        }
    };
    let least = match one_of::<ScaleTimer, _>(overload_adjust, "overload_adjust")? {
        OverloadAdjust::MinTimeout(least) => Least::Time(duration(least).in_key("min_timeout")?),
        OverloadAdjust::MinScale(share) => Least::Share(share.value / 100.0),
    };
    let known = settings.timers.get_mut(timer as usize);
    match known.map(|known| known.replace(least)) {
        Some(None) => Ok(()),
        _ => Err(ConfigError::field("timer", "is given twice")),
    }
}

fn trigger(value: &ProtoTrigger, heaps: &[Limit]) -> Result<Trigger> {
    let ProtoTrigger { name, trigger_oneof } = value;
    let heap = heaps.iter().position(|heap| heap.name == *name);
    let heap = heap
        .ok_or_else(|| ConfigError::field("name", format!("\"{name}\" is no monitor of how much is used")))?;
    let threshold = match trigger_oneof {
        Some(TriggerOneof::Threshold(ThresholdTrigger { value })) => Threshold::From(*value),
        Some(TriggerOneof::Scaled(ScaledTrigger { scaling_threshold, saturation_threshold })) => {
            if scaling_threshold >= saturation_threshold {
                let reason = "must be less than saturation_threshold";
                return Err(ConfigError::field("scaled.scaling_threshold", reason));
            }
            Threshold::Between(*scaling_threshold, *saturation_threshold)
        }
        None => return Err(ConfigError::new("one of threshold and scaled is missing")),
    };
    Ok(Trigger { heap, threshold })
}
