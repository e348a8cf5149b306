//! The exchange of peers as a filter of a connection, at whichever end: ours goes before all that the other side gets, and its
//! own is taken off what it sends.

use super::{ClientBytes, ConnectionFilter, FilterStep};
use crate::connection::Connection;
use crate::peer_exchange::{Heard, PeerExchange, Progress};
use crate::plugin::Slot;
use crate::stream::Stream;

/// Who is at the other end stands in the context's `peers.downstream`, also where the other end is an endpoint.
impl ConnectionFilter for PeerExchange {
    fn is_concerned(&self, connection: &Connection) -> bool {
        self.meets(alpn(connection))
    }

    fn on_new_connection(&self, connection: &mut Stream, slot: Slot) -> FilterStep {
        if !self.is_agreed(alpn(&connection.connection)) {
            return FilterStep::Done;
        }
        connection.peers.awaited.downstream = true;
        connection.set_state(slot, Progress::default());
        FilterStep::Continue
    }

    fn on_write(&self, connection: &mut Stream, slot: Slot, answer: &mut Vec<u8>) {
        if let Some(progress) = connection.state::<Progress>(slot) {
            self.say(progress, answer);
        }
    }

    fn on_data(&self, connection: &mut Stream, slot: Slot, bytes: &mut ClientBytes<'_>) -> FilterStep {
        let Some(progress) = connection.state::<Progress>(slot) else { return FilterStep::Done };
        self.say(progress, bytes.answer);
        match self.hear(progress, bytes.received, bytes.end) {
            Heard::Part => FilterStep::Hold,
            Heard::All(peer) => {
                connection.peers.downstream = peer;
                connection.peers.awaited.downstream = false;
                FilterStep::Done
            }
        }
    }
}

fn alpn(connection: &Connection) -> Option<&[u8]> {
    connection.tls.as_ref()?.alpn.as_deref()
}
