//! What the levels of a route together say about one filter, and what tells such settings apart.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prost::Message;
use sixfold_core::plugin::FilterFactory;
use sixfold_xds_api::pb::envoy::config::route::v3::CorsPolicy;
use sixfold_xds_api::pb::envoy::config::route::v3::cors_policy::EnabledSpecifier;
use sixfold_xds_api::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy as TypedCors;

/// What the levels together say about one filter.
#[derive(Default)]
pub(super) struct Settings {
    pub(super) configs: Vec<Vec<u8>>,
    /// Whether a level more specific than theirs says something of another filter's type.
    pub(super) superseded: bool,
    /// The most specific level that says so.
    pub(super) disabled: Option<bool>,
    /// Whose settings they are, if that makes a difference: names down to the most specific level that has some.
    pub(super) owner: String,
    /// Tells settings of a route without a name from those of every other.
    pub(super) nameless: u64,
}

/// `cors` of a virtual host or route as the settings of the filter, encoded. They have the same fields.
pub(super) fn typed_cors(value: &CorsPolicy) -> Vec<u8> {
    let CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
        enabled_specifier,
    } = value.clone();
    let policy = TypedCors {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
        filter_enabled: enabled_specifier.map(|EnabledSpecifier::FilterEnabled(enabled)| enabled),
    };
    policy.encode_to_vec()
}

impl Settings {
    /// Takes what the most specific level yet says, of another filter's type: this one has none of a level, unless it reads all.
    pub(super) fn supersede(&mut self, factory: &FilterFactory) {
        if factory.reads_all_levels {
            self.superseded = !self.configs.is_empty();
        } else {
            *self = Settings { disabled: self.disabled, ..Settings::default() };
        }
    }
}

/// Two lists of settings with one key are equal.
pub(super) fn cache_key(settings: &[Settings]) -> Vec<u8> {
    let mut key = Vec::new();
    for settings in settings {
        key.push(settings.disabled.map_or(2, u8::from));
        add_settings(settings, &mut key);
    }
    key
}

/// One that was not there before.
pub(super) fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

pub(super) fn add_settings(settings: &Settings, key: &mut Vec<u8>) {
    key.extend((settings.owner.len() as u64).to_le_bytes());
    key.extend(settings.owner.as_bytes());
    key.extend(settings.nameless.to_le_bytes());
    key.push(settings.superseded.into());
    key.extend((settings.configs.len() as u64).to_le_bytes());
    for config in &settings.configs {
        key.extend((config.len() as u64).to_le_bytes());
        key.extend(config);
    }
}
