//! State of which each worker has its own, so that nobody waits for another.

use parking_lot::Mutex;
use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

/// A value for each thread that asks, made when it does. All go with their owner, on whatever thread that is dropped: a
/// script's machine may be as large as tens of megabytes, and its worker may never ask for another.
pub(crate) struct PerThread<T> {
    number: u64,
    make: Box<dyn Fn() -> T + Send + Sync>,
    /// The places of all threads.
    places: Mutex<Vec<Weak<Place<T>>>>,
}

/// Where the value of one thread is; its thread alone looks at it before its owner is dropped, so that nobody waits.
type Place<T> = Mutex<Option<T>>;

thread_local! {
    /// Places of this thread by the numbers of their owners.
    static PLACES: RefCell<HashMap<u64, Box<dyn Kept>>> = RefCell::default();
}

/// A place, whatever is in it.
trait Kept {
    /// Whether its owner has emptied it.
    fn is_over(&self) -> bool;
    fn as_any(&self) -> &dyn Any;
}

impl<T: 'static> Kept for Arc<Place<T>> {
    fn is_over(&self) -> bool {
        self.lock().is_none()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl<T: Send + 'static> PerThread<T> {
    /// Values that `make` makes.
    pub(crate) fn new(make: impl Fn() -> T + Send + Sync + 'static) -> PerThread<T> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        PerThread { number: NUMBER.fetch_add(1, Relaxed), make: Box::new(make), places: Mutex::default() }
    }

    /// Has `look` look at this thread's. Within it no other may be asked for: then there is no value, and `None`.
    pub(crate) fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> Option<R> {
        PLACES.with(|places| {
            let mut places = places.try_borrow_mut().ok()?;
            if !places.contains_key(&self.number) {
                places.retain(|_, place| !place.is_over());
                places.insert(self.number, Box::new(self.place()));
            }
            let place: &Arc<Place<T>> = places.get(&self.number)?.as_any().downcast_ref()?;
            place.lock().as_mut().map(look)
        })
    }

    /// A place for another thread.
    fn place(&self) -> Arc<Place<T>> {
        let place = Arc::new(Mutex::new(Some((self.make)())));
        let mut places = self.places.lock();
        places.retain(|place| place.strong_count() > 0);
        places.push(Arc::downgrade(&place));
        place
    }
}

impl<T> Drop for PerThread<T> {
    fn drop(&mut self) {
        let values: Vec<T> = self
            .places
            .get_mut()
            .iter()
            .filter_map(Weak::upgrade)
            .filter_map(|place| place.lock().take())
            .collect();
        // Behind the locks: what goes may take its time.
        drop(values);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_thread_has_its_own_and_all_go_with_their_owner() {
        let dropped = Arc::new(());
        let counter = |start| PerThread::new(move || start);
        let (one, other) = (counter(0), counter(10));
        assert_eq!(
            one.with(|n| {
                *n += 1;
                *n
            }),
            Some(1)
        );
        assert_eq!(
            one.with(|n| {
                *n += 1;
                *n
            }),
            Some(2)
        );
        assert_eq!(other.with(|n| *n), Some(10));
        std::thread::scope(|scope| {
            scope.spawn(|| assert_eq!(one.with(|n| *n), Some(0)));
        });
        let held = dropped.clone();
        let gone = PerThread::new(move || held.clone());
        gone.with(|_| ()).unwrap();
        // Another thread's goes too, though that asks for nothing more: it stayed until it did.
        let (asked, goes_on) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            let gone = Arc::new(gone);
            let (of_thread, asked, goes_on) = (gone.clone(), &asked, &goes_on);
            scope.spawn(move || {
                of_thread.with(|_| ()).unwrap();
                drop(of_thread);
                asked.wait();
                goes_on.wait();
            });
            asked.wait();
            assert_eq!(Arc::strong_count(&dropped), 4);
            drop(gone);
            assert_eq!(Arc::strong_count(&dropped), 1);
            goes_on.wait();
        });
        // What is left is the empty place, until another is made.
        PLACES.with_borrow(|places| assert_eq!(places.len(), 3));
        drop(one);
        counter(0).with(|_| ()).unwrap();
        PLACES.with_borrow(|places| assert_eq!(places.len(), 2));
    }
}
