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
use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// Puts changes in force on the server.
#[derive(Clone)]
struct OnServer(Server);

impl Apply for OnServer {
    async fn apply(&mut self, diff: Diff) -> Vec<ApplyError> {
        self.0.apply(diff).await.err().unwrap_or_default()
    }
}

/// The thread `xds` at work.
pub(crate) struct Following {
    begin: oneshot::Sender<()>,
    initialized: Receiver<()>,
}

impl Following {
    /// Has the control plane followed from now on; waits until its first resources are in force, or have not come in
    /// time.
    pub(crate) fn begin(self) {
        // It has gone when the process is about to end.
        let _ = self.begin.send(());
        let _ = self.initialized.recv();
    }
}

/// Starts the thread `xds`, which compiles what sources of secrets and the control plane send. It follows the former at
/// once, since the first configuration may wait for them.
pub(crate) fn start(followed: Followed, server: Server, registry: Registry) -> Result<Following, Failure> {
    let (begin, begins) = oneshot::channel();
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
            // Nobody is left to say so when the process is about to end.
            let _ = begins.await;
            let Some(ads) = ads else {
                initialized();
                return std::future::pending().await;
            };
            let resources = Resources::new(context);
            follow(ads.config, resources, ads.target, &registry, OnServer(server), initialized).await;
        };
        runtime.block_on(tasks.run_until(following));
    })?;
    Ok(Following { begin, initialized: receiver })
}
