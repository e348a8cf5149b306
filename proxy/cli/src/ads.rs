//! Following the control plane and the sources of secrets that an Envoy bootstrap names.

use crate::Failure;
use crate::process::runtime;
use sixfold_core::metrics::Registry;
use sixfold_core::model::{ApplyError, Diff};
use sixfold_server::server::Server;
use sixfold_xds::ads::{Apply, Resources, follow};
use sixfold_xds::bootstrap::Followed;
use sixfold_xds::sds;
use std::sync::mpsc::{Receiver, channel};
use tokio::task::LocalSet;

/// Puts changes in force on the server.
#[derive(Clone)]
struct OnServer(Server);

impl Apply for OnServer {
    async fn apply(&mut self, diff: Diff) -> Vec<ApplyError> {
        self.0.apply(diff).await.err().unwrap_or_default()
    }
}

/// Starts the thread `xds`, which follows the control plane and secrets from now on and compiles what they send. The
/// answer receives once the first resources are in force, or have not come in time.
pub(crate) fn start(followed: Followed, server: Server, registry: Registry) -> Result<Receiver<()>, Failure> {
    let (initialized, receiver) = channel();
    let runtime = runtime()?;
    std::thread::Builder::new().name("xds".to_owned()).spawn(move || {
        let Followed { ads, context, node } = followed;
        let initialized = move || {
            // Nobody listens any more when the process is about to end.
            let _ = initialized.send(());
        };
        let tasks = LocalSet::new();
        tasks.spawn_local(sds::follow(context.clone(), node, OnServer(server.clone())));
        let following = async move {
            let Some(ads) = ads else {
                initialized();
                return std::future::pending().await;
            };
            let resources = Resources::new(context);
            follow(ads.config, resources, ads.target, &registry, OnServer(server), initialized).await;
        };
        runtime.block_on(tasks.run_until(following));
    })?;
    Ok(receiver)
}
