//! Where route tables stand: one place for each name and list of HTTP filters.

use super::RouteTable;
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use tokio::sync::Notify;

/// The HTTP filters that the chains of a table are made of: equal to itself alone, since a filter of one connection
/// manager may keep what no other shall see. It holds what its source compiles tables with.
#[derive(Clone, Default)]
pub struct FiltersId(Option<Arc<dyn Any + Send + Sync>>);

impl FiltersId {
    /// Of tables whose routes bring their chains along.
    pub const NONE: FiltersId = FiltersId(None);

    /// The identity of these filters.
    pub fn new<T: Any + Send + Sync>(filters: Arc<T>) -> FiltersId {
        FiltersId(Some(filters))
    }

    /// The filters, if they are of that type.
    pub fn filters<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.0.as_deref()?.downcast_ref()
    }

    fn address(&self) -> Option<*const ()> {
        self.0.as_ref().map(|filters| Arc::as_ptr(filters).cast())
    }
}

impl PartialEq for FiltersId {
    fn eq(&self, other: &FiltersId) -> bool {
        self.address() == other.address()
    }
}

impl Eq for FiltersId {}

impl std::fmt::Debug for FiltersId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.address() {
            Some(address) => write!(f, "filters {address:p}"),
            None => f.write_str("no filters"),
        }
    }
}

/// What tells compiled route tables apart: connection managers with different filters may use one route
/// configuration, and each needs its own chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableKey {
    /// Name of the route configuration.
    pub name: Arc<str>,
    /// The filters it is compiled for.
    pub filters: FiltersId,
}

impl TableKey {
    /// A table whose routes bring their chains along.
    pub fn named(name: &str) -> TableKey {
        TableKey { name: name.into(), filters: FiltersId::NONE }
    }
}

/// The place of a compiled route table: what an update swaps.
pub struct RouteTableCell {
    /// Which table it is for.
    pub key: TableKey,
    current: ArcSwapOption<RouteTable>,
    changes: Notify,
    /// What came first could not be used.
    refused: AtomicBool,
    /// A listener that has it is in force, or was.
    in_force: AtomicBool,
}

impl RouteTableCell {
    /// A cell by itself with a table, or waiting for one.
    pub fn new(key: TableKey, table: Option<Arc<RouteTable>>) -> Arc<RouteTableCell> {
        let (current, changes) = (ArcSwapOption::new(table), Notify::new());
        let [refused, in_force] = [const { AtomicBool::new(false) }; 2];
        Arc::new(RouteTableCell { key, current, changes, refused, in_force })
    }

    /// The table now, for as long as a look-up takes: it costs no count that workers share.
    #[inline]
    pub fn peek(&self) -> arc_swap::Guard<Option<Arc<RouteTable>>> {
        self.current.load()
    }

    /// The table now, to be kept.
    pub fn load(&self) -> Option<Arc<RouteTable>> {
        self.current.load_full()
    }

    /// Puts a table in; answers what was there, for the control thread to drop. Where the cell is in force its plugins
    /// begin what they do by themselves before the first request.
    pub fn swap(&self, table: Option<Arc<RouteTable>>) -> Option<Arc<RouteTable>> {
        if let Some(table) = table.as_ref().filter(|_| self.in_force.load(Relaxed)) {
            table.begin();
        }
        let before = self.current.swap(table);
        self.changes.notify_waiters();
        before
    }

    /// A listener that has it is in force now: plugins of this table, and of those that come, begin what they do by
    /// themselves. For the control thread, as [`RouteTableCell::swap`] is.
    pub(crate) fn enter(&self) {
        self.in_force.store(true, Relaxed);
        if let Some(table) = self.load() {
            table.begin();
        }
    }

    /// Whether nothing has come yet, good or bad.
    pub fn is_awaited(&self) -> bool {
        self.current.load().is_none() && !self.refused.load(SeqCst)
    }

    /// Says that what came can't be used, so that nobody waits for it to come.
    pub fn refuse(&self) {
        self.refused.store(true, SeqCst);
        self.changes.notify_waiters();
    }

    /// Ends once something has come, good or bad. It may be dropped at any time.
    pub async fn first(&self) {
        let changed = self.changed();
        if self.is_awaited() {
            changed.await;
        }
    }

    /// Ends with the first swap after this call, for all who wait. Call it before [`RouteTableCell::load`], then no
    /// change is missed in between; it may be dropped at any time.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + '_ {
        self.changes.notified()
    }
}

impl std::fmt::Debug for RouteTableCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "route table {}", self.key.name)
    }
}

/// All route tables of the process. What compiles connection managers takes cells from here; a cell goes, with its
/// table, once none of them holds it. No request reads this.
#[derive(Default)]
pub struct RouteTables {
    cells: Mutex<Cells>,
}

#[derive(Default)]
struct Cells {
    /// Those of a name: rarely more than one.
    shared: HashMap<Arc<str>, Vec<Arc<RouteTableCell>>>,
    /// Those of connection managers that bring their routes along.
    own: Vec<Arc<RouteTableCell>>,
}

impl RouteTables {
    /// The cell of a key, made when it is new.
    pub fn cell(&self, key: &TableKey) -> Arc<RouteTableCell> {
        let mut cells = self.cells.lock();
        let of_name = cells.shared.entry(key.name.clone()).or_default();
        if let Some(cell) = of_name.iter().find(|cell| cell.key == *key) {
            return cell.clone();
        }
        let cell = RouteTableCell::new(key.clone(), None);
        of_name.push(cell.clone());
        cell
    }

    /// A cell that no key finds, with its table. It is kept here so that the control thread drops the table, and not
    /// the worker whose connection was the last to need it.
    pub fn own(&self, table: Arc<RouteTable>) -> Arc<RouteTableCell> {
        let cell = RouteTableCell::new(TableKey::named(&table.name), Some(table));
        self.cells.lock().own.push(cell.clone());
        cell
    }

    /// Those of [`RouteTables::held`] with this name: what an update of it is compiled for.
    pub fn of_name(&self, name: &str) -> Vec<Arc<RouteTableCell>> {
        let cells = self.cells.lock();
        cells.shared.get(name).into_iter().flatten().filter(|cell| is_held(cell)).cloned().collect()
    }

    /// The cells that connection managers hold and that have a key: what sources have to bring tables for.
    pub fn held(&self) -> Vec<Arc<RouteTableCell>> {
        let cells = self.cells.lock();
        cells.shared.values().flatten().filter(|cell| is_held(cell)).cloned().collect()
    }

    /// Those of [`RouteTables::held`] that have no table yet.
    pub fn awaited(&self) -> Vec<Arc<RouteTableCell>> {
        let cells = self.cells.lock();
        let empty = cells.shared.values().flatten().filter(|cell| cell.peek().is_none() && is_held(cell));
        empty.cloned().collect()
    }

    /// Takes out the cells that nobody holds. Only the control thread may drop the answer: with each goes its table.
    #[must_use]
    pub fn sweep(&self) -> Vec<Arc<RouteTableCell>> {
        let mut cells = self.cells.lock();
        let Cells { shared, own } = &mut *cells;
        let mut unused: Vec<_> = own.extract_if(.., |cell| !is_held(cell)).collect();
        shared.retain(|_, of_name| {
            unused.extend(of_name.extract_if(.., |cell| !is_held(cell)));
            !of_name.is_empty()
        });
        unused
    }

    /// Cells there are, whoever holds them.
    pub fn len(&self) -> usize {
        let cells = self.cells.lock();
        cells.own.len() + cells.shared.values().map(Vec::len).sum::<usize>()
    }

    /// Whether there is no cell.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Debug for RouteTables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} route tables", self.len())
    }
}

/// Whether anybody but [`RouteTables`] has it. Nobody can begin to while the cells are locked.
fn is_held(cell: &Arc<RouteTableCell>) -> bool {
    Arc::strong_count(cell) > 1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::router::TableOptions;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn table(name: &str) -> Arc<RouteTable> {
        Arc::new(RouteTable::new(name, TableOptions::default(), Vec::new()).unwrap())
    }

    fn key(name: &str, filters: &Arc<u8>) -> TableKey {
        TableKey { name: name.into(), filters: FiltersId::new(filters.clone()) }
    }

    /// A name was the whole identity: connection managers with different filters shared one table.
    #[test]
    fn a_name_has_a_table_for_each_list_of_filters() {
        let (tables, one, other) = (RouteTables::default(), Arc::new(1u8), Arc::new(1u8));
        let cells = [key("t", &one), key("t", &other), TableKey::named("t")].map(|key| tables.cell(&key));
        cells[0].swap(Some(table("t")));
        assert!(cells[1].load().is_none() && cells[2].load().is_none(), "each has its own table");
        assert!(Arc::ptr_eq(&cells[0], &tables.cell(&key("t", &one))));
        assert_eq!((tables.of_name("t").len(), tables.of_name("u").len()), (3, 0));
        assert_eq!(cells[0].key.filters.filters::<u8>(), Some(&1));
        assert_eq!(cells[2].key.filters.filters::<u8>(), None);
    }

    /// A table was kept for ever although nothing could ask for it any more.
    #[test]
    fn tables_go_with_their_last_holder() {
        let (tables, filters) = (RouteTables::default(), Arc::new(1u8));
        let (shared, own) = (tables.cell(&key("t", &filters)), tables.own(table("own")));
        shared.swap(Some(table("t")));
        let of = |cell: &RouteTableCell| Arc::downgrade(&cell.load().unwrap());
        let (of_shared, of_own) = (of(&shared), of(&own));
        assert_eq!((tables.sweep().len(), tables.len()), (0, 2));
        assert_eq!(tables.held().len(), 1, "no source is asked for the other");
        drop((shared, own));
        assert!(tables.held().is_empty() && tables.of_name("t").is_empty());
        let unused = tables.sweep();
        assert!(tables.is_empty());
        assert_eq!((of_shared.strong_count(), of_own.strong_count()), (1, 1), "dropped by whoever swept");
        drop(unused);
        assert_eq!((of_shared.strong_count(), of_own.strong_count()), (0, 0));
        assert_eq!(Arc::strong_count(&filters), 1, "the filters went too");
    }

    #[test]
    fn a_change_wakes_all_who_wait_and_none_is_missed() {
        let cell = RouteTableCell::new(TableKey::named("t"), None);
        let mut context = Context::from_waker(Waker::noop());
        let (mut first, mut second) = (pin!(cell.changed()), pin!(cell.changed()));
        let mut given_up = Box::pin(cell.changed());
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(given_up.as_mut().poll(&mut context).is_pending());
        drop(given_up);
        cell.swap(Some(table("t")));
        assert_eq!(first.poll(&mut context), Poll::Ready(()));
        assert_eq!(second.as_mut().poll(&mut context), Poll::Ready(()), "it began before the change");
        assert!(pin!(cell.changed()).poll(&mut context).is_pending(), "the next is not there yet");
    }
}
