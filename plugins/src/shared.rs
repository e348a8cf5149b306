//! Parts below several plugins.

pub(crate) mod counters;
pub(crate) mod encoding;
pub(crate) mod header_changes;
pub(crate) mod header_names;
pub(crate) mod offload;
pub(crate) mod pattern;
pub mod tower_layer;
