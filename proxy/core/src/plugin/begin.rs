//! What plugins begin by themselves when they go into force: building them begins nothing, since what is built may be
//! refused.

use super::{Chain, Member};
use std::sync::Arc;

/// What one plugin begins.
pub(super) type Begin = Arc<dyn Fn() + Send + Sync>;

/// What the plugins of a part of the configuration begin. Nearly always nothing.
#[derive(Clone, Default)]
pub(crate) struct Begins(Box<[Begin]>);

impl Begins {
    /// What these begin, each of them once.
    pub(super) fn new(all: impl Iterator<Item = Begin>) -> Begins {
        let mut all: Vec<_> = all.collect();
        if all.len() > 1 {
            all.sort_by_key(|begin| Arc::as_ptr(begin).cast::<()>());
            all.dedup_by_key(|begin| Arc::as_ptr(begin).cast::<()>());
        }
        Begins(all.into())
    }

    /// What these plugins begin.
    pub(super) fn of_members(members: &[Member]) -> Begins {
        Begins::new(members.iter().flat_map(|member| member.plugin.begins.iter().cloned()))
    }

    /// What the plugins of these chains begin.
    pub(crate) fn of_chains<'a>(chains: impl Iterator<Item = &'a Arc<Chain>>) -> Begins {
        Begins::all(chains.map(|chain| chain.begins()))
    }

    /// What all of these begin.
    pub(crate) fn all<'a>(parts: impl Iterator<Item = &'a Begins>) -> Begins {
        Begins::new(parts.flat_map(|part| part.0.iter().cloned()))
    }

    /// Whether that is nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Has them begin.
    pub(crate) fn begin(&self) {
        self.0.iter().for_each(|begin| begin());
    }
}

impl std::fmt::Debug for Begins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} that begin something", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::plugin::{ChainBuilder, Consumer, Consumers, Identity, Part, Plugin};
    use crate::route::{Action, PathMatch, Route};
    use crate::router::{HostRoutes, RouteTable, RouteTableCell, TableKey, TableOptions, VirtualHostOptions};
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    fn counting(count: &Arc<AtomicU32>) -> Plugin {
        Plugin::of(count.clone())
            .in_force(|count| {
                count.fetch_add(1, Relaxed);
            })
            .build()
    }

    fn chain_of(plugin: Plugin) -> Arc<Chain> {
        let mut chain = ChainBuilder::new();
        chain.add("counting", plugin);
        Arc::new(chain.build())
    }

    /// A table of these chains: of two routes and of their virtual host.
    fn table(chains: [&Arc<Chain>; 3]) -> Option<Arc<RouteTable>> {
        let [one, two, host] = chains.map(|chain| Some(chain.clone()));
        let route = |chain| {
            let path = PathMatch::Prefix(b"/"[..].into(), false);
            Arc::new(Route { chain, ..Route::new(path, Action::NonForwarding) })
        };
        let options = VirtualHostOptions { chain: host, ..VirtualHostOptions::default() };
        let host = HostRoutes::new("v", options, vec![route(one), route(two)]);
        let hosts = vec![(vec!["*".to_owned()], host)];
        Some(Arc::new(RouteTable::new("t", TableOptions::default(), hosts).unwrap()))
    }

    #[test]
    fn plugins_begin_when_a_table_is_in_force_and_each_once() {
        let (shared, own) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let begun = || (shared.load(Relaxed), own.load(Relaxed));
        let (of_two, of_one) = (chain_of(counting(&shared)), chain_of(counting(&own)));
        let cell = RouteTableCell::new(TableKey::named("t"), None);
        cell.swap(table([&of_two, &of_two, &of_one]));
        assert_eq!(begun(), (0, 0), "no listener has it");
        cell.enter();
        assert_eq!(begun(), (1, 1));
        cell.swap(table([&of_one, &of_one, &of_one]));
        assert_eq!(begun(), (1, 2));
        cell.swap(None);
        assert_eq!(begun(), (1, 2));
    }

    #[test]
    fn plugins_of_consumers_begin_when_those_come() {
        let count = Arc::new(AtomicU32::new(0));
        let consumer = |name: &str, plugins| {
            let consumer = Arc::new(Consumer::new(name.into(), None, plugins));
            let identity = Arc::new(Identity::new(consumer, None, Arc::new(())));
            (Box::from(name.as_bytes()), identity)
        };
        let of_two = chain_of(counting(&count));
        let jack = consumer("jack", of_two.members().to_vec());
        let (rose, jim) = (consumer("rose", of_two.members().to_vec()), consumer("jim", Vec::new()));
        let consumers = Consumers::default();
        let put = |all: &[&(Box<[u8]>, Arc<Identity>)]| {
            let by_name = all.iter().map(|entry| (*entry).clone()).collect();
            let change = consumers.change(by_name, Default::default());
            let before = count.load(Relaxed);
            drop(change.put_in_force());
            count.load(Relaxed) - before
        };
        drop(consumers.change([jack.clone()].into_iter().collect(), Default::default()));
        assert_eq!(count.load(Relaxed), 0, "nobody put them in force");
        assert_eq!(put(&[&jack, &jim]), 1);
        assert_eq!(put(&[&jack]), 0, "it is there already");
        assert_eq!(put(&[&jack, &rose]), 1);
    }

    #[test]
    fn so_do_plugins_that_are_parts_of_another() {
        let count = Arc::new(AtomicU32::new(0));
        let plugin = Plugin::of(count.clone())
            .access(|_, _, _| crate::plugin::Step::Continue)
            .in_force(|count| {
                count.fetch_add(1, Relaxed);
            })
            .build();
        let chain = chain_of(Plugin::of_parts(vec![Part::new("part", 0, 0, &plugin)]));
        assert_eq!(count.load(Relaxed), 0);
        chain.begin();
        assert_eq!(count.load(Relaxed), 1);
    }
}
