//! What a process takes over of another one that serves in its place until then: sockets that listen.
//!
//! They are the very sockets, so what waits in their queues is lost by neither. Until the other one lets go nothing is
//! accepted here: a process that does not come so far has taken no connection.

use parking_lot::Mutex;
use sixfold_core::listener::BindAddress;
use socket2::Socket;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::watch;

/// Sockets of one address.
pub type Handed = (BindAddress, Vec<OwnedFd>);

/// What is taken over; nothing by default. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Inheritance(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sockets: Mutex<Vec<Handed>>,
    adopted: Mutex<Vec<BindAddress>>,
    /// Whether connections may be accepted.
    open: watch::Sender<bool>,
}

impl Default for Inheritance {
    fn default() -> Inheritance {
        let inner =
            Inner { sockets: Mutex::default(), adopted: Mutex::default(), open: watch::Sender::new(true) };
        Inheritance(Arc::new(inner))
    }
}

impl Inheritance {
    /// These sockets, on which nothing is accepted before [`Inheritance::open`].
    pub fn new(sockets: Vec<Handed>) -> Inheritance {
        let (sockets, open) = (Mutex::new(sockets), watch::Sender::new(false));
        Inheritance(Arc::new(Inner { sockets, adopted: Mutex::default(), open }))
    }

    /// Whether sockets of an address are there to be taken.
    pub fn has(&self, address: &BindAddress) -> bool {
        self.0.sockets.lock().iter().any(|(other, _)| other == address)
    }

    /// The sockets of an address, in the order of the workers that they were of; empty if there are none.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn sockets(&self, address: &BindAddress) -> io::Result<Vec<Socket>> {
        let handed = self.0.sockets.lock();
        let of_address = handed.iter().filter(|(other, _)| other == address).flat_map(|(_, sockets)| sockets);
        of_address.map(|socket| Ok(Socket::from(socket.try_clone()?))).collect()
    }

    /// Says that an address is in use here.
    pub(crate) fn adopt(&self, address: &BindAddress) {
        if self.has(address) {
            self.0.adopted.lock().push(address.clone());
        }
    }

    /// The addresses that are in use here.
    pub fn adopted(&self) -> Vec<BindAddress> {
        self.0.adopted.lock().clone()
    }

    /// Lets connections be accepted. What nobody has taken is closed.
    pub fn open(&self) {
        self.0.sockets.lock().clear();
        self.0.open.send_replace(true);
    }

    /// Waits until connections may be accepted.
    pub(crate) async fn opened(&self) {
        // It ends no earlier than this does.
        let _ = self.0.open.subscribe().wait_for(|open| *open).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::sockets::{self, Bound, ListenSocket, inherit_or_reserve};
    use sixfold_core::listener::SocketRights;
    use std::net::{SocketAddr, TcpStream, UdpSocket};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn handed(bound: &Bound) -> Inheritance {
        let again = |socket: &ListenSocket| socket.as_fd().try_clone_to_owned().unwrap();
        Inheritance::new(vec![(bound.address.clone(), bound.sockets.iter().map(again).collect())])
    }

    fn taken(inheritance: &Inheritance, address: &BindAddress, workers: usize) -> Bound {
        let rights = SocketRights::default();
        inherit_or_reserve(inheritance, address, workers, false, rights).unwrap().listen(64).unwrap()
    }

    fn accepted(bound: &Bound) -> usize {
        let accepts = |socket: &&ListenSocket| match socket {
            ListenSocket::Tcp(tcp) => tcp.accept().is_ok(),
            ListenSocket::Unix(unix) => unix.accept().is_ok(),
            ListenSocket::Udp(_) => false,
        };
        bound.sockets.iter().map(|socket| std::iter::repeat(socket).take_while(accepts).count()).sum()
    }

    /// A socket of a worker that there is no more would have kept its queue to itself.
    #[test]
    fn whoever_waits_in_any_queue_is_served_by_fewer_workers_and_by_more() {
        let any = BindAddress::Ip("127.0.0.1:0".parse().unwrap());
        let first = sockets::bind(&any, 4, 64).unwrap();
        let BindAddress::Ip(address) = first.address else { panic!() };
        let early: Vec<_> = (0..32).map(|_| TcpStream::connect(address).unwrap()).collect();
        let second = taken(&handed(&first), &first.address, 1);
        assert_eq!(second.sockets.len(), 4);
        drop(first);
        assert_eq!(accepted(&second), 32);
        let third = taken(&handed(&second), &second.address, 6);
        assert_eq!(third.sockets.len(), 6);
        drop(second);
        let late: Vec<_> = (0..64).map(|_| TcpStream::connect(address).unwrap()).collect();
        let mut count = 0;
        for _ in 0..2000 {
            count += accepted(&third);
            if count >= 64 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(count, 64);
        drop((early, late));
    }

    #[test]
    fn a_unix_socket_keeps_its_file_and_its_queue() {
        let path = std::env::temp_dir().join(format!("sixfold-inherited-{}.sock", std::process::id()));
        let first = sockets::bind(&BindAddress::Unix(path.clone()), 1, 16).unwrap();
        let waiting = UnixStream::connect(&path).unwrap();
        let second = taken(&handed(&first), &first.address, 3);
        drop(first);
        assert_eq!((second.sockets.len(), accepted(&second)), (3, 1));
        let unused = inherit_or_reserve(&handed(&second), &second.address, 1, false, SocketRights::default());
        drop(unused.unwrap());
        UnixStream::connect(&path).unwrap();
        drop(waiting);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn datagrams_that_wait_are_read_by_whoever_takes_over() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let first = sockets::bind(&BindAddress::Udp(any), 2, 16).unwrap();
        let BindAddress::Udp(address) = first.address else { panic!() };
        let client = UdpSocket::bind(any).unwrap();
        client.send_to(b"early", address).unwrap();
        let second = taken(&handed(&first), &first.address, 2);
        drop(first);
        let mut buffer = [0; 16];
        let read = second.sockets.iter().filter(|socket| match socket {
            ListenSocket::Udp(udp) => udp.recv(&mut buffer).is_ok(),
            _ => false,
        });
        assert_eq!(read.count(), 1);
    }

    #[test]
    fn what_nobody_has_taken_is_closed_in_the_end() {
        let any = BindAddress::Ip("127.0.0.1:0".parse().unwrap());
        let first = sockets::bind(&any, 1, 16).unwrap();
        let inheritance = handed(&first);
        let BindAddress::Ip(address) = first.address else { panic!() };
        drop(first);
        TcpStream::connect(address).unwrap();
        inheritance.open();
        assert!(TcpStream::connect(address).is_err());
        assert!(!inheritance.has(&BindAddress::Ip(address)));
    }
}
