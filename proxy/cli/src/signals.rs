//! What asks the process to do something: signals, and the administration interface.

use crate::{Failure, logging};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
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
    /// SIGUSR2: have a new process take this one's place.
    Upgrade,
    /// It has taken over.
    HandedOver,
    /// It has not, and never will.
    NotHandedOver,
    /// The first configuration has been applied, or can't be.
    Applied,
    /// The server has ended.
    Ended,
}

/// What comes, for the main thread.
pub(crate) struct Events {
    queue: Receiver<Event>,
    /// Set once somebody takes events. Before that the first configuration is read, which may take as long as a disk
    /// wants; nothing is served then that would have to end.
    heard: Arc<AtomicBool>,
}

impl Events {
    /// Waits for the next one; `None` when none can come any more.
    pub(crate) fn next(&self) -> Option<Event> {
        self.heard.store(true, Relaxed);
        self.queue.recv().ok()
    }
}

/// Events that wait. Who has one more waits for its place: the main thread does nothing that takes long.
const WAITING: usize = 64;

/// Starts to listen for signals; the sender is for others who ask. Until the first event is asked for, SIGTERM and
/// SIGINT end the process at once.
pub(crate) fn listen() -> Result<(SyncSender<Event>, Events), Failure> {
    let (sender, queue) = sync_channel(WAITING);
    let heard = Arc::new(AtomicBool::new(false));
    let heeded = heard.clone();
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2])?;
    let events = sender.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            let event = match signal {
                SIGTERM => Event::Terminate,
                SIGINT => Event::Interrupt,
                SIGHUP => Event::Reload,
                SIGUSR2 => Event::Upgrade,
                _ => Event::ReopenLogs,
            };
            if matches!(event, Event::Terminate | Event::Interrupt) && !heeded.load(Relaxed) {
                tracing::info!("ended before anything was served");
                logging::finish();
                std::process::exit(0);
            }
            // Nobody listens any more when the process is about to end.
            if events.send(event).is_err() {
                return;
            }
        }
    })?;
    Ok((sender, Events { queue, heard }))
}
