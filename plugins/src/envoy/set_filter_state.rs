//! Envoy's set_filter_state filter (source/extensions/filters/http/set_filter_state, common/set_filter_state): leaves
//! texts of the request to what comes after it, such as a hash policy.

#[cfg(test)]
mod tests;

use crate::envoy;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::format::Format;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, Plugin, Slot, Step};
use sixfold_core::stream::{FilterObject, Stream};
use sixfold_xds_api::format;
use sixfold_xds_api::pb::envoy::extensions::filters::common::set_filter_state::v3::FilterStateValue;
use sixfold_xds_api::pb::envoy::extensions::filters::common::set_filter_state::v3::filter_state_value::{
    Key, Value,
};
use sixfold_xds_api::pb::envoy::extensions::filters::http::set_filter_state::v3::Config;
use std::sync::Arc;

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build).stateless().reads_all_levels()
}

/// What every level says is left, the least specific first; whether the route is chosen again is the filter's own to say.
fn build(config: Config, levels: Vec<Config>, _: &BuildContext) -> Built {
    let clear_route_cache = config.clear_route_cache;
    let mut objects = Vec::new();
    for Config { on_request_headers, clear_route_cache: _ } in std::iter::once(config).chain(levels) {
        for (index, value) in on_request_headers.iter().enumerate() {
            objects.push(Object::new(value).in_index(index).in_key("on_request_headers")?);
        }
    }
    let objects = objects.into_boxed_slice();
    Ok(Plugin::of(SetFilterState { objects, clear_route_cache })
        .access(SetFilterState::access)
        .judging()
        .build())
}

struct SetFilterState {
    objects: Box<[Object]>,
    clear_route_cache: bool,
}

struct Object {
    key: Arc<str>,
    hashable: bool,
    value: Format,
    read_only: bool,
    skip_if_empty: bool,
}

impl Object {
    // Deprecated fields mean what they meant.
    #[allow(deprecated)]
    fn new(value: &FilterStateValue) -> Result<Object, ConfigError> {
        let FilterStateValue {
            factory_key,
            read_only,
            // Of connections inside the process, which there are not here.
            shared_with_upstream: _,
            skip_if_empty,
            key,
            value,
        } = value;
        let Some(Key::ObjectKey(key)) = key else {
            return Err(ConfigError::field("object_key", "is missing"));
        };
        let Some(Value::FormatString(text)) = value else {
            return Err(ConfigError::field("format_string", "is missing"));
        };
        let kind = if factory_key.is_empty() { key } else { factory_key };
        let hashable = match kind.as_str() {
            "envoy.string" => false,
            "envoy.hashable_string" => true,
            other => {
                let field = if factory_key.is_empty() { "object_key" } else { "factory_key" };
                return Err(ConfigError::field(field, format!("there is no factory \"{other}\"")));
            }
        };
        Ok(Object {
            key: key.as_str().into(),
            hashable,
            value: format::substitution(text).in_key("format_string")?,
            read_only: *read_only,
            skip_if_empty: *skip_if_empty,
        })
    }
}

impl SetFilterState {
    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        for object in &self.objects {
            let mut value = Vec::new();
            object.value.write_body(stream, &mut value);
            if value.is_empty() && object.skip_if_empty {
                continue;
            }
            stream.set_filter_state(FilterObject {
                key: object.key.clone(),
                value: value.into(),
                hashable: object.hashable,
                read_only: object.read_only,
            });
        }
        if self.clear_route_cache { Step::ClearRoute } else { Step::Continue }
    }
}
