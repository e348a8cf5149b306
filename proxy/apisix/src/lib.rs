//! APISIX resources and configuration files, compiled to the model of sixfold.

pub mod config;
pub mod file;
pub mod resource;
pub mod schema;
pub mod watch;
