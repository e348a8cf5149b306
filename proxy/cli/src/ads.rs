//! Following the control planes, the files and the sources of secrets that an Envoy bootstrap names.

use crate::Failure;
use crate::process::runtime;
use sixfold_core::metrics::Registry;
use sixfold_core::model::{ApplyError, Diff};
use sixfold_server::server::Server;
use sixfold_xds::ads::{Apply, Resources, Statics, follow};
use sixfold_xds::bootstrap::{Ads, Followed};
use sixfold_xds::sds;
use std::sync::mpsc::{Receiver, channel};
use tokio::sync::watch;
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
    statics: watch::Sender<Statics>,
    ads: Ads,
}

impl Following {
    /// Has what a bootstrap names followed that is about to come into force, for it may wait for that. Answers what was
    /// followed before, in case it is refused.
    pub(crate) fn follow(&self, statics: Statics) -> Statics {
        self.statics.send_replace(statics)
    }

    /// Warns of what a bootstrap that is read again can't change.
    pub(crate) fn compare(&self, ads: &Ads) {
        if !self.ads.is_as(ads) {
            tracing::warn!("node and dynamic_resources count as they were when the process started");
        }
    }
}

/// Tells when the first resources are in force.
pub(crate) struct Initialized(Receiver<()>);

impl Initialized {
    /// Waits until they are, or have not come in time.
    pub(crate) fn wait(self) {
        // The thread has gone when the process is about to end.
        let _ = self.0.recv();
    }
}

/// Starts the thread `xds`, which compiles what control planes and files say. It asks them as soon as
/// their clusters are in force, since the first configuration may wait for what they have.
pub(crate) fn start(
    followed: Followed,
    server: Server,
    registry: Registry,
) -> Result<(Following, Initialized), Failure> {
    let (initialized, receiver) = channel();
    let runtime = runtime()?;
    let (sender, statics) = watch::channel(followed.statics());
    let Followed { ads, context, node } = followed;
    let following = Following { statics: sender, ads: ads.clone() };
    std::thread::Builder::new().name("xds".to_owned()).spawn(move || {
        let initialized = move || {
            // Nobody listens any more when the process is about to end.
            let _ = initialized.send(());
        };
        let tasks = LocalSet::new();
        tasks.spawn_local(sds::follow(statics.clone(), node, OnServer(server.clone())));
        let resources = Resources::new(context);
        let (statics, apply) = (Some(statics), OnServer(server));
        let following = follow(ads.config, resources, ads.target, statics, &registry, apply, initialized);
        runtime.block_on(tasks.run_until(following));
    })?;
    Ok((following, Initialized(receiver)))
}
