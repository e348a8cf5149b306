//! What every store that is written to must do, asked of those that need nothing but this crate, and what these do beside
//! that.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod asked;

use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::Mutex;
use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use self::asked::{conforms, key, many_write_at_once, put, told};
use super::*;
use crate::testing::Folder;

/// The file of a store, in a folder of a folder that are not there yet.
struct File(Folder);

impl File {
    fn new(name: &str) -> File {
        File(Folder::new(&format!("embedded-{name}")))
    }

    fn path(&self) -> PathBuf {
        self.0.file("below/store")
    }
}

#[test]
fn the_store_in_memory_conforms() {
    conforms(&MemoryStore::default());
}

#[test]
fn the_embedded_store_conforms() {
    let file = File::new("conforms");
    conforms(&EmbeddedStore::open(&file.path()).unwrap());
}

#[test]
fn the_embedded_store_outlives_its_process() {
    use std::os::unix::fs::PermissionsExt;
    let file = File::new("outlives");
    let store = EmbeddedStore::open(&file.path()).unwrap();
    store.put(&key("a"), r#"{"x":1}"#.into()).unwrap();
    let busy = EmbeddedStore::open(&file.path()).err().unwrap();
    assert!(busy.ends_with("another process has it open"), "{busy}");
    let for_a_while = Action::Put("{}".into(), Some(Duration::from_millis(50)));
    store.commit(vec![Write { action: for_a_while, ..put(&key("short"), "{}") }]).unwrap();
    let (kept, id) = (store.get(&key("a")), store.next_id().unwrap());
    drop(store);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file.path()), mode(file.path().parent().unwrap())), (0o600, 0o700));
    std::thread::sleep(Duration::from_millis(60));
    let store = EmbeddedStore::open(&file.path()).unwrap();
    assert_eq!(store.get(&key("a")), kept);
    assert!(store.next_id().unwrap() > id);
    assert_eq!(store.get(&key("short")), Ok(None), "it was over before anybody asked");
    assert_eq!(told(&store).keys().collect::<Vec<_>>(), ["route \"a\"", "route \"short\""]);
}

/// They stayed, and were those of the next consumer of its name.
#[test]
fn credentials_end_with_their_consumer() {
    let file = File::new("ends");
    let embedded = EmbeddedStore::open(&file.path()).unwrap();
    for store in [&embedded as &dyn Store, &MemoryStore::default()] {
        let (consumer, one) = (Key::new(Kind::Consumer, "ann"), Key::of_credential("ann", "one"));
        let other = Key::of_credential("annie", "one");
        let for_so_long = |key: &Key, millis| Write {
            action: Action::Put("{}".into(), Some(Duration::from_millis(millis))),
            ..put(key, "{}")
        };
        let writes = vec![for_so_long(&consumer, 50), for_so_long(&one, 60_000), put(&other, "{}")];
        store.commit(writes).unwrap();
        told(store);
        let start = std::time::Instant::now();
        while store.get(&consumer).unwrap().is_some() {
            assert!(start.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(store.get(&one), Ok(None));
        assert!(store.get(&other).unwrap().is_some());
        let gone = ["consumer \"ann\"", "credential \"ann/credentials/one\""];
        assert_eq!(
            told(store).into_iter().map(|(key, value)| (key, value.is_none())).collect::<Vec<_>>(),
            gone.map(|key| (key.to_owned(), true))
        );
    }
}

#[test]
fn what_is_no_store_is_not_opened() {
    let file = File::new("other");
    std::fs::create_dir_all(file.path().parent().unwrap()).unwrap();
    std::fs::write(file.path(), "routes:\n").unwrap();
    assert!(EmbeddedStore::open(&file.path()).is_err());
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "routes:\n");
}

/// A disk for one file.
#[derive(Debug)]
pub(super) struct Disk {
    /// Bytes that the file may have.
    pub(super) room: AtomicU64,
    /// How often there was none.
    pub(super) refused: AtomicU64,
    /// Who has it keeps others from writing.
    pub(super) held: Mutex<()>,
    /// How long it takes until what was written is there.
    takes: Duration,
    /// How often that was waited for.
    pub(super) waits: AtomicU64,
}

impl Disk {
    pub(super) fn new(takes: Duration) -> Arc<Disk> {
        let (room, held) = (AtomicU64::new(u64::MAX), Mutex::default());
        let (refused, waits) = Default::default();
        Arc::new(Disk { room, refused, held, takes, waits })
    }

    pub(super) fn store(self: &Arc<Disk>, file: &Path) -> EmbeddedStore {
        let disk = self.clone();
        EmbeddedStore::open_over(file, move |file| OnDisk::new(file, disk.clone())).unwrap()
    }
}

#[derive(Debug)]
pub(super) struct OnDisk(FileBackend, Arc<Disk>);

impl OnDisk {
    pub(super) fn new(file: FileBackend, disk: Arc<Disk>) -> OnDisk {
        OnDisk(file, disk)
    }

    fn has_room(&self, end: u64) -> io::Result<()> {
        if end <= self.1.room.load(SeqCst) {
            return Ok(());
        }
        self.1.refused.fetch_add(1, SeqCst);
        Err(io::ErrorKind::StorageFull.into())
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
        drop(self.1.held.lock());
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

    // Without these the file is anybody's.
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}

/// After one write that had no room the store neither read nor wrote until the process ended.
#[test]
fn a_full_disk_costs_the_write_alone() {
    let (file, disk) = (File::new("full"), Disk::new(Duration::ZERO));
    let store = disk.store(&file.path());
    let first = store.put(&key("a"), "{}".into()).unwrap();
    let long = || format!("\"{}\"", "x".repeat(8 << 20)).into();
    // No room for more, then none at all.
    for left in [std::fs::metadata(file.path()).unwrap().len(), 0] {
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
    let store = EmbeddedStore::open(&file.path()).unwrap();
    store.commit((0..300).map(|n| Write::put(key(&n.to_string()), value(n))).collect()).unwrap();
    drop(store);
    let (whole, mut refused) = (std::fs::read(file.path()).unwrap(), 0);
    for round in 0..60_usize {
        let mut bytes = whole.clone();
        // Pieces all over the file, behind its header and in it, and half a file.
        for piece in 0..1 + round % 7 {
            let at = (round * 7919 + piece * 40_009) % bytes.len();
            bytes.iter_mut().skip(at).take(1 + round % 50).for_each(|byte| *byte ^= 0x5a);
        }
        bytes.truncate(if round % 10 == 9 { whole.len() / 2 } else { whole.len() });
        std::fs::write(file.path(), &bytes).unwrap();
        let Ok(store) = EmbeddedStore::open(&file.path()) else {
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
    let store = disk.store(&file.path());
    let before = disk.waits.load(SeqCst);
    many_write_at_once(&store);
    let waits = disk.waits.load(SeqCst) - before;
    assert!(waits < 300, "{waits} waits for 400 writes by 8 clients");
}
