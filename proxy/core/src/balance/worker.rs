//! State that every worker has for itself.

/// One value a worker, each on cache lines of its own.
pub(super) struct PerWorker<T> {
    first: Box<Padded<T>>,
    others: Box<[Padded<T>]>,
}

#[repr(align(128))]
struct Padded<T>(T);

impl<T> PerWorker<T> {
    /// One value for each of `workers`, at least one.
    pub(super) fn new(workers: usize, mut make: impl FnMut() -> T) -> PerWorker<T> {
        PerWorker { first: Box::new(Padded(make())), others: (1..workers).map(|_| Padded(make())).collect() }
    }

    /// The worker's own value; workers beyond the number share the first.
    #[inline]
    pub(super) fn get(&self, worker: usize) -> &T {
        match worker.checked_sub(1).and_then(|i| self.others.get(i)) {
            Some(own) => &own.0,
            None => &self.first.0,
        }
    }
}

/// A further random number from one that is random (Steele, Lea, Flood: SplitMix).
#[inline]
pub(super) fn derive(random: u64, index: u64) -> u64 {
    let mut z = random.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
