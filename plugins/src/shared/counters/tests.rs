use super::*;

const SECOND: u64 = 1_000_000_000;

impl Counters {
    fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().entries.len()).sum()
    }

    fn bytes(&self) -> usize {
        let of = |shard: &Mutex<Shard>| {
            let shard = shard.lock();
            shard.entries.capacity() * size_of::<Entry>() + shard.index.allocation_size()
        };
        self.shards.iter().map(of).sum()
    }
}

fn key(n: u64) -> Key {
    Key([0, n.wrapping_mul(0x9E37_79B9_7F4A_7C15)])
}

fn take(counters: &Counters, key: u64, now: u64, until: u64) -> u64 {
    counters.change(counters.key(key), now, |counter| {
        counter.until = until;
        counter.count += 1;
        counter.count
    })
}

#[test]
fn counters_are_told_apart_and_end() {
    let counters = Counters::default();
    assert_eq!([1, 1, 2, 1].map(|key| take(&counters, key, 0, 10)), [1, 2, 1, 3]);
    assert_eq!([take(&counters, 1, 9, 10), take(&counters, 1, 10, 20)], [4, 1]);
    assert_ne!(counters.key(("a", "bc")), counters.key(("ab", "c")));
    assert_ne!(counters.key(1), Counters::default().key(1), "the secret is each store's");
}

/// Keys were kept as clients sent them: 7.5 kB each, 8 GB a limiter.
#[test]
fn a_million_keys_of_any_length_fit_in_the_bound() {
    let counters = Counters::default();
    let mut key = vec![b'x'; 100];
    for n in 0..1_000_000u64 {
        key[..8].copy_from_slice(&n.to_le_bytes());
        counters
            .change(counters.key(&key), 0, |counter| *counter = Counter { until: 1, count: 1, before: 0 });
    }
    assert_eq!(counters.count(), 1_000_000);
    assert!(counters.bytes() <= MAX_BYTES * 11 / 10, "{}", counters.bytes());
}

/// Nothing was forgotten while a shard had room, and then only by a request of that shard.
#[test]
fn what_is_over_goes_by_time_and_its_memory_with_it() {
    let counters = Counters::default();
    for key in 0..100_000 {
        take(&counters, key, 0, 5 * SECOND);
    }
    let (all, bytes) = (counters.count(), counters.bytes());
    for step in 0..2 * SHARDS as u64 {
        take(&counters, u64::MAX, 3 * SECOND + step * SECOND / SHARDS as u64, 60 * SECOND);
    }
    assert_eq!(counters.count(), all + 1, "nothing is over yet");
    for step in 0..2 * SHARDS as u64 {
        take(&counters, u64::MAX, 6 * SECOND + step * SECOND / SHARDS as u64, 60 * SECOND);
    }
    assert_eq!(counters.count(), 1);
    assert!(counters.bytes() < bytes / 50, "{} of {bytes}", counters.bytes());
    assert_eq!(take(&counters, u64::MAX, 10 * SECOND, 60 * SECOND), 4 * SHARDS as u64 + 1);
}

/// A full shard forgot whichever key came first, so that a flood of new keys set counters back.
#[test]
fn a_flood_of_new_keys_drives_out_itself() {
    let mut shard = Shard::default();
    let mut take = |n: u64, now: u64| {
        shard.change(key(n), now, |counter| {
            counter.until = 60 * SECOND;
            counter.count += 1;
            counter.count
        })
    };
    for n in 0..1000 * 20 {
        take(n % 1000, 0);
    }
    for n in 1000..3 * MAX_OF_SHARD as u64 {
        take(n, SECOND);
    }
    assert_eq!((0..1000).filter(|n| take(*n, SECOND) == 21).count(), 1000);
    assert_eq!(shard.entries.len(), MAX_OF_SHARD);
}

#[test]
fn a_full_shard_forgets_what_is_over_first_and_then_what_is_old() {
    let full = |over: u64| {
        let mut shard = Shard::default();
        for n in 0..MAX_OF_SHARD as u64 {
            let until = if n < over { 5 } else { 100 * SECOND };
            let used = n * 50 / MAX_OF_SHARD as u64 * SECOND;
            shard.change(key(n), used.min(4), |c| *c = Counter { until, count: 1, before: 0 });
            if let Some(entry) = shard.entries.last_mut() {
                entry.used = (used / SECOND) as u32;
            }
        }
        shard
    };
    let half = MAX_OF_SHARD as u64 / 2;
    let mut shard = full(half);
    for _ in 0..1000 {
        shard.forget_one(60 * SECOND);
    }
    let lasting = shard.entries.iter().filter(|entry| entry.counter.until > 5).count();
    assert!(lasting + 30 > MAX_OF_SHARD - half as usize, "{lasting}");
    let mut shard = full(0);
    for _ in 0..1000 {
        shard.forget_one(60 * SECOND);
    }
    let young = shard.entries.iter().filter(|entry| entry.used >= 25).count();
    assert!(young + 30 > MAX_OF_SHARD - half as usize, "{young}");
    assert!(shard.entries.iter().enumerate().all(|(at, entry)| shard.position(entry.key) == Some(at)));
}
