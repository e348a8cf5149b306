//! The compiled model of sixfold: router, balancers, plugin chain and what a request sees of them.
//!
//! Sources (APISIX's files, Envoy's configuration) produce a [`model::Diff`]; workers read what it was
//! applied to. Nothing here opens a socket or waits.

pub mod access_log;
pub mod balance;
pub mod budget;
pub mod cel;
pub mod cluster;
pub mod codec_stats;
pub mod compile;
pub mod connection;
pub mod custom_tag;
pub mod deadline;
pub mod detached;
pub mod document;
pub mod draw;
pub mod error;
pub mod export;
pub mod expr;
pub mod fast_hash;
pub mod files;
pub mod flags;
pub mod format;
pub mod grpc_status;
pub mod hash;
pub mod hcm;
pub mod header_ops;
pub mod headers;
pub mod internal_redirect;
pub mod interned;
pub mod listener;
mod log_sink;
pub mod lookup;
pub mod matcher;
pub mod matching;
pub mod message;
pub mod metadata;
pub mod metrics;
pub mod mirror;
pub mod model;
pub mod offload;
pub mod overload;
pub mod path;
pub mod peer_exchange;
pub mod plugin;
pub mod profile;
pub mod proxy_protocol;
pub mod rate_limit;
pub mod rbac;
pub mod redirect;
pub mod regex;
pub mod retry;
pub mod rewrite;
pub mod route;
pub mod router;
pub mod runtime;
pub mod secret;
pub mod stats_sink;
pub mod stream;
pub mod tls;
pub mod trace;
pub mod traffic;
pub mod workload;

#[cfg(test)]
#[path = "../../fuzz/stable.rs"]
mod stable;
