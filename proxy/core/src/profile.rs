//! Whose manners a connection has, towards clients and upstreams.

/// Whose manners the proxy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// Envoy's: lower-case names, plain local replies, `x-envoy-*`.
    #[default]
    Envoy,
    /// APISIX's (nginx's): spelling kept, HTML error pages, `Server: APISIX`.
    Apisix,
}
