//! The compiled model of sixfold: router, balancers, plugin chain and what a request sees of them.

pub mod headers;
pub mod message;
