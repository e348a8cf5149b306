//! Network filters that stand before the one which ends their chain: what sees a connection when it is established, and
//! the bytes of its client.
//!
//! A new one is a type with [`ConnectionFilter`], and a way to make it of its configuration: a
//! [`NetworkFilterFactory`](crate::plugin::NetworkFilterFactory) among those of the plugins' registry if it needs what
//! plugins have (callouts, shared state), else an arm of `one` in `xds/src/listener/network.rs`. Nothing else has to
//! know of it: the server asks the filters of a chain in their order, whichever filter ends it.

use crate::connection::Connection;
use crate::plugin::Slot;
use crate::stream::Stream;
use std::borrow::Cow;
use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// A network filter before the last one of its chain. Its instance serves every connection of the chain; what it knows
/// of one stands in the connection's context, under the filter's slot.
///
/// The context is one of the connection: there is no request in it. Metadata and filter state that filters leave there
/// are seen by those behind them and by a TCP proxy with its logs; requests see the filter state that is there when
/// [`ConnectionFilter::on_new_connection`] is through.
pub trait ConnectionFilter: Send + Sync + Debug {
    /// What the filter begins by itself, or shows of itself: making it begins nothing, since the listener or the table of
    /// routes that it is made for may be refused. It is called on the control thread, again with each of them that goes into
    /// force, and may not wait.
    fn in_force(&self) {}

    /// Whether the filter has anything to do with a connection that was just established, TLS included. It is asked once, before
    /// all else; a connection that concerns none of the filters costs nothing more.
    fn is_concerned(&self, _connection: &Connection) -> bool {
        true
    }

    /// The connection is established, TLS included. The filters behind this one, and the one that ends the chain, hear
    /// of it only once this one lets it go on.
    fn on_new_connection(&self, _connection: &mut Stream, _slot: Slot) -> FilterStep {
        FilterStep::Continue
    }

    /// The client has sent something, or has said that it sends nothing more. The filter that ends the chain is at work
    /// by then, but has not seen these bytes. By default nothing of it is of interest.
    fn on_data(&self, _connection: &mut Stream, _slot: Slot, _bytes: &mut ClientBytes<'_>) -> FilterStep {
        FilterStep::Done
    }

    /// Something is about to be written to the client for the first time: what is put into `answer` goes before it. Filters that
    /// are done are not asked.
    fn on_write(&self, _connection: &mut Stream, _slot: Slot, _answer: &mut Vec<u8>) {}

    /// Whether what is meant for the client waits until [`ConnectionFilter::on_data`] is done.
    fn holds_writes(&self) -> bool {
        false
    }

    /// How often [`ConnectionFilter::on_report`] is called while a TCP proxy serves the connection; `None` is never.
    fn report_interval(&self) -> Option<Duration> {
        None
    }

    /// The connection goes on. The context is that of the proxy's log, as far as it is known.
    fn on_report(&self, _connection: &mut Stream, _slot: Slot) {}

    /// The connection has ended. Of one that a TCP proxy has served the context is that of its log: with endpoint,
    /// bytes and flags.
    fn on_close(&self, _connection: &mut Stream, _slot: Slot) {}
}

/// What a client has sent and no filter behind has seen.
pub struct ClientBytes<'a> {
    /// The bytes, which may be changed.
    pub received: &'a mut Vec<u8>,
    /// Whether the client sends nothing more.
    pub end: bool,
    /// Where bytes for the client are put, which it gets before all that is still to be written to it.
    pub answer: &'a mut Vec<u8>,
}

/// What a [`ConnectionFilter`] decides.
pub enum FilterStep {
    /// It goes on; what the client sends next is asked about too.
    Continue,
    /// It goes on, and this filter is not asked any more.
    Done,
    /// More of the client is needed: what there is comes again with it. At the client's end, or once it is
    /// [`MAX_HELD`] bytes, it goes on instead.
    Hold,
    /// To wait. Nothing of the client goes on meanwhile. The future is dropped with the connection, at any point.
    Wait(Pin<Box<dyn Future<Output = Resume> + Send>>),
    /// It ends here.
    Close(Closing),
}

/// What a filter does once its waiting is over.
pub type Resume = Box<dyn FnOnce(&mut Stream) -> FilterStep + Send>;

/// The most bytes of a client that a filter can hold back.
pub const MAX_HELD: usize = 64 << 10;

/// How a filter ends a connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Closing {
    /// For the log (`%CONNECTION_TERMINATION_DETAILS%`); may be empty.
    pub details: Cow<'static, str>,
    /// Who ends it (`%DOWNSTREAM_LOCAL_CLOSE_REASON%`); may be empty.
    pub reason: &'static str,
    /// How long it is left open still, without being read.
    pub delay: Duration,
    /// What metrics and logs of APISIX say of its end, in the words of HTTP; 0 is nothing of its own.
    pub status: u16,
}

impl FilterStep {
    /// Waits for a future, and then decides.
    pub fn wait<F>(future: F) -> FilterStep
    where
        F: Future<Output = Resume> + Send + 'static,
    {
        FilterStep::Wait(Box::pin(future))
    }
}
