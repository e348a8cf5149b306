//! Entries of access logs as messages (data/accesslog/v3/accesslog.proto, source/extensions/access_loggers/grpc/grpc_access_log_utils.cc).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use prost::Message;
use sixfold_core::cluster::Address as HostAddress;
use sixfold_core::connection::{Certificate, TlsInfo};
use sixfold_core::custom_tag::CustomTag;
use sixfold_core::flags::{Flag, ResponseFlags};
use sixfold_core::format::{request_bytes, response_bytes};
use sixfold_core::headers::{HeaderName, Headers, Known};
use sixfold_core::message::Version;
use sixfold_core::stream::Stream;
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::core::v3::address::Address as AddressKind;
use sixfold_xds_api::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use sixfold_xds_api::pb::envoy::config::core::v3::{Address, Metadata, Pipe, RequestMethod, SocketAddress};
use sixfold_xds_api::pb::envoy::data::accesslog::v3::http_access_log_entry::HttpVersion;
use sixfold_xds_api::pb::envoy::data::accesslog::v3::response_flags::{Unauthorized, unauthorized::Reason};
use sixfold_xds_api::pb::envoy::data::accesslog::v3::tls_properties::certificate_properties::{
    SubjectAltName, subject_alt_name::San,
};
use sixfold_xds_api::pb::envoy::data::accesslog::v3::tls_properties::{CertificateProperties, TlsVersion};
use sixfold_xds_api::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, AccessLogType, ConnectionProperties, HttpAccessLogEntry, HttpRequestProperties,
    HttpResponseProperties, ResponseFlags as ProtoFlags, TcpAccessLogEntry, TlsProperties,
};
use sixfold_xds_api::pb::google::protobuf::{
    Any, Duration as ProtoDuration, StringValue, Timestamp, UInt32Value,
};
use sixfold_xds_api::workload;

/// What entries of requests and connections have beside what is always there.
pub(super) struct Common {
    /// Objects of the filter state.
    pub(super) objects: Box<[Box<str>]>,
    /// Tags.
    pub(super) tags: Vec<CustomTag>,
}

/// Further headers of entries.
pub(super) struct Extra {
    pub(super) request: Vec<HeaderName>,
    pub(super) response: Vec<HeaderName>,
    pub(super) trailers: Vec<HeaderName>,
}

/// The entry of a request.
pub(super) fn http(common: &Common, extra: &Extra, stream: &Stream) -> HttpAccessLogEntry {
    let version = match stream.request.version {
        Version::Http10 => HttpVersion::Http10,
        Version::Http11 => HttpVersion::Http11,
        Version::Http2 => HttpVersion::Http2,
        Version::Http3 => HttpVersion::Http3,
    };
    HttpAccessLogEntry {
        common_properties: Some(self::common(common, AccessLogType::DownstreamEnd, stream)),
        protocol_version: version as i32,
        request: Some(request(extra, stream)),
        response: Some(response(extra, stream)),
    }
}

/// The entry of a connection.
pub(super) fn tcp(common: &Common, stream: &Stream) -> TcpAccessLogEntry {
    let bytes = &stream.bytes;
    TcpAccessLogEntry {
        common_properties: Some(self::common(common, AccessLogType::TcpConnectionEnd, stream)),
        connection_properties: Some(ConnectionProperties {
            received_bytes: bytes.request_body,
            sent_bytes: bytes.response_body,
        }),
    }
}

fn request(extra: &Extra, stream: &Stream) -> HttpRequestProperties {
    let request = &stream.request;
    let header = |name| text(request.headers.get(name).unwrap_or_default());
    let (bytes, upstream) = (&stream.bytes, stream.upstream.traffic());
    let method = RequestMethod::from_str_name(request.method.as_str());
    HttpRequestProperties {
        request_method: method.unwrap_or(RequestMethod::MethodUnspecified) as i32,
        scheme: request.scheme.as_str().to_owned(),
        authority: text(&request.authority),
        port: None,
        path: text(request.target.full()),
        user_agent: header(Known::USER_AGENT),
        referer: header(Known::REFERER),
        forwarded_for: header(Known::X_FORWARDED_FOR),
        request_id: header(Known::X_REQUEST_ID),
        original_path: match header(Known::X_ENVOY_ORIGINAL_PATH) {
            path if path.is_empty() => text(&stream.original_target),
            path => path,
        },
        request_headers_bytes: request_bytes(stream),
        request_body_bytes: bytes.request_body,
        request_headers: chosen(&extra.request, &request.headers),
        upstream_header_bytes_sent: upstream.head_sent,
        downstream_header_bytes_received: bytes.traffic.head_received,
    }
}

fn response(extra: &Extra, stream: &Stream) -> HttpResponseProperties {
    let (response, bytes) = (&stream.response, &stream.bytes);
    HttpResponseProperties {
        response_code: (response.status != 0).then(|| UInt32Value { value: response.status.into() }),
        response_headers_bytes: response_bytes(stream),
        response_body_bytes: bytes.response_body,
        response_headers: chosen(&extra.response, &response.headers),
        response_trailers: chosen(&extra.trailers, &stream.response_trailers),
        response_code_details: stream.details.as_deref().unwrap_or_default().to_owned(),
        upstream_header_bytes_received: stream.upstream.traffic().head_received,
        downstream_header_bytes_sent: bytes.traffic.head_sent,
    }
}

/// The fields that are asked for, each with all its values.
fn chosen(names: &[HeaderName], headers: &Headers) -> HashMap<String, String> {
    let value = |name: &HeaderName| {
        let values: Vec<&[u8]> = headers.get_all(name).collect();
        (!values.is_empty()).then(|| (name.as_str().to_owned(), text(&values.join(&b","[..]))))
    };
    names.iter().filter_map(value).collect()
}

fn common(common: &Common, kind: AccessLogType, stream: &Stream) -> AccessLogCommon {
    let (connection, upstream, timing) = (&stream.connection, &stream.upstream, &stream.timing);
    let since = |moment: Option<Instant>| {
        let passed = moment?.checked_duration_since(timing.start)?;
        Some(duration(passed))
    };
    let traffic = upstream.traffic();
    let tag = |tag: &CustomTag| Some((tag.name.to_string(), tag.value(stream)?.into_owned()));
    let object = |key: &str| Some((key.to_owned(), object(stream, key)?));
    AccessLogCommon {
        sample_rate: 1.0,
        downstream_remote_address: Some(socket(stream.remote)),
        downstream_local_address: Some(socket(connection.local)),
        downstream_direct_remote_address: Some(socket(connection.direct_remote)),
        tls_properties: connection.tls.as_ref().map(tls),
        start_time: stream
            .start_time
            .duration_since(UNIX_EPOCH)
            .ok()
            .map(|since| Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() as i32 }),
        time_to_last_rx_byte: since(timing.request_complete),
        time_to_first_upstream_tx_byte: since(timing.upstream_tx_begin),
        time_to_last_upstream_tx_byte: since(timing.upstream_tx_end),
        time_to_first_upstream_rx_byte: since(timing.upstream_rx_begin),
        time_to_last_upstream_rx_byte: since(timing.upstream_rx_end),
        time_to_first_downstream_tx_byte: since(timing.downstream_tx_begin),
        time_to_last_downstream_tx_byte: since(timing.downstream_tx_end),
        upstream_remote_address: upstream.member.as_ref().map(|member| address(&member.host.address)),
        upstream_local_address: upstream.local.map(socket),
        upstream_cluster: upstream
            .cluster
            .as_ref()
            .map_or(String::new(), |cluster| cluster.config.observability_name.to_string()),
        response_flags: Some(flags(stream.flags)),
        metadata: dynamic(stream),
        upstream_transport_failure_reason: upstream.failure.as_deref().unwrap_or_default().to_owned(),
        route_name: stream.route.as_ref().map_or(String::new(), |route| route.name.to_string()),
        filter_state_objects: common.objects.iter().filter_map(|key| object(key)).collect(),
        custom_tags: common.tags.iter().filter_map(tag).collect(),
        duration: since(timing.downstream_tx_end),
        upstream_request_attempt_count: upstream.attempts,
        connection_termination_details: String::new(),
        stream_id: text(stream.request.headers.get(Known::X_REQUEST_ID).unwrap_or_default()),
        intermediate_log_entry: false,
        downstream_transport_failure_reason: String::new(),
        downstream_wire_bytes_sent: stream.bytes.traffic.sent,
        downstream_wire_bytes_received: stream.bytes.traffic.received,
        upstream_wire_bytes_sent: traffic.sent,
        upstream_wire_bytes_received: traffic.received,
        access_log_type: kind as i32,
    }
}

/// An object of the filter state as the message that stands for it.
fn object(stream: &Stream, key: &str) -> Option<Any> {
    if let Some(peer) = stream.peers.named(key) {
        let type_url = "type.googleapis.com/google.protobuf.Struct".to_owned();
        return Some(Any { type_url, value: workload::encode_object(peer) });
    }
    let object = stream.filter_object(key)?;
    let value = StringValue { value: text(&object.value) }.encode_to_vec();
    Some(Any { type_url: "type.googleapis.com/google.protobuf.StringValue".to_owned(), value })
}

/// Dynamic metadata; of one key the last value counts.
fn dynamic(stream: &Stream) -> Option<Metadata> {
    if stream.metadata.is_empty() {
        return None;
    }
    let mut metadata = Metadata::default();
    for (namespace, key, value) in &stream.metadata {
        let of = metadata.filter_metadata.entry(namespace.to_string()).or_default();
        of.fields.insert(key.to_string(), any::value_of_json(value));
    }
    Some(metadata)
}

fn flags(of: ResponseFlags) -> ProtoFlags {
    let has = |flag| of.contains(flag);
    ProtoFlags {
        failed_local_healthcheck: has(Flag::LH),
        no_healthy_upstream: has(Flag::UH),
        upstream_request_timeout: has(Flag::UT),
        local_reset: has(Flag::LR),
        upstream_remote_reset: has(Flag::UR),
        upstream_connection_failure: has(Flag::UF),
        upstream_connection_termination: has(Flag::UC),
        upstream_overflow: has(Flag::UO),
        no_route_found: has(Flag::NR),
        delay_injected: has(Flag::DI),
        fault_injected: has(Flag::FI),
        rate_limited: has(Flag::RL),
        unauthorized_details: has(Flag::UAEX)
            .then_some(Unauthorized { reason: Reason::ExternalService as i32 }),
        rate_limit_service_error: has(Flag::RLSE),
        downstream_connection_termination: has(Flag::DC),
        upstream_retry_limit_exceeded: has(Flag::URX),
        stream_idle_timeout: has(Flag::SI),
        invalid_envoy_request_headers: has(Flag::IH),
        downstream_protocol_error: has(Flag::DPE),
        upstream_max_stream_duration_reached: has(Flag::UMSDR),
        response_from_cache_filter: has(Flag::RFCF),
        no_filter_config_found: has(Flag::NFCF),
        duration_timeout: has(Flag::DT),
        upstream_protocol_error: has(Flag::UPE),
        no_cluster_found: has(Flag::NC),
        overload_manager: has(Flag::OM),
        dns_resolution_failure: has(Flag::DF),
        downstream_remote_reset: has(Flag::DR),
    }
}

fn tls(of: &TlsInfo) -> TlsProperties {
    let version = match of.version {
        "TLSv1.3" => TlsVersion::TlSv13,
        "TLSv1.2" => TlsVersion::TlSv12,
        _ => TlsVersion::VersionUnspecified,
    };
    TlsProperties {
        tls_version: version as i32,
        tls_cipher_suite: None,
        tls_sni_hostname: of.server_name.as_deref().unwrap_or_default().to_owned(),
        local_certificate_properties: of.local.as_ref().map(certificate),
        peer_certificate_properties: of.peer.as_ref().map(certificate),
        tls_session_id: String::new(),
        ja3_fingerprint: String::new(),
    }
}

fn certificate(of: &Arc<Certificate>) -> CertificateProperties {
    let uris = of.uri_sans.iter().map(|uri| San::Uri(uri.clone()));
    let names = of.dns_sans.iter().map(|name| San::Dns(name.clone()));
    CertificateProperties {
        subject_alt_name: uris.chain(names).map(|san| SubjectAltName { san: Some(san) }).collect(),
        subject: of.subject.clone(),
        issuer: of.issuer.clone(),
    }
}

fn socket(address: SocketAddr) -> Address {
    let address = SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..SocketAddress::default()
    };
    Address { address: Some(AddressKind::SocketAddress(address)) }
}

fn address(of: &HostAddress) -> Address {
    match of {
        HostAddress::Ip(address) => socket(*address),
        HostAddress::Unix(path) => {
            let pipe = Pipe { path: path.to_string_lossy().into_owned(), mode: 0 };
            Address { address: Some(AddressKind::Pipe(pipe)) }
        }
        HostAddress::Name(name, port) => {
            let address = SocketAddress {
                address: name.to_string(),
                port_specifier: Some(PortSpecifier::PortValue((*port).into())),
                ..SocketAddress::default()
            };
            Address { address: Some(AddressKind::SocketAddress(address)) }
        }
    }
}

fn duration(of: Duration) -> ProtoDuration {
    ProtoDuration { seconds: of.as_secs() as i64, nanos: of.subsec_nanos() as i32 }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
