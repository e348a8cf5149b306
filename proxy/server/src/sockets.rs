//! Listening sockets.
//!
//! Every worker has its own socket of an address (`SO_REUSEPORT`), so that the kernel spreads connections.
//! The first one is bound without the option: else a second process would share the port in silence.

use crate::inheritance::Inheritance;
use sixfold_core::connection::Source;
use sixfold_core::listener::{BindAddress, SocketRights};
use socket2::{Domain, Protocol, SockAddr, SockFilter, SockRef, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// The sockets of one address, one for each worker.
#[derive(Debug)]
pub struct Bound {
    /// Sockets in the order of the workers, non-blocking: at least one for each, more if they were taken over.
    pub sockets: Vec<ListenSocket>,
    /// The address with the port that was given for port 0.
    pub address: BindAddress,
}

/// A listening socket.
#[derive(Debug)]
pub enum ListenSocket {
    /// TCP.
    Tcp(TcpListener),
    /// Unix; the workers share one.
    Unix(UnixListener),
    /// UDP: the kernel gives all datagrams of a client to one worker.
    Udp(UdpSocket),
}

/// An address that is taken and does not listen yet: nobody can connect, and giving it back resets nobody.
#[derive(Debug)]
pub struct Reserved {
    /// The address with the port that was given for port 0.
    pub address: BindAddress,
    /// Bound; gone once it listens.
    first: Option<Socket>,
    /// Those of the other workers, which can't be bound before the first listens.
    others: Vec<Socket>,
    /// Those of another process that goes, which listen.
    inherited: Vec<Socket>,
    workers: usize,
    rights: SocketRights,
}

impl ListenSocket {
    fn of(socket: Socket, address: &BindAddress) -> ListenSocket {
        match address {
            BindAddress::Ip(_) | BindAddress::DualStack(_) => ListenSocket::Tcp(socket.into()),
            BindAddress::Unix(_) => ListenSocket::Unix(socket.into()),
            BindAddress::Udp(_) => ListenSocket::Udp(socket.into()),
        }
    }
}

impl AsFd for ListenSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            ListenSocket::Tcp(socket) => socket.as_fd(),
            ListenSocket::Unix(socket) => socket.as_fd(),
            ListenSocket::Udp(socket) => socket.as_fd(),
        }
    }
}

/// Opens an address for `workers` workers.
///
/// # Errors
/// The operating system's, such as an address that is in use.
#[cfg(test)]
pub(crate) fn bind(address: &BindAddress, workers: usize, backlog: u32) -> io::Result<Bound> {
    reserve(address, workers, false, SocketRights::default())?.listen(backlog)
}

/// [`reserve`], unless there are sockets of this address to be taken over.
///
/// # Errors
/// As of [`reserve`].
pub fn inherit_or_reserve(
    inheritance: &Inheritance,
    address: &BindAddress,
    workers: usize,
    taken_over: bool,
    rights: SocketRights,
) -> io::Result<Reserved> {
    let inherited = inheritance.sockets(address)?;
    if inherited.is_empty() {
        return reserve(address, workers, taken_over, rights);
    }
    Ok(Reserved { address: address.clone(), first: None, others: Vec::new(), inherited, workers, rights })
}

/// Takes an address for `workers` workers. With `taken_over` sockets of this process still listen on it, which
/// will be closed.
///
/// # Errors
/// The operating system's, such as an address that is in use.
pub fn reserve(
    address: &BindAddress,
    workers: usize,
    taken_over: bool,
    rights: SocketRights,
) -> io::Result<Reserved> {
    match address {
        BindAddress::Ip(ip) | BindAddress::DualStack(ip) => {
            reserve_tcp(address, *ip, workers, taken_over, rights)
        }
        BindAddress::Unix(path) => reserve_unix(path, workers),
        BindAddress::Udp(ip) => reserve_udp(*ip, workers, taken_over),
    }
}

fn reserve_tcp(
    wanted: &BindAddress,
    ip: SocketAddr,
    workers: usize,
    taken_over: bool,
    rights: SocketRights,
) -> io::Result<Reserved> {
    let dual = matches!(wanted, BindAddress::DualStack(_));
    let first = tcp_socket(ip, dual, rights)?;
    first.set_reuse_port(taken_over)?;
    first.bind(&ip.into())?;
    let ip = first.local_addr()?.as_socket().unwrap_or(ip);
    let others = (1..workers).map(|_| tcp_socket(ip, dual, rights)).collect::<io::Result<_>>()?;
    let address = if dual { BindAddress::DualStack(ip) } else { BindAddress::Ip(ip) };
    Ok(Reserved { address, first: Some(first), others, inherited: Vec::new(), workers, rights })
}

impl Reserved {
    /// Lets connections begin.
    ///
    /// # Errors
    /// The operating system's: another process has been quicker.
    pub fn listen(mut self, backlog: u32) -> io::Result<Bound> {
        let backlog = i32::try_from(backlog.max(1)).unwrap_or(i32::MAX);
        if !self.inherited.is_empty() {
            return self.listen_on_inherited(backlog);
        }
        let (address, others) = (self.address.clone(), std::mem::take(&mut self.others));
        let Some(first) = &self.first else { return Err(io::ErrorKind::NotConnected.into()) };
        // Only a listening socket keeps others off: SO_REUSEADDR lets several merely bind. Of UDP none have it.
        if !matches!(address, BindAddress::Udp(_)) {
            first.listen(backlog)?;
        }
        let mut sockets = Vec::with_capacity(others.len() + 1);
        match &address {
            BindAddress::Ip(ip) | BindAddress::DualStack(ip) => {
                first.set_reuse_port(true)?;
                for socket in others {
                    socket.set_reuse_port(true)?;
                    socket.bind(&(*ip).into())?;
                    socket.listen(backlog)?;
                    sockets.push(ListenSocket::Tcp(socket.into()));
                }
            }
            BindAddress::Udp(ip) => {
                first.set_reuse_port(true)?;
                for socket in others {
                    socket.set_reuse_port(true)?;
                    socket.bind(&(*ip).into())?;
                    sockets.push(ListenSocket::Udp(socket.into()));
                }
            }
            BindAddress::Unix(_) => {
                sockets.extend(others.into_iter().map(|socket| ListenSocket::Unix(socket.into())));
            }
        }
        sockets.extend(self.first.take().map(|first| ListenSocket::of(first, &address)));
        Ok(Bound { sockets, address })
    }

    /// Every one of them is kept, be they more than there are workers: connections may wait in each.
    fn listen_on_inherited(mut self, backlog: i32) -> io::Result<Bound> {
        let (address, mut sockets) = (self.address.clone(), std::mem::take(&mut self.inherited));
        for _ in sockets.len()..self.workers {
            let (ip, socket) = match (&address, sockets.first()) {
                (BindAddress::Ip(ip), _) => (*ip, tcp_socket(*ip, false, self.rights)?),
                (BindAddress::DualStack(ip), _) => (*ip, tcp_socket(*ip, true, self.rights)?),
                (BindAddress::Udp(ip), _) => (*ip, udp_socket(*ip)?),
                (BindAddress::Unix(_), Some(first)) => {
                    sockets.push(first.try_clone()?);
                    continue;
                }
                (BindAddress::Unix(_), None) => continue,
            };
            socket.set_reuse_port(true)?;
            socket.bind(&ip.into())?;
            sockets.push(socket);
        }
        if !matches!(address, BindAddress::Udp(_)) {
            // Of those that listen it changes the length of the queue.
            sockets.iter().try_for_each(|socket| socket.listen(backlog))?;
        }
        let sockets = sockets.into_iter().map(|socket| ListenSocket::of(socket, &address)).collect();
        Ok(Bound { sockets, address })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let (Some(_), BindAddress::Unix(path)) = (&self.first, &self.address) {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn tcp_socket(address: SocketAddr, dual: bool, rights: SocketRights) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // Both families on one port are two listeners' business, unless one asks for both.
        socket.set_only_v6(!dual)?;
    }
    // Connections in TIME_WAIT must not keep a restarted proxy from its port.
    socket.set_reuse_address(true)?;
    if rights.transparent {
        set_transparent(&socket, address.is_ipv6())?;
    }
    if rights.freebind {
        match address.is_ipv6() {
            true => socket.set_freebind_v6(true)?,
            false => socket.set_freebind_v4(true)?,
        }
    }
    Ok(socket)
}

fn reserve_udp(ip: SocketAddr, workers: usize, taken_over: bool) -> io::Result<Reserved> {
    let first = udp_socket(ip)?;
    first.set_reuse_port(taken_over)?;
    first.bind(&ip.into())?;
    let ip = first.local_addr()?.as_socket().unwrap_or(ip);
    let others = (1..workers).map(|_| udp_socket(ip)).collect::<io::Result<_>>()?;
    let (address, rights) = (BindAddress::Udp(ip), SocketRights::default());
    Ok(Reserved { address, first: Some(first), others, inherited: Vec::new(), workers, rights })
}

fn udp_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn reserve_unix(path: &Path, workers: usize) -> io::Result<Reserved> {
    if path.exists() {
        match UnixStream::connect(path) {
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            // Left over by a process that is gone.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(e) => return Err(e),
        }
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let mut reserved = Reserved {
        address: BindAddress::Unix(path.into()),
        first: Some(socket),
        others: Vec::new(),
        inherited: Vec::new(),
        workers,
        rights: SocketRights::default(),
    };
    for _ in 1..workers {
        reserved.others.extend(reserved.first.as_ref().map(Socket::try_clone).transpose()?);
    }
    Ok(reserved)
}

/// Lets no further connection begin on a TCP socket that still listens: SYN segments are dropped, handshakes
/// under way go on. A client that is turned away so tries again and finds the port closed or taken over,
/// where a closed socket would reset it.
///
/// # Errors
/// The operating system's; then connections in the last moment may be reset.
pub fn refuse_new(socket: &impl AsFd) -> io::Result<()> {
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
    const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const FLAGS: u32 = 13; // offset in the TCP header
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    SockRef::from(socket).attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}

/// Lets a socket have other machines' addresses.
fn set_transparent(socket: &Socket, ipv6: bool) -> io::Result<()> {
    match ipv6 {
        true => socket.set_ip_transparent_v6(true),
        false => socket.set_ip_transparent_v4(true),
    }
}

/// Has a socket connect from another machine's address; answers are routed back to it by the mark.
///
/// # Errors
/// The operating system's: it takes CAP_NET_ADMIN, or for the address CAP_NET_RAW.
pub fn borrow_address(socket: &impl AsFd, source: Source) -> io::Result<()> {
    let socket = SockRef::from(socket);
    set_transparent(&socket, source.ip.is_ipv6())?;
    if source.mark != 0 {
        socket.set_mark(source.mark)?;
    }
    socket.bind(&SocketAddr::new(source.ip, 0).into())
}

/// Where a redirected connection was meant to go: `SO_ORIGINAL_DST`, or the own address of a transparent socket; `None` when
/// it was not redirected.
pub fn original_dst(socket: &impl AsFd, ipv6: bool) -> Option<SocketAddr> {
    let socket = SockRef::from(socket);
    let found = if ipv6 { socket.original_dst_v6() } else { socket.original_dst_v4() };
    let transparent = || if ipv6 { socket.ip_transparent_v6() } else { socket.ip_transparent_v4() };
    match found {
        Ok(found) => found.as_socket(),
        Err(_) if transparent().unwrap_or(false) => socket.local_addr().ok()?.as_socket(),
        Err(_) => None,
    }
}

/// Whether an error of accepting says that descriptors or memory have run out, so that trying at once again
/// would spin.
pub fn is_exhaustion(error: &io::Error) -> bool {
    // EMFILE, ENFILE, ENOBUFS, ENOMEM on Linux.
    matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12))
}

/// Whether an error of accepting is about the one connection that was to be accepted (accept(2)).
pub fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    // ENETDOWN, EPROTO, ENOPROTOOPT, EHOSTDOWN, ENONET, EHOSTUNREACH, EOPNOTSUPP, ENETUNREACH, EPERM.
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
        || matches!(error.raw_os_error(), Some(100 | 71 | 92 | 112 | 64 | 113 | 95 | 101 | 1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::net::TcpStream;

    const ANY: BindAddress =
        BindAddress::Ip(SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0));

    fn accepted(bound: &Bound) -> usize {
        let mut count = 0;
        for socket in &bound.sockets {
            if let ListenSocket::Tcp(tcp) = socket {
                while tcp.accept().is_ok() {
                    count += 1;
                }
            }
        }
        count
    }

    #[test]
    fn workers_share_a_port_that_nobody_else_gets() {
        let bound = bind(&ANY, 4, 128).unwrap();
        assert_eq!(bound.sockets.len(), 4);
        assert_eq!(bind(&bound.address, 4, 128).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let BindAddress::Ip(address) = bound.address else { panic!() };
        let clients: Vec<_> = (0..64).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert_eq!(accepted(&bound), 64);
        let used = |s: &ListenSocket| matches!(s, ListenSocket::Tcp(_));
        assert!(bound.sockets.iter().all(used));
        drop((clients, bound));
        assert!(bind(&BindAddress::Ip(address), 2, 128).is_ok(), "the port is free again");
    }

    /// Clients of IPv4 were refused whatever the configuration said.
    #[test]
    fn an_address_of_both_families_takes_clients_of_ipv4() {
        for (both, taken) in [(true, 2), (false, 1)] {
            let any = SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), 0);
            let address = if both { BindAddress::DualStack(any) } else { BindAddress::Ip(any) };
            let Ok(bound) = bind(&address, 2, 128) else { return eprintln!("no IPv6 here") };
            let port = bound.address.ip().unwrap().port();
            let clients = [TcpStream::connect(("::1", port)), TcpStream::connect(("127.0.0.1", port))];
            assert_eq!(clients.iter().filter(|client| client.is_ok()).count(), taken);
            assert_eq!(accepted(&bound), taken);
        }
    }

    #[test]
    fn a_reserved_address_turns_clients_away_and_is_given_back() {
        let reserved = reserve(&ANY, 2, false, SocketRights::default()).unwrap();
        let BindAddress::Ip(address) = reserved.address else { panic!() };
        assert!(TcpStream::connect(address).is_err());
        let bound = reserved.listen(128).unwrap();
        assert_eq!(
            reserve(&bound.address, 2, false, SocketRights::default()).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        // Taken over, it is the other's until that one is closed.
        let next = reserve(&bound.address, 2, true, SocketRights::default()).unwrap();
        let _clients: Vec<_> = (0..32).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert_eq!(accepted(&bound), 32);
        drop(bound);
        let next = next.listen(128).unwrap();
        let _client = TcpStream::connect(address).unwrap();
        assert_eq!(accepted(&next), 1);
        let path = std::env::temp_dir().join(format!("sixfold-reserved-{}.sock", std::process::id()));
        let reserved = reserve(&BindAddress::Unix(path.clone()), 2, false, SocketRights::default()).unwrap();
        assert!(path.exists() && UnixStream::connect(&path).is_err());
        drop(reserved);
        assert!(!path.exists());
    }

    #[test]
    fn refused_connections_do_not_begin_and_waiting_ones_stay() {
        let bound = bind(&ANY, 1, 128).unwrap();
        let BindAddress::Ip(address) = bound.address else { panic!() };
        let waiting = TcpStream::connect(address).unwrap();
        let ListenSocket::Tcp(tcp) = &bound.sockets[0] else { panic!() };
        refuse_new(tcp).unwrap();
        let timeout = std::time::Duration::from_millis(200);
        assert!(TcpStream::connect_timeout(&address, timeout).is_err());
        assert_eq!(accepted(&bound), 1);
        drop(waiting);
    }

    #[test]
    fn a_unix_socket_of_the_dead_is_taken_over_and_one_of_the_living_is_not() {
        let path = std::env::temp_dir().join(format!("sixfold-sockets-{}.sock", std::process::id()));
        let address = BindAddress::Unix(path.clone());
        let first = bind(&address, 2, 16).unwrap();
        assert_eq!(bind(&address, 2, 16).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        let second = bind(&address, 2, 16).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(second);
        std::fs::remove_file(&path).unwrap();
    }
}
