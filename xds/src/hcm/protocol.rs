//! Protocol options of clients.

use std::time::Duration;

use sixfold_core::cluster::Http2Options;
use sixfold_core::error::ConfigContext;
use sixfold_core::hcm::ServerHttp1;
use sixfold_core::headers::HeaderRules;
use sixfold_xds_api::pb::envoy::config::core::v3::{Http1ProtocolOptions, HttpProtocolOptions};
use sixfold_xds_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager as ProtoManager;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, bool_or, u32_in};

use crate::protocol::{self, Common};

/// What the connection manager's protocol options come to.
pub(super) struct Server {
    pub(super) http1: ServerHttp1,
    pub(super) http2: Http2Options,
    pub(super) header_rules: HeaderRules,
    pub(super) idle: Option<Duration>,
    pub(super) max_connection: Option<Duration>,
    pub(super) max_stream: Option<Duration>,
    pub(super) max_requests: Option<u32>,
}

pub(super) fn server(value: &ProtoManager, common: &HttpProtocolOptions) -> Result<Server> {
    const COMMON: &str = "common_http_protocol_options";
    let Common {
        idle_timeout,
        max_connection_duration,
        max_stream_duration,
        max_requests_per_connection,
        max_headers_count,
        max_response_headers_kb,
        underscores,
    } = protocol::common(common).in_key(COMMON)?;
    let refused = || {
        let max_response_headers_kb = &max_response_headers_kb;
        refuse!(max_response_headers_kb);
        Ok(())
    };
    refused().in_key(COMMON)?;
    let head_kib = u32_in(&value.max_request_headers_kb, 60, 1..=8192, "max_request_headers_kb")?;
    let head_bytes = head_kib as usize * 1024;
    // Over HTTP/2 a bad message always ends its stream alone; over HTTP/1 it always ends the connection.
    let stream_error_on_invalid_http_message = &bool_or(&value.stream_error_on_invalid_http_message, false);
    refuse!(stream_error_on_invalid_http_message);
    let options = value.http_protocol_options.clone().unwrap_or_default();
    let mut http1 = http1(&options).in_key("http_protocol_options")?;
    http1.max_head_bytes = head_bytes;
    http1.proxy_100_continue = value.proxy_100_continue;
    let header_rules = HeaderRules { max_count: max_headers_count, underscores, ..HeaderRules::ENVOY };
    let options = value.http2_protocol_options.clone().unwrap_or_default();
    let mut http2 = protocol::http2(&options).in_key("http2_protocol_options")?;
    http2.max_header_list = head_kib * 1024;
    Ok(Server {
        http1,
        http2,
        header_rules,
        idle: idle_timeout,
        max_connection: max_connection_duration,
        max_stream: max_stream_duration,
        max_requests: max_requests_per_connection,
    })
}

fn http1(value: &Http1ProtocolOptions) -> Result<ServerHttp1> {
    let Http1ProtocolOptions {
        allow_absolute_url,
        accept_http_10,
        default_host_for_http_10,
        header_key_format,
        enable_trailers,
        allow_chunked_length,
        override_stream_error_on_invalid_http_message,
        send_fully_qualified_url,
        // Which of Envoy's two parsers works; there is one here.
        use_balsa_parser: _,
        allow_custom_methods,
        ignore_http_11_upgrade,
    } = value;
    let override_stream_error_on_invalid_http_message =
        &bool_or(override_stream_error_on_invalid_http_message, false);
    refuse!(
        override_stream_error_on_invalid_http_message,
        send_fully_qualified_url,
        allow_custom_methods,
        ignore_http_11_upgrade
    );
    Ok(ServerHttp1 {
        accept_http_10: *accept_http_10,
        default_host: (!default_host_for_http_10.is_empty())
            .then(|| default_host_for_http_10.as_str().into()),
        allow_chunked_length: *allow_chunked_length,
        enable_trailers: *enable_trailers,
        header_case: protocol::header_case(header_key_format).in_key("header_key_format")?.0,
        allow_absolute_url: bool_or(allow_absolute_url, true),
        ..ServerHttp1::default()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::read;
    use sixfold_core::cluster::HeaderCase;
    use sixfold_core::headers::Underscores;

    #[test]
    fn protocol_options_are_compiled() {
        let manager: ProtoManager = read(
            "max_request_headers_kb: 96\nproxy_100_continue: true\nhttp_protocol_options: {accept_http_10: true, default_host_for_http_10: h, enable_trailers: true, allow_chunked_length: true, header_key_format: {proper_case_words: {}}}\nhttp2_protocol_options: {max_concurrent_streams: 10, initial_stream_window_size: 65535, allow_connect: true}\ncommon_http_protocol_options: {max_headers_count: 7, headers_with_underscores_action: DROP_HEADER, idle_timeout: 0s, max_requests_per_connection: 3}\n",
        );
        let server = server(&manager, manager.common_http_protocol_options.as_ref().unwrap()).unwrap();
        assert!(
            server.http1.accept_http_10 && server.http1.enable_trailers && server.http1.proxy_100_continue
        );
        assert_eq!((server.http1.max_head_bytes, server.header_rules.max_count), (96 << 10, 7));
        assert_eq!(
            (server.http1.header_case, server.header_rules.underscores),
            (HeaderCase::ProperCase, Underscores::Drop)
        );
        assert_eq!((server.http2.max_concurrent_streams, server.http2.stream_window), (10, 65_535));
        assert_eq!((server.idle, server.max_requests), (None, Some(3)));
    }

    #[test]
    fn out_of_range_and_unsupported_options_are_refused() {
        let refused = |yaml: &str| {
            let manager: ProtoManager = read(yaml);
            let common = manager.common_http_protocol_options.unwrap_or_default();
            server(&manager, &common).err().unwrap().to_string()
        };
        assert_eq!(
            refused("http2_protocol_options: {initial_stream_window_size: 1}"),
            "http2_protocol_options.initial_stream_window_size: must be between 65535 and 2147483647, not 1"
        );
        assert_eq!(
            refused("http_protocol_options: {send_fully_qualified_url: true}"),
            "http_protocol_options.send_fully_qualified_url: is not supported"
        );
        assert_eq!(
            refused("max_request_headers_kb: 0"),
            "max_request_headers_kb: must be between 1 and 8192, not 0"
        );
    }
}
