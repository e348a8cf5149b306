//! Which filters of Envoy a request runs, settled by its first route (common/http/filter_chain_helper.cc looks at
//! `disabled` when the chain is made): a route that is chosen again gives the filters their settings, takes none away and
//! brings none.

use super::{Chain, ChainBuilder, Member};
use arc_swap::ArcSwap;
use std::sync::Arc;

/// Chains for other routes' filters that one chain keeps; what is beyond is made for each request.
const MOST_KEPT: usize = 64;

/// Indices of filters, ascending.
type Filters = Box<[i64]>;

/// Chains by the filters that they run.
type Made = Vec<(Filters, Arc<Chain>)>;

/// What a chain knows of filters that it does not run.
#[derive(Default)]
pub(super) struct Settled {
    /// Those that are off, with the settings of this chain's route.
    own: Box<[Member]>,
    /// Every filter as the connection manager configures it; nothing where all are on.
    all: Arc<[Member]>,
    /// The same chain for requests whose first route had other filters on. Workers look at it without waiting for each other.
    made: ArcSwap<Made>,
}

impl Settled {
    pub(super) fn new(own: Vec<Member>, all: Arc<[Member]>) -> Settled {
        Settled { own: own.into(), all, made: ArcSwap::default() }
    }

    /// A filter that is off, as it would be if it were on.
    fn off(&self, filter: i64) -> Option<&Member> {
        let all = self.own.iter().chain(&*self.all);
        all.into_iter().find(|member| member.position.filter() == filter)
    }
}

impl Chain {
    /// The chain of a route that was chosen in the place of the one whose chain is `before`: the filters that are on there,
    /// with this one's settings; `None` if that is this very chain.
    pub fn with_filters_of(&self, before: &Chain) -> Option<Arc<Chain>> {
        if !self.is_of_filters() || !before.is_of_filters() || self.filters_on().eq(before.filters_on()) {
            return None;
        }
        let on: Filters = before.filters_on().collect();
        let kept =
            |made: &Made| made.iter().find(|(filters, _)| *filters == on).map(|(_, chain)| chain.clone());
        let made = &self.settled().made;
        if let Some(chain) = kept(&made.load()) {
            return Some(chain);
        }
        let chain = Arc::new(self.of(&on));
        // What was off has not begun anything.
        chain.begin();
        // Without room nothing is written: workers would only take turns with copies of what is there.
        if made.load().len() >= MOST_KEPT {
            return Some(chain);
        }
        made.rcu(|made| {
            // Another worker may have been first.
            let room = made.len() < MOST_KEPT && kept(made).is_none();
            let mut next = Made::clone(made);
            next.extend(room.then(|| (on.clone(), chain.clone())));
            next
        });
        let first = kept(&made.load());
        Some(first.unwrap_or(chain))
    }

    /// The indices of its filters.
    fn filters_on(&self) -> impl Iterator<Item = i64> {
        let parts = self.members().chunk_by(|a, b| a.position.filter() == b.position.filter());
        parts.filter_map(|parts| Some(parts.first()?.position.filter()))
    }

    /// These filters of it, whether they are on or not.
    fn of(&self, filters: &[i64]) -> Chain {
        let mut chain = ChainBuilder::new().reverse_response();
        for filter in filters {
            let mut own =
                self.members().iter().filter(|member| member.position.filter() == *filter).peekable();
            match own.peek() {
                // Its parts have their places.
                Some(_) => own.for_each(|member| chain.push(member.clone())),
                None => self.settled().off(*filter).into_iter().for_each(|member| chain.push(member.clone())),
            }
        }
        chain.build()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::plugin::{Plugin, Position};

    fn member(filter: u16, name: &str) -> Member {
        Member {
            name: name.into(),
            position: Position::of_filter(filter),
            plugin: Arc::new(Plugin::default()),
        }
    }

    /// A chain of these filters, with those that are off and have settings of the route.
    fn chain(on: &[(u16, &str)], own: &[(u16, &str)]) -> Chain {
        let mut chain = ChainBuilder::new().reverse_response();
        on.iter().for_each(|(filter, name)| chain.push(member(*filter, name)));
        let own = own.iter().map(|(filter, name)| member(*filter, name)).collect();
        let all = (0..3).map(|filter| member(filter, "manager"));
        chain.off(own, all.collect());
        chain.build()
    }

    fn names(chain: &Chain) -> Vec<(i64, &str)> {
        chain.members().iter().map(|member| (member.position.filter(), &*member.name)).collect()
    }

    #[test]
    fn the_first_route_settles_which_filters_run_and_the_present_one_their_settings() {
        let first = chain(&[(0, "first"), (2, "first")], &[]);
        // The route turns one off that was on and configures it, leaves one off, and turns one on.
        let again = chain(&[(0, "again"), (1, "again")], &[(2, "again")]);
        let made = again.with_filters_of(&first).unwrap();
        assert_eq!(names(&made), [(0, "again"), (2, "again")]);
        assert!(Arc::ptr_eq(&made, &again.with_filters_of(&first).unwrap()), "made once");
        // What no level says is the connection manager's.
        let bare = chain(&[], &[]);
        assert_eq!(names(&bare.with_filters_of(&made).unwrap()), [(0, "manager"), (2, "manager")]);
        assert!(again.with_filters_of(&chain(&[(0, "x"), (1, "x")], &[])).is_none(), "the same filters");
    }

    /// They waited for each other at every such request.
    #[test]
    fn workers_have_one_chain_and_no_more_than_so_many_are_kept() {
        let again = chain(&[(0, "again")], &[]);
        let firsts = [chain(&[(1, "first")], &[]), chain(&[(1, "first"), (2, "first")], &[])];
        let worker = || firsts.each_ref().map(|first| again.with_filters_of(first).unwrap());
        let all: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        for made in &all {
            assert!(made.iter().zip(&all[0]).all(|(one, other)| Arc::ptr_eq(one, other)));
        }
        for filters in 0..70 {
            let on: Vec<_> =
                (1..8).filter(|bit| (filters >> (bit - 1)) & 1 == 1).map(|bit| (bit, "first")).collect();
            assert!(again.with_filters_of(&chain(&on, &[])).is_some(), "{filters}");
        }
        assert_eq!(again.settled().made.load().len(), MOST_KEPT);
    }

    #[test]
    fn chains_of_plugins_are_as_their_routes_say() {
        let mut plugins = ChainBuilder::new();
        plugins.push(member(1, "plugin"));
        assert!(ChainBuilder::new().build().with_filters_of(&plugins.build()).is_none());
    }
}
