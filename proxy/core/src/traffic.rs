//! Bytes on the wire.

/// Bytes of one message and its answer on one connection, as a peer of Envoy's counts them (`StreamInfo::BytesMeter`).
///
/// Over HTTP/1 they are exact: start lines, fields, line ends, the framing of bodies. Over HTTP/2 the library keeps to itself
/// how well it compressed a head and where it cut a body: heads count as their names and values, and each piece of a body
/// as one DATA frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// All that was sent.
    pub sent: u64,
    /// All that was received.
    pub received: u64,
    /// Of the heads sent: names and values with the four bytes around them, start lines aside.
    pub head_sent: u64,
    /// Of the heads received: names and values with three bytes for each, start lines aside.
    pub head_received: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, more: Traffic) {
        self.sent += more.sent;
        self.received += more.received;
        self.head_sent += more.head_sent;
        self.head_received += more.head_received;
    }
}
