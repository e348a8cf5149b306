#![allow(clippy::unwrap_used)]
use super::*;
use crate::export::Here;
use crate::metrics::Registry;
use parking_lot::Mutex;
use tokio::time::sleep;

/// What a service was sent, and how often it fails before it takes something.
#[derive(Clone, Default)]
struct Service {
    batches: Arc<Mutex<Vec<Vec<String>>>>,
    failures: Arc<AtomicUsize>,
    told: Arc<Mutex<Vec<String>>>,
    /// How long it takes.
    slow: Duration,
}

impl Deliver for Service {
    fn deliver(&self, batch: &Arc<Batch>) -> Delivery {
        let (service, batch) = (self.clone(), batch.clone());
        Box::pin(async move {
            sleep(service.slow).await;
            let fails =
                service.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
            if fails.is_ok() {
                return Err("not today".to_owned());
            }
            let entries = batch.records().map(|entry| String::from_utf8_lossy(entry).into_owned());
            service.batches.lock().push(entries.collect());
            Ok(())
        })
    }

    fn tell(&self, name: &str, trouble: Trouble<'_>) {
        self.told.lock().push(format!("{name}: {trouble:?}"));
    }
}

impl Service {
    fn taken(&self) -> Vec<String> {
        self.batches.lock().iter().map(|batch| batch.join(" ")).collect()
    }
}

fn rules() -> BatchRules {
    BatchRules {
        name: "test".into(),
        max_size: 3,
        inactive: Duration::from_secs(5),
        duration: Duration::from_secs(60),
        retries: 0,
        retry_delay: Duration::from_secs(1),
    }
}

fn processor(rules: BatchRules, service: &Service) -> (BatchProcessor, BatchStats, Ending) {
    let stats = BatchStats::new(&Registry::new(), "x.");
    let (here, deliver) = (Arc::new(Here::default()), Box::new(service.clone()));
    let ending = here.ending();
    (BatchProcessor::new(here, rules, stats.clone(), deliver), stats, ending)
}

#[tokio::test(start_paused = true)]
async fn entries_are_sent_when_they_are_many_or_none_come() {
    let service = Service::default();
    let (batches, stats, _) = processor(rules(), &service);
    ["a", "b", "c", "d"].iter().for_each(|entry| batches.push(entry.as_bytes(), 99));
    sleep(Duration::from_millis(1)).await;
    assert_eq!(service.taken(), ["a b c"]);
    assert_eq!(batches.gathered(), 1);
    // One that comes now and then has the others wait.
    sleep(Duration::from_secs(4)).await;
    batches.push(b"e", 99);
    sleep(Duration::from_secs(4)).await;
    assert_eq!(service.taken().len(), 1);
    sleep(Duration::from_secs(3)).await;
    assert_eq!((service.taken()[1].as_str(), batches.gathered()), ("d e", 0));
    assert_eq!(stats.entries_processed().get(), 5);
}

/// The task ended with a panic at the first entry, and nothing was sent any more.
#[tokio::test(start_paused = true)]
async fn a_time_that_no_clock_can_tell_is_a_long_one() {
    let service = Service::default();
    let rules = BatchRules { inactive: Duration::from_secs(i64::MAX.unsigned_abs()), max_size: 2, ..rules() };
    let (batches, ..) = processor(rules, &service);
    for entry in ["a", "b", "c", "d"] {
        batches.push(entry.as_bytes(), 99);
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(service.taken(), ["a b", "c d"]);
}

#[tokio::test(start_paused = true)]
async fn no_entry_waits_for_ever_for_others() {
    let service = Service::default();
    let (batches, ..) = processor(BatchRules { max_size: 1000, ..rules() }, &service);
    for _ in 0..16 {
        batches.push(b"x", 99);
        sleep(Duration::from_secs(4)).await;
    }
    assert_eq!(service.taken().len(), 1, "after 60 s, though another one has always come");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_not_taken_is_sent_again_and_the_others_do_not_wait() {
    let service = Service::default();
    let (batches, stats, _) = processor(BatchRules { max_size: 1, retries: 2, ..rules() }, &service);
    service.failures.store(2, Ordering::Relaxed);
    batches.push(b"a", 99);
    sleep(Duration::from_millis(1500)).await;
    batches.push(b"b", 99);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(service.taken(), ["b"]);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(service.taken(), ["b", "a"]);
    service.failures.store(3, Ordering::Relaxed);
    batches.push(b"c", 99);
    sleep(Duration::from_secs(9)).await;
    assert_eq!((stats.entries_processed().get(), stats.entries_dropped().get()), (2, 1));
    assert_eq!(service.told.lock().len(), 6);
    assert_eq!(service.told.lock()[4..], ["test: NotTaken(\"not today\")", "test: GivenUp(3)"]);
}

/// A service that does not answer must not hold what requests go on to say.
#[tokio::test(start_paused = true)]
async fn what_is_on_its_way_has_a_bound() {
    let service = Service { slow: Duration::from_secs(100), ..Service::default() };
    let (batches, stats, _) = processor(BatchRules { max_size: 1, ..rules() }, &service);
    (0..10).for_each(|_| batches.push(b"x", 4));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(stats.entries_dropped().get(), 6);
    assert_eq!(*service.told.lock(), ["test: Discarded(6)"], "in one line");
    let long = vec![b'x'; 1 << 20];
    (0..100).for_each(|_| batches.push(&long, 1000));
    assert!(batches.state.pending_bytes.load(Ordering::Relaxed) <= MOST_BYTES);
    assert!(stats.entries_dropped().get() > 40);
    sleep(Duration::from_secs(1000)).await;
    assert_eq!(batches.state.pending.load(Ordering::Relaxed), 0);
    batches.push(b"again", 4);
    sleep(Duration::from_secs(101)).await;
    assert_eq!(service.taken().last().unwrap(), "again");
}

#[tokio::test(start_paused = true)]
async fn what_is_left_is_sent_at_the_end() {
    let service = Service::default();
    let (batches, ..) = processor(rules(), &service);
    batches.push(b"a", 99);
    drop(batches);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(service.taken(), ["a"], "nobody has it any more");
    let (batches, _, ending) = processor(BatchRules { retries: 1, ..rules() }, &service);
    service.failures.store(1, Ordering::Relaxed);
    batches.push(b"b", 99);
    sleep(Duration::from_millis(1)).await;
    assert!(!ending.finish(std::time::Instant::now()), "it is waited for");
    sleep(Duration::from_millis(1)).await;
    assert_eq!(service.taken(), ["a", "b"], "without waiting for others or another try");
    assert!(ending.finish(std::time::Instant::now()));
}
