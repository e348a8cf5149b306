//! Settings of TLS and texts of secrets that are compiled and not shown yet: what a change of the model carries.

use super::server::State;
use super::{ClientContext, ClientTls, ServerTls};
use crate::secret::SecretText;
use std::sync::Arc;

/// Other settings for one place. Connections that live are not touched.
pub struct ContextChange(Change);

enum Change {
    Server { tls: Arc<ServerTls>, state: Arc<State> },
    Client { tls: Arc<ClientTls>, context: Arc<ClientContext> },
    Text { place: Arc<SecretText>, text: Box<[u8]> },
}

impl ContextChange {
    pub(super) fn server(tls: Arc<ServerTls>, state: Arc<State>) -> ContextChange {
        ContextChange(Change::Server { tls, state })
    }

    pub(super) fn client(tls: Arc<ClientTls>, context: Arc<ClientContext>) -> ContextChange {
        ContextChange(Change::Client { tls, context })
    }

    /// Another text for a place.
    pub fn text(place: Arc<SecretText>, text: Box<[u8]>) -> ContextChange {
        ContextChange(Change::Text { place, text })
    }

    /// Shows them to handshakes to come, and to who looks at the secret.
    pub fn put_in_force(self) {
        match self.0 {
            Change::Server { tls, state } => tls.show(state),
            Change::Client { tls, context } => tls.replace(Some(context)),
            Change::Text { place, text } => place.replace(text),
        }
    }
}

impl std::fmt::Debug for ContextChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ContextChange")
    }
}
