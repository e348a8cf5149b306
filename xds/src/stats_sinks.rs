//! Services that are told of statistics: `stats_sinks` of a bootstrap, and when they are told.

mod metrics_service;
mod opentelemetry;
#[cfg(test)]
mod tests;

use std::time::Duration;

use prost::Name;
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::metrics::statsd::{Lines, Tags};
use sixfold_core::stats_sink::{Address, Sink, Sinks, Target, When};
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::Bootstrap;
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::bootstrap::StatsFlush;
use sixfold_xds_api::pb::envoy::config::core::v3::address::Address as OneAddress;
use sixfold_xds_api::pb::envoy::config::core::v3::{
    Address as ProtoAddress, GrpcService, Pipe, SocketAddress,
};
use sixfold_xds_api::pb::envoy::config::metrics::v3::dog_statsd_sink::DogStatsdSpecifier;
use sixfold_xds_api::pb::envoy::config::metrics::v3::stats_sink::ConfigType;
use sixfold_xds_api::pb::envoy::config::metrics::v3::statsd_sink::StatsdSpecifier;
use sixfold_xds_api::pb::envoy::config::metrics::v3::{
    DogStatsdSink, MetricsServiceConfig, StatsSink, StatsdSink,
};
use sixfold_xds_api::pb::envoy::extensions::stat_sinks::graphite_statsd::v3::GraphiteStatsdSink;
use sixfold_xds_api::pb::envoy::extensions::stat_sinks::graphite_statsd::v3::graphite_statsd_sink::StatsdSpecifier as GraphiteSpecifier;
use sixfold_xds_api::pb::envoy::extensions::stat_sinks::open_telemetry::v3::SinkConfig;
use sixfold_xds_api::pb::google::protobuf::UInt64Value;
use sixfold_xds_api::target::GrpcTarget;
use sixfold_xds_api::values::{Result, ip_address, not_empty, one_of, optional_duration, required};
use sixfold_xds_api::{any, refuse};

use crate::context::Context;

/// `stats_flush_interval` where it is not said.
const INTERVAL: Duration = Duration::from_secs(5);
/// What stands before names where nothing else is said.
const PREFIX: &str = "envoy";

/// Compiles who is told, and when.
pub(crate) fn compile(context: &Context, value: &Bootstrap) -> Result<Sinks> {
    let interval = optional_duration(&value.stats_flush_interval, "stats_flush_interval")?;
    let when = match (&value.stats_flush, interval) {
        (None, interval) => When::Every(interval.unwrap_or(INTERVAL)),
        (Some(StatsFlush::StatsFlushOnAdmin(_)), None) => When::Asked,
        (Some(_), Some(_)) => {
            let reason = "must not be given together with stats_flush_interval";
            return Err(ConfigError::field("stats_flush_on_admin", reason));
        }
    };
    let each = value.stats_sinks.iter().enumerate();
    let all = collect(each.map(|(index, value)| sink(context, value).in_index(index)));
    Ok(Sinks { all: all.in_key("stats_sinks")?, when })
}

fn sink(context: &Context, value: &StatsSink) -> Result<Sink> {
    let StatsSink { name, config_type } = value;
    let ConfigType::TypedConfig(config) = required(config_type, "typed_config")?;
    let kind = any::type_name(config).in_key("typed_config")?;
    let sink = match kind.as_str() {
        kind if kind == StatsdSink::full_name() => {
            any::unpack(config).and_then(|sink| statsd(context, &sink))
        }
        kind if kind == DogStatsdSink::full_name() => any::unpack(config).and_then(|sink| dog_statsd(&sink)),
        kind if kind == GraphiteStatsdSink::full_name() => {
            any::unpack(config).and_then(|sink| graphite(&sink))
        }
        kind if kind == SinkConfig::full_name() => any::unpack(config)
            .and_then(|sink| opentelemetry::sink(context, &sink))
            .map(|sink| Sink::Called(Box::new(sink))),
        kind if kind == MetricsServiceConfig::full_name() => any::unpack(config)
            .and_then(|sink| metrics_service::sink(context, &sink))
            .map(|sink| Sink::Called(Box::new(sink))),
        kind => return Err(refuse::extension("stats sink", name, kind)),
    };
    sink.in_key("typed_config")
}

/// A service that is told must be one of the bootstrap's clusters.
fn is_static(context: &Context, value: &GrpcService) -> Result<()> {
    let target = GrpcTarget::of(value).in_key("grpc_service")?;
    let is_static = context.has_static_cluster(target.cluster).in_key("cluster_name");
    is_static.in_key("envoy_grpc").in_key("grpc_service")
}

fn statsd(context: &Context, value: &StatsdSink) -> Result<Sink> {
    let StatsdSink { prefix, statsd_specifier } = value;
    let to = match one_of::<StatsdSink, _>(statsd_specifier, "statsd_specifier")? {
        StatsdSpecifier::Address(to) => datagrams(to, &None)?,
        StatsdSpecifier::TcpClusterName(name) => {
            let name = not_empty(name, "tcp_cluster_name")?;
            context.has_static_cluster(name).in_key("tcp_cluster_name")?;
            Target::Cluster(context.compile.clusters.cell(name))
        }
    };
    Ok(Sink::Statsd { lines: lines(prefix, Tags::InName), to })
}

fn dog_statsd(value: &DogStatsdSink) -> Result<Sink> {
    let DogStatsdSink { prefix, max_bytes_per_datagram, dog_statsd_specifier } = value;
    let DogStatsdSpecifier::Address(to) =
        one_of::<DogStatsdSink, _>(dog_statsd_specifier, "dog_statsd_specifier")?;
    let to = datagrams(to, max_bytes_per_datagram)?;
    Ok(Sink::Statsd { lines: lines(prefix, Tags::DogStatsd), to })
}

fn graphite(value: &GraphiteStatsdSink) -> Result<Sink> {
    let GraphiteStatsdSink { prefix, max_bytes_per_datagram, statsd_specifier } = value;
    let GraphiteSpecifier::Address(to) =
        one_of::<GraphiteStatsdSink, _>(statsd_specifier, "statsd_specifier")?;
    let to = datagrams(to, max_bytes_per_datagram)?;
    Ok(Sink::Statsd { lines: lines(prefix, Tags::Graphite), to })
}

fn lines(prefix: &str, tags: Tags) -> Lines {
    let prefix = if prefix.is_empty() { PREFIX } else { prefix };
    Lines { prefix: prefix.to_owned(), tags }
}

/// Datagrams to a field `address`: as long as their lines where `bytes` does not say.
fn datagrams(to: &ProtoAddress, bytes: &Option<UInt64Value>) -> Result<Target> {
    let bytes = bytes.as_ref().map_or(0, |bytes| usize::try_from(bytes.value).unwrap_or(usize::MAX));
    Ok(Target::Datagrams { to: address(to).in_key("address")?, bytes })
}

/// Datagrams go out by UDP, whatever the address says of its protocol.
fn address(value: &ProtoAddress) -> Result<Address> {
    match one_of::<ProtoAddress, _>(&value.address, "address")? {
        OneAddress::SocketAddress(socket) => {
            let socket = SocketAddress { protocol: 0, ..socket.clone() };
            ip_address(&socket).map(Address::Ip).in_key("socket_address")
        }
        OneAddress::Pipe(Pipe { path, mode }) => {
            refuse!(mode);
            Ok(Address::Unix(not_empty(path, "pipe.path")?.into()))
        }
        OneAddress::EnvoyInternalAddress(_) => {
            Err(ConfigError::field("envoy_internal_address", "is not supported"))
        }
    }
}
