//! TLS settings, checked and compiled to rustls when configuration arrives.

/// TLS towards an endpoint.
#[derive(Debug)]
pub struct ClientTls {}

/// TLS of a filter chain.
#[derive(Debug)]
pub struct ServerTls {}
