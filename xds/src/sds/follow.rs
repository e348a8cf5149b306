//! Following the sources of secrets: a stream for each secret, as Envoy has, and files.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sixfold_core::metrics::Registry;
use sixfold_core::model::Diff;
use sixfold_xds_api::pb::envoy::config::core::v3::Node;
use sixfold_xds_api::values::Result;
use tokio::task::{AbortHandle, JoinSet};

use super::key::SecretKey;
use super::store::{Checked, Secrets};
use crate::ads::{
    AdsConfig, Apply, Asks, Batches, Change, Compile, Compiled, Kind, Need, Service, Target,
    follow as follow_stream,
};
use crate::context::Context;
use crate::rds::Source;

/// How often files are looked at, and whether somebody still names what is followed.
const LOOK: Duration = Duration::from_secs(1);

/// One secret of a stream of its own.
struct OneSecret {
    secrets: Arc<Secrets>,
    key: SecretKey,
}

impl Compile for OneSecret {
    type Part = Checked;

    fn compile(&mut self, _: Kind, _: &Arc<str>, value: &[u8]) -> Result<Compiled<Checked>> {
        let checked = self.secrets.check(&self.key, value);
        if checked.is_err() {
            self.secrets.refuse(&self.key);
        }
        Ok(Compiled { part: checked?, asks: Asks::default() })
    }

    fn forget(&mut self, _: Kind, _: &Arc<str>) {}
}

impl Batches for OneSecret {
    fn diff(&self, batch: Vec<Change<Checked>>) -> Diff {
        let checked = batch.into_iter().filter_map(|change| change.part);
        Diff { contexts: checked.flat_map(|checked| self.secrets.put(checked)).collect(), ..Diff::default() }
    }

    fn disconnected(&self) {
        self.secrets.count_failure(&self.key);
    }
}

/// Follows every secret that is named and does not come by the stream of all resources, until the process ends. Must run
/// within a `LocalSet`.
pub async fn follow<A: Apply + Clone + 'static>(context: Context, node: Node, mut apply: A) {
    let secrets = context.sds.clone();
    let mut streams: BTreeMap<SecretKey, AbortHandle> = BTreeMap::new();
    let (mut ends, mut seen) = (JoinSet::new(), BTreeMap::new());
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
                ends.spawn_local(one(context.clone(), node.clone(), key.clone(), apply.clone()))
            });
        }
        while ends.try_join_next().is_some() {}
        let contexts = secrets.look_at_files(&mut seen);
        if !contexts.is_empty() {
            let errors = apply.apply(Diff { contexts, ..Diff::default() }).await;
            errors.iter().for_each(|error| tracing::error!("{error}"));
        }
        tokio::select! {
            () = secrets.named() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Follows one secret.
async fn one(context: Context, node: Node, key: SecretKey, apply: impl Apply) {
    let Source::Api(source) = &key.source else { return };
    let api = match source.compile(&context) {
        Ok(api) => api,
        // It was good when it was named.
        Err(error) => return tracing::error!("secret \"{}\" can't be asked for: {error}", key.name),
    };
    let need = Need { kind: Kind::Secret, name: key.name.clone(), within: None };
    let asks = Asks { needs: vec![need], clusters: Vec::new() };
    let config = AdsConfig {
        flavor: api.flavor,
        node,
        node_always: api.node_always,
        wildcards: BTreeMap::new(),
        backoff: api.backoff,
        statics: [((Kind::Listener, "".into()), asks)].into(),
    };
    let target = Target { service: Service::Secrets, ..api.target };
    let secret = OneSecret { secrets: context.sds.clone(), key: key.clone() };
    // What is counted of a stream of all resources is not counted of this one.
    follow_stream(config, secret, target, &Registry::new(), apply, || {}).await;
}
