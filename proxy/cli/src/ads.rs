//! Following the control plane that an Envoy bootstrap names.

use crate::Failure;
use crate::process::runtime;
use sixfold_core::metrics::Registry;
use sixfold_core::model::{ApplyError, Diff};
use sixfold_server::server::Server;
use sixfold_xds::Context;
use sixfold_xds::ads::{Apply, Resources, follow};
use sixfold_xds::bootstrap::Ads;
use std::sync::mpsc::{Receiver, channel};

/// Puts changes in force on the server.
struct OnServer(Server);

impl Apply for OnServer {
    async fn apply(&mut self, diff: Diff) -> Vec<ApplyError> {
        self.0.apply(diff).await.err().unwrap_or_default()
    }
}

/// Starts the thread `xds`, which follows the control plane from now on and compiles what it sends. The answer receives
/// once the first resources are in force, or have not come in time.
pub(crate) fn start(
    ads: Ads,
    context: Context,
    server: Server,
    registry: Registry,
) -> Result<Receiver<()>, Failure> {
    let (initialized, receiver) = channel();
    let runtime = runtime()?;
    std::thread::Builder::new().name("xds".to_owned()).spawn(move || {
        let Ads { config, target } = ads;
        let initialized = move || {
            // Nobody listens any more when the process is about to end.
            let _ = initialized.send(());
        };
        let following =
            follow(config, Resources::new(context), target, &registry, OnServer(server), initialized);
        runtime.block_on(following);
    })?;
    Ok(receiver)
}
