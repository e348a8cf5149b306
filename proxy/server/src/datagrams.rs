//! A listening socket of UDP: datagrams come with the address of ours that they were sent to, and answers go from it.

use socket2::{MaybeUninitSlice, MsgHdr, MsgHdrMut, SockAddr, SockRef};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// A socket that many clients send to.
pub(crate) struct Datagrams {
    socket: UdpSocket,
    local: SocketAddr,
}

/// Where a datagram is from, and what it was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Path {
    pub(crate) client: SocketAddr,
    pub(crate) local: SocketAddr,
}

impl Datagrams {
    /// Takes a socket over to the runtime of this thread.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn new(socket: std::net::UdpSocket) -> io::Result<Datagrams> {
        let local = socket.local_addr()?;
        if local.ip().is_unspecified() {
            tell_destinations(&socket, local.is_ipv6())?;
        }
        Ok(Datagrams { socket: UdpSocket::from_std(socket)?, local })
    }

    /// The next datagram: its length in `buffer`, which cuts longer ones, and its path.
    ///
    /// # Errors
    /// The operating system's. None is the end of the socket.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Path)> {
        if !self.local.ip().is_unspecified() {
            let (length, client) = self.socket.recv_from(buffer).await?;
            return Ok((length, Path { client, local: self.local }));
        }
        self.socket.async_io(Interest::READABLE, || self.take(buffer)).await
    }

    /// Sends an answer.
    ///
    /// # Errors
    /// The operating system's, such as one of a datagram that is too long for the network.
    pub(crate) async fn send(&self, bytes: &[u8], path: Path) -> io::Result<()> {
        let sent = match self.local.ip().is_unspecified() {
            false => self.socket.send_to(bytes, path.client).await,
            true => self.socket.async_io(Interest::WRITABLE, || self.put(bytes, path)).await,
        };
        sent.map(drop)
    }

    /// Sends an answer if there is room for it.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where there is none, and the operating system's.
    pub(crate) fn try_send(&self, bytes: &[u8], path: Path) -> io::Result<()> {
        let sent = match self.local.ip().is_unspecified() {
            false => self.socket.try_send_to(bytes, path.client),
            true => self.socket.try_io(Interest::WRITABLE, || self.put(bytes, path)),
        };
        sent.map(drop)
    }

    fn take(&self, buffer: &mut [u8]) -> io::Result<(usize, Path)> {
        let mut client = SockAddr::from(self.local);
        let mut control = [MaybeUninit::new(0); CONTROL];
        let (received, told) = {
            let room = uninit(buffer);
            let mut parts = [MaybeUninitSlice::new(room)];
            let header = MsgHdrMut::new().with_addr(&mut client).with_buffers(&mut parts);
            let mut header = header.with_control(&mut control);
            let received = SockRef::from(&self.socket).recvmsg(&mut header, libc::MSG_DONTWAIT)?;
            (received, header.control_len())
        };
        let client = client.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        let told = destination(init(&control).get(..told).unwrap_or_default());
        let local = told.unwrap_or(self.local.ip());
        Ok((received, Path { client, local: SocketAddr::new(local, self.local.port()) }))
    }

    fn put(&self, bytes: &[u8], path: Path) -> io::Result<usize> {
        let (to, parts) = (SockAddr::from(path.client), [IoSlice::new(bytes)]);
        let (control, length) = source(path.local.ip());
        let header = MsgHdr::new().with_addr(&to).with_buffers(&parts);
        let header = match control.get(..length).filter(|control| !control.is_empty()) {
            Some(control) => header.with_control(control),
            None => header,
        };
        SockRef::from(&self.socket).sendmsg(&header, libc::MSG_DONTWAIT)
    }
}

/// Room for what comes beside a datagram: one message, of 16 bytes before a `struct in6_pktinfo`.
const CONTROL: usize = 64;
/// Bytes of a `struct cmsghdr`: its length, level and type.
const HEAD: usize = size_of::<usize>() + 2 * size_of::<i32>();

/// Has the kernel tell of each datagram what it was sent to.
#[allow(unsafe_code)]
fn tell_destinations(socket: &impl AsRawFd, ipv6: bool) -> io::Result<()> {
    let (level, option) = match ipv6 {
        true => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        false => (libc::IPPROTO_IP, libc::IP_PKTINFO),
    };
    let on: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is that of an open socket, and the option is an integer that outlives the call.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(&on).cast(), length)
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Bytes as room for others.
#[allow(unsafe_code)]
fn uninit(bytes: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    // SAFETY: both have one layout, and the kernel writes nothing but bytes there.
    unsafe { &mut *(std::ptr::from_mut(bytes) as *mut [MaybeUninit<u8>]) }
}

/// Bytes that were written when the array was made.
#[allow(unsafe_code)]
fn init(bytes: &[MaybeUninit<u8>; CONTROL]) -> &[u8] {
    // SAFETY: every element was given a value, and the kernel writes nothing but bytes over them.
    unsafe { &*(std::ptr::from_ref(bytes) as *const [u8; CONTROL]) }
}

/// What a datagram was sent to, of the message that comes with it (`IP_PKTINFO`, `IPV6_PKTINFO`).
fn destination(control: &[u8]) -> Option<IpAddr> {
    let number = |at: usize| Some(i32::from_ne_bytes(control.get(at..at + 4)?.try_into().ok()?));
    let (level, kind) = (number(size_of::<usize>())?, number(size_of::<usize>() + 4)?);
    let data = control.get(HEAD..)?;
    match (level, kind) {
        // Behind the interface and the address that the answer is to have stands that of the header.
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            let address: [u8; 4] = data.get(8..12)?.try_into().ok()?;
            Some(Ipv4Addr::from(address).into())
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            let address: [u8; 16] = data.get(..16)?.try_into().ok()?;
            Some(Ipv6Addr::from(address).into())
        }
        _ => None,
    }
}

/// The message that has an answer come from an address, and its length; 0 for one that says nothing.
fn source(address: IpAddr) -> ([u8; CONTROL], usize) {
    let (mut message, mut length) = ([0; CONTROL], 0);
    let mut put = |bytes: &[u8]| {
        if let Some(room) = message.get_mut(length..length + bytes.len()) {
            room.copy_from_slice(bytes);
            length += bytes.len();
        }
    };
    let mut head = |data: usize, level: i32, kind: i32| {
        put(&(HEAD + data).to_ne_bytes());
        put(&level.to_ne_bytes());
        put(&kind.to_ne_bytes());
    };
    match address {
        _ if address.is_unspecified() => {}
        // Interface, address of the answer, and one that is not looked at.
        IpAddr::V4(ip) => {
            head(12, libc::IPPROTO_IP, libc::IP_PKTINFO);
            [&[0; 4][..], &ip.octets(), &[0; 4]].into_iter().for_each(put);
        }
        IpAddr::V6(ip) => {
            head(20, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO);
            [&ip.octets()[..], &[0; 4]].into_iter().for_each(put);
        }
    }
    // Up to a whole number of words.
    (message, length.next_multiple_of(size_of::<usize>()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Answers from another address than the client has asked are thrown away by it.
    #[tokio::test]
    async fn answers_come_from_the_address_that_was_asked() {
        for (any, asked) in [("0.0.0.0:0", "127.0.0.5"), ("127.0.0.6:0", "127.0.0.6"), ("[::]:0", "::1")] {
            let Ok(socket) = std::net::UdpSocket::bind(any) else {
                eprintln!("no IPv6 here");
                continue;
            };
            socket.set_nonblocking(true).unwrap();
            let listening = Datagrams::new(socket).unwrap();
            let asked = SocketAddr::new(asked.parse().unwrap(), listening.local.port());
            let any = if asked.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
            let client = UdpSocket::bind(any).await.unwrap();
            client.connect(asked).await.unwrap();
            client.send(b"ping").await.unwrap();
            let mut buffer = [0; 64];
            let (length, path) = listening.receive(&mut buffer).await.unwrap();
            assert_eq!((&buffer[..length], path.local), (&b"ping"[..], asked));
            assert_eq!(path.client, client.local_addr().unwrap());
            listening.send(b"pong", path).await.unwrap();
            assert_eq!(client.recv(&mut buffer).await.unwrap(), 4);
        }
    }
}
