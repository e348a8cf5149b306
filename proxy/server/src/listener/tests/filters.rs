//! Network filters before the last one of their chain.

use super::*;
use sixfold_core::listener::{ClientBytes, Closing, FilterStep, Resume};
use sixfold_core::plugin::Slot;
use sixfold_core::stream::FilterObject;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// Lets a client in that knocks, once it has been asked who it is.
#[derive(Debug, Default)]
struct Knock {
    /// What it was told at the end.
    ends: Arc<Mutex<Vec<String>>>,
    /// How often it was shown bytes, of whatever connection.
    shown: Arc<AtomicUsize>,
}

fn resume(decide: impl FnOnce(&mut Stream) -> FilterStep + Send + 'static) -> Resume {
    Box::new(decide)
}

impl ConnectionFilter for Knock {
    fn on_new_connection(&self, connection: &mut Stream, slot: Slot) -> FilterStep {
        connection.set_state(slot, 0u32);
        let object = FilterObject {
            key: "knock".into(),
            value: b"object"[..].into(),
            hashable: false,
            read_only: true,
        };
        connection.set_filter_state(object);
        FilterStep::Continue
    }

    fn on_data(&self, connection: &mut Stream, slot: Slot, bytes: &mut ClientBytes<'_>) -> FilterStep {
        if let Some(asked) = connection.state::<u32>(slot) {
            *asked += 1;
        }
        self.shown.fetch_add(1, SeqCst);
        match &bytes.received[..] {
            [b'k', b'n', b'o', b'c', b'k', ..] => {
                bytes.received.drain(..5);
                bytes.answer.extend_from_slice(b"who?");
                FilterStep::wait(async {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    resume(|connection| {
                        connection.metadata.push(("n".into(), "k".into(), true.into()));
                        FilterStep::Done
                    })
                })
            }
            short if b"knock".starts_with(short) => FilterStep::Hold,
            _ => FilterStep::Close(Closing {
                details: "rude".into(),
                reason: "slammed",
                delay: Duration::from_millis(100),
                status: 0,
            }),
        }
    }

    fn holds_writes(&self) -> bool {
        true
    }

    fn on_close(&self, connection: &mut Stream, slot: Slot) {
        let asked = connection.state::<u32>(slot).copied().unwrap_or_default();
        let bytes = connection.bytes.request_body;
        let object = connection.filter_object("knock").map_or("-", |_| "object");
        let noted = connection.metadata.len();
        self.ends.lock().push(format!("{asked} {bytes} {object} {noted}"));
    }
}

async fn eventually_ends(ends: &Arc<Mutex<Vec<String>>>, wanted: usize) -> Vec<String> {
    eventually(|| ends.lock().len() >= wanted).await;
    std::mem::take(&mut ends.lock())
}

#[tokio::test]
async fn filters_see_what_a_client_sends_before_anybody_else() {
    let fixture = Fixture::start();
    let lines = Lines::default();
    fixture.cluster("echo", &[echo().await]).await;
    let log = lines.log(|s| {
        let var = |name| String::from_utf8_lossy(s.var(name).unwrap_or(b"-")).into_owned();
        format!("{} {}", var("connection_termination_details"), var("downstream_local_close_reason"))
    });
    let knock = Knock::default();
    let (ends, shown) = (knock.ends.clone(), knock.shown.clone());
    let proxy = NetworkFilter::Tcp(Arc::new(fixture.tcp_proxy("echo", vec![log])));
    let address = fixture.apply(behind(fixture.listener("a", proxy), vec![Arc::new(knock)])).await;

    // Piece by piece: what is held comes again, what is taken out is seen by nobody, and the rest goes on.
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"kno").await.unwrap();
    eventually(|| shown.load(SeqCst) == 1).await;
    client.write_all(b"ckhello").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = String::new();
    client.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "who?hello");
    assert_eq!(eventually_ends(&ends, 1).await, ["2 5 object 1"]);

    // Once it is let in nobody is asked any more.
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"knock").await.unwrap();
    let mut who = [0; 4];
    client.read_exact(&mut who).await.unwrap();
    assert!(ping(&mut client).await && ping(&mut client).await);
    drop(client);
    assert_eq!(eventually_ends(&ends, 1).await[0].split(' ').next(), Some("1"));

    // One that is refused is left open for a while, and the log says why it ends.
    let start = std::time::Instant::now();
    assert_eq!(exchange(address, b"open!").await, "");
    assert!(start.elapsed() >= Duration::from_millis(100));
    assert_eq!(eventually_ends(&ends, 1).await, ["1 5 object 0"]);
    assert_eq!(lines.wait(3).await[2], "rude slammed");
    fixture.end().await;
}

/// Another waits before the connection goes on at all, and may end it.
#[derive(Debug)]
struct Asks(bool);

impl ConnectionFilter for Asks {
    fn on_new_connection(&self, _: &mut Stream, _: Slot) -> FilterStep {
        let allowed = self.0;
        FilterStep::wait(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            resume(move |_| match allowed {
                true => FilterStep::Continue,
                false => FilterStep::Close(Closing::default()),
            })
        })
    }
}

#[tokio::test]
async fn filters_may_wait_before_the_connection_goes_on() {
    let fixture = Fixture::start();
    let cluster = fixture.cluster("echo", &[echo().await]).await;
    let proxy = || NetworkFilter::Tcp(Arc::new(fixture.tcp_proxy("echo", Vec::new())));
    let open = behind(fixture.listener("a", proxy()), vec![Arc::new(Asks(true))]);
    let address = fixture.apply(open).await;
    let start = std::time::Instant::now();
    let mut client = TcpStream::connect(address).await.unwrap();
    assert!(ping(&mut client).await);
    assert!(start.elapsed() >= Duration::from_millis(50));
    let ends = Arc::default();
    let knock = Knock { ends: Arc::clone(&ends), ..Knock::default() };
    let later = Knock::default();
    let never = later.ends.clone();
    let filters: Vec<Arc<dyn ConnectionFilter>> =
        vec![Arc::new(knock), Arc::new(Asks(false)), Arc::new(later)];
    let address = fixture.apply(behind(fixture.listener("b", proxy()), filters)).await;
    assert_eq!(exchange(address, b"hello").await, "");
    assert_eq!(eventually_ends(&ends, 1).await, ["0 0 object 0"]);
    assert!(never.lock().is_empty(), "it has not heard of the connection");
    assert_eq!(cluster.stats.upstream_cx_total().get(), 1);
    fixture.end().await;
}
