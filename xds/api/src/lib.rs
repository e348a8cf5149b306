//! Envoy's protobuf types with their JSON mapping, and what every user of them shares.

// Fields that Envoy calls deprecated still work there, and are still sent.
#![allow(deprecated)]

pub mod any;
mod bootstrap;
pub mod cel;
pub mod constraints;
pub mod definition;
pub mod format;
pub mod header_ops;
pub mod istio_pb;
pub mod json;
pub mod matcher;
pub mod matching;
pub mod metadata;
pub mod rate_limit;
pub mod rbac;
pub mod redirect;
pub mod refuse;
mod schema;
pub mod target;
#[cfg(test)]
mod testing;
mod text_format;
pub mod unknown;
pub mod values;
pub mod wire;
pub mod workload;

pub use bootstrap::{bootstrap_with_faults, load_bootstrap, parse_bootstrap};
/// Envoy's messages, by protobuf package: `pb::envoy::config::route::v3::Route`.
pub use envoy_types::pb;
pub use json::message_from_node;
pub use text_format::encode_text;
