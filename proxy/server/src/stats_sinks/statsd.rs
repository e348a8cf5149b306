//! Lines of statsd, in datagrams and over connections (source/extensions/stat_sinks/common/statsd).

use super::{PATIENCE, StatsdStats};
use crate::buffer::WriteBuffer;
use crate::connect::Handshake;
use crate::deadline::{Deadline, within};
use crate::io::{IdleState, Io, Meter};
use crate::upstream::{ActiveConnection, dial};
use sixfold_core::cluster::{Choice, Cluster, ClusterCell, Criteria};
use sixfold_core::metrics::flush::{Flush, StatsSink};
use sixfold_core::metrics::statsd::Lines;
use sixfold_core::stats_sink::Address;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use tokio::net::{UdpSocket, UnixDatagram};
use tokio::time::timeout;

/// A service that gets datagrams.
pub(super) struct Datagrams {
    lines: Lines,
    to: Address,
    bytes: usize,
    socket: Option<Socket>,
}

enum Socket {
    Udp(UdpSocket, SocketAddr),
    Unix(UnixDatagram, PathBuf),
}

impl Datagrams {
    pub(super) fn new(lines: Lines, to: Address, bytes: usize) -> Datagrams {
        Datagrams { lines, to, bytes, socket: None }
    }

    /// The socket, made when it is first needed.
    async fn socket(&mut self) -> io::Result<&Socket> {
        let made = match self.socket.take() {
            Some(socket) => socket,
            None => match &self.to {
                Address::Ip(to) => {
                    let any: SocketAddr = match to.is_ipv4() {
                        true => (Ipv4Addr::UNSPECIFIED, 0).into(),
                        false => (Ipv6Addr::UNSPECIFIED, 0).into(),
                    };
                    Socket::Udp(UdpSocket::bind(any).await?, *to)
                }
                Address::Unix(path) => Socket::Unix(UnixDatagram::unbound()?, path.clone()),
            },
        };
        Ok(self.socket.insert(made))
    }

    /// What can't be sent is lost; whoever listens may be back for the next one.
    async fn send(&mut self, packed: &Packed) -> io::Result<()> {
        let socket = self.socket().await?;
        for datagram in packed.each() {
            let _sent = match socket {
                Socket::Udp(socket, to) => socket.send_to(datagram, to).await,
                Socket::Unix(socket, path) => socket.send_to(datagram, path).await,
            };
        }
        Ok(())
    }
}

impl StatsSink for Datagrams {
    fn flush<'a>(&'a mut self, flush: &'a Flush) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        let mut packed = Packed::new(self.bytes);
        self.lines.each(flush, |line| packed.add(line));
        Box::pin(async move {
            if let Ok(Err(error)) = timeout(PATIENCE, self.send(&packed)).await {
                tracing::debug!(%error, "no statistics for statsd");
            }
        })
    }
}

/// Lines in datagrams: several in one as long as they fit, else each by itself.
#[derive(Default)]
pub(super) struct Packed {
    bytes: Vec<u8>,
    /// Where each datagram ends.
    ends: Vec<usize>,
    /// Bytes of a datagram of several lines.
    most: usize,
}

impl Packed {
    pub(super) fn new(most: usize) -> Packed {
        Packed { most, ..Packed::default() }
    }

    pub(super) fn add(&mut self, line: &str) {
        let before = self.ends.len().checked_sub(2).and_then(|last| self.ends.get(last)).copied();
        let length = self.bytes.len() - before.unwrap_or_default();
        if !self.bytes.is_empty() && length + 1 + line.len() <= self.most {
            self.ends.pop();
            self.bytes.push(b'\n');
        }
        self.bytes.extend_from_slice(line.as_bytes());
        self.ends.push(self.bytes.len());
    }

    pub(super) fn each(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).filter_map(|(start, end)| self.bytes.get(start..*end))
    }
}

/// A service that gets lines over a connection, which is kept.
pub(super) struct Connection {
    lines: Lines,
    cluster: Arc<ClusterCell>,
    stats: StatsdStats,
    connected: Option<(Io, ActiveConnection)>,
}

impl Connection {
    pub(super) fn new(lines: Lines, cluster: Arc<ClusterCell>, stats: StatsdStats) -> Connection {
        Connection { lines, cluster, stats, connected: None }
    }

    async fn connect(cluster: Option<Arc<Cluster>>) -> Option<(Io, ActiveConnection)> {
        let (cluster, nothing) = (cluster?, Criteria::default());
        let flight = cluster.choose(&Choice::avoiding(&[], 0, None, &nothing))?;
        let host = flight.host().clone();
        let permit = cluster.connection(&host, false)?;
        let mut active = ActiveConnection::new(host.clone(), cluster.stats.clone(), Some(permit));
        let handshake = Handshake { tls: cluster.tls_of(flight.member()), ..Handshake::default() };
        match dial(&cluster, &host, handshake, cluster.config.connect_timeout).await {
            Ok(mut connected) => {
                connected.io.meter(Meter::Upstream(cluster.stats.clone()));
                Some((connected.io, active))
            }
            Err(error) => {
                active.ends_remotely();
                tracing::debug!(error = error.text(), "no connection for statistics to statsd");
                None
            }
        }
    }

    async fn send(&mut self, out: &mut WriteBuffer) {
        let kept = self.connected.take().and_then(|(mut io, mut active)| match io.idle_state() {
            IdleState::Alive => Some((io, active)),
            IdleState::Closed | IdleState::HasData => {
                active.ends_remotely();
                None
            }
        });
        let connected = match kept {
            Some(connected) => Some(connected),
            None => Connection::connect(self.cluster.load()).await,
        };
        let Some((mut io, active)) = connected else { return };
        let mut deadline = Deadline::after(PATIENCE);
        match within(&mut deadline, |_, cx| out.poll_flush(&mut io, cx)).await {
            Ok(Ok(())) => self.connected = Some((io, active)),
            // It is closed, in the middle of a line maybe.
            Ok(Err(error)) => tracing::debug!(%error, "statsd has closed its connection"),
            Err(_) => self.stats.cx_overflow().inc(),
        }
    }
}

impl StatsSink for Connection {
    fn flush<'a>(&'a mut self, flush: &'a Flush) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        let mut out = WriteBuffer::default();
        self.lines.each(flush, |line| {
            out.tail().extend_from_slice(line.as_bytes());
            out.tail().push(b'\n');
        });
        Box::pin(async move { self.send(&mut out).await })
    }
}
