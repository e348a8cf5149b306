//! `overload_manager`, as pilot-agent writes it: a limit of connections that limits nothing.

use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_xds_api::pb::envoy::config::overload::v3::{
    OverloadManager, ResourceMonitor, resource_monitor::ConfigType,
};
use sixfold_xds_api::pb::envoy::extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig;
use sixfold_xds_api::values::Result;
use sixfold_xds_api::{any, refuse};

/// From here on a limit of connections counts for none: no process has so many descriptors.
const UNLIMITED: i64 = i32::MAX as i64;

/// # Errors
/// Anything that would have to act under load.
pub(super) fn check(value: &OverloadManager) -> Result<()> {
    let OverloadManager {
        // How often monitors look.
        refresh_interval: _,
        resource_monitors,
        actions,
        loadshed_points,
        buffer_factory_config,
    } = value;
    refuse!(actions, loadshed_points, buffer_factory_config);
    for (index, monitor) in resource_monitors.iter().enumerate() {
        unlimited(monitor).in_index(index).in_key("resource_monitors")?;
    }
    Ok(())
}

fn unlimited(value: &ResourceMonitor) -> Result<()> {
    let ResourceMonitor { name, config_type } = value;
    let Some(ConfigType::TypedConfig(config)) = config_type else {
        return Err(ConfigError::field("typed_config", "is missing"));
    };
    let limit: DownstreamConnectionsConfig = match any::type_name(config).in_key("typed_config")?.as_str() {
        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig" => {
            any::unpack(config).in_key("typed_config")?
        }
        other => {
            let reason = format!("resource monitor \"{name}\" of type {other} is not supported");
            return Err(ConfigError::field("typed_config", reason));
        }
    };
    let DownstreamConnectionsConfig { max_active_downstream_connections: most } = limit;
    if most < UNLIMITED {
        let reason = format!("{most} is not supported: there is no limit over all listeners");
        return Err(ConfigError::field("max_active_downstream_connections", reason).in_key("typed_config"));
    }
    Ok(())
}
