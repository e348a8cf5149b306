//! Secrets that come by themselves (SDS): who names which, and what each has come to.
//!
//! Settings of TLS that name a secret are kept as they were sent, and compiled again whenever a secret of theirs
//! comes. A secret that does not fit any of them is refused as a whole, and the one before it stays.

mod files;
mod follow;
mod key;
mod store;
#[cfg(test)]
mod tests;
mod user;

pub use follow::follow;
pub(crate) use key::Lookup;
pub use key::SecretKey;
pub use store::{Checked, Secrets};
pub(crate) use user::{SecretsOf, User, client, server};

sixfold_core::stat_block! {
    /// Statistics of a subscription to a secret, under `sds.NAME.`. `update_time` is when it came, in milliseconds since
    /// 1970.
    pub struct SecretStats {
        counters: [update_attempt, update_success, update_rejected, update_failure, key_rotation_failed],
        gauges: [], numbers: [update_time], histograms: []
    }
}

sixfold_core::stat_block! {
    /// Statistics of settings that are made of secrets, under `server_ssl_socket_factory.` of a listener and
    /// `client_ssl_socket_factory.` of a cluster.
    pub struct SocketStats {
        counters: [
            ssl_context_update_by_sds,
            upstream_context_secrets_not_ready,
            downstream_context_secrets_not_ready,
        ],
        gauges: [], histograms: []
    }
}
