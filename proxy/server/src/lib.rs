//! Workers, listeners, codecs, TLS, upstream pools and the request path of sixfold.
//!
//! A connection is accepted by a worker ([`listener`]), filters look at its first bytes, a filter chain is
//! chosen, TLS is terminated (`tls`), and the chain's network filter takes it over: [`http`] or [`tcp_proxy`].

pub mod admin;
pub mod budget;
mod buffer;
pub mod callout;
mod closing;
pub mod connect;
mod datagrams;
mod deadline;
pub mod descriptors;
pub mod dns;
pub mod drain;
pub mod explain;
pub mod export;
pub mod h1;
mod health;
pub mod http;
pub mod inheritance;
pub mod io;
pub mod listener;
pub mod log_file;
mod memory;
#[cfg(test)]
#[path = "../tests/common/nobody.rs"]
mod nobody;
mod overload;
mod refresh;
pub mod server;
pub mod sockets;
#[cfg(test)]
#[path = "../../fuzz/stable.rs"]
mod stable;
pub mod stats_sinks;
pub mod status;
pub mod surface;
pub mod tcp_proxy;
mod tls;
mod udp_proxy;
pub mod upstream;
mod wire;
pub mod worker;
