//! What every store that is written to must do, asked of each of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// What a store has told: text and order of each key.
#[derive(Default)]
struct Told(BTreeMap<String, Option<(String, u64)>>);

impl Sink for Told {
    fn plugins(&mut self, _: Option<BTreeSet<String>>) {}

    fn change(&mut self, change: Change) {
        let value = change.value.map(|value| value.read().unwrap().to_json().to_string());
        self.0.insert(change.key.to_string(), value.map(|value| (value, change.order)));
    }

    fn start_over(&mut self) {
        self.0.clear();
    }
}

fn told(store: &dyn Store) -> BTreeMap<String, Option<(String, u64)>> {
    let mut told = Told::default();
    store.changes(&mut told).unwrap();
    told.0
}

fn key(id: &str) -> Key {
    Key::new(Kind::Route, id)
}

fn put(key: &Key, value: &'static str) -> Write {
    Write::put(key.clone(), value.into())
}

/// Everything that the Admin API and a source ask of a store.
fn conforms(store: &dyn Store) {
    values_are_kept_with_their_revisions(store);
    writes_are_done_together_or_not_at_all(store);
    changes_are_told_once(store);
    values_end(store);
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
    assert_eq!(told(store)["route \"short\""], None);
}

fn many_write_at_once(store: &dyn Store) {
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

struct File(PathBuf);

impl File {
    fn new(name: &str) -> File {
        let folder = std::env::temp_dir().join(format!("sixfold-embedded-{name}-{}", std::process::id()));
        File(folder.join("below/store"))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.ancestors().nth(2).unwrap());
    }
}

#[test]
fn the_store_in_memory_conforms() {
    conforms(&MemoryStore::default());
}

#[test]
fn the_embedded_store_conforms() {
    let file = File::new("conforms");
    conforms(&EmbeddedStore::open(&file.0).unwrap());
}

#[test]
fn the_embedded_store_outlives_its_process() {
    use std::os::unix::fs::PermissionsExt;
    let file = File::new("outlives");
    let store = EmbeddedStore::open(&file.0).unwrap();
    store.put(&key("a"), r#"{"x":1}"#.into()).unwrap();
    let for_a_while = Action::Put("{}".into(), Some(Duration::from_millis(50)));
    store.commit(vec![Write { action: for_a_while, ..put(&key("short"), "{}") }]).unwrap();
    let (kept, id) = (store.get(&key("a")), store.next_id().unwrap());
    let busy = EmbeddedStore::open(&file.0).err().unwrap();
    assert!(busy.ends_with("another process has it open"), "{busy}");
    drop(store);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file.0), mode(file.0.parent().unwrap())), (0o600, 0o700));
    std::thread::sleep(Duration::from_millis(60));
    let store = EmbeddedStore::open(&file.0).unwrap();
    assert_eq!(store.get(&key("a")), kept);
    assert!(store.next_id().unwrap() > id);
    assert_eq!(store.get(&key("short")), Ok(None), "it was over before anybody asked");
    assert_eq!(told(&store).keys().collect::<Vec<_>>(), ["route \"a\"", "route \"short\""]);
}

#[test]
fn what_is_no_store_is_not_opened() {
    let file = File::new("other");
    std::fs::create_dir_all(file.0.parent().unwrap()).unwrap();
    std::fs::write(&file.0, "routes:\n").unwrap();
    assert!(EmbeddedStore::open(&file.0).is_err());
    assert_eq!(std::fs::read_to_string(&file.0).unwrap(), "routes:\n");
}

/// A disk for one file.
#[derive(Debug)]
struct Disk {
    /// Bytes that the file may have.
    room: AtomicU64,
    /// How long it takes until what was written is there.
    takes: Duration,
    /// How often that was waited for.
    waits: AtomicU64,
}

impl Disk {
    fn new(takes: Duration) -> Arc<Disk> {
        Arc::new(Disk { room: AtomicU64::new(u64::MAX), takes, waits: AtomicU64::new(0) })
    }

    fn store(self: &Arc<Disk>, file: &File) -> EmbeddedStore {
        let disk = self.clone();
        EmbeddedStore::open_over(&file.0, move |file| OnDisk(file, disk.clone())).unwrap()
    }
}

#[derive(Debug)]
struct OnDisk(FileBackend, Arc<Disk>);

impl OnDisk {
    fn has_room(&self, end: u64) -> io::Result<()> {
        if end > self.1.room.load(SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for OnDisk {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.has_room(len)?;
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.1.waits.fetch_add(1, SeqCst);
        std::thread::sleep(self.1.takes);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.has_room(offset.saturating_add(data.len() as u64))?;
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

/// After one write that had no room the store neither read nor wrote until the process ended.
#[test]
fn a_full_disk_costs_the_write_alone() {
    let (file, disk) = (File::new("full"), Disk::new(Duration::ZERO));
    let store = disk.store(&file);
    let first = store.put(&key("a"), "{}".into()).unwrap();
    let long = || format!("\"{}\"", "x".repeat(8 << 20)).into();
    // No room for more, then none at all.
    for left in [std::fs::metadata(&file.0).unwrap().len(), 0] {
        disk.room.store(left, SeqCst);
        assert!(matches!(store.put(&key("b"), long()), Err(StoreError::Unavailable(_))), "{left}");
        if left > 0 {
            assert_eq!(store.get(&key("a")).unwrap().unwrap().modified, first);
            assert_eq!(store.list(Kind::Route).unwrap().len(), 1);
        }
    }
    assert!(store.put(&key("b"), "{}".into()).is_err());
    disk.room.store(u64::MAX, SeqCst);
    assert!(store.put(&key("b"), long()).unwrap() > first);
    assert_eq!(told(&store).keys().collect::<Vec<_>>(), ["route \"a\"", "route \"b\""]);
}

/// Opening such a file, or reading it later, was a panic.
#[test]
fn a_damaged_file_is_refused_or_has_what_was_written() {
    let file = File::new("damaged");
    let value = |n: u64| Bytes::from(format!("{{\"n\":{n},\"desc\":\"{}\"}}", "x".repeat(200)));
    let store = EmbeddedStore::open(&file.0).unwrap();
    store.commit((0..300).map(|n| Write::put(key(&n.to_string()), value(n))).collect()).unwrap();
    drop(store);
    let (whole, mut refused) = (std::fs::read(&file.0).unwrap(), 0);
    for round in 0..60_usize {
        let mut bytes = whole.clone();
        // Pieces all over the file, behind its header and in it, and half a file.
        for piece in 0..1 + round % 7 {
            let at = (round * 7919 + piece * 40_009) % bytes.len();
            bytes.iter_mut().skip(at).take(1 + round % 50).for_each(|byte| *byte ^= 0x5a);
        }
        bytes.truncate(if round % 10 == 9 { whole.len() / 2 } else { whole.len() });
        std::fs::write(&file.0, &bytes).unwrap();
        let Ok(store) = EmbeddedStore::open(&file.0) else {
            refused += 1;
            continue;
        };
        for (key, kept) in store.list(Kind::Route).unwrap() {
            assert_eq!(kept.value, value(key.id.as_str().parse().unwrap()), "{round}");
        }
        store.put(&key("new"), "{}".into()).unwrap();
    }
    assert!(refused > 10, "{refused}");
}

/// One client after the other waits for the disk each time; many wait together.
#[test]
fn writes_of_many_are_one_transaction() {
    let (file, disk) = (File::new("many"), Disk::new(Duration::from_millis(2)));
    let store = disk.store(&file);
    let before = disk.waits.load(SeqCst);
    many_write_at_once(&store);
    let waits = disk.waits.load(SeqCst) - before;
    assert!(waits < 300, "{waits} waits for 400 writes by 8 clients");
}
