//! Envoy's protobuf types with their JSON mapping, and what every user of them shares.

pub mod any;
mod bootstrap;
pub mod json;
mod schema;

pub use bootstrap::load_bootstrap;
/// Envoy's messages, by protobuf package: `pb::envoy::config::route::v3::Route`.
pub use envoy_types::pb;
pub use json::message_from_node;
