//! APISIX resources and configuration files, compiled to the model of sixfold.

pub mod admin;
mod client_certificate;
pub mod config;
pub mod control;
mod encryption;
pub mod file;
mod filter;
pub mod fuzz;
mod item;
mod listener;
mod plugin;
mod reload;
pub mod resource;
mod route;
pub mod schema;
mod secret;
mod shared;
mod source;
pub mod store;
mod stream_route;
#[cfg(test)]
mod testing;
mod tls;
mod upstream;
mod watch;
mod yaml;

pub use encryption::Keyring;
pub use filter::{PLUGINS_FILTER, with_plugins_filter};
pub use listener::APISIX_VERSION;
pub use plugin::{Decryption, duplicate_key};
pub use reload::Reloads;
pub use source::{
    ETCD_HOST, Feed, Findings, InForce, Loaded, ROUTE_TABLE, RefusedResource, Serves, Source, SourceContext,
    Update, load, load_config, load_resources, look_at_etcd, open_store, validate, validate_resources,
};
pub use yaml::yaml;
