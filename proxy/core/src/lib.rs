//! The compiled model of sixfold: router, balancers, plugin chain and what a request sees of them.

pub mod document;
pub mod error;
pub mod headers;
pub mod message;
