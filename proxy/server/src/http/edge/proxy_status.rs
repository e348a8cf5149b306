//! `proxy-status` (RFC 9209), from what the response flags say went wrong (common/http/utility.cc
//! `ProxyStatusUtils`).

use sixfold_core::flags::{Flag, ResponseFlags};
use sixfold_core::hcm::ProxyStatus;
use sixfold_core::headers::Known;
use sixfold_core::stream::Stream;

/// Flags in the order Envoy looks for them, with the error type and the status RFC 9209 recommends for it.
const ERRORS: &[(Flag, &str, Option<u16>)] = &[
    (Flag::LH, "destination_unavailable", Some(503)),
    (Flag::UH, "destination_unavailable", Some(503)),
    (Flag::UT, "http_response_timeout", Some(504)),
    (Flag::LR, "connection_timeout", Some(504)),
    (Flag::UR, "connection_terminated", Some(502)),
    (Flag::UF, "connection_refused", Some(502)),
    (Flag::UC, "connection_terminated", Some(502)),
    (Flag::UO, "connection_limit_reached", Some(503)),
    (Flag::NR, "destination_not_found", Some(500)),
    (Flag::RL, "connection_limit_reached", Some(503)),
    (Flag::RLSE, "connection_limit_reached", Some(503)),
    (Flag::URX, "destination_unavailable", Some(503)),
    (Flag::SI, "http_response_timeout", Some(504)),
    (Flag::IH, "http_request_error", None),
    (Flag::DPE, "http_request_error", None),
    (Flag::UMSDR, "http_response_timeout", Some(504)),
    (Flag::NFCF, "proxy_configuration_error", Some(500)),
    (Flag::UPE, "http_protocol_error", Some(502)),
    (Flag::NC, "destination_unavailable", Some(503)),
    (Flag::DF, "dns_error", Some(502)),
];

/// Adds the header, if something went wrong.
pub(super) fn apply(config: &ProxyStatus, stream: &mut Stream) {
    let Some((_, error, status)) = ERRORS.iter().find(|(flag, _, _)| stream.flags.contains(*flag)) else {
        return;
    };
    let mut value = Vec::with_capacity(96);
    value.extend_from_slice(config.name.as_bytes());
    value.extend_from_slice(b"; error=");
    value.extend_from_slice(error.as_bytes());
    let details = stream.details.as_deref().unwrap_or_default();
    if !config.remove_details && !details.is_empty() {
        value.extend_from_slice(b"; details=\"");
        for byte in details.bytes() {
            if matches!(byte, b'"' | b'\\') {
                value.push(b'\\');
            }
            value.push(byte);
        }
        write_flags(config, stream.flags, &mut value);
        value.push(b'"');
    }
    stream.response.headers.append(Known::PROXY_STATUS, &value);
    if let Some(status) = status.filter(|_| config.set_status) {
        stream.response.status = status;
    }
}

fn write_flags(config: &ProxyStatus, flags: ResponseFlags, out: &mut Vec<u8>) {
    if !config.remove_flags {
        out.extend_from_slice(b"; ");
        flags.write_short(out);
    }
}
