//! Tags that the configuration gives spans and logs.

use sixfold_core::custom_tag::{CustomTag, TagMetadata, TagSource};
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_xds_api::format;
use sixfold_xds_api::pb::envoy::r#type::metadata::v3::metadata_key::path_segment::Segment;
use sixfold_xds_api::pb::envoy::r#type::metadata::v3::metadata_kind::Kind;
use sixfold_xds_api::pb::envoy::r#type::metadata::v3::{MetadataKey, MetadataKind};
use sixfold_xds_api::pb::envoy::r#type::tracing::v3::CustomTag as ProtoTag;
use sixfold_xds_api::pb::envoy::r#type::tracing::v3::custom_tag::{
    Environment, Header, Literal, Metadata, Type,
};
use sixfold_xds_api::values::{Result, header_name, not_empty, one_of, required};

/// The tags of a field. Of two with one name the last one counts, as in Envoy.
pub(crate) fn tags(values: &[ProtoTag], field: &str) -> Result<Vec<CustomTag>> {
    let all = collect(values.iter().enumerate().map(|(index, value)| tag(value).in_index(index)));
    let mut tags: Vec<CustomTag> = Vec::new();
    for tag in all.in_key(field)? {
        tags.retain(|known| known.name != tag.name);
        tags.push(tag);
    }
    Ok(tags)
}

fn tag(value: &ProtoTag) -> Result<CustomTag> {
    let ProtoTag { tag, r#type } = value;
    let name = not_empty(tag, "tag")?.into();
    let source = match one_of::<ProtoTag, _>(r#type, "type")? {
        Type::Literal(Literal { value }) => TagSource::Text(value.as_str().into()),
        Type::Environment(Environment { name, default_value }) => {
            let name = not_empty(name, "name").in_key("environment")?;
            let value = std::env::var(name).unwrap_or_else(|_| default_value.clone());
            TagSource::Text(value.into())
        }
        Type::RequestHeader(Header { name, default_value }) => {
            let name = header_name(name, "name").in_key("request_header")?;
            TagSource::Header(name, default_value.as_str().into())
        }
        Type::Metadata(value) => metadata(value).in_key("metadata")?,
        Type::Value(text) => TagSource::Format(format::text(text).in_key("value")?),
    };
    Ok(CustomTag { name, source })
}

fn metadata(value: &Metadata) -> Result<TagSource> {
    let Metadata { kind, metadata_key, default_value } = value;
    let MetadataKind { kind } = required(kind, "kind")?;
    let of = match one_of::<MetadataKind, _>(kind, "kind").in_key("kind")? {
        Kind::Request(_) => TagMetadata::Request,
        Kind::Route(_) => TagMetadata::Route,
        Kind::Cluster(_) => TagMetadata::Cluster,
        Kind::Host(_) => TagMetadata::Host,
    };
    let MetadataKey { key, path } = required(metadata_key, "metadata_key")?;
    let namespace = not_empty(key, "key").in_key("metadata_key")?.into();
    let segment = |segment: &sixfold_xds_api::pb::envoy::r#type::metadata::v3::metadata_key::PathSegment| {
        match &segment.segment {
            Some(Segment::Key(key)) if !key.is_empty() => Ok(key.as_str().into()),
            _ => Err(ConfigError::field("key", "is missing")),
        }
    };
    let path = path.iter().enumerate().map(|(index, value)| segment(value).in_index(index));
    let path = path.collect::<Result<_>>().in_key("path").in_key("metadata_key")?;
    Ok(TagSource::Metadata { of, namespace, path, default: default_value.as_str().into() })
}
