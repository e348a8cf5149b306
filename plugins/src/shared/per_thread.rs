//! State of which each worker has its own, so that nobody waits for another.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

/// A value for each thread that asks, made when it does. Those of one that was dropped go with the next that is made
/// on their thread.
pub(crate) struct PerThread<T> {
    number: u64,
    alive: Arc<()>,
    make: Box<dyn Fn() -> T + Send + Sync>,
}

struct Held {
    owner: Weak<()>,
    value: Box<dyn Any>,
}

thread_local! {
    static VALUES: RefCell<HashMap<u64, Held>> = RefCell::default();
}

impl<T: 'static> PerThread<T> {
    /// Values that `make` makes.
    pub(crate) fn new(make: impl Fn() -> T + Send + Sync + 'static) -> PerThread<T> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        PerThread { number: NUMBER.fetch_add(1, Relaxed), alive: Arc::default(), make: Box::new(make) }
    }

    /// Has `look` look at this thread's. Within it no other may be asked for: then there is no value, and `None`.
    pub(crate) fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> Option<R> {
        VALUES.with(|values| {
            let mut values = values.try_borrow_mut().ok()?;
            if !values.contains_key(&self.number) {
                values.retain(|_, held| held.owner.strong_count() > 0);
                let held = Held { owner: Arc::downgrade(&self.alive), value: Box::new((self.make)()) };
                values.insert(self.number, held);
            }
            values.get_mut(&self.number)?.value.downcast_mut().map(look)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_thread_has_its_own_and_those_of_none_are_dropped() {
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
        drop(gone);
        assert_eq!(Arc::strong_count(&dropped), 2);
        counter(0).with(|_| ()).unwrap();
        assert_eq!(Arc::strong_count(&dropped), 1);
    }
}
