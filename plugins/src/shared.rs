//! Parts below several plugins.

pub(crate) mod addresses;
pub(crate) mod base64;
pub(crate) mod batches;
pub(crate) mod cache;
pub(crate) mod coding;
pub(crate) mod cookies;
pub(crate) mod counters;
pub(crate) mod encoding;
pub(crate) mod header_changes;
pub(crate) mod header_names;
pub(crate) mod joint;
pub(crate) mod json;
pub(crate) mod jwt;
pub(crate) mod limits;
pub(crate) mod logger;
pub(crate) mod pattern;
pub(crate) mod peers;
pub(crate) mod per_thread;
pub(crate) mod query;
pub(crate) mod redis;
pub(crate) mod secret;
pub(crate) mod token_bucket;
pub mod tower_layer;
pub(crate) mod uri;
