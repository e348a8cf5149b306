//! Protocol options that connection managers and clusters say with the same messages.

use std::time::Duration;

use sixfold_core::cluster::{HeaderCase, Http2Keepalive, Http2Options};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::Underscores;
use sixfold_xds_api::pb::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use sixfold_xds_api::pb::envoy::config::core::v3::http1_protocol_options::HeaderKeyFormat;
use sixfold_xds_api::pb::envoy::config::core::v3::http1_protocol_options::header_key_format::HeaderFormat;
use sixfold_xds_api::pb::envoy::config::core::v3::{
    Http2ProtocolOptions, HttpProtocolOptions, KeepaliveSettings,
};
use sixfold_xds_api::pb::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
use sixfold_xds_api::values::{Result, duration, enum_value, one_of, required, timeout_or, u32_in, u32_or};
use sixfold_xds_api::{any, destructure, refuse};

/// What `common_http_protocol_options` of either side comes to.
pub(crate) struct Common {
    /// Connections without a request are closed after so long; 1 h by default.
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) max_connection_duration: Option<Duration>,
    pub(crate) max_stream_duration: Option<Duration>,
    pub(crate) max_requests_per_connection: Option<u32>,
    pub(crate) max_headers_count: usize,
    /// Of a response's head; `None` is each side's default.
    pub(crate) max_response_headers_kb: Option<u32>,
    pub(crate) underscores: Underscores,
}

/// Reads the message; what one side does not support is for it to refuse.
///
/// # Errors
/// A value out of range, and what neither side supports.
pub(crate) fn common(value: &HttpProtocolOptions) -> Result<Common> {
    destructure!(
        HttpProtocolOptions {
            idle_timeout,
            max_connection_duration,
            max_headers_count,
            max_response_headers_kb,
            max_stream_duration,
            headers_with_underscores_action,
            max_requests_per_connection
        } refusing {
            max_connection_duration_jitter,
        } = value
    );
    let headers = u32_in(max_headers_count, 100, 1..=u32::MAX, "max_headers_count")?;
    let response_kib = u32_in(max_response_headers_kb, 1, 1..=8192, "max_response_headers_kb")?;
    Ok(Common {
        idle_timeout: timeout_or(idle_timeout, Some(Duration::from_secs(3600)), "idle_timeout")?,
        max_connection_duration: timeout_or(max_connection_duration, None, "max_connection_duration")?,
        max_stream_duration: timeout_or(max_stream_duration, None, "max_stream_duration")?,
        max_requests_per_connection: Some(u32_or(max_requests_per_connection, 0)).filter(|max| *max > 0),
        max_headers_count: headers as usize,
        max_response_headers_kb: max_response_headers_kb.as_ref().map(|_| response_kib),
        underscores: match enum_value(*headers_with_underscores_action, "headers_with_underscores_action")? {
            HeadersWithUnderscoresAction::Allow => Underscores::Allow,
            HeadersWithUnderscoresAction::RejectRequest => Underscores::Reject,
            HeadersWithUnderscoresAction::DropHeader => Underscores::Drop,
        },
    })
}

/// `header_key_format` of either side, and whether the reason phrases that it reads are passed on.
pub(crate) fn header_case(value: &Option<HeaderKeyFormat>) -> Result<(HeaderCase, bool)> {
    let Some(HeaderKeyFormat { header_format }) = value else { return Ok((HeaderCase::Lower, false)) };
    match one_of::<HeaderKeyFormat, _>(header_format, "header_format")? {
        HeaderFormat::ProperCaseWords(_) => Ok((HeaderCase::ProperCase, false)),
        HeaderFormat::StatefulFormatter(formatter) => {
            let config = required(&formatter.typed_config, "typed_config").in_key("stateful_formatter")?;
            let kind = any::type_name(config).in_key("stateful_formatter.typed_config")?;
            if kind != "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig"
            {
                let error = refuse::extension("header formatter", &formatter.name, &kind);
                return Err(error.in_key("stateful_formatter"));
            }
            let preserve: PreserveCaseFormatterConfig =
                any::unpack(config).in_key("stateful_formatter.typed_config")?;
            let PreserveCaseFormatterConfig { forward_reason_phrase, formatter_type_on_envoy_headers } =
                &preserve;
            let refused = || {
                refuse!(formatter_type_on_envoy_headers);
                Ok(())
            };
            refused().in_key("stateful_formatter.typed_config")?;
            Ok((HeaderCase::Preserve, *forward_reason_phrase))
        }
    }
}

/// HTTP/2 of either side. Window sizes are those of core unless given.
pub(crate) fn http2(value: &Http2ProtocolOptions) -> Result<Http2Options> {
    let Http2ProtocolOptions {
        hpack_table_size,
        max_concurrent_streams,
        initial_stream_window_size,
        initial_connection_window_size,
        allow_connect,
        allow_metadata,
        max_outbound_frames,
        max_outbound_control_frames,
        max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent,
        // A bad message always ends its stream alone.
        stream_error_on_invalid_http_messaging: _,
        override_stream_error_on_invalid_http_message: _,
        custom_settings_parameters,
        connection_keepalive,
        // Which of Envoy's two codecs works; there is one here.
        use_oghttp2_codec: _,
        max_metadata_size,
        enable_huffman_encoding,
        max_header_field_size_kb,
        disallow_obs_text,
        stream_reset_burst,
        stream_reset_rate,
    } = value;
    refuse!(
        hpack_table_size,
        allow_metadata,
        max_outbound_frames,
        max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent,
        custom_settings_parameters,
        max_metadata_size,
        enable_huffman_encoding,
        max_header_field_size_kb,
        disallow_obs_text,
        stream_reset_burst,
        stream_reset_rate
    );
    let default = Http2Options::default();
    const WINDOW: std::ops::RangeInclusive<u32> = 65_535..=2_147_483_647;
    Ok(Http2Options {
        max_concurrent_streams: u32_in(
            max_concurrent_streams,
            default.max_concurrent_streams,
            1..=2_147_483_647,
            "max_concurrent_streams",
        )?,
        stream_window: u32_in(
            initial_stream_window_size,
            default.stream_window,
            WINDOW,
            "initial_stream_window_size",
        )?,
        connection_window: match initial_connection_window_size {
            None => default.connection_window,
            given => Some(u32_in(given, 0, WINDOW, "initial_connection_window_size")?),
        },
        max_control_frames: u32_in(
            max_outbound_control_frames,
            default.max_control_frames,
            1..=u32::MAX,
            "max_outbound_control_frames",
        )?,
        allow_connect: *allow_connect,
        keepalive: connection_keepalive.as_ref().map(keepalive).transpose().in_key("connection_keepalive")?,
        ..default
    })
}

/// PINGs of either side. Clients' connections have no use for `connection_idle_interval`, in Envoy either.
fn keepalive(value: &KeepaliveSettings) -> Result<Http2Keepalive> {
    let KeepaliveSettings { interval, timeout, interval_jitter, connection_idle_interval } = value;
    let interval = timeout_or(interval, None, "interval")?;
    let jitter = interval_jitter.as_ref().map_or(15.0, |percent| percent.value);
    if !(0.0..=100.0).contains(&jitter) {
        return Err(ConfigError::field("interval_jitter", "must be from 0 to 100"));
    }
    Ok(Http2Keepalive {
        interval,
        jitter: interval.map_or(Duration::ZERO, |interval| interval.mul_f64(jitter / 100.0)),
        timeout: duration(required(timeout, "timeout")?).in_key("timeout")?,
        idle: timeout_or(connection_idle_interval, None, "connection_idle_interval")?,
    })
}
