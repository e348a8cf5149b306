//! Whom to believe about the client's address.

use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::hcm::{ClientAddress, Detection};
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use sixfold_xds_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::InternalAddressConfig;
use sixfold_xds_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager as ProtoManager;
use sixfold_xds_api::pb::envoy::extensions::http::original_ip_detection::custom_header::v3::CustomHeaderConfig;
use sixfold_xds_api::pb::envoy::extensions::http::original_ip_detection::xff::v3::XffConfig;

use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, bool_or, cidrs, header_name, required, status};

const XFF: &str = "envoy.extensions.http.original_ip_detection.xff.v3.XffConfig";
const CUSTOM_HEADER: &str = "envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig";

pub(super) fn address(value: &ProtoManager) -> Result<ClientAddress> {
    let use_remote_address = bool_or(&value.use_remote_address, false);
    let extensions = &value.original_ip_detection_extensions;
    if use_remote_address && !extensions.is_empty() {
        let reason = "must not be given together with use_remote_address";
        return Err(ConfigError::field("original_ip_detection_extensions", reason));
    }
    if value.xff_num_trusted_hops > 0 && !extensions.is_empty() {
        let reason = "must not be given together with xff_num_trusted_hops";
        return Err(ConfigError::field("original_ip_detection_extensions", reason));
    }
    let detection =
        extensions.iter().enumerate().map(|(index, extension)| detection(extension).in_index(index));
    Ok(ClientAddress {
        use_remote_address,
        trusted_hops: value.xff_num_trusted_hops,
        skip_xff_append: value.skip_xff_append,
        internal_ranges: match &value.internal_address_config {
            Some(InternalAddressConfig { unix_sockets, cidr_ranges }) => {
                let refused = || {
                    refuse!(unix_sockets);
                    cidrs(cidr_ranges, "cidr_ranges")
                };
                refused().in_key("internal_address_config")?
            }
            None => Vec::new(),
        },
        detection: detection.collect::<Result<_>>().in_key("original_ip_detection_extensions")?,
        ..ClientAddress::default()
    })
}

fn detection(extension: &TypedExtensionConfig) -> Result<Detection> {
    let TypedExtensionConfig { name, typed_config } = extension;
    let config = required(typed_config, "typed_config")?;
    match any::type_name(config).in_key("typed_config")?.as_str() {
        XFF => xff(&any::unpack(config).in_key("typed_config")?).in_key("typed_config"),
        CUSTOM_HEADER => custom_header(&any::unpack(config).in_key("typed_config")?).in_key("typed_config"),
        other => Err(refuse::extension("original IP detection", name, other)),
    }
}

fn xff(value: &XffConfig) -> Result<Detection> {
    let XffConfig { xff_num_trusted_hops, xff_trusted_cidrs, skip_xff_append } = value;
    let skip_append = bool_or(skip_xff_append, true);
    match xff_trusted_cidrs {
        Some(_) if *xff_num_trusted_hops > 0 => Err(ConfigError::field(
            "xff_trusted_cidrs",
            "must not be given together with xff_num_trusted_hops",
        )),
        Some(trusted) => {
            let ranges = cidrs(&trusted.cidrs, "cidrs").in_key("xff_trusted_cidrs")?;
            Ok(Detection::XffTrusted(ranges, skip_append))
        }
        None => Ok(Detection::XffHops(*xff_num_trusted_hops, skip_append)),
    }
}

fn custom_header(value: &CustomHeaderConfig) -> Result<Detection> {
    let CustomHeaderConfig {
        header_name: name,
        allow_extension_to_set_address_as_trusted,
        reject_with_status,
    } = value;
    Ok(Detection::Header {
        name: header_name(name, "header_name")?,
        trusted: *allow_extension_to_set_address_as_trusted,
        reject: match reject_with_status {
            // Envoy answers 403 unless the code is an error's.
            Some(given) => Some(
                u32::try_from(given.code)
                    .ok()
                    .filter(|code| *code >= 400)
                    .map_or(Ok(403), |code| status(code, "reject_with_status.code"))?,
            ),
            None => None,
        },
    })
}
