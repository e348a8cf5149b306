//! What is known of the values below a prefix, and what of it nobody has looked at yet.

use std::collections::{BTreeMap, BTreeSet};

use super::messages::{Event, KeyValue, RangeResponse, WatchResponse};
use crate::config::EnabledPlugins;
use crate::store::last_good::{Batch, Listed};
use crate::store::{Kept, Key, Notify};

/// Below the prefix, a list of plugins in JSON.
pub(super) const PLUGINS: &str = "plugins";

/// The values as far as they are known.
#[derive(Default)]
pub(super) struct Mirror {
    /// Created and modified revisions.
    known: BTreeMap<Key, (u64, u64)>,
    /// What nobody has looked at yet.
    pending: BTreeMap<Key, Option<Kept>>,
    /// Up to here everything is known: it was read then, or an event of then has come.
    pub(super) revision: u64,
    /// Keys that there are then, strange ones among them; unknown of what was kept of before.
    count: Option<u64>,
    /// The cluster that it is known of; 0 for none.
    pub(super) cluster: u64,
    /// Revisions of different ones are not comparable.
    pub(super) generation: u64,
    /// Whether the list of plugins counts that others keep.
    follows_plugins: bool,
    plugins: Listed,
    plugins_changed: bool,
    /// Whether all values are to be told again: with the next ones that are read.
    asked_anew: bool,
    /// They are among what nobody has looked at yet.
    told_anew: bool,
    /// Whether there is a configuration: it was read, or is that of before.
    pub(super) is_loaded: bool,
    pub(super) notify: Option<Notify>,
}

/// All values below a prefix at one revision.
#[derive(Default)]
pub(super) struct Snapshot {
    pub(super) cluster: u64,
    pub(super) revision: u64,
    /// Keys that there are, if that was read.
    pub(super) count: Option<u64>,
    pub(super) values: BTreeMap<Key, Kept>,
    pub(super) plugins: Listed,
    /// What directories there are, as APISIX makes them.
    pub(super) directories: BTreeSet<String>,
}

/// What nobody has looked at yet.
pub(super) struct Pending {
    pub(super) values: BTreeMap<Key, Option<Kept>>,
    /// The list of plugins, if it is another one than before.
    pub(super) plugins: Option<Listed>,
    /// Whether these are all values, told again.
    pub(super) anew: bool,
}

/// What events have come to.
pub(super) struct Taken {
    pub(super) changed: Batch,
    /// Everything is to be read and told anew: other plugins are enabled.
    pub(super) everything: bool,
}

impl Snapshot {
    /// Takes one value; `path` is its key below the prefix.
    pub(super) fn take(&mut self, path: &str, kv: KeyValue) {
        if let Some(directory) = path.strip_suffix('/') {
            self.directories.insert(directory.to_owned());
        } else if path == PLUGINS {
            self.plugins = EnabledPlugins::of_list(&kv.value);
        } else if let Some(key) = Key::of_path(path) {
            self.values.insert(key, kept(kv));
        }
    }
}

impl Mirror {
    /// Of nothing yet.
    pub(super) fn new(follows_plugins: bool) -> Mirror {
        Mirror { follows_plugins, ..Mirror::default() }
    }

    /// Begins with what was kept of before.
    pub(super) fn begin_with(&mut self, snapshot: Snapshot) {
        self.cluster = snapshot.cluster;
        self.is_loaded = true;
        self.replace(snapshot);
    }

    /// Takes all values, and answers what is different.
    pub(super) fn replace(&mut self, snapshot: Snapshot) -> Batch {
        let Snapshot { cluster, revision, count, values, plugins, .. } = snapshot;
        let others = cluster != self.cluster || revision < self.revision;
        let anew = std::mem::take(&mut self.asked_anew);
        self.told_anew |= anew;
        let mut all = others || anew;
        if others {
            self.generation += 1;
        }
        let mut changed = Batch { revision, cluster, ..Batch::default() };
        if self.follows_plugins && plugins != self.plugins {
            changed.plugins = Some(plugins.clone());
            (self.plugins, self.plugins_changed, all) = (plugins, true, true);
        }
        let gone: Vec<Key> = self.known.keys().filter(|key| !values.contains_key(key)).cloned().collect();
        for key in gone {
            self.known.remove(&key);
            self.pending.insert(key.clone(), None);
            changed.values.insert(key, None);
        }
        for (key, kept) in values {
            let revisions = (kept.created, kept.modified);
            let is_new = self.known.get(&key) != Some(&revisions);
            self.known.insert(key.clone(), revisions);
            if is_new || all {
                self.pending.insert(key.clone(), Some(kept.clone()));
            }
            if is_new || others {
                changed.values.insert(key, Some(kept));
            }
        }
        (self.revision, self.cluster, self.is_loaded) = (revision, cluster, true);
        self.count = count;
        changed
    }

    /// Whether everything is as it was at the revision `known`, by an answer about what has changed since: then nothing has,
    /// and no key is gone if there are as many. It is so at the revision of the answer.
    pub(super) fn is_as_at(&mut self, known: u64, changed: &RangeResponse) -> bool {
        let header = changed.header.clone().unwrap_or_default();
        let revision = unsigned(header.revision);
        let same = (known, header.cluster_id) == (self.revision, self.cluster)
            && revision >= known
            && changed.kvs.is_empty()
            && self.count == Some(unsigned(changed.count));
        if same {
            self.revision = revision;
        }
        same
    }

    /// Takes what a watch tells; `path_of` answers what a key is called below the prefix.
    ///
    /// Only events say how far the watch is. etcd answers a question about progress out of step with them (before 3.4.25 and
    /// 3.5.8): events of the revision in its header, and of earlier ones, may still be to come.
    pub(super) fn take(
        &mut self,
        response: WatchResponse,
        path_of: impl Fn(&[u8]) -> Option<String>,
    ) -> Taken {
        let mut taken =
            Taken { changed: Batch { cluster: self.cluster, ..Batch::default() }, everything: false };
        let mut reached = self.revision;
        for Event { kind, kv } in response.events {
            let Some(kv) = kv else { continue };
            let revision = unsigned(kv.mod_revision);
            // A connection to another member may begin with what is known.
            if revision <= self.revision {
                continue;
            }
            // All events of one revision come together.
            reached = reached.max(revision);
            self.count = match kind {
                0 if kv.create_revision == kv.mod_revision => self.count.map(|count| count.saturating_add(1)),
                0 => self.count,
                _ => self.count.map(|count| count.saturating_sub(1)),
            };
            let (Some(path), is_put) = (path_of(&kv.key), kind == 0) else { continue };
            if path == PLUGINS && self.follows_plugins {
                let told = is_put.then(|| EnabledPlugins::of_list(&kv.value)).flatten();
                taken.everything |= told != self.plugins;
            }
            let Some(key) = Key::of_path(&path) else { continue };
            let value = is_put.then(|| kept(kv));
            match &value {
                Some(kept) => drop(self.known.insert(key.clone(), (kept.created, kept.modified))),
                None if self.known.remove(&key).is_none() => continue,
                None => {}
            }
            self.pending.insert(key.clone(), value.clone());
            taken.changed.values.insert(key, value);
        }
        self.revision = reached;
        taken.changed.revision = reached;
        taken
    }

    /// The keys that there are.
    pub(super) fn keys(&self) -> BTreeSet<Key> {
        self.known.keys().cloned().collect()
    }

    /// Has all values told again, when they are read next.
    pub(super) fn ask_anew(&mut self) {
        self.asked_anew = true;
    }

    /// Whether somebody waits for them to be read.
    pub(super) fn is_asked_anew(&self) -> bool {
        self.asked_anew
    }

    /// What nobody has looked at yet.
    pub(super) fn pending(&mut self) -> Pending {
        Pending {
            values: std::mem::take(&mut self.pending),
            plugins: std::mem::take(&mut self.plugins_changed).then(|| self.plugins.clone()),
            anew: std::mem::take(&mut self.told_anew),
        }
    }

    pub(super) fn has_pending(&self) -> bool {
        self.plugins_changed || self.told_anew || !self.pending.is_empty()
    }
}

/// A value of etcd in ours.
pub(super) fn kept(kv: KeyValue) -> Kept {
    let (created, modified) = (unsigned(kv.create_revision), unsigned(kv.mod_revision));
    Kept { value: kv.value, created, modified }
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::messages::ResponseHeader;
    use super::*;
    use crate::config::PluginNames;

    fn kv(key: &str, created: i64, modified: i64) -> KeyValue {
        let (key, value) = (key.to_owned().into(), "{}".into());
        KeyValue { key, create_revision: created, mod_revision: modified, value }
    }

    fn snapshot(cluster: u64, revision: u64, kvs: &[(&str, i64, i64)]) -> Snapshot {
        let mut snapshot = Snapshot { cluster, revision, ..Snapshot::default() };
        for (path, created, modified) in kvs {
            snapshot.take(path, kv(path, *created, *modified));
        }
        snapshot
    }

    fn told(mirror: &mut Mirror) -> Vec<String> {
        let pending = mirror.pending().values.into_iter();
        pending.map(|(key, kept)| format!("{}{key}", if kept.is_some() { '+' } else { '-' })).collect()
    }

    fn path_of(key: &[u8]) -> Option<String> {
        Some(String::from_utf8(key.to_vec()).unwrap())
    }

    #[test]
    fn reading_everything_again_tells_what_is_different() {
        let mut mirror = Mirror::default();
        let directories = ("routes/", 1, 1);
        mirror.begin_with(snapshot(7, 5, &[("routes/a", 2, 2), ("routes/b", 3, 3), directories]));
        assert_eq!(told(&mut mirror), ["+route \"a\"", "+route \"b\""]);
        let changed = mirror.replace(snapshot(7, 9, &[("routes/b", 3, 8), ("routes/c", 9, 9)]));
        assert_eq!(told(&mut mirror), ["-route \"a\"", "+route \"b\"", "+route \"c\""]);
        assert_eq!((changed.values.len(), changed.revision, mirror.generation), (3, 9, 0));
        mirror.replace(snapshot(7, 9, &[("routes/b", 3, 8), ("routes/c", 9, 9)]));
        assert_eq!(told(&mut mirror), [""; 0]);
        // Another cluster, and one that was put back to how it was, may have other values at the same revisions.
        for (cluster, revision) in [(8, 9), (8, 8)] {
            mirror.replace(snapshot(cluster, revision, &[("routes/b", 3, 8)]));
            assert!(told(&mut mirror).contains(&"+route \"b\"".to_owned()));
        }
        assert_eq!((mirror.generation, mirror.revision), (2, 8));
    }

    fn events(events: Vec<Event>) -> WatchResponse {
        WatchResponse { events, ..WatchResponse::default() }
    }

    /// An answer about progress counted as if everything up to it had come: what came late was passed over for good.
    #[test]
    fn events_that_come_after_an_answer_about_progress_are_told() {
        let mut mirror = Mirror::default();
        mirror.begin_with(snapshot(7, 5, &[("consumers/a", 2, 2)]));
        told(&mut mirror);
        let header = Some(ResponseHeader { revision: 9, ..ResponseHeader::default() });
        let taken = mirror.take(WatchResponse { header, ..WatchResponse::default() }, path_of);
        assert_eq!((mirror.revision, taken.changed.revision, mirror.has_pending()), (5, 5, false));
        let deleted = Event { kind: 1, kv: Some(kv("consumers/a", 2, 8)) };
        let taken = mirror.take(events(vec![deleted]), path_of);
        assert_eq!(told(&mut mirror), ["-consumer \"a\""]);
        assert_eq!((mirror.revision, taken.changed.revision, taken.changed.values.len()), (8, 8, 1));
    }

    /// Beside others who write to the cluster, a gateway without changes of its own read everything after each interruption.
    #[test]
    fn what_nobody_has_changed_is_known_at_a_later_revision() {
        let changed = |revision, count, kvs: &[(&str, i64, i64)]| RangeResponse {
            header: Some(ResponseHeader { revision, cluster_id: 7 }),
            kvs: kvs.iter().map(|(key, created, modified)| kv(key, *created, *modified)).collect(),
            count,
            ..RangeResponse::default()
        };
        let mut mirror = Mirror::default();
        let kept = [("routes/a", 2, 2), ("routes/b", 3, 3), ("routes/", 1, 1)];
        mirror.begin_with(snapshot(7, 5, &kept));
        assert!(!mirror.is_as_at(5, &changed(50, 3, &[])), "nobody has counted");
        mirror.replace(Snapshot { count: Some(3), ..snapshot(7, 6, &kept) });
        let event = |kind, key: &str, created, revision| Event { kind, kv: Some(kv(key, created, revision)) };
        let all = vec![event(0, "routes/a", 2, 7), event(0, "gen_id", 8, 8), event(0, "routes/c", 9, 9)];
        mirror.take(events(all), path_of);
        mirror.take(events(vec![event(1, "routes/b", 0, 10)]), path_of);
        for (known, answer) in [
            (10, changed(50, 3, &[])),
            (10, changed(50, 4, &[("routes/d", 11, 11)])),
            (10, changed(9, 4, &[])),
            (9, changed(50, 4, &[])),
        ] {
            assert!(!mirror.is_as_at(known, &answer), "{answer:?}");
        }
        assert!(!mirror.is_as_at(10, &RangeResponse { header: None, ..changed(50, 4, &[]) }));
        assert_eq!(mirror.revision, 10);
        assert!(mirror.is_as_at(10, &changed(50, 4, &[])));
        assert_eq!(mirror.revision, 50);
    }

    #[test]
    fn events_are_told_once_and_strange_keys_passed_over() {
        let mut mirror = Mirror::default();
        mirror.begin_with(snapshot(7, 5, &[("routes/a", 2, 2)]));
        told(&mut mirror);
        let event = |kind, key: &str, revision| Event { kind, kv: Some(kv(key, 2, revision)) };
        let all = vec![
            event(0, "routes/a", 4),
            event(0, "routes/a", 6),
            event(0, "gen_id", 7),
            event(0, "routes/", 8),
            event(1, "routes/never", 9),
            event(0, "plugins", 9),
        ];
        let taken = mirror.take(events(all), path_of);
        assert_eq!(taken.changed.values.len(), 1);
        assert!(!taken.everything);
        assert_eq!(told(&mut mirror), ["+route \"a\""]);
        assert_eq!((mirror.revision, taken.changed.revision), (9, 9));
        assert!(mirror.take(events(vec![event(1, "routes/a", 9)]), path_of).changed.values.is_empty());
        mirror.take(events(vec![event(1, "routes/a", 10)]), path_of);
        assert_eq!(told(&mut mirror), ["-route \"a\""]);
    }

    #[test]
    fn who_follows_the_list_of_plugins_reads_everything_anew() {
        let mut mirror = Mirror::new(true);
        let with_plugins = |list: &'static str| {
            let mut snapshot = snapshot(7, 5, &[("routes/a", 2, 2)]);
            snapshot.take("plugins", KeyValue { value: list.into(), ..kv("plugins", 3, 3) });
            snapshot
        };
        mirror.begin_with(with_plugins(r#"[{"name":"cors"},{"name":"mqtt-proxy","stream":true}]"#));
        let Pending { values: pending, plugins, .. } = mirror.pending();
        let enabled = |http: &str, streams: &[&str]| EnabledPlugins {
            http: Some(PluginNames::from_iter([http])),
            streams: Some(streams.iter().copied().collect()),
        };
        assert_eq!((pending.len(), plugins), (1, Some(Some(enabled("cors", &["mqtt-proxy"])))));
        let value = || KeyValue { value: r#"[{"name":"echo"}]"#.into(), ..kv("plugins", 3, 6) };
        assert!(mirror.take(events(vec![Event { kind: 0, kv: Some(value()) }]), path_of).everything);
        let changed = mirror.replace(with_plugins(r#"[{"name":"echo"}]"#));
        assert_eq!(mirror.pending().plugins, Some(Some(enabled("echo", &[]))));
        assert_eq!(changed.plugins, Some(Some(enabled("echo", &[]))));
        // Those of streams count as much.
        let changed = mirror.replace(with_plugins(r#"[{"name":"echo"},{"name":"syslog","stream":true}]"#));
        assert_eq!(mirror.pending().plugins, Some(Some(enabled("echo", &["syslog"]))));
        assert_eq!((changed.plugins, changed.values.len()), (Some(Some(enabled("echo", &["syslog"]))), 0));
    }

    #[test]
    fn all_values_are_told_again_to_whoever_asks_once_they_were_read() {
        let mut mirror = Mirror::default();
        let read = |revision| snapshot(7, revision, &[("routes/a", 2, 2), ("routes/b", 3, 3)]);
        mirror.replace(read(5));
        assert!(!mirror.pending().anew);
        mirror.ask_anew();
        assert!(!mirror.has_pending() && mirror.is_asked_anew());
        // Meanwhile changes are told as before.
        mirror.take(events(vec![Event { kind: 0, kv: Some(kv("routes/c", 6, 6)) }]), path_of);
        let pending = mirror.pending();
        assert_eq!((pending.values.len(), pending.anew), (1, false));
        let changed = mirror.replace(read(7));
        let pending = mirror.pending();
        assert_eq!((pending.values.len(), pending.anew), (3, true), "and one that went");
        assert_eq!(changed.values.len(), 1, "nothing else is another value");
        mirror.replace(read(7));
        assert!(!mirror.has_pending() && !mirror.is_asked_anew());
    }
}
