//! Format strings: of headers, bodies, rewrites and access logs.

use crate::any::{self, struct_to_json};
use crate::pb::envoy::config::core::v3::substitution_format_string::Format as ProtoFormat;
use crate::pb::envoy::config::core::v3::{SubstitutionFormatString, TypedExtensionConfig};
use crate::pb::google::protobuf::Struct;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::format::{Dialect, Format, JsonOptions};
use sixfold_core::route::BodyFormat;

use crate::values::{Result, one_of, required, text_source};

/// Formatters of Envoy that only switch on operators which are always there.
const FORMATTERS: [&str; 4] = [
    "envoy.extensions.formatter.cel.v3.Cel",
    "envoy.extensions.formatter.file_content.v3.FileContent",
    "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery",
    "envoy.extensions.formatter.metadata.v3.Metadata",
];

/// A format of text with operators.
pub fn text(text: &str) -> Result<Format> {
    Format::envoy(text).map_err(ConfigError::new)
}

/// A JSON document whose strings are formats.
pub fn json(value: &Struct, omit_empty: bool) -> Result<Format> {
    let options = JsonOptions { omit_empty, dialect: Dialect::Envoy };
    Format::json(&struct_to_json(value.clone()), options).map_err(ConfigError::new)
}

/// core/v3/substitution_format_string.proto.
pub fn substitution(value: &SubstitutionFormatString) -> Result<Format> {
    let SubstitutionFormatString {
        omit_empty_values,
        content_type: _,
        formatters,
        json_format_options: _,
        format,
    } = value;
    check_formatters(formatters)?;
    let format = match one_of::<SubstitutionFormatString, _>(format, "format")? {
        ProtoFormat::TextFormat(format) => text(format).in_key("text_format")?,
        ProtoFormat::TextFormatSource(source) => {
            text_source(source).and_then(|format| text(&format)).in_key("text_format_source")?
        }
        ProtoFormat::JsonFormat(format) => return json(format, *omit_empty_values).in_key("json_format"),
    };
    Ok(if *omit_empty_values { format.omit_empty() } else { format })
}

/// Refuses formatters that bring operators which are not here, at their place in `formatters`.
pub fn check_formatters(formatters: &[TypedExtensionConfig]) -> Result<()> {
    let check = |(index, formatter)| check_formatter(formatter).in_index(index).in_key("formatters");
    formatters.iter().enumerate().try_for_each(check)
}

fn check_formatter(formatter: &TypedExtensionConfig) -> Result<()> {
    let TypedExtensionConfig { name, typed_config } = formatter;
    let kind = any::type_name(required(typed_config, "typed_config")?).in_key("typed_config")?;
    if FORMATTERS.contains(&kind.as_str()) {
        return Ok(());
    }
    Err(crate::refuse::extension("formatter", name, &kind))
}

/// A formatted body with its content type.
pub fn body(value: &SubstitutionFormatString) -> Result<BodyFormat> {
    let format = substitution(value)?;
    let content_type = match (value.content_type.as_str(), format.is_json()) {
        ("", true) => "application/json",
        ("", false) => "text/plain",
        (given, _) => given,
    };
    Ok(BodyFormat { content_type: content_type.into(), format })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pb::google::protobuf::Any;

    #[test]
    fn formatters_that_switch_on_operators_are_known() {
        let of = |kind: &str| {
            let config = Any { type_url: format!("type.googleapis.com/{kind}"), value: Vec::new() };
            let formatter = TypedExtensionConfig { name: "f".into(), typed_config: Some(config) };
            substitution(&SubstitutionFormatString {
                formatters: vec![formatter],
                format: Some(ProtoFormat::TextFormat("%PROTOCOL%".into())),
                ..SubstitutionFormatString::default()
            })
        };
        for kind in FORMATTERS {
            assert!(of(kind).is_ok(), "{kind}");
        }
        let reason = "formatters[0].typed_config: formatter \"f\" of type a.B is unknown";
        assert_eq!(of("a.B").unwrap_err().to_string(), reason);
        let reason = "formatters[0].typed_config: formatter \"f\" of type \
            envoy.extensions.formatter.generic_secret.v3.GenericSecret is not supported";
        let secret = of("envoy.extensions.formatter.generic_secret.v3.GenericSecret");
        assert_eq!(secret.unwrap_err().to_string(), reason);
    }
}
