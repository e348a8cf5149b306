//! TLS settings, checked and compiled to rustls when configuration arrives.
//!
//! [`ServerTls`] and [`ClientTls`] are the places that filter chains and clusters hold; what is in them
//! ([`ServerContext`], [`ClientContext`]) can be replaced while connections live: secrets that arrive later
//! or are rotated touch only handshakes to come.

mod awaited;
mod certificate;
mod change;
mod client;
mod direct;
mod names;
mod options;
mod pem;
mod reason;
mod reuse;
mod server;
mod stats;
#[cfg(test)]
mod tests;
mod tickets;
mod verify;

pub use awaited::Awaited;
pub use certificate::{Held, Origin, describe, sha256_hex};
pub use change::ContextChange;
pub use client::{AlpnList, AlpnOffer, ClientContext, ClientSettings, ClientTls};
pub use names::NameTable;
pub use options::{Protocols, TlsVersion, cipher_name, curve_name, is_cipher_suite};
pub use pem::{Identity, Pem};
pub use reason::reason;
pub use reuse::ClientCache;
pub use server::{NamedContexts, ServerContext, ServerSettings, ServerTls};
pub use stats::{HandshakeFailure, TlsSide, TlsStats};
pub use tickets::Tickets;
pub use verify::{SanKind, SanMatcher, Validation, system_authorities};
