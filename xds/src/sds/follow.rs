//! Following the sources of secrets: a stream for each secret, as Envoy has, and files.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sixfold_core::error::tell_most;
use sixfold_core::metrics::Registry;
use sixfold_core::model::Diff;
use sixfold_core::tls::ContextChange;
use sixfold_xds_api::pb::envoy::config::core::v3::Node;
use sixfold_xds_api::values::Result;
use tokio::sync::mpsc::channel;
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::files::Looks;
use super::key::SecretKey;
use super::store::{Again, Checked, Secrets};
use crate::ads::{
    AdsConfig, Apply, Asks, Batches, Change, Channel, Compile, Compiled, Key, Kind, Need, Static, Statics,
    StreamConfig, Target, follow as follow_stream,
};
use crate::api::Api;
use crate::rds::Source;
use crate::tracker::{Event, Tracker};

/// How often files are looked at, and whether somebody still names what is followed.
const LOOK: Duration = Duration::from_secs(1);

/// One secret of a stream of its own.
struct OneSecret {
    secrets: Arc<Secrets>,
    tracker: Arc<Tracker>,
    key: SecretKey,
    stream: StreamConfig,
    target: Target,
}

impl Compile for OneSecret {
    type Part = Checked;

    fn compile(&mut self, _: &Key, value: &[u8]) -> Result<Compiled<Checked>> {
        Ok(Compiled { part: self.secrets.check(&self.key, value)?, asks: Asks::default() })
    }

    fn missing(&mut self, _: &Key) {
        self.secrets.give_up(&self.key);
    }

    fn note(&self, key: &Key, event: Event<'_>) {
        self.tracker.note(key, event);
    }

    fn stream(&self, _: &Channel) -> Option<StreamConfig> {
        Some(self.stream)
    }

    fn forget(&mut self, key: &Key) {
        self.note(key, Event::Gone);
    }
}

impl Batches for OneSecret {
    fn diff(&mut self, batch: Vec<Change<Checked>>) -> Diff {
        let checked = batch.into_iter().filter_map(|change| change.part);
        Diff { contexts: checked.flat_map(|checked| self.secrets.put(checked)).collect(), ..Diff::default() }
    }

    fn target(&self, _: &Channel) -> Option<Target> {
        Some(self.target.clone())
    }

    fn disconnected(&self) {
        self.secrets.count_failure(&self.key);
    }
}

/// Follows every secret that is named and does not come by the stream of all resources, until the process ends, from the
/// clusters of the last bootstrap. Must run within a `LocalSet`.
pub async fn follow<A: Apply + Clone + 'static>(statics: watch::Receiver<Statics>, node: Node, apply: A) {
    let secrets = statics.borrow().context.sds.clone();
    let put = {
        let secrets = secrets.clone();
        move |again| secrets.put_again(again)
    };
    let look = move || {
        let (secrets, mut looks) = (secrets.clone(), Looks::new());
        move || secrets.look_at_files(&mut looks)
    };
    tokio::join!(follow_streams(statics, node, apply.clone()), follow_files(look, put, apply));
}

/// Looks at files again and again, on a thread that nobody waits for but this: a disk may hang. What is found is `put` here,
/// where secrets of streams are. A thread that ends is followed by another, which knows of no look of before.
async fn follow_files<L: FnMut() -> Vec<Again> + Send + 'static>(
    look: impl Fn() -> L,
    put: impl Fn(Again) -> Vec<ContextChange>,
    mut apply: impl Apply,
) {
    loop {
        let (found, mut changes) = channel(1);
        let mut look = look();
        let look = move || {
            while !found.is_closed() {
                let read = look();
                if !read.is_empty() && found.blocking_send(read).is_err() {
                    return;
                }
                std::thread::sleep(LOOK);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("secret-files".to_owned()).spawn(look) {
            tracing::error!("files of secrets are not looked at: {error}");
        }
        while let Some(read) = changes.recv().await {
            let contexts: Vec<_> = read.into_iter().flat_map(&put).collect();
            if contexts.is_empty() {
                continue;
            }
            let errors = apply.apply(Diff { contexts, ..Diff::default() }).await;
            let more = |more| tracing::error!(more, "more settings with secrets are not in force");
            tell_most(&errors, |error| tracing::error!("{error}"), more);
        }
        tracing::error!("who looks at files of secrets has ended, and begins again");
        tokio::time::sleep(LOOK).await;
    }
}

async fn follow_streams(statics: watch::Receiver<Statics>, node: Node, apply: impl Apply + Clone + 'static) {
    let secrets = statics.borrow().context.sds.clone();
    let mut streams: BTreeMap<SecretKey, AbortHandle> = BTreeMap::new();
    let mut ends = JoinSet::new();
    loop {
        let wanted = secrets.wanted(|source| matches!(source, Source::Api(_)));
        streams.retain(|key, stream| {
            let goes_on = wanted.contains(key);
            if !goes_on {
                stream.abort();
            }
            goes_on
        });
        for key in wanted {
            streams.entry(key).or_insert_with_key(|key| {
                ends.spawn_local(one(statics.clone(), node.clone(), key.clone(), apply.clone()))
            });
        }
        while let Some(ended) = ends.try_join_next_with_id() {
            begin_again(&mut streams, ended);
        }
        tokio::select! {
            () = secrets.named() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Has a secret asked for anew, in the next turn, whose stream has failed. One that was told to end is not among them.
fn begin_again(
    streams: &mut BTreeMap<SecretKey, AbortHandle>,
    ended: std::result::Result<(Id, ()), JoinError>,
) {
    let Err(error) = ended else { return };
    let failed = streams.extract_if(.., |_, stream| stream.id() == error.id());
    for (key, _) in failed {
        tracing::error!("the stream of the secret \"{}\" begins again: {error}", key.name);
    }
}

/// Follows one secret.
async fn one(mut statics: watch::Receiver<Statics>, node: Node, key: SecretKey, apply: impl Apply) {
    let Source::Api(source) = &key.source else { return };
    let (Api { stream, target }, secrets, tracker) = loop {
        let context = statics.borrow_and_update().context.clone();
        match source.compile(&context) {
            Ok(api) => break (api, context.sds, context.tracker),
            // It was good when it was named, by a bootstrap that is to come or has gone.
            Err(error) => tracing::debug!("secret \"{}\" can't be asked for: {error}", key.name),
        }
        if statics.changed().await.is_err() {
            return;
        }
    };
    let need = Need { kind: Kind::Secret, source: key.source.clone(), name: key.name.clone(), within: None };
    let asks = Asks { needs: vec![need], ..Asks::default() };
    let config = AdsConfig {
        node,
        ads: None,
        wildcards: BTreeMap::new(),
        statics: [(Key::of_name(Kind::Listener, &"".into()), Static::InForce(asks))].into(),
    };
    let secret = OneSecret { secrets, tracker, key: key.clone(), stream, target };
    // What is counted of a stream of all resources is not counted of this one.
    follow_stream(config, secret, None, None, &Registry::new(), apply, || {}).await;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use sixfold_core::model::ApplyError;
    use std::sync::mpsc;

    struct Nothing;

    impl Apply for Nothing {
        async fn apply(&mut self, _: Diff) -> Vec<ApplyError> {
            panic!("nothing has changed")
        }
    }

    /// They were looked at by the thread that follows the control plane: a disk that hung kept it from hearing anything.
    #[tokio::test]
    async fn a_disk_that_hangs_holds_up_no_stream() {
        let (go_on, hung) = mpsc::channel::<()>();
        let (told, mut looks) = channel(1);
        let look = move || {
            let _ = told.blocking_send(());
            let _ = hung.recv();
            Vec::new()
        };
        let others = async {
            looks.recv().await.unwrap();
            // The thread of this test is free meanwhile.
            tokio::task::yield_now().await;
            go_on.send(()).unwrap();
            looks.recv().await.unwrap();
            drop(go_on);
        };
        tokio::select! {
            () = follow_files(once(look), |_| Vec::new(), Nothing) => panic!("never ends"),
            () = others => {}
        }
    }

    type Look = Box<dyn FnMut() -> Vec<Again> + Send>;

    /// Makes this, and nothing after it.
    fn once(look: impl FnMut() -> Vec<Again> + Send + 'static) -> impl Fn() -> Look {
        let look = std::cell::RefCell::new(Some(look));
        move || -> Look {
            match look.borrow_mut().take() {
                Some(look) => Box::new(look),
                None => panic!("it has ended"),
            }
        }
    }

    // Files were never looked at again, without a word.
    #[tokio::test]
    async fn a_look_that_fails_is_not_the_last() {
        let (told, mut looks) = channel(4);
        let look = move || {
            let told = told.clone();
            move || -> Vec<Again> {
                let _ = told.blocking_send(());
                panic!("a look has failed")
            }
        };
        let others = async {
            looks.recv().await.unwrap();
            looks.recv().await.unwrap();
        };
        tokio::select! {
            () = follow_files(look, |_| Vec::new(), Nothing) => panic!("never ends"),
            () = others => {}
        }
    }

    // It counted as followed for good.
    #[tokio::test]
    async fn a_secret_whose_stream_has_failed_is_asked_for_again() {
        let key = |name: &str| SecretKey { source: Source::Ads, name: name.into() };
        let mut ends = JoinSet::new();
        let mut streams = BTreeMap::from([
            (key("bad"), ends.spawn(async { panic!("a stream has failed") })),
            (key("good"), ends.spawn(std::future::pending())),
        ]);
        let ended = ends.join_next_with_id().await.unwrap();
        begin_again(&mut streams, ended);
        assert!(streams.keys().eq([&key("good")]));
    }
}
