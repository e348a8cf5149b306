//! Active health checks.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use sixfold_core::cluster::{
    EventLog, GrpcProbe, HealthCheck, HttpProbe, Intervals, Probe, ProbeHeader, TcpProbe,
};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::HeaderName;
use sixfold_xds_api::matcher;
use sixfold_xds_api::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use sixfold_xds_api::pb::envoy::config::core::v3::health_check::payload::Payload as Bytes;
use sixfold_xds_api::pb::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck,
};
use sixfold_xds_api::pb::envoy::config::core::v3::{
    HeaderValue, HeaderValueOption, HealthCheck as ProtoCheck, RequestMethod, TypedExtensionConfig,
};
use sixfold_xds_api::pb::envoy::extensions::health_check::event_sinks::file::v3::HealthCheckEventFileSink;
use sixfold_xds_api::pb::envoy::r#type::v3::{CodecClientType, Int64Range};
use sixfold_xds_api::pb::google::protobuf::Duration as ProtoDuration;
use sixfold_xds_api::values::{
    Result, bool_or, duration_or, enum_value, header_name, not_empty, optional_duration, positive_duration,
    required, u32_in,
};
use sixfold_xds_api::{any, refuse};

use crate::access_log;
use crate::context::Context;

const FILE_SINK: &str = "envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink";

/// Time between checks of a cluster without traffic unless it says otherwise.
const NO_TRAFFIC: Duration = Duration::from_secs(60);

/// Statuses that pass unless the check says otherwise.
const OK: Range<u16> = 200..201;

/// The check of a cluster; Envoy takes one.
pub(super) fn compile(
    context: &Context,
    values: &[ProtoCheck],
    cluster: &str,
) -> Result<Option<Arc<HealthCheck>>> {
    match values {
        [] => Ok(None),
        [one] => check(context, one, cluster).in_index(0).map(|check| Some(Arc::new(check))),
        _ => Err(ConfigError::new("there may be one")),
    }
}

fn check(context: &Context, value: &ProtoCheck, cluster: &str) -> Result<HealthCheck> {
    let ProtoCheck {
        timeout,
        interval,
        initial_jitter,
        interval_jitter,
        interval_jitter_percent,
        unhealthy_threshold,
        healthy_threshold,
        alt_port,
        reuse_connection,
        no_traffic_interval,
        no_traffic_healthy_interval,
        unhealthy_interval,
        unhealthy_edge_interval,
        healthy_edge_interval,
        event_log_path,
        event_logger,
        event_service,
        always_log_health_check_failures,
        always_log_health_check_success,
        tls_options,
        transport_socket_match_criteria,
        health_checker,
    } = value;
    refuse!(event_service, tls_options, transport_socket_match_criteria);
    let timeout = given(timeout, "timeout")?;
    let healthy = given(interval, "interval")?;
    let unhealthy = positive_duration(unhealthy_interval, healthy, "unhealthy_interval")?;
    let no_traffic = positive_duration(no_traffic_interval, NO_TRAFFIC, "no_traffic_interval")?;
    let port = |port: u32| match u16::try_from(port) {
        Ok(port @ 1..) => Ok(port),
        _ => Err(ConfigError::field("alt_port", format!("{port} is no port number"))),
    };
    required(unhealthy_threshold, "unhealthy_threshold")?;
    required(healthy_threshold, "healthy_threshold")?;
    let mut hasher = DefaultHasher::new();
    value.encode_to_vec().hash(&mut hasher);
    Ok(HealthCheck {
        fingerprint: hasher.finish(),
        timeout,
        intervals: Intervals {
            healthy,
            unhealthy,
            to_healthy: positive_duration(healthy_edge_interval, healthy, "healthy_edge_interval")?,
            to_unhealthy: positive_duration(unhealthy_edge_interval, unhealthy, "unhealthy_edge_interval")?,
            no_traffic,
            no_traffic_healthy: positive_duration(
                no_traffic_healthy_interval,
                no_traffic,
                "no_traffic_healthy_interval",
            )?,
        },
        initial_jitter: duration_or(initial_jitter, Duration::ZERO, "initial_jitter")?,
        jitter: duration_or(interval_jitter, Duration::ZERO, "interval_jitter")?,
        jitter_percent: *interval_jitter_percent,
        unhealthy_threshold: u32_in(unhealthy_threshold, 0, 0..=u32::MAX, "unhealthy_threshold")?.max(1),
        healthy_threshold: u32_in(healthy_threshold, 0, 0..=u32::MAX, "healthy_threshold")?.max(1),
        reuse_connection: bool_or(reuse_connection, true),
        port: alt_port.as_ref().map(|value| port(value.value)).transpose()?,
        log_failures: *always_log_health_check_failures,
        log_success: *always_log_health_check_success,
        events: events(context, event_log_path, event_logger, cluster)?,
        probe: probe(health_checker.as_ref())?,
    })
}

/// The logs of events, by the older field and the newer.
fn events(
    context: &Context,
    path: &str,
    loggers: &[TypedExtensionConfig],
    cluster: &str,
) -> Result<Vec<EventLog>> {
    let log = |path: &str| {
        let sink = context.compile.log_sinks.sink(&access_log::target(path));
        sink.map(|sink| EventLog::new(sink, cluster)).map_err(ConfigError::new)
    };
    let mut logs = Vec::new();
    if !path.is_empty() {
        logs.push(log(path).in_key("event_log_path")?);
    }
    for (index, TypedExtensionConfig { name, typed_config }) in loggers.iter().enumerate() {
        let one = || {
            let config = required(typed_config, "typed_config")?;
            match any::type_name(config).in_key("typed_config")?.as_str() {
                FILE_SINK => {
                    let HealthCheckEventFileSink { event_log_path } =
                        any::unpack(config).in_key("typed_config")?;
                    not_empty(&event_log_path, "event_log_path").and_then(log).in_key("typed_config")
                }
                kind => Err(refuse::extension("event logger", name, kind)),
            }
        };
        logs.push(one().in_index(index).in_key("event_logger")?);
    }
    Ok(logs)
}

/// A duration that must be given, and longer than nothing.
fn given(value: &Option<ProtoDuration>, field: &str) -> Result<Duration> {
    match optional_duration(value, field)? {
        Some(time) if !time.is_zero() => Ok(time),
        Some(_) => Err(ConfigError::field(field, "must be longer than 0s")),
        None => Err(ConfigError::field(field, "is missing")),
    }
}

fn probe(value: Option<&HealthChecker>) -> Result<Probe> {
    match value {
        Some(HealthChecker::HttpHealthCheck(value)) => {
            http(value).in_key("http_health_check").map(|probe| Probe::Http(Box::new(probe)))
        }
        Some(HealthChecker::TcpHealthCheck(value)) => tcp(value).in_key("tcp_health_check").map(Probe::Tcp),
        Some(HealthChecker::GrpcHealthCheck(value)) => {
            grpc(value).in_key("grpc_health_check").map(Probe::Grpc)
        }
        Some(HealthChecker::CustomHealthCheck(_)) => {
            Err(ConfigError::field("custom_health_check", "is not supported"))
        }
        None => {
            Err(ConfigError::new("one of http_health_check, tcp_health_check, grpc_health_check is missing"))
        }
    }
}

fn http(value: &HttpHealthCheck) -> Result<HttpProbe> {
    let HttpHealthCheck {
        host,
        path,
        send,
        receive,
        // An answer is read whole.
        response_buffer_size: _,
        request_headers_to_add,
        request_headers_to_remove,
        expected_statuses,
        retriable_statuses,
        codec_client_type,
        service_name_matcher,
        method,
    } = value;
    let method = match enum_value(*method, "method")? {
        RequestMethod::MethodUnspecified | RequestMethod::Get => http::Method::GET,
        RequestMethod::Head => http::Method::HEAD,
        RequestMethod::Post => http::Method::POST,
        RequestMethod::Put => http::Method::PUT,
        RequestMethod::Delete => http::Method::DELETE,
        RequestMethod::Options => http::Method::OPTIONS,
        RequestMethod::Trace => http::Method::TRACE,
        RequestMethod::Patch => http::Method::PATCH,
        RequestMethod::Connect => {
            return Err(ConfigError::field("method", "CONNECT is no method of a check"));
        }
    };
    let has_no_body =
        [http::Method::GET, http::Method::HEAD, http::Method::DELETE, http::Method::TRACE].contains(&method);
    if send.is_some() && has_no_body {
        return Err(ConfigError::field("send", format!("is not for the method {method}, which has no body")));
    }
    let expected = statuses(expected_statuses, "expected_statuses")?;
    let remove = request_headers_to_remove.iter().map(|name| not_host(name, "request_headers_to_remove"));
    Ok(HttpProbe {
        host: host.clone(),
        path: not_empty(path, "path")?.to_owned(),
        method,
        send: send.as_ref().map(payload).transpose().in_key("send")?.unwrap_or_default(),
        add: headers(request_headers_to_add, "request_headers_to_add")?,
        remove: remove.collect::<Result<_>>()?,
        http2: match enum_value(*codec_client_type, "codec_client_type")? {
            CodecClientType::Http1 => false,
            CodecClientType::Http2 => true,
            CodecClientType::Http3 => {
                return Err(ConfigError::field("codec_client_type", "HTTP3 is not supported"));
            }
        },
        expected: if expected.is_empty() { vec![OK] } else { expected },
        retriable: statuses(retriable_statuses, "retriable_statuses")?,
        receive: payloads(receive)?,
        service: service_name_matcher
            .as_ref()
            .map(matcher::string)
            .transpose()
            .in_key("service_name_matcher")?,
    })
}

fn statuses(values: &[Int64Range], field: &str) -> Result<Vec<Range<u16>>> {
    let range = |(index, Int64Range { start, end }): (usize, &Int64Range)| {
        let range = u16::try_from(*start).ok().zip(u16::try_from(*end).ok());
        match range {
            Some((from, to)) if from >= 100 && to <= 600 && from < to => Ok(from..to),
            _ => {
                let reason = format!("must be a range within [100, 600), not [{start}, {end})");
                Err(ConfigError::new(reason).in_index(index).in_key(field))
            }
        }
    };
    values.iter().enumerate().map(range).collect()
}

fn tcp(value: &TcpHealthCheck) -> Result<TcpProbe> {
    let TcpHealthCheck { send, receive, proxy_protocol_config } = value;
    refuse!(proxy_protocol_config);
    Ok(TcpProbe {
        send: send.as_ref().map(payload).transpose().in_key("send")?.unwrap_or_default(),
        receive: payloads(receive)?,
    })
}

fn grpc(value: &GrpcHealthCheck) -> Result<GrpcProbe> {
    let GrpcHealthCheck { service_name, authority, initial_metadata } = value;
    Ok(GrpcProbe {
        service: service_name.clone(),
        authority: authority.clone(),
        metadata: headers(initial_metadata, "initial_metadata")?,
    })
}

fn payloads(values: &[Payload]) -> Result<Vec<Vec<u8>>> {
    let one = |(index, value)| payload(value).in_index(index).in_key("receive");
    values.iter().enumerate().map(one).collect()
}

/// Text is hexadecimal.
fn payload(value: &Payload) -> Result<Vec<u8>> {
    let Payload { payload } = value;
    match payload {
        Some(Bytes::Binary(bytes)) => Ok(bytes.clone()),
        Some(Bytes::Text(text)) => {
            hex(text).ok_or_else(|| ConfigError::new(format!("\"{text}\" is not hexadecimal")))
        }
        None => Err(ConfigError::new("one of text, binary is missing")),
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

/// Values are sent as they are: no request is there for a format to speak of.
fn headers(values: &[HeaderValueOption], field: &str) -> Result<Vec<ProbeHeader>> {
    let one = |(index, value)| header(value).in_index(index).in_key(field);
    values.iter().enumerate().map(one).collect()
}

fn header(value: &HeaderValueOption) -> Result<ProbeHeader> {
    let HeaderValueOption { header, append, append_action, keep_empty_value: _ } = value;
    let HeaderValue { key, value, raw_value } = required(header, "header")?;
    if value.contains('%') {
        return Err(ConfigError::field("header.value", "formats are not supported in checks"));
    }
    let replaces = match enum_value(*append_action, "append_action")? {
        HeaderAppendAction::AppendIfExistsOrAdd => !bool_or(append, true),
        HeaderAppendAction::OverwriteIfExistsOrAdd => true,
        HeaderAppendAction::AddIfAbsent | HeaderAppendAction::OverwriteIfExists => {
            return Err(ConfigError::field("append_action", "is not supported in checks"));
        }
    };
    let value = if raw_value.is_empty() { value.clone().into_bytes() } else { raw_value.clone() };
    Ok(ProbeHeader { name: not_host(key, "header.key")?, value, replaces })
}

/// The name of a header that checks may change: which host they are for they say by themselves
/// (source/common/router/header_parser.cc).
fn not_host(name: &str, field: &str) -> Result<HeaderName> {
    if name.eq_ignore_ascii_case("host") {
        return Err(ConfigError::field(field, "may not be host, which a check has a field of its own for"));
    }
    header_name(name, field)
}
