//! Access logs and their filters.

mod entry;
mod grpc;
mod otel;

use prost::{Message, Name};
use sixfold_xds_api::{refuse, wire};
use std::collections::BTreeSet;
use std::sync::Arc;

use sixfold_core::access_log::{AccessLog, Comparison, LineFormat, LogFilter, LogTarget, MakeSink};
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::flags::Flag;
use sixfold_core::format::{ENVOY_DEFAULT, Format};
use sixfold_core::stream::Stream;
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::accesslog::v3::access_log::ConfigType;
use sixfold_xds_api::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use sixfold_xds_api::pb::envoy::config::accesslog::v3::{
    AccessLog as ProtoLog, AccessLogFilter, ComparisonFilter, ExtensionFilter, GrpcStatusFilter,
    LogTypeFilter, MetadataFilter, RuntimeFilter, comparison_filter::Op, extension_filter,
};
use sixfold_xds_api::pb::envoy::config::core::v3::SubstitutionFormatString;
use sixfold_xds_api::pb::envoy::data::accesslog::v3::AccessLogType;
use sixfold_xds_api::pb::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log};
use sixfold_xds_api::pb::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use sixfold_xds_api::pb::envoy::extensions::access_loggers::stream::v3::{
    StderrAccessLog, StdoutAccessLog, stderr_access_log, stdout_access_log,
};

use crate::context::Context;
use sixfold_xds_api::values::{
    Result, bool_or, enum_value, fraction, not_empty, one_of, required, runtime_integer,
};
use sixfold_xds_api::{cel, matcher};

const FILE: &str = "envoy.extensions.access_loggers.file.v3.FileAccessLog";
const STDOUT: &str = "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog";
const STDERR: &str = "envoy.extensions.access_loggers.stream.v3.StderrAccessLog";
const HTTP_GRPC: &str = "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig";
const TCP_GRPC: &str = "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig";
const OPEN_TELEMETRY: &str = "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig";

/// The access logs of a field.
pub(crate) fn logs(context: &Context, values: &[ProtoLog], field: &str) -> Result<Vec<AccessLog>> {
    collect(values.iter().enumerate().map(|(index, value)| log(context, value).in_index(index))).in_key(field)
}

/// Has the disks of all log files in these messages asked together, before the first of them is waited for.
pub(crate) fn expect<'a>(sinks: &dyn MakeSink, messages: impl Iterator<Item = &'a [u8]>) {
    let logs = messages.flat_map(|message| wire::packed(message, FILE));
    let paths = logs.filter_map(|log| FileAccessLog::decode(log).ok()).map(|log| log.path);
    let targets: Vec<LogTarget> =
        paths.filter(|path| !path.is_empty()).collect::<BTreeSet<_>>().iter().map(|p| target(p)).collect();
    if !targets.is_empty() {
        sinks.expect(&targets);
    }
}

fn log(context: &Context, value: &ProtoLog) -> Result<AccessLog> {
    let ProtoLog { name, filter: log_filter, config_type } = value;
    let Some(ConfigType::TypedConfig(config)) = config_type else {
        return Err(ConfigError::field("typed_config", "is missing"));
    };
    let kind = any::type_name(config).in_key("typed_config")?;
    let filter = log_filter.as_ref().map(|value| filter(context, value)).transpose().in_key("filter")?;
    let collected = match kind.as_str() {
        HTTP_GRPC => Some(any::unpack(config).and_then(|value| grpc::http(context, &value))),
        TCP_GRPC => Some(any::unpack(config).and_then(|value| grpc::tcp(context, &value))),
        OPEN_TELEMETRY => Some(any::unpack(config).and_then(|value| otel::log(context, &value))),
        _ => None,
    };
    if let Some(collected) = collected {
        let (format, sink) = collected.in_key("typed_config")?;
        return Ok(AccessLog { filter, format, sink });
    }
    let (target, format) = match kind.as_str() {
        FILE => file(&any::unpack(config).in_key("typed_config")?),
        STDOUT => stdout(&any::unpack(config).in_key("typed_config")?),
        STDERR => stderr(&any::unpack(config).in_key("typed_config")?),
        other => return Err(refuse::extension("access log", name, other)),
    }
    .in_key("typed_config")?;
    let sink = context
        .compile
        .log_sinks
        .sink(&target)
        .map_err(|reason| ConfigError::field("typed_config", reason))?;
    Ok(AccessLog { filter, format: Arc::new(Line(format)), sink })
}

/// A log in a file in Envoy's default format.
pub(crate) fn default_file(context: &Context, path: &str) -> Result<AccessLog> {
    let file = FileAccessLog { path: path.to_owned(), access_log_format: None };
    let (target, format) = self::file(&file)?;
    let sink = context.compile.log_sinks.sink(&target).map_err(ConfigError::new)?;
    Ok(AccessLog { filter: None, format: Arc::new(Line(format)), sink })
}

fn file(value: &FileAccessLog) -> Result<(LogTarget, Format)> {
    let FileAccessLog { path, access_log_format } = value;
    use file_access_log::AccessLogFormat as Given;
    let format = match access_log_format {
        None => sixfold_xds_api::format::text(ENVOY_DEFAULT)?,
        Some(Given::Format(format)) => sixfold_xds_api::format::text(format).in_key("format")?,
        Some(Given::JsonFormat(format)) => {
            sixfold_xds_api::format::json(format, false).in_key("json_format")?
        }
        Some(Given::TypedJsonFormat(format)) => {
            sixfold_xds_api::format::json(format, false).in_key("typed_json_format")?
        }
        Some(Given::LogFormat(format)) => {
            sixfold_xds_api::format::substitution(format).in_key("log_format")?
        }
    };
    Ok((target(not_empty(path, "path")?), format))
}

/// Where a log of this path goes.
pub(crate) fn target(path: &str) -> LogTarget {
    match path {
        "/dev/stdout" => LogTarget::Stdout,
        "/dev/stderr" => LogTarget::Stderr,
        path => LogTarget::File(path.into()),
    }
}

fn stdout(value: &StdoutAccessLog) -> Result<(LogTarget, Format)> {
    let format =
        value.access_log_format.as_ref().map(|stdout_access_log::AccessLogFormat::LogFormat(format)| format);
    Ok((LogTarget::Stdout, stream_format(format)?))
}

fn stderr(value: &StderrAccessLog) -> Result<(LogTarget, Format)> {
    let format =
        value.access_log_format.as_ref().map(|stderr_access_log::AccessLogFormat::LogFormat(format)| format);
    Ok((LogTarget::Stderr, stream_format(format)?))
}

fn stream_format(value: Option<&SubstitutionFormatString>) -> Result<Format> {
    match value {
        Some(format) => sixfold_xds_api::format::substitution(format).in_key("log_format"),
        None => sixfold_xds_api::format::text(ENVOY_DEFAULT),
    }
}

/// A line of Envoy: text as configured, JSON with a line end.
struct Line(Format);

impl LineFormat for Line {
    fn write_line(&self, stream: &Stream, out: &mut Vec<u8>) {
        self.0.write_log(stream, out);
        if self.0.is_json() {
            out.push(b'\n');
        }
    }
}

/// config/accesslog/v3 AccessLogFilter.
pub(crate) fn filter(context: &Context, value: &AccessLogFilter) -> Result<LogFilter> {
    Ok(match one_of::<AccessLogFilter, _>(&value.filter_specifier, "filter_specifier")? {
        FilterSpecifier::StatusCodeFilter(filter) => {
            LogFilter::Status(comparison(context, &filter.comparison).in_key("status_code_filter")?)
        }
        FilterSpecifier::DurationFilter(filter) => {
            LogFilter::Duration(comparison(context, &filter.comparison).in_key("duration_filter")?)
        }
        FilterSpecifier::NotHealthCheckFilter(_) => LogFilter::NotHealthCheck,
        FilterSpecifier::RuntimeFilter(filter) => share(context, filter).in_key("runtime_filter")?,
        FilterSpecifier::AndFilter(filter) => {
            LogFilter::And(several(context, &filter.filters).in_key("and_filter")?)
        }
        FilterSpecifier::OrFilter(filter) => {
            LogFilter::Or(several(context, &filter.filters).in_key("or_filter")?)
        }
        FilterSpecifier::HeaderFilter(filter) => {
            let header = required(&filter.header, "header").in_key("header_filter")?;
            LogFilter::Header(matcher::header(header).in_key("header_filter.header")?)
        }
        FilterSpecifier::ResponseFlagFilter(filter) => LogFilter::Flags(flags(&filter.flags)?),
        FilterSpecifier::GrpcStatusFilter(GrpcStatusFilter { statuses, exclude }) => {
            let statuses = statuses.iter().map(|status| {
                u32::try_from(*status)
                    .map_err(|_| ConfigError::field("grpc_status_filter.statuses", "unknown status"))
            });
            LogFilter::GrpcStatus(statuses.collect::<Result<_>>()?, *exclude)
        }
        FilterSpecifier::TraceableFilter(_) => LogFilter::Traceable,
        FilterSpecifier::ExtensionFilter(filter) => extension(filter).in_key("extension_filter")?,
        FilterSpecifier::MetadataFilter(MetadataFilter { matcher, match_if_key_not_found }) => {
            let matcher =
                required(matcher, "matcher").and_then(|value| matcher::metadata(value).in_key("matcher"));
            LogFilter::Metadata(matcher.in_key("metadata_filter")?, bool_or(match_if_key_not_found, true))
        }
        FilterSpecifier::LogTypeFilter(LogTypeFilter { types, exclude }) => {
            let has = |kind: AccessLogType| types.contains(&(kind as i32)) != *exclude;
            LogFilter::Moment {
                requests: has(AccessLogType::DownstreamEnd),
                connections: has(AccessLogType::TcpConnectionEnd),
            }
        }
    })
}

/// A filter of a type of its own: an expression.
fn extension(value: &ExtensionFilter) -> Result<LogFilter> {
    let ExtensionFilter { name, config_type } = value;
    let Some(extension_filter::ConfigType::TypedConfig(config)) = config_type else {
        return Err(ConfigError::field("typed_config", "is missing"));
    };
    let kind = any::type_name(config).in_key("typed_config")?;
    if kind != ExpressionFilter::full_name() {
        return Err(refuse::extension("access log filter", name, &kind));
    }
    let compiled = |ExpressionFilter { expression, cel_config }| {
        cel::text(&expression, cel::extras(&cel_config)).in_key("expression").map(LogFilter::Cel)
    };
    any::unpack(config).and_then(compiled).in_key("typed_config")
}

fn comparison(context: &Context, value: &Option<ComparisonFilter>) -> Result<Comparison> {
    let ComparisonFilter { op, value } = required(value, "comparison")?;
    let number = runtime_integer(&context.runtime, required(value, "value").in_key("comparison")?);
    Ok(match enum_value(*op, "op").in_key("comparison")? {
        Op::Eq => Comparison::Equal(number),
        Op::Ge => Comparison::AtLeast(number),
        Op::Le => Comparison::AtMost(number),
        Op::Ne => Comparison::NotEqual(number),
    })
}

fn share(context: &Context, value: &RuntimeFilter) -> Result<LogFilter> {
    let RuntimeFilter { runtime_key, percent_sampled, use_independent_randomness: _ } = value;
    let default = percent_sampled.unwrap_or_default();
    Ok(LogFilter::Fraction(fraction(&context.runtime, not_empty(runtime_key, "runtime_key")?, &default)?))
}

fn several(context: &Context, filters: &[AccessLogFilter]) -> Result<Vec<LogFilter>> {
    if filters.len() < 2 {
        return Err(ConfigError::field("filters", "must hold at least two filters"));
    }
    let filters = filters.iter().enumerate();
    filters
        .map(|(index, value)| filter(context, value).in_index(index))
        .collect::<Result<_>>()
        .in_key("filters")
}

fn flags(names: &[String]) -> Result<Vec<Flag>> {
    names
        .iter()
        .map(|name| {
            Flag::parse(name).ok_or_else(|| {
                ConfigError::field("response_flag_filter.flags", format!("unknown response flag \"{name}\""))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use sixfold_core::access_log::LogSink;

    /// Notes what is expected.
    #[derive(Default)]
    struct Expects(Mutex<Vec<LogTarget>>);

    impl MakeSink for Expects {
        fn expect(&self, targets: &[LogTarget]) {
            self.0.lock().extend_from_slice(targets);
        }

        fn sink(&self, target: &LogTarget) -> std::result::Result<Arc<dyn LogSink>, String> {
            Err(format!("nobody opens {target}"))
        }

        fn opened_late(&self, path: &std::path::Path) -> Arc<dyn LogSink> {
            sixfold_core::detached::Nowhere.opened_late(path)
        }
    }

    // Each listener had a stream of its own to one collector, and 4 MiB.
    #[test]
    #[allow(clippy::unwrap_used)]
    fn equal_logs_have_one_way_to_their_collector() {
        const SERVICE: &str = "log_name: n, grpc_service: {envoy_grpc: {cluster_name: sds}}";
        let context = crate::testing::context();
        let sink = |kind: &str, fields: &str| {
            let text = format!(
                "{{name: l, typed_config: {{'@type': type.googleapis.com/envoy.extensions.access_loggers.{kind}, {fields}}}}}"
            );
            super::log(&context, &crate::testing::read(&text)).unwrap().sink
        };
        let grpc = |kind: &str, more: &str, beside: &str| {
            sink(kind, &format!("common_config: {{{SERVICE}{more}}}{beside}"))
        };
        let (http, tcp) = ("grpc.v3.HttpGrpcAccessLogConfig", "grpc.v3.TcpGrpcAccessLogConfig");
        let first = grpc(http, "", "");
        assert!(Arc::ptr_eq(&first, &grpc(http, "", ", additional_request_headers_to_log: [a]")));
        for other in [grpc(tcp, "", ""), grpc(http, ", buffer_size_bytes: 1", "")] {
            assert!(!Arc::ptr_eq(&first, &other));
        }
        let otel = |fields: &str| {
            sink("open_telemetry.v3.OpenTelemetryAccessLogConfig", &format!("{SERVICE}{fields}"))
        };
        let first = otel(", body: {string_value: a}");
        assert!(Arc::ptr_eq(&first, &otel(", body: {string_value: b}")));
        assert!(!Arc::ptr_eq(&first, &otel(", stat_prefix: other")));
    }

    fn log(path: &str) -> ProtoLog {
        let file = FileAccessLog { path: path.to_owned(), access_log_format: None };
        ProtoLog { config_type: Some(ConfigType::TypedConfig(any::pack(&file))), ..ProtoLog::default() }
    }

    #[test]
    fn all_log_files_of_messages_are_expected_at_once() {
        let bytes = [log("/a"), log("/b"), log("/a"), log("")].map(|log| log.encode_to_vec());
        // Wherever they stand, and beside what is none.
        let one = [b"before".as_slice(), &bytes[0], FILE.as_bytes(), &bytes[1], FILE.as_bytes()].concat();
        let messages = [&*one, &bytes[2], &bytes[3], b"", FILE.as_bytes()];
        let sinks = Expects::default();
        expect(&sinks, messages.into_iter());
        let target = |path: &str| LogTarget::File(path.into());
        assert_eq!(*sinks.0.lock(), [target("/a"), target("/b")]);
    }
}
