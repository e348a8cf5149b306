//! A listening socket of UDP: datagrams come with the address of ours that they were sent to, and answers go from it.

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
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
            // Has the kernel tell of each datagram what it was sent to.
            match local.is_ipv6() {
                true => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
                false => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            }
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
        let mut parts = [IoSliceMut::new(buffer)];
        let mut control = nix::cmsg_space!(libc::in6_pktinfo);
        let socket = self.socket.as_raw_fd();
        let received =
            recvmsg::<SockaddrStorage>(socket, &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
        let client = received.address.as_ref().and_then(address).ok_or(io::ErrorKind::InvalidData)?;
        // One that is cut tells nothing.
        let told =
            received.cmsgs().ok().and_then(|mut messages| messages.find_map(|told| destination(&told)));
        let local = told.unwrap_or(self.local.ip());
        Ok((received.bytes, Path { client, local: SocketAddr::new(local, self.local.port()) }))
    }

    fn put(&self, bytes: &[u8], path: Path) -> io::Result<usize> {
        let (to, parts) = (SockaddrStorage::from(path.client), [IoSlice::new(bytes)]);
        let send = |control: &[ControlMessage<'_>]| {
            let flags = MsgFlags::MSG_DONTWAIT;
            Ok(sendmsg(self.socket.as_raw_fd(), &parts, control, flags, Some(&to))?)
        };
        match path.local.ip() {
            ip if ip.is_unspecified() => send(&[]),
            // The address that the answer comes from; the interface, and the other one, are not looked at.
            IpAddr::V4(ip) => {
                let from = libc::in_addr { s_addr: u32::from(ip).to_be() };
                let other = libc::in_addr { s_addr: 0 };
                send(&[ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: from,
                    ipi_addr: other,
                })])
            }
            IpAddr::V6(ip) => {
                let from = libc::in6_addr { s6_addr: ip.octets() };
                let from = libc::in6_pktinfo { ipi6_addr: from, ipi6_ifindex: 0 };
                send(&[ControlMessage::Ipv6PacketInfo(&from)])
            }
        }
    }
}

/// What a datagram was sent to (`IP_PKTINFO`, `IPV6_PKTINFO`).
fn destination(told: &ControlMessageOwned) -> Option<IpAddr> {
    match told {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into())
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into()),
        _ => None,
    }
}

fn address(of: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = of.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| of.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
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
