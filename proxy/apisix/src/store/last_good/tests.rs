//! What is kept, lent and tried again.

#![allow(clippy::unwrap_used)]
use super::*;
use crate::resource::Kind;
use crate::store::conformance::{Disk, OnDisk};
use crate::testing::Folder;
use std::sync::atomic::Ordering::SeqCst;

fn batch(revision: u64, changes: &[(&str, bool)]) -> Batch {
    let kept = || Kept { value: "{}".into(), created: 3, modified: revision };
    let change = |(id, is_put): &(&str, bool)| (Key::new(Kind::Route, *id), is_put.then(kept));
    Batch { values: changes.iter().map(change).collect(), revision, cluster: 7, ..Batch::default() }
}

fn ids(found: Option<Found>) -> Vec<String> {
    found.unwrap().values.keys().map(|key| key.id.to_string()).collect()
}

#[test]
fn what_was_read_last_is_there_at_the_next_start() {
    let folder = Folder::new("last-good-next");
    let (file, none) = LastGood::open(&folder.file("etcd.redb"), "/apisix").unwrap();
    assert!(none.is_none());
    file.keep(batch(5, &[("a", true), ("b", true)]), BTreeSet::new);
    file.keep(batch(6, &[("b", false), ("c", true)]), BTreeSet::new);
    drop(file);
    let (file, found) = LastGood::open(&folder.file("etcd.redb"), "/apisix").unwrap();
    let found = found.unwrap();
    assert_eq!((found.revision, found.cluster, found.values.len()), (6, 7, 2));
    let a = &found.values[&Key::new(Kind::Route, "a")];
    assert_eq!((a.created, a.modified, &*a.value), (3, 5, &b"{}"[..]));
    drop(file);
    // Another prefix has other values.
    assert!(LastGood::open(&folder.file("etcd.redb"), "/other").unwrap().1.is_none());
    assert!(LastGood::open(&folder.file("etcd.redb"), "/apisix").unwrap().1.is_none());
}

#[test]
fn a_lent_file_is_written_by_one_alone_and_again_when_it_is_back() {
    let folder = Folder::new("last-good-lent");
    let (file, _) = LastGood::open(&folder.file("etcd.redb"), "/apisix").unwrap();
    file.keep(batch(5, &[("a", true)]), BTreeSet::new);
    let lent = file.lend(Instant::now() + LAST_WRITE);
    let (other, found) = LastGood::open(&folder.file("etcd.redb"), "/apisix").unwrap();
    assert_eq!(ids(found), ["a"]);
    file.keep(batch(6, &[("b", true)]), BTreeSet::new);
    drop(other);
    drop(lent);
    drop(file);
    let (file, found) = LastGood::open(&folder.file("etcd.redb"), "/apisix").unwrap();
    assert_eq!(ids(found), ["a", "b"]);
    // What is given away is not written any more.
    file.lend(Instant::now() + LAST_WRITE).give();
    file.keep(batch(7, &[("c", true)]), BTreeSet::new);
    drop(file);
    assert_eq!(ids(LastGood::open(&folder.file("etcd.redb"), "/apisix").unwrap().1), ["a", "b"]);
}

/// The other process went on without one until it ended, and its next start had what this one had left.
#[test]
fn a_file_that_was_not_closed_in_time_is_the_other_one_s_when_it_is() {
    let (folder, disk) = (Folder::new("last-good-slow"), Disk::new(Duration::ZERO));
    let over = disk.clone();
    let opened = LastGood::open_over(&folder.file("etcd.redb"), "/apisix", move |file| {
        OnDisk::new(file, over.clone())
    });
    let (old, _) = opened.unwrap();
    let held = disk.held.lock();
    old.keep(batch(5, &[("a", true), ("b", true)]), BTreeSet::new);
    // The disk has it.
    let deadline = Instant::now() + 20 * AGAIN;
    while old.0.state.lock().waiting.is_some() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    old.lend(Instant::now() + 2 * PAUSE).give();
    let (new, found) = LastGood::open(&folder.file("etcd.redb"), "/apisix").unwrap();
    assert!(found.is_none());
    new.keep(batch(6, &[("b", true), ("c", true)]), BTreeSet::new);
    drop(held);
    let deadline = Instant::now() + 20 * AGAIN;
    while !old.0.state.lock().is_closed {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(new);
    assert_eq!(ids(LastGood::open(&folder.file("etcd.redb"), "/apisix").unwrap().1), ["b", "c"]);
    drop(old);
}

/// That there is nothing is something, too.
#[test]
fn an_empty_configuration_is_kept() {
    let folder = Folder::new("last-good-empty");
    LastGood::open(&folder.file("etcd.redb"), "/apisix").unwrap().0.keep(batch(5, &[]), BTreeSet::new);
    assert_eq!(ids(LastGood::open(&folder.file("etcd.redb"), "/apisix").unwrap().1), [""; 0]);
}

#[test]
fn a_damaged_file_is_begun_anew() {
    let folder = Folder::new("last-good-damaged");
    std::fs::create_dir_all(&folder.0).unwrap();
    std::fs::write(folder.file("etcd.redb"), "routes:\n").unwrap();
    let (file, found) = LastGood::open(&folder.file("etcd.redb"), "/apisix").unwrap();
    assert!(found.is_none());
    file.keep(batch(5, &[("a", true)]), BTreeSet::new);
    drop(file);
    assert_eq!(ids(LastGood::open(&folder.file("etcd.redb"), "/apisix").unwrap().1), ["a"]);
}

/// It was removed, whatever kept it from being opened, and what was in it was not served.
#[test]
fn a_full_disk_leaves_what_was_kept_and_damage_alone_begins_anew() {
    let (folder, disk) = (Folder::new("last-good-start"), Disk::new(Duration::ZERO));
    let path = folder.file("etcd.redb");
    let open = || {
        let over = disk.clone();
        LastGood::open_over(&path, "/apisix", move |file| OnDisk::new(file, over.clone()))
    };
    open().unwrap().0.keep(batch(5, &[("a", true)]), BTreeSet::new);
    let length = std::fs::metadata(&path).unwrap().len();
    for room in [length, 0] {
        disk.room.store(room, SeqCst);
        match open() {
            Ok((_, found)) => assert_eq!(ids(found), ["a"], "{room}"),
            Err(reason) => assert!(room == 0 && reason.contains("I/O error"), "{reason}"),
        }
    }
    disk.room.store(u64::MAX, SeqCst);
    assert_eq!(ids(open().unwrap().1), ["a"]);
    // It is cut off in the middle.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length / 2).unwrap();
    assert!(open().unwrap().1.is_none());
}

/// It was not in the file: a plugin that is switched off for all ran again after a restart.
#[test]
fn the_list_of_plugins_is_kept() {
    let folder = Folder::new("last-good-plugins");
    let listed = EnabledPlugins::of_list(br#"[{"name":"cors"},{"name":"syslog","stream":true}]"#);
    let with = |revision, plugins: &Listed| Batch { plugins: Some(plugins.clone()), ..batch(revision, &[]) };
    let again = || LastGood::open(&folder.file("etcd.redb"), "/apisix").unwrap();
    again().0.keep(with(5, &listed), BTreeSet::new);
    // A change of other things leaves it.
    again().0.keep(batch(6, &[("a", true)]), BTreeSet::new);
    let (file, found) = again();
    assert!(listed.is_some());
    assert_eq!(found.unwrap().plugins, listed);
    file.keep(with(7, &None), BTreeSet::new);
    drop(file);
    assert_eq!(again().1.unwrap().plugins, None);
}

/// All that came meanwhile waited, and what had failed was tried with the next change alone.
#[test]
fn what_the_disk_does_not_take_waits_once_and_is_tried_again() {
    let (folder, disk) = (Folder::new("last-good-full"), Disk::new(Duration::ZERO));
    let over = disk.clone();
    let opened = LastGood::open_over(&folder.file("etcd.redb"), "/apisix", move |file| {
        OnDisk::new(file, over.clone())
    });
    let (file, _) = opened.unwrap();
    disk.room.store(0, SeqCst);
    for revision in 1..1000 {
        file.keep(batch(revision, &[("a", true), ("b", revision % 2 == 0)]), BTreeSet::new);
    }
    let waiting = || file.0.state.lock().waiting.as_ref().map(|waiting| waiting.values.len());
    let refused = || disk.refused.load(SeqCst);
    let until = |what: &dyn Fn() -> bool| {
        let deadline = Instant::now() + 20 * AGAIN;
        while !what() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    until(&|| refused() > 0 && waiting() == Some(2));
    let waits = disk.waits.load(SeqCst);
    disk.room.store(u64::MAX, SeqCst);
    // By itself, and whole.
    until(&|| waiting().is_none() && disk.waits.load(SeqCst) > waits);
    // At the end once more.
    disk.room.store(0, SeqCst);
    let before = refused();
    file.keep(batch(1000, &[("c", true)]), BTreeSet::new);
    // With what was on its way when the disk was full again, if it was.
    until(&|| refused() > before && waiting().is_some());
    disk.room.store(u64::MAX, SeqCst);
    drop(file);
    assert_eq!(ids(LastGood::open(&folder.file("etcd.redb"), "/apisix").unwrap().1), ["a", "c"]);
}

#[test]
fn a_disk_that_hangs_does_not_hold_up_the_end() {
    let (folder, disk) = (Folder::new("last-good-hangs"), Disk::new(Duration::ZERO));
    let over = disk.clone();
    let opened = LastGood::open_over(&folder.file("etcd.redb"), "/apisix", move |file| {
        OnDisk::new(file, over.clone())
    });
    let (file, _) = opened.unwrap();
    let held = disk.held.lock();
    file.keep(batch(5, &[("a", true)]), BTreeSet::new);
    let begun = Instant::now();
    drop(file);
    assert!(begun.elapsed() < 2 * LAST_WRITE, "{:?}", begun.elapsed());
    drop(held);
}

/// Keys that came and went while the disk took nothing were held one by one, for as long as it did.
#[test]
fn keys_that_are_gone_take_no_more_room_than_those_that_are_there() {
    let (folder, disk) = (Folder::new("last-good-gone"), Disk::new(Duration::ZERO));
    let over = disk.clone();
    let opened = LastGood::open_over(&folder.file("etcd.redb"), "/apisix", move |file| {
        OnDisk::new(file, over.clone())
    });
    let (file, _) = opened.unwrap();
    let all = |ids: &[&str]| ids.iter().map(|id| Key::new(Kind::Route, *id)).collect();
    file.keep(batch(1, &[("stays", true), ("goes", true), ("again", true), ("later", true)]), BTreeSet::new);
    // Which is written before the disk hangs.
    drop(file.lend(Instant::now() + LAST_WRITE));
    let held = disk.held.lock();
    file.keep(batch(2, &[("goes", false), ("again", false)]), || all(&["stays", "later"]));
    // The disk has it, and nothing else comes to it.
    let deadline = Instant::now() + 20 * AGAIN;
    while file.0.state.lock().waiting.is_some() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    for n in 3..30_000 {
        let id = format!("n{n}");
        file.keep(batch(n, &[(&id, true)]), || all(&["stays", "later", &id]));
        file.keep(batch(n, &[(&id, false)]), || all(&["stays", "later"]));
        let waiting = file.0.state.lock().waiting.as_ref().map_or(0, |waiting| waiting.values.len());
        assert!(waiting <= MOST_GONE + 1, "{waiting} after {n}");
    }
    file.keep(batch(30_000, &[("later", false), ("again", true), ("new", true)]), BTreeSet::new);
    file.keep(batch(30_001, &[("new", false)]), BTreeSet::new);
    drop(held);
    drop(file);
    assert_eq!(ids(LastGood::open(&folder.file("etcd.redb"), "/apisix").unwrap().1), ["again", "stays"]);
}
