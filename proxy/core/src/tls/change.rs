//! Settings of TLS that are compiled and not shown yet: what a change of the model carries.

use super::server::State;
use super::{ClientContext, ClientTls, ServerTls};
use std::sync::Arc;

/// Other settings for one place. Connections that live are not touched.
pub struct ContextChange(Change);

enum Change {
    Server { tls: Arc<ServerTls>, state: Arc<State> },
    Client { tls: Arc<ClientTls>, context: Arc<ClientContext> },
}

impl ContextChange {
    pub(super) fn server(tls: Arc<ServerTls>, state: Arc<State>) -> ContextChange {
        ContextChange(Change::Server { tls, state })
    }

    pub(super) fn client(tls: Arc<ClientTls>, context: Arc<ClientContext>) -> ContextChange {
        ContextChange(Change::Client { tls, context })
    }

    /// Shows them to handshakes to come.
    pub fn put_in_force(self) {
        match self.0 {
            Change::Server { tls, state } => tls.show(state),
            Change::Client { tls, context } => tls.replace(Some(context)),
        }
    }
}

impl std::fmt::Debug for ContextChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ContextChange")
    }
}
