//! APISIX resources and configuration files, compiled to the model of sixfold.

mod client_certificate;
pub mod config;
pub mod file;
pub mod fuzz;
mod item;
mod listener;
mod plugin;
pub mod resource;
mod route;
pub mod schema;
mod secret;
mod source;
#[cfg(test)]
mod testing;
mod tls;
mod upstream;
pub mod watch;

pub use listener::APISIX_VERSION;
pub use source::{Loaded, ROUTE_TABLE, Resources, Setup, Source, load, load_config, validate};
