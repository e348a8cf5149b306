//! What asks the process to do something: signals, and the administration interface.

use crate::Failure;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// SIGTERM, `/quitquitquit`: end when the connections have.
    Terminate,
    /// SIGINT: end soon.
    Interrupt,
    /// SIGHUP, or a file that changed: read the configuration again.
    Reload,
    /// SIGUSR1: open access logs anew.
    ReopenLogs,
    /// The first configuration has been applied, or can't be.
    Applied,
    /// The server has ended.
    Ended,
}

/// Events that wait. Who has one more waits for its place: the main thread does nothing that takes long.
const WAITING: usize = 64;

/// Starts to listen for signals; the sender is for others who ask.
pub(crate) fn listen() -> Result<(SyncSender<Event>, Receiver<Event>), Failure> {
    let (sender, receiver) = sync_channel(WAITING);
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
    let events = sender.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            let event = match signal {
                SIGTERM => Event::Terminate,
                SIGINT => Event::Interrupt,
                SIGHUP => Event::Reload,
                _ => Event::ReopenLogs,
            };
            // Nobody listens any more when the process is about to end.
            if events.send(event).is_err() {
                return;
            }
        }
    })?;
    Ok((sender, receiver))
}
