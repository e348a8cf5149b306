//! What two processes tell each other: objects of JSON, and descriptors beside them.

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use serde_json::{Value, json};
use sixfold_core::listener::BindAddress;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Of these messages. Processes of two versions understand each other, or the new one ends.
pub(super) const PROTOCOL: u64 = 1;
/// Descriptors of one message; the kernel takes 253.
pub(super) const DESCRIPTORS: usize = 64;
/// Bytes of a message.
const LONGEST: usize = 16 << 10;
/// How long the other process may take to read.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// One end of a socket between two processes; each message arrives as it was sent.
pub(super) struct Link(OwnedFd);

/// A message with the descriptors that came with it.
pub(super) type Received = (Value, Vec<OwnedFd>);

impl Link {
    /// An end, and the other one for another process.
    pub(super) fn pair() -> io::Result<(Link, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Link::new(ours)?, theirs))
    }

    /// The end that this process was given.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Link> {
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(SEND_TIMEOUT))?;
        Ok(Link(socket))
    }

    pub(super) fn send(&self, message: &Value, descriptors: &[OwnedFd]) -> io::Result<()> {
        let text = message.to_string();
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg(&self.0, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits for a message, until `deadline` if there is one; `None` once the other process is gone.
    pub(super) fn receive(&self, deadline: Option<Instant>) -> io::Result<Option<Received>> {
        // A timeout of nothing would be none.
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| left.max(Duration::from_millis(1)));
        sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Recv, left)?;
        let mut text = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut text)];
        let received = match recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received,
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(rustix::io::Errno::INTR) => return self.receive(deadline),
            Err(error) => return Err(error.into()),
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(sent) = message {
                descriptors.extend(sent);
            }
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::other("a message is too long"));
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(text.get(..received.bytes).unwrap_or_default())?;
        Ok(Some((message, descriptors)))
    }
}

/// An address in a message.
pub(super) fn written(address: &BindAddress) -> Value {
    match address {
        BindAddress::Ip(ip) => json!({ "tcp": ip.to_string() }),
        BindAddress::DualStack(ip) => json!({ "dual": ip.to_string() }),
        BindAddress::Udp(ip) => json!({ "udp": ip.to_string() }),
        BindAddress::Unix(path) => json!({ "unix": path.to_string_lossy() }),
    }
}

/// The address of a message.
pub(super) fn read(address: &Value) -> Option<BindAddress> {
    let text = |kind| address.get(kind).and_then(Value::as_str);
    let ip = |kind| text(kind).and_then(|ip| ip.parse().ok());
    ip("tcp")
        .map(BindAddress::Ip)
        .or_else(|| ip("dual").map(BindAddress::DualStack))
        .or_else(|| ip("udp").map(BindAddress::Udp))
        .or_else(|| text("unix").map(|path| BindAddress::Unix(path.into())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn messages_and_descriptors_arrive_and_the_end_is_told() {
        let (one, other) = Link::pair().unwrap();
        let other = Link::new(other).unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        one.send(&json!({"a": 1}), &[far.into()]).unwrap();
        let (message, mut descriptors) = other.receive(None).unwrap().unwrap();
        assert_eq!((message["a"].as_u64(), descriptors.len()), (Some(1), 1));
        UnixStream::from(descriptors.remove(0)).write_all(b"x").unwrap();
        near.read_exact(&mut [0; 1]).unwrap();
        let soon = Some(Instant::now() + Duration::from_millis(20));
        assert_eq!(other.receive(soon).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(one);
        assert!(other.receive(None).unwrap().is_none());
    }

    #[test]
    fn addresses_are_read_as_they_were_written() {
        for address in [
            BindAddress::Ip("127.0.0.1:80".parse().unwrap()),
            BindAddress::DualStack("[::]:80".parse().unwrap()),
            BindAddress::Udp("[::1]:53".parse().unwrap()),
            BindAddress::Unix("/run/a.sock".into()),
        ] {
            assert_eq!(read(&written(&address)), Some(address));
        }
        assert_eq!(read(&json!({"sctp": "127.0.0.1:80"})), None);
    }
}
