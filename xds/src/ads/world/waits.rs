//! What waits for what, and until when.

use super::{Compile, HOLD, LINGER, LINGER_MAX, Need, Resource, Version, World};
use crate::ads::key::Key;
use crate::ads::kind::Kind;
use crate::rds::Source;
use std::sync::Arc;
use std::time::Instant;

impl<C: Compile> World<C> {
    /// When [`World::settle`] or [`World::expire`] may have more to do though nothing has come: after `now`, for what
    /// has ended by then has been acted on, be it one of several waits of one resource.
    pub(in crate::ads) fn deadline(&self, now: Instant) -> Option<Instant> {
        let waits = self.waiting.iter().flat_map(|key| self.ends_of_waits(key));
        let lingering = self.lingering.iter().map(|(name, removed)| self.end_of_lingering(name, *removed));
        let expiry = self.expiries.first().map(|(expires, _)| *expires);
        waits.chain(lingering).chain(expiry).filter(|end| *end > now).min()
    }

    /// Whether a candidate has what it needs, or has waited long enough.
    pub(super) fn is_ready(&self, key: &Key, now: Instant) -> bool {
        let Some(resource) = self.resources.get(key) else { return false };
        let Some(next) = &resource.next else { return false };
        let come = |need: &Need| {
            self.is_there(need) || self.end_of_need(need, resource, next).is_some_and(|end| end <= now)
        };
        next.asks.needs.iter().all(come) && !(now < next.since + HOLD && self.is_held(next))
    }

    /// Whether a candidate leads to clusters that are not there yet, or have gone before they were and the control
    /// plane is about to say what comes in their place.
    fn is_held(&self, next: &Version<C::Part>) -> bool {
        next.asks.clusters.iter().any(|name| self.is_warming(name) || self.is_missed(name))
    }

    /// Whether a resource need not be waited for: in force and nothing newer waits to be, or nothing good comes.
    fn is_there(&self, need: &Need) -> bool {
        let key = need.key();
        if let Some(there) = self.compiler.elsewhere(&key) {
            return there;
        }
        match self.resources.get(&key) {
            Some(resource) => resource.live.is_some() && resource.next.is_none(),
            None => self.denied.contains(&key),
        }
    }

    /// A candidate goes into force, be it without some of what it needs: secrets that have not come need not be waited for
    /// elsewhere either, and routes and endpoints are noted as late.
    pub(super) fn go_on_without(&mut self, candidate: &Key) {
        let next = self.resources.get(candidate).and_then(|resource| resource.next.as_ref());
        let Some(next) = next.filter(|next| !next.asks.needs.is_empty()) else { return };
        let (mut missing, mut late) = (Vec::new(), Vec::new());
        for need in &next.asks.needs {
            match need.kind {
                Kind::Secret if !self.has_come(&need.key()) => missing.push(need.key()),
                Kind::Routes | Kind::Endpoints if !self.is_there(need) => late.push(need.key()),
                _ => {}
            }
        }
        missing.iter().for_each(|key| self.missing(key));
        self.late.append(&mut late);
    }

    /// Whether any version of a secret is in force, or what looks after it elsewhere is over with it.
    fn has_come(&self, secret: &Key) -> bool {
        let come = || self.resources.get(secret).is_some_and(|secret| secret.live.is_some());
        self.compiler.elsewhere(secret).unwrap_or_else(come)
    }

    /// A cluster that comes, and has not yet.
    fn is_warming(&self, name: &Arc<str>) -> bool {
        let resource = self.resources.get(&Key::of_name(Kind::Cluster, name));
        resource.is_some_and(|resource| resource.live.is_none() && resource.next.is_some())
    }

    /// A cluster that has gone before it came.
    fn is_missed(&self, name: &Arc<str>) -> bool {
        self.lingering.contains_key(name) && !self.resources.contains_key(&Key::of_name(Kind::Cluster, name))
    }

    /// What has gone before it came is not waited for any longer than what was there is kept.
    pub(super) fn miss_no_longer(&mut self, now: Instant) {
        let missed = self.lingering.keys().filter(|name| self.is_missed(name));
        let over: Vec<_> = missed.filter(|name| self.is_released(name, now)).cloned().collect();
        for name in over {
            self.lingering.remove(&name);
        }
    }

    /// When the waits of a candidate end.
    fn ends_of_waits(&self, key: &Key) -> impl Iterator<Item = Instant> {
        let resource = self.resources.get(key);
        let next = resource.and_then(|resource| Some((resource, resource.next.as_ref()?)));
        let held = next.filter(|(_, next)| self.is_held(next));
        let needs = next.into_iter().flat_map(move |(resource, next)| {
            let missing = next.asks.needs.iter().filter(move |need| !self.is_there(need));
            missing.filter_map(move |need| self.end_of_need(need, resource, next))
        });
        needs.chain(held.map(|(_, next)| next.since + HOLD))
    }

    /// When a candidate goes on without a resource. Where the control plane says that there is none, Envoy's time is over and
    /// the wait is not: so it is here where something else is in force as long.
    fn end_of_need(
        &self,
        need: &Need,
        resource: &Resource<C::Part>,
        next: &Version<C::Part>,
    ) -> Option<Instant> {
        let serves = resource.live.is_some() && self.withheld.contains(&need.key());
        need.within.filter(|_| !serves).and_then(|within| next.since.checked_add(within))
    }

    /// Whether a removed cluster goes.
    pub(super) fn is_released(&self, cluster: &Arc<str>, now: Instant) -> bool {
        !self.users.has(&Key::of_name(Kind::Cluster, cluster))
            || self
                .lingering
                .get(cluster)
                .is_some_and(|removed| self.end_of_lingering(cluster, *removed) <= now)
    }

    fn end_of_lingering(&self, cluster: &Arc<str>, removed: Instant) -> Instant {
        let end = removed + LINGER_MAX;
        let key = Key::of_name(Kind::Cluster, cluster);
        if !self.is_missed(cluster) && self.is_being_replaced(&key) {
            return end;
        }
        let heard = self.heard.map_or(removed, |heard| heard.max(removed));
        // Files are looked at once a second: those of routes may change with that of the clusters, and be seen later.
        let is_led_to_by_file = self.users.of(&key).any(|user| matches!(user.source, Source::Path(_)));
        let linger = if is_led_to_by_file { LINGER * 2 } else { LINGER };
        (heard + linger).min(end)
    }

    /// Whether something waits to take the place of what names this and is in force, or of what names that.
    fn is_being_replaced(&self, key: &Key) -> bool {
        self.users.of(key).any(|user| {
            let resource = self.resources.get(user);
            resource.is_some_and(|resource| resource.live.is_some() && resource.next.is_some())
                || self.is_being_replaced(user)
        })
    }
}
