//! What every store that is written to must do. The module above says what the words are: tests of another crate ask the same
//! of stores that only they can reach.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::{Action, Change, EnabledPlugins, Key, Kind, Sink, Store, StoreError, StoreExt, Write};

const PATIENCE: Duration = Duration::from_secs(20);

/// What a store has told: text and order of each key.
#[derive(Default)]
struct Told(BTreeMap<String, Option<(String, u64)>>);

impl Sink for Told {
    fn plugins(&mut self, _: Option<EnabledPlugins>) {}

    fn change(&mut self, change: Change) {
        let value = change.value.map(|value| value.read().unwrap().to_json().to_string());
        self.0.insert(change.key.to_string(), value.map(|value| (value, change.order)));
    }

    fn start_over(&mut self) {
        self.0.clear();
    }
}

pub(crate) fn told(store: &dyn Store) -> BTreeMap<String, Option<(String, u64)>> {
    let mut told = Told::default();
    store.changes(&mut told).unwrap();
    told.0
}

pub(crate) fn key(id: &str) -> Key {
    Key::new(Kind::Route, id)
}

pub(crate) fn put(key: &Key, value: &'static str) -> Write {
    Write::put(key.clone(), value.into())
}

/// Everything that the Admin API and a source ask of a store.
pub(crate) fn conforms(store: &dyn Store) {
    values_are_kept_with_their_revisions(store);
    writes_are_done_together_or_not_at_all(store);
    changes_are_told_once(store);
    values_end(store);
    credentials_go_with_their_consumer(store);
    many_write_at_once(store);
    let mut ids: Vec<u64> = (0..3).map(|_| store.next_id().unwrap()).collect();
    ids.push(store.put(&key("ids"), "{}".into()).unwrap());
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
}

fn values_are_kept_with_their_revisions(store: &dyn Store) {
    let (a, b) = (key("a"), key("b"));
    assert_eq!(store.get(&a), Ok(None));
    let first = store.commit(vec![put(&a, "{}")]).unwrap();
    assert_eq!(first.replaced, [false]);
    let second = store.commit(vec![put(&a, r#"{"x":1}"#), put(&b, "{}")]).unwrap();
    assert_eq!(second.replaced, [true, false]);
    assert!(second.revision > first.revision);
    let kept = store.get(&a).unwrap().unwrap();
    assert_eq!((kept.created, kept.modified), (first.revision, second.revision));
    assert_eq!(kept.value, r#"{"x":1}"#);
    // Another kind with the same id, and names that begin alike, are others.
    store.put(&Key::new(Kind::Upstream, "a"), "{}".into()).unwrap();
    store.put(&Key::new(Kind::Consumer, "jack"), "{}".into()).unwrap();
    store.put(&Key::of_credential("jack", "one"), "{}".into()).unwrap();
    let ids = |kind| -> Vec<String> {
        store.list(kind).unwrap().iter().map(|(key, _)| key.id.to_string()).collect()
    };
    assert_eq!(ids(Kind::Route), ["a", "b"]);
    assert_eq!(
        (ids(Kind::Consumer), ids(Kind::Credential)),
        (vec!["jack".into()], vec!["jack/credentials/one".into()])
    );
    assert_eq!(ids(Kind::Service), [""; 0]);
    assert_eq!(store.delete(&b), Ok(true));
    assert_eq!(store.delete(&b), Ok(false));
    assert_eq!((store.get(&b), ids(Kind::Route)), (Ok(None), vec!["a".to_owned()]));
}

fn writes_are_done_together_or_not_at_all(store: &dyn Store) {
    let (a, n) = (key("a"), key("n"));
    let kept = store.get(&a).unwrap().unwrap();
    let at = |write: Write, expected| Write { expected: Some(expected), ..write };
    let stale = store.commit(vec![put(&n, "{}"), at(put(&a, "{}"), kept.modified - 1)]);
    assert_eq!(stale, Err(StoreError::Changed));
    assert_eq!((store.get(&n), store.get(&a)), (Ok(None), Ok(Some(kept.clone()))));
    // 0: there is none yet.
    assert_eq!(store.commit(vec![at(put(&a, "{}"), 0)]), Err(StoreError::Changed));
    store.commit(vec![at(put(&n, "{}"), 0), at(Write::delete(a.clone()), kept.modified)]).unwrap();
    assert_eq!(store.get(&a), Ok(None));
    // What comes again is new.
    let again = store.put(&a, "{}".into()).unwrap();
    assert_eq!(store.get(&a).unwrap().unwrap().created, again);
}

fn changes_are_told_once(store: &dyn Store) {
    assert!(told(store).contains_key("route \"a\""));
    assert_eq!(told(store), BTreeMap::new());
    let (said, calls) = channel();
    let watch = store
        .watch(Arc::new(move || {
            let _ = said.send(());
        }))
        .unwrap();
    let created = store.get(&key("a")).unwrap().unwrap().created;
    store.put(&key("a"), r#"{"x":1}"#.into()).unwrap();
    store.put(&key("a"), r#"{"x":2}"#.into()).unwrap();
    store.delete(&key("n")).unwrap();
    calls.recv_timeout(PATIENCE).unwrap();
    let changes = told(store);
    assert_eq!(changes["route \"a\""], Some((r#"{"x":2}"#.to_owned(), created)));
    assert_eq!(changes["route \"n\""], None);
    assert_eq!(changes.len(), 2);
    drop(watch);
    store.put(&key("n"), "{}".into()).unwrap();
    // What came while nobody watched is told to whoever watches next.
    let (said, calls) = channel();
    let _watch = store.watch(Arc::new(move || {
        let _ = said.send(());
    }));
    calls.recv_timeout(PATIENCE).unwrap();
    assert_eq!(told(store).len(), 1);
}

fn values_end(store: &dyn Store) {
    let (short, kept) = (key("short"), key("kept"));
    let for_so_long = |key: &Key, millis| Write {
        action: Action::Put("{}".into(), Some(Duration::from_millis(millis))),
        ..put(key, "{}")
    };
    store.commit(vec![for_so_long(&short, 150), for_so_long(&kept, 100)]).unwrap();
    // A later value without a time stays.
    store.put(&kept, "{}".into()).unwrap();
    assert!(store.get(&short).unwrap().is_some());
    let start = Instant::now();
    while store.get(&short).unwrap().is_some() {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(store.get(&kept).unwrap().is_some());
    // Of a store elsewhere that comes by another way.
    let mut changes = told(store);
    while changes.get("route \"short\"") != Some(&None) {
        assert!(start.elapsed() < PATIENCE, "{changes:?}");
        std::thread::sleep(Duration::from_millis(5));
        changes.extend(told(store));
    }
}

/// Those that were put while their consumer was removed stayed, and were those of the next one of its name.
fn credentials_go_with_their_consumer(store: &dyn Store) {
    let consumer = |name: &str| Key::new(Kind::Consumer, name);
    for name in ["ann", "annie"] {
        store.put(&consumer(name), "{}".into()).unwrap();
        for id in ["one", "two"] {
            store.put(&Key::of_credential(name, id), "{}".into()).unwrap();
        }
    }
    let of = |name: &str| -> Vec<String> {
        store.credentials(name).unwrap().iter().map(|(key, _)| key.id.to_string()).collect()
    };
    assert_eq!(of("annie"), ["annie/credentials/one", "annie/credentials/two"]);
    told(store);
    let kept = store.get(&consumer("ann")).unwrap().unwrap();
    let with = |revision| {
        let one = Write::put(Key::of_credential("ann", "three"), "{}".into());
        store.commit(vec![one, Write::keep(consumer("ann"), revision)])
    };
    assert_eq!(with(kept.modified - 1), Err(StoreError::Changed));
    assert_eq!(with(kept.modified).unwrap().replaced, [false, true]);
    assert_eq!(store.get(&consumer("ann")).unwrap(), Some(kept.clone()));
    assert_eq!(store.commit(vec![Write::delete(consumer("ann"))]).unwrap().replaced, [true]);
    assert_eq!(with(kept.modified), Err(StoreError::Changed));
    assert_eq!((of("ann"), of("annie").len()), (Vec::new(), 2));
    let changes = told(store);
    assert_eq!(changes.keys().filter(|key| key.contains("ann/credentials/")).count(), 3, "{changes:?}");
    assert!(changes.values().all(Option::is_none), "{changes:?}");
}

pub(crate) fn many_write_at_once(store: &dyn Store) {
    const EACH: usize = 50;
    std::thread::scope(|scope| {
        for writer in 0..8 {
            scope.spawn(move || {
                for n in 0..EACH {
                    store.put(&key(&format!("many-{writer}-{n}")), "{}".into()).unwrap();
                }
            });
        }
    });
    let many = store.list(Kind::Route).unwrap();
    let many: Vec<u64> = many
        .iter()
        .filter(|(key, _)| key.id.as_str().starts_with("many-"))
        .map(|(_, kept)| kept.created)
        .collect();
    assert_eq!(many.iter().collect::<BTreeSet<_>>().len(), 8 * EACH);
    assert_eq!(many.len(), 8 * EACH);
}
