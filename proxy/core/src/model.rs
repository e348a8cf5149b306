//! The model: what is configured now, and how a change is applied to it.
//!
//! Sources produce a [`Diff`]; the control thread alone applies it, in the order that [`Model::apply`] has and
//! nobody else. What is no longer there goes last, so that nothing in use ever points at nothing.

use crate::cluster::{Assignment, Cluster, Clusters};
use crate::listener::{L4Change, Listener};
use crate::plugin::{Consumer, ConsumersChange, MetadataChange};
use crate::router::{RouteTable, RouteTables, TableKey};
use crate::tls::ContextChange;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// Changes to the model by name. `None` removes.
#[derive(Debug, Default)]
pub struct Diff {
    /// Clusters.
    pub clusters: Vec<(Arc<str>, Option<Arc<Cluster>>)>,
    /// Endpoints of clusters that are there, or come with this change, all of each: what EDS brings.
    pub endpoints: Vec<(Arc<str>, Assignment)>,
    /// Route tables that connection managers refer to by name, one for each list of filters.
    pub route_tables: Vec<(TableKey, Option<Arc<RouteTable>>)>,
    /// What plugins are told for the whole gateway.
    pub metadata: Vec<MetadataChange>,
    /// Consumers that plugins find. They are known before the routes they come with.
    pub consumers: Option<ConsumersChange>,
    /// Routes of TCP and UDP.
    pub l4: Option<L4Change>,
    /// Certificates of listeners that stay. They are shown with the routes they come with.
    pub contexts: Vec<ContextChange>,
    /// Listeners.
    pub listeners: Vec<(Arc<str>, Option<Arc<Listener>>)>,
    /// Whether nothing of the change is put in force unless every listener of it can be; else the rest is.
    pub whole: bool,
    /// What the source no longer needs: freeing thousands of resources takes milliseconds, so it is done when
    /// the change is in force.
    pub replaced: Option<Box<dyn Any + Send>>,
}

impl Diff {
    /// Whether certificates are all that changes.
    pub fn is_contexts_alone(&self) -> bool {
        self.clusters.is_empty()
            && self.endpoints.is_empty()
            && self.route_tables.is_empty()
            && self.listeners.is_empty()
            && self.consumers.is_none()
            && self.l4.is_none()
            && self.metadata.is_empty()
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.is_contexts_alone() && self.contexts.is_empty()
    }
}

/// A part of a change that can't be put in force. All the rest of the change is, unless it is to be taken as a
/// whole, and what the part was before goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} \"{name}\": {reason}")]
pub struct ApplyError {
    /// What it is.
    pub kind: ResourceKind,
    /// Its name.
    pub name: Arc<str>,
    /// What is wrong.
    pub reason: String,
}

/// What can fail although it was compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceKind {
    /// Endpoints of a cluster: it is not there.
    Endpoints,
    /// A listener: its address can't be opened, or its chains exclude each other.
    Listener,
}

impl std::fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ResourceKind::Endpoints => "endpoints",
            ResourceKind::Listener => "listener",
        })
    }
}

/// Who opens and closes listeners when a change is applied. Neither may wait for a client or for the network.
pub trait Listeners {
    /// Gets ready what can fail of listeners that come while others go: takes addresses and opens logs. Nobody
    /// notices yet. Answers which can't come, and why. What is ready already is left as it is.
    fn prepare(&mut self, going: &[Arc<str>], coming: &[Arc<Listener>]) -> Vec<(Arc<str>, String)>;

    /// Gives back what was made ready for these.
    fn abandon(&mut self, names: &[Arc<str>]);

    /// Takes listeners away. Their addresses are free when this has ended.
    fn remove(&mut self, names: &[Arc<str>]) -> impl Future<Output = ()> + Send;

    /// Opens a listener that is ready, or changes the one of its name; it is live when this has ended, and others know of
    /// it when [`Listeners::finish`] has. The error is a reason, and leaves what was there.
    fn upsert(&mut self, listener: Arc<Listener>) -> impl Future<Output = Result<(), String>> + Send;

    /// Ends a change of listeners: what is to be done for all of it together, however many they are.
    fn finish(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Whether anybody is served by what is put in force. Plugins begin nothing by themselves where nobody is.
    fn serves(&self) -> bool {
        true
    }

    /// Ends when no request is any more between its look at a route table of before and that at the cluster which this
    /// names, unless it waits there for something of its own.
    fn settled(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// What is configured now. The control thread changes it; sources that compile and pages that show it read it.
#[derive(Default)]
pub struct Model {
    clusters: Arc<Clusters>,
    route_tables: Arc<RouteTables>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    listeners: BTreeMap<Arc<str>, Arc<Listener>>,
    /// Replaced parts that a request may still hold; dropped by the control thread once nobody else does, since
    /// the last drop of a large table would stall a worker.
    retired: Vec<Arc<dyn Any + Send + Sync>>,
    /// Clusters that are to be looked after.
    tended: Vec<Weak<Cluster>>,
    /// Turns of [`Model::look_after`].
    turns: u32,
}

/// Of so many turns one looks at all names, whatever has happened.
const ALL_NAMES: u32 = 60;

impl State {
    fn retire<T: Send + Sync + 'static>(&mut self, part: Option<Arc<T>>) {
        self.retired.extend(part.map(|p| p as Arc<dyn Any + Send + Sync>));
    }
}

impl Model {
    /// An empty model whose cluster names are `clusters`, and whose route tables stand in `route_tables`.
    pub fn new(clusters: Arc<Clusters>, route_tables: Arc<RouteTables>) -> Model {
        Model { clusters, route_tables, ..Model::default() }
    }

    /// The cluster names, for sources that compile routes.
    pub fn clusters(&self) -> &Arc<Clusters> {
        &self.clusters
    }

    /// The route tables, for sources that compile listeners.
    pub fn route_tables(&self) -> &Arc<RouteTables> {
        &self.route_tables
    }

    /// Listeners now, by name.
    pub fn listeners(&self) -> Vec<Arc<Listener>> {
        self.state.lock().listeners.values().cloned().collect()
    }

    /// Gets the listeners of a change ready, and takes those out of it that can't be. Answers them; none is ready
    /// when a change that is to be taken as a whole has such.
    pub fn prepare(diff: &mut Diff, listeners: &mut impl Listeners) -> Vec<ApplyError> {
        let (going, coming): (Vec<_>, Vec<_>) = diff.listeners.iter().partition(|(_, l)| l.is_none());
        let going: Vec<_> = going.into_iter().map(|(name, _)| name.clone()).collect();
        let coming: Vec<_> = coming.into_iter().filter_map(|(_, listener)| listener.clone()).collect();
        let refused = listeners.prepare(&going, &coming);
        if refused.is_empty() {
            return Vec::new();
        }
        if diff.whole {
            let names: Vec<_> = coming.iter().map(|listener| listener.name.clone()).collect();
            listeners.abandon(&names);
        }
        diff.listeners.retain(|(name, _)| !refused.iter().any(|(refused, _)| refused == name));
        let error = |(name, reason)| ApplyError { kind: ResourceKind::Listener, name, reason };
        refused.into_iter().map(error).collect()
    }

    /// Applies a change: what can fail of listeners is made ready, then come clusters that come, endpoints, consumers, route
    /// tables, certificates, listeners, and clusters that go, once no request is about to look for them. Requests
    /// see each part at their next load of it; listeners are open when this has ended.
    ///
    /// Answers what can't be put in force; all the rest is, and nothing of a change that is to be taken as a whole
    /// and has listeners that can't be made ready. One call at a time: only the control thread may.
    pub async fn apply(&self, mut diff: Diff, listeners: &mut impl Listeners) -> Vec<ApplyError> {
        let mut errors = Model::prepare(&mut diff, listeners);
        if diff.whole && !errors.is_empty() {
            return errors;
        }
        let Diff {
            clusters,
            endpoints,
            route_tables,
            metadata,
            consumers,
            l4,
            contexts,
            listeners: changed,
            whole: _,
            replaced,
        } = diff;
        let (gone, come): (Vec<_>, Vec<_>) = clusters.into_iter().partition(|(_, c)| c.is_none());
        // What leads to names may go, or what they stand for.
        let tables = !route_tables.is_empty() || l4.is_some();
        let may_free_names = !gone.is_empty() || tables || !changed.is_empty();
        self.swap_clusters(come);
        for (name, hosts) in endpoints {
            match self.clusters.find(&name) {
                Some(cluster) => cluster.assign(hosts),
                None => {
                    let reason = "there is no cluster of this name".to_owned();
                    errors.push(ApplyError { kind: ResourceKind::Endpoints, name, reason });
                }
            }
        }
        for old in metadata.into_iter().map(MetadataChange::put_in_force) {
            self.state.lock().retire(old);
        }
        for old in consumers.into_iter().flat_map(ConsumersChange::put_in_force) {
            self.state.lock().retire(Some(old));
        }
        for (key, table) in route_tables {
            let old = self.route_tables.cell(&key).swap(table);
            self.state.lock().retire(old);
        }
        if let Some(change) = l4 {
            let old = change.put_in_force();
            self.state.lock().retire(Some(old));
        }
        contexts.into_iter().for_each(ContextChange::put_in_force);
        self.change_listeners(changed, listeners, &mut errors).await;
        if !gone.is_empty() {
            // Also of tables that a change of before has put out of force a moment ago.
            listeners.settled().await;
        }
        self.swap_clusters(gone);
        if replaced.is_some() {
            drop(replaced);
            Consumer::sweep_chains();
        }
        // A thousand clusters that warm up come one by one: each is not worth looking at all names there are.
        if may_free_names {
            self.sweep();
        } else {
            self.drop_retired();
        }
        errors
    }

    fn swap_clusters(&self, clusters: Vec<(Arc<str>, Option<Arc<Cluster>>)>) {
        for (name, cluster) in clusters {
            let tended = cluster.as_ref().filter(|cluster| cluster.is_tended()).map(Arc::downgrade);
            let old = self.clusters.cell(&name).swap(cluster);
            let mut state = self.state.lock();
            state.retire(old);
            state.tended.extend(tended);
        }
    }

    /// Addresses of listeners that go may be taken by those that come. Those without a socket come first: others hand
    /// connections over to them.
    async fn change_listeners(
        &self,
        mut changed: Vec<(Arc<str>, Option<Arc<Listener>>)>,
        listeners: &mut impl Listeners,
        errors: &mut Vec<ApplyError>,
    ) {
        let going: Vec<_> = changed.iter().filter(|(_, l)| l.is_none()).map(|(n, _)| n.clone()).collect();
        if !going.is_empty() {
            listeners.remove(&going).await;
            let mut state = self.state.lock();
            for name in &going {
                let old = state.listeners.remove(name);
                state.retire(old);
            }
        }
        changed.sort_by_key(|(_, listener)| listener.as_ref().is_some_and(|listener| listener.bind));
        for (name, listener) in changed {
            let Some(listener) = listener else { continue };
            match listeners.upsert(listener.clone()).await {
                Ok(()) => {
                    if listeners.serves() {
                        listener.enter();
                    }
                    let mut state = self.state.lock();
                    let old = state.listeners.insert(name, listener);
                    state.retire(old);
                }
                Err(reason) => errors.push(ApplyError { kind: ResourceKind::Listener, name, reason }),
            }
        }
        listeners.finish().await;
    }

    /// Drops retired parts that nobody else holds, route tables that no connection manager does, and names that
    /// stand for nothing; call it now and then. Tells how many parts are left.
    pub fn sweep(&self) -> usize {
        let (_, left) = self.drop_retired();
        drop(self.route_tables.sweep());
        self.clusters.sweep();
        left
    }

    /// What is to be done once a second: clusters show what they have found by themselves ([`Cluster::tend`]), and what
    /// has become free is dropped. Thousands of clusters and names are not looked at for the sake of none.
    pub fn look_after(&self, now: Instant) {
        let (tended, is_turn) = {
            let mut state = self.state.lock();
            state.tended.retain(|cluster| cluster.strong_count() > 0);
            state.turns = state.turns.wrapping_add(1);
            let tended: Vec<_> = state.tended.iter().filter_map(Weak::upgrade).collect();
            (tended, state.turns.is_multiple_of(ALL_NAMES))
        };
        tended.iter().filter(|cluster| cluster.is_in_force()).for_each(|cluster| cluster.tend(now));
        drop(tended);
        let (dropped, _) = self.drop_retired();
        let tables = self.route_tables.sweep();
        let may_free_names = dropped > 0 || !tables.is_empty() || self.clusters.have_come();
        drop(tables);
        if may_free_names || is_turn {
            self.clusters.sweep();
        }
        if is_turn {
            // A request may have held its route and its consumer for longer than anybody else.
            Consumer::sweep_chains();
        }
    }

    /// Answers how many parts were dropped, and how many are left.
    fn drop_retired(&self) -> (usize, usize) {
        let (dropped, left) = {
            let mut state = self.state.lock();
            let dropped: Vec<_> = state.retired.extract_if(.., |p| Arc::strong_count(p) == 1).collect();
            (dropped, state.retired.len())
        };
        let count = dropped.len();
        // Pages that show the model do not wait for this. Listeners let go of their tables, and those of clusters.
        drop(dropped);
        if count > 0 {
            Consumer::sweep_chains();
        }
        (count, left)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::{Address, Choice, ClusterConfig, Criteria, HostConfig};
    use crate::metrics::Registry;
    use crate::plugin::{ChainBuilder, kept_chains};
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    /// Opens nothing, and can't get ready what is called "taken".
    #[derive(Default)]
    struct Nowhere(Vec<String>, Option<Settling>);

    /// Called when requests are to be waited for.
    type Settling = Box<dyn FnMut() + Send>;

    impl Listeners for Nowhere {
        fn prepare(&mut self, _: &[Arc<str>], coming: &[Arc<Listener>]) -> Vec<(Arc<str>, String)> {
            let taken = coming.iter().filter(|listener| &*listener.name == "taken");
            taken.map(|listener| (listener.name.clone(), "in use".to_owned())).collect()
        }

        fn abandon(&mut self, names: &[Arc<str>]) {
            self.0.extend(names.iter().map(|name| format!("?{name}")));
        }

        async fn remove(&mut self, names: &[Arc<str>]) {
            self.0.extend(names.iter().map(|name| format!("-{name}")));
        }

        async fn upsert(&mut self, listener: Arc<Listener>) -> Result<(), String> {
            self.0.push(format!("+{}", listener.name));
            Ok(())
        }

        async fn settled(&mut self) {
            if let Some(settling) = &mut self.1 {
                settling();
            }
        }
    }

    fn apply(model: &Model, diff: Diff, listeners: &mut Nowhere) -> Vec<ApplyError> {
        match pin!(model.apply(diff, listeners)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(errors) => errors,
            Poll::Pending => panic!("nothing waits here"),
        }
    }

    fn endpoint(port: u16) -> HostConfig {
        HostConfig::new(Address::Ip(([127, 0, 0, 1], port).into()))
    }

    #[test]
    fn endpoints_come_by_themselves_and_need_their_cluster() {
        let model = Model::default();
        let cluster = Cluster::new(ClusterConfig::named("c"), vec![], None, &Registry::new()).unwrap();
        let endpoints = |name: &str| vec![(name.into(), vec![endpoint(1), endpoint(2)].into())];
        let clusters = vec![("c".into(), Some(cluster.clone()))];
        let mut nowhere = Nowhere::default();
        let diff = Diff { clusters, endpoints: endpoints("c"), ..Diff::default() };
        assert_eq!(apply(&model, diff, &mut nowhere), []);
        assert_eq!((cluster.hosts.load().total(), cluster.stats.membership_total().get()), (2, 2));
        let errors = apply(&model, Diff { endpoints: endpoints("other"), ..Diff::default() }, &mut nowhere);
        assert_eq!(errors[0].to_string(), "endpoints \"other\": there is no cluster of this name");
    }

    /// They were swept when a change was compiled: whoever looked before it was in force found everything still there, and
    /// kept it until the next change.
    #[test]
    fn chains_of_consumers_go_with_what_a_change_has_replaced() {
        let model = Model::default();
        let consumer = || Arc::new(Consumer::new("jack".into(), None, Vec::new()));
        let chain = || Arc::new(ChainBuilder::new().build());
        let (old, of_route, other) = (consumer(), chain(), (consumer(), chain()));
        let look = || {
            other.0.chain(&other.1);
            kept_chains()
        };
        old.chain(&of_route);
        assert_eq!(look(), 2);
        // One of them is what the source has replaced, one what requests may have held.
        let diff = Diff { replaced: Some(Box::new(of_route)), ..Diff::default() };
        assert_eq!(apply(&model, diff, &mut Nowhere::default()), []);
        assert_eq!(look(), 1);
        let of_route = chain();
        old.chain(&of_route);
        model.state.lock().retire(Some(of_route.clone()));
        model.look_after(Instant::now());
        assert_eq!(look(), 2);
        drop(of_route);
        model.look_after(Instant::now());
        assert_eq!(look(), 1);
    }

    /// All clusters and names of thousands were looked at each second.
    #[test]
    fn names_that_nobody_needs_are_forgotten_in_time() {
        let (model, now) = (Model::default(), Instant::now());
        let names = || format!("{:?}", model.clusters());
        drop(model.clusters().cell("let-go"));
        model.look_after(now);
        assert_eq!(names(), "0 cluster names", "it has come since");
        let held = model.clusters().cell("held");
        model.look_after(now);
        drop(held);
        model.look_after(now);
        assert_eq!(names(), "1 cluster names", "nothing says that it is free");
        (0..ALL_NAMES).for_each(|_| model.look_after(now));
        assert_eq!(names(), "0 cluster names");
    }

    #[test]
    fn clusters_that_find_endpoints_by_themselves_are_tended_while_they_are_in_force() {
        let model = Model::default();
        let mut config = ClusterConfig::named("o");
        config.discovery = crate::cluster::Discovery::OriginalDst(Default::default());
        config.balance.policy =
            crate::cluster::Policy::OriginalDst { cleanup: std::time::Duration::from_secs(5) };
        let cluster = Cluster::new(config, vec![], None, &Registry::new()).unwrap();
        let plain = Cluster::new(ClusterConfig::named("p"), vec![], None, &Registry::new()).unwrap();
        let clusters = vec![("o".into(), Some(cluster.clone())), ("p".into(), Some(plain))];
        assert_eq!(apply(&model, Diff { clusters, ..Diff::default() }, &mut Nowhere::default()), []);
        let destination = Some(([10, 0, 0, 1], 1).into());
        let choice = Choice { destination, ..Choice::avoiding(&[], 0, None, Criteria::NONE) };
        assert!(cluster.choose(&choice).is_some());
        assert_eq!(cluster.stats.membership_total().get(), 0);
        model.look_after(Instant::now());
        assert_eq!((model.state.lock().tended.len(), cluster.stats.membership_total().get()), (1, 1));
        let clusters = vec![("o".into(), None)];
        assert_eq!(apply(&model, Diff { clusters, ..Diff::default() }, &mut Nowhere::default()), []);
        drop(cluster);
        (0..2).for_each(|_| model.look_after(Instant::now()));
        assert_eq!(model.state.lock().tended.len(), 0);
    }

    /// A worker that was held up between the two looks of a request answered 503 NC: the cluster had gone with the
    /// table that it still read.
    #[test]
    fn clusters_go_when_requests_have_passed_that_read_the_table_of_before() {
        let model = Arc::new(Model::default());
        let cluster = |name: &str| Cluster::new(ClusterConfig::named(name), vec![], None, &Registry::new());
        let come = |name: &str| (name.into(), Some(cluster(name).unwrap()));
        let table = || Some(Arc::new(RouteTable::new("t", Default::default(), Vec::new()).unwrap()));
        let (key, seen) = (TableKey::named("t"), Arc::new(Mutex::new(Vec::new())));
        let (cell, before) = (model.route_tables().cell(&key), table());
        let settling: Settling = Box::new({
            let (model, seen, before) = (model.clone(), seen.clone(), before.clone());
            move || {
                let is_old =
                    cell.load().zip(before.clone()).is_some_and(|(now, old)| Arc::ptr_eq(&now, &old));
                seen.lock().push((is_old, model.clusters().find("old").is_some()));
            }
        });
        let mut nowhere = Nowhere(Vec::new(), Some(settling));
        let route_tables = vec![(key.clone(), before)];
        let diff = Diff { clusters: vec![come("old")], route_tables, ..Diff::default() };
        assert_eq!(apply(&model, diff, &mut nowhere), []);
        assert_eq!(*seen.lock(), [], "nothing goes");
        let clusters = vec![come("new"), ("old".into(), None)];
        let diff = Diff { clusters, route_tables: vec![(key, table())], ..Diff::default() };
        assert_eq!(apply(&model, diff, &mut nowhere), []);
        assert_eq!(*seen.lock(), [(false, true)], "the table has gone, and the cluster not yet");
        assert!(model.clusters().find("old").is_none());
    }

    /// The table of a listener that has gone was kept for ever.
    #[test]
    fn a_table_goes_with_the_last_listener_that_has_it() {
        let model = Model::default();
        let (key, mut nowhere) = (TableKey::named("t"), Nowhere::default());
        let table = Arc::new(RouteTable::new("t", Default::default(), Vec::new()).unwrap());
        let (cell, weak) = (model.route_tables().cell(&key), Arc::downgrade(&table));
        let route_tables = vec![(key, Some(table))];
        assert_eq!(apply(&model, Diff { route_tables, ..Diff::default() }, &mut nowhere), []);
        assert_eq!((model.sweep(), weak.strong_count()), (0, 1));
        drop(cell);
        model.sweep();
        assert_eq!((model.route_tables().len(), weak.strong_count()), (0, 0));
    }

    #[test]
    fn listeners_go_before_others_come_and_what_fails_is_named() {
        let model = Model::default();
        let listener = |name: &str| (name.into(), Some(Arc::new(crate::listener::fixture(name))));
        let mut nowhere = Nowhere::default();
        let listeners = vec![listener("a"), listener("taken")];
        let errors = apply(&model, Diff { listeners, ..Diff::default() }, &mut nowhere);
        assert_eq!(errors[0].to_string(), "listener \"taken\": in use");
        assert_eq!(model.listeners().iter().map(|l| &*l.name).collect::<Vec<_>>(), ["a"]);
        let listeners = vec![listener("b"), ("a".into(), None)];
        assert_eq!(apply(&model, Diff { listeners, ..Diff::default() }, &mut nowhere), []);
        assert_eq!(nowhere.0, ["+a", "-a", "+b"]);
        assert_eq!(model.sweep(), 0);
    }

    /// Connections were taken for moments that the listeners they were meant for could not be handed.
    #[test]
    fn listeners_without_a_socket_come_before_those_that_hand_over() {
        let model = Model::default();
        let bound = Listener { bind: true, ..crate::listener::fixture("bound") };
        let listeners = vec![
            ("bound".into(), Some(Arc::new(bound))),
            ("meant".into(), Some(Arc::new(crate::listener::fixture("meant")))),
        ];
        let mut nowhere = Nowhere::default();
        assert_eq!(apply(&model, Diff { listeners, ..Diff::default() }, &mut nowhere), []);
        assert_eq!(nowhere.0, ["+meant", "+bound"]);
    }

    /// Clusters, tables and other listeners of a refused bootstrap were in force, and its removals were done.
    #[test]
    fn of_a_whole_that_has_a_fault_nothing_is_in_force() {
        let model = Model::default();
        let listener = |name: &str| (name.into(), Some(Arc::new(crate::listener::fixture(name))));
        let mut nowhere = Nowhere::default();
        let listeners = vec![listener("a"), listener("gone")];
        assert_eq!(apply(&model, Diff { listeners, whole: true, ..Diff::default() }, &mut nowhere), []);
        nowhere.0.clear();
        let cluster = Cluster::new(ClusterConfig::named("c"), vec![], None, &Registry::new()).unwrap();
        let key = TableKey::named("t");
        let table = Arc::new(RouteTable::new("t", Default::default(), Vec::new()).unwrap());
        let (cell, before) = (model.route_tables().cell(&key), model.listeners());
        let diff = Diff {
            clusters: vec![("c".into(), Some(cluster))],
            route_tables: vec![(key, Some(table))],
            listeners: vec![listener("a"), listener("taken"), ("gone".into(), None)],
            whole: true,
            ..Diff::default()
        };
        let errors = apply(&model, diff, &mut nowhere);
        assert_eq!(
            errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["listener \"taken\": in use"]
        );
        assert!(model.clusters().find("c").is_none() && cell.load().is_none());
        assert!(before.iter().zip(model.listeners()).all(|(before, now)| Arc::ptr_eq(before, &now)));
        assert_eq!(nowhere.0, ["?a", "?taken"]);
    }
}
