//! Envoy configuration compiled to the model of sixfold.
//!
//! One module a resource. A resource compiles alone: an error names it, its field and the reason, and no other
//! resource is touched.

// Fields that Envoy calls deprecated still work there, and are still sent.
#![allow(deprecated)]

mod access_log;
pub mod bootstrap;
pub mod cluster;
mod context;
mod filters;
mod format;
mod hcm;
mod header_ops;
pub mod listener;
mod matcher;
mod metadata;
mod refuse;
mod retry;
mod route;
#[cfg(test)]
mod testing;
mod tls;
mod values;

pub use context::{Context, Node};
