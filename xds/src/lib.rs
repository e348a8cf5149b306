//! Envoy configuration compiled to the model of sixfold.
//!
//! One module a resource. A resource compiles alone: an error names it, its field and the reason, and no other
//! resource is touched.

// Fields that Envoy calls deprecated still work there, and are still sent.
#![allow(deprecated)]

mod access_log;
pub mod ads;
mod api;
pub mod bootstrap;
pub mod cluster;
mod collector;
mod context;
mod custom_tags;
#[cfg(test)]
mod deltas;
pub mod dump;
mod ecds;
mod exporters;
mod filters;
pub mod fuzz;
mod hcm;
pub mod listener;
mod otlp;
mod places;
mod protocol;
pub mod rds;
mod retry;
mod route;
pub mod sds;
mod skipped;
pub use skipped::{REFUSED, left_out, skipped};
mod stats;
mod stats_sinks;
#[cfg(test)]
mod testing;
mod tls;
mod trace;
pub mod tracker;
pub mod unknown;

pub use context::{Context, Node};

/// Upgrade types in lower case, and whether they are enabled.
type Upgrades = Box<[(Box<str>, bool)]>;
