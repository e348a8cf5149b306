//! Parts below several plugins.

pub(crate) mod header_changes;
pub(crate) mod pattern;
pub mod tower_layer;
