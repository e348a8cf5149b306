//! UDP proxying: what a client sends goes to one endpoint, and what that answers goes back from the address the client has
//! asked, until both have been silent for long enough.
//!
//! Clusters, balancers, plugins and what is noted are those of TCP. Who receives for many clients is `listener/udp.rs`.

use crate::datagrams::{Datagrams, Path};
use crate::deadline;
use crate::drain::Drain;
use crate::io::Filtering;
use crate::sockets;
use crate::tcp_proxy::{self, End, Meter, Moved, Reached, Session, Side, Terms, Transport, Upstream};
use crate::upstream::UpstreamError;
use crate::worker::Worker;
use bytes::Bytes;
use sixfold_core::cluster::{Address, Cluster, Host};
use sixfold_core::connection::Connection;
use sixfold_core::stream::Stream;
use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{Interest, Ready};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

/// The longest datagram there is.
pub(crate) const LONGEST: usize = 64 << 10;

/// Datagrams of one client that wait for its endpoint, at most.
pub(crate) const WAITING: usize = 64;

/// A client's datagrams on their way to its session.
pub(crate) type Inbox = mpsc::Receiver<Waiting>;

/// A datagram that counts among those that wait, for as long as it does.
pub(crate) struct Waiting {
    bytes: Bytes,
    held: Arc<AtomicUsize>,
}

impl Waiting {
    /// `None` where as many bytes wait as may: then nothing is copied.
    pub(crate) fn new(bytes: &[u8], held: &Arc<AtomicUsize>, most: usize) -> Option<Waiting> {
        if held.fetch_add(bytes.len(), Relaxed).saturating_add(bytes.len()) > most {
            held.fetch_sub(bytes.len(), Relaxed);
            return None;
        }
        Some(Waiting { bytes: Bytes::copy_from_slice(bytes), held: held.clone() })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes.len(), Relaxed);
    }
}

/// How long an answer is waited for once the listener receives nothing more.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// What a session and who receives for it know of each other.
#[derive(Default)]
pub(crate) struct Shown {
    /// It has had more than one datagram of the client and one answer since this was last looked at.
    pub(crate) used: AtomicBool,
    /// Its place is another client's.
    pub(crate) displaced: Notify,
}

/// A client's side of a session.
pub(crate) struct Correspondent {
    pub(crate) answers: Arc<Datagrams>,
    pub(crate) path: Path,
    pub(crate) inbox: Inbox,
    pub(crate) shown: Arc<Shown>,
}

/// Serves one client until it and its endpoint have been silent for too long, one of them can't be reached, or the
/// listener goes. Then an answer that is still to come is waited for.
pub(crate) async fn serve(
    client: Correspondent,
    connection: Arc<Connection>,
    terms: Terms,
    worker: Arc<Worker>,
    drain: Drain,
) {
    let filters = terms.filters();
    let mut context = Stream::new(connection.clone());
    terms.enter(&mut context);
    context.set_var("protocol", "UDP");
    let begun = drain.connection().serve(Box::pin(Filtering::begin(&filters, context))).await;
    let filtering = match begun {
        Some(Ok(filtering)) => filtering,
        Some(Err(filtering)) => return tcp_proxy::refused(connection, terms, filtering),
        None => return,
    };
    let mut session = Session::new(connection, terms, Some(&filtering));
    session.filtering = Some(filtering);
    session.stream.set_var("protocol", "UDP");
    if let Some((upstream, _)) = session.begin(&worker, Transport::Udp).await {
        session.exchange(client, upstream, &drain).await;
    }
}

/// Takes a socket for an endpoint. Nobody hears of it: whether it is there shows when it answers, or its machine does.
pub(crate) async fn reach(cluster: &Cluster, host: &Host) -> Result<UdpSocket, UpstreamError> {
    let failed = |error: io::Error| match sockets::is_exhaustion(&error) {
        true => UpstreamError::Exhausted,
        false => UpstreamError::Connect(error.to_string()),
    };
    let Address::Ip(address) = &host.address else {
        return Err(UpstreamError::Connect("not an address of UDP".to_owned()));
    };
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let own = cluster.config.source_address.filter(|own| own.is_ipv4() == address.is_ipv4());
    let socket = UdpSocket::bind(own.unwrap_or(SocketAddr::new(any, 0))).await.map_err(failed)?;
    socket.connect(address).await.map_err(failed)?;
    Ok(socket)
}

impl Session {
    async fn exchange(&mut self, client: Correspondent, upstream: Upstream, drain: &Drain) {
        let Correspondent { answers, path, mut inbox, shown } = client;
        let Upstream { reached, mut flight, mut active } = upstream;
        // What was asked for is a socket of UDP.
        let Reached::Udp(endpoint) = reached else { return };
        let (terms, idle) = (self.terms.clone(), self.idle_timeout());
        let cluster = flight.cluster().clone();
        let mut meter = Meter::new(terms.stats(), &cluster.stats, terms.upstream_stats());
        let (mut up, mut down) = (Moved::default(), Moved::default());
        let mut forced = pin!(drain.expired());
        let silent_at = || Instant::now() + idle.unwrap_or(deadline::YEAR).min(deadline::YEAR);
        let mut silence = pin!(sleep_until(silent_at()));
        // Whether the client has been answered since it last spoke, and whether it can speak again.
        let (mut answered, mut open) = (false, true);
        let end = loop {
            tokio::select! {
                biased;
                () = &mut forced => break End::Drained,
                () = shown.displaced.notified() => break End::Closed(Side::Client),
                sent = inbox.recv(), if open => {
                    let Some(datagram) = sent else {
                        if answered {
                            break End::Drained;
                        }
                        open = false;
                        silence.as_mut().reset(silent_at().min(Instant::now() + LAST_ANSWER));
                        continue;
                    };
                    answered = false;
                    up.read += datagram.bytes.len() as u64;
                    match endpoint.send(&datagram.bytes).await {
                        Ok(n) => up.written += n as u64,
                        Err(error) if is_gone(&error) => break End::Failed(Side::Upstream),
                        // One that is too long, or for which there is no room: it is lost, as datagrams are.
                        Err(_) => up.written = up.read,
                    }
                }
                Ok(ready) = endpoint.ready(Interest::READABLE | Interest::ERROR) => match pass_answer(&endpoint, ready, &answers, path) {
                    Ok(Answer { length, waits }) => {
                        if down.read > 0 {
                            shown.used.store(true, Relaxed);
                        }
                        down.read += length as u64;
                        if let Some(bytes) = waits {
                            // One that can't be delivered is lost.
                            let _ = answers.send(&bytes, path).await;
                        }
                        down.written = down.read;
                        answered = true;
                        if !open {
                            meter.update(up, down, &mut self.stream.bytes);
                            break End::Drained;
                        }
                    }
                    Err(error) if is_gone(&error) => break End::Failed(Side::Upstream),
                    Err(_) => {}
                },
                () = &mut silence => break End::Idle,
            }
            if meter.update(up, down, &mut self.stream.bytes) && open {
                silence.as_mut().reset(silent_at());
            }
        };
        drop(meter);
        if end == (End::Failed(Side::Upstream)) {
            active.ends_remotely();
            let error = UpstreamError::Connect("connection refused".to_owned());
            flight.end(error.outcome(), error.outcome().status(), std::time::Instant::now());
            if down.read == 0 {
                // To nginx it is as one that took no connection.
                self.not_reached();
            }
        }
        self.noted(end);
    }

    fn noted(&mut self, end: End) {
        match end {
            End::Idle => {
                self.terms.stats().idle_timeout().inc();
                self.closed("tcp_session_idle_timeout");
                // Silence is how an exchange of datagrams comes to its end.
                return self.ends_by(End::Closed(Side::Upstream));
            }
            End::Drained => self.closed("deferred_close_on_drained_connection"),
            _ => {}
        }
        self.ends_by(end);
    }
}

thread_local! {
    /// Room for one answer.
    static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// An answer that was taken.
struct Answer {
    length: usize,
    /// What could not be sent on at once.
    waits: Option<Bytes>,
}

/// Takes an answer, and sends it on as far as there is room.
fn pass_answer(endpoint: &UdpSocket, ready: Ready, answers: &Datagrams, path: Path) -> io::Result<Answer> {
    if ready.is_error() {
        // What the endpoint's machine has said of what was sent: it comes by itself, and not with an answer.
        let _ = endpoint.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        if let Some(error) = endpoint.take_error()? {
            return Err(error);
        }
    }
    ROOM.with_borrow_mut(|room| {
        room.resize(LONGEST, 0);
        let length = endpoint.try_recv(room)?;
        let bytes = room.get(..length).unwrap_or_default();
        let full = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        let waits = answers.try_send(bytes, path).err().filter(full).map(|_| Bytes::copy_from_slice(bytes));
        Ok(Answer { length, waits })
    })
}

/// Whether the endpoint's machine says that nobody is there.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_finds_no_room_leaves_no_trace() {
        let held = Arc::new(AtomicUsize::new(0));
        let first = Waiting::new(&[1; 60], &held, 100).unwrap();
        assert!(Waiting::new(&[2; 60], &held, 100).is_none());
        assert_eq!(held.load(Relaxed), 60);
        drop(first);
        assert_eq!(held.load(Relaxed), 0);
    }
}
