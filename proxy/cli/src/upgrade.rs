//! A new binary in the place of a running one, without a request lost (SIGUSR2).
//!
//! The old process starts the new one with a socket as its standard input, and gives it every listening socket over that. The
//! new one reads its configuration, opens what it needs and says that it is ready; nothing is accepted there until the old
//! one lets go, which then drains. Whatever goes wrong before that ends the new process, and the old one goes on as if it had
//! not been asked. What only one process may have open, the store, is lent to the new one while it starts.

mod link;
mod notify;
mod predecessor;
mod successor;

pub(crate) use notify::notify;
pub(crate) use predecessor::Predecessor;

use crate::Failure;
use crate::arguments::UpgradeOptions;
use crate::signals::Event;
use link::Link;
use parking_lot::Mutex;
use sixfold_apisix::store::Store;
use sixfold_core::listener::BindAddress;
use sixfold_server::inheritance::Handed;
use sixfold_server::server::Server;
use sixfold_server::surface::Surface;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long answers that are being made on a surface have to end before the store is lent.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// What a process has that another one may take over. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Upgrade(Arc<Inner>);

struct Inner {
    /// How long a new process has until it is ready; `None` for a command that has no successor.
    timeout: Option<Duration>,
    pid_file: Option<PathBuf>,
    surfaces: Mutex<Vec<(Surface, Uses)>>,
    store: OnceLock<Arc<dyn Store>>,
    phase: Mutex<Phase>,
}

/// What a surface needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Uses {
    /// The store: it stands still while that is lent.
    Store,
    /// Nothing that another process may have.
    Nothing,
}

/// How far it is.
enum Phase {
    /// It does not serve yet.
    Early,
    /// Nobody has asked.
    Idle,
    /// A new process is about to be started.
    Begun,
    /// A new process starts.
    Starting(Child),
    /// This process is to end before the new one is ready.
    Cancelled,
    /// These addresses are the new one's, which waits for the end of the link, as long as there is one.
    HandedOver(Vec<BindAddress>, Option<Link>),
}

impl Upgrade {
    /// Of a process with these options; without them it has no successor.
    pub(crate) fn new(options: Option<&UpgradeOptions>) -> Upgrade {
        Upgrade(Arc::new(Inner {
            timeout: options.map(|options| Duration::from_secs(options.upgrade_timeout_s)),
            pid_file: options.and_then(|options| options.pid_file.clone()),
            surfaces: Mutex::default(),
            store: OnceLock::new(),
            phase: Mutex::new(Phase::Early),
        }))
    }

    /// Keeps a server of the process's own, for its whole life.
    pub(crate) fn keep(&self, surface: Option<Surface>, uses: Uses) {
        self.0.surfaces.lock().extend(surface.map(|surface| (surface, uses)));
    }

    /// Says what store the process has open. Only the first call counts.
    pub(crate) fn set_store(&self, store: Arc<dyn Store>) {
        let _ = self.0.store.set(store);
    }

    /// Says that the process serves: to who started it, and in its file.
    pub(crate) fn announce(&self) {
        {
            let mut phase = self.0.phase.lock();
            if matches!(*phase, Phase::Early) {
                *phase = Phase::Idle;
            }
        }
        if let Some(file) = &self.0.pid_file
            && let Err(error) = write_pid(file)
        {
            tracing::error!(file = %file.display(), %error, "the process's id is not written");
        }
        notify("READY=1");
    }

    /// Takes the file with the process's id away, unless another process has put its own there, or does so just now.
    pub(crate) fn withdraw(&self) {
        let Some(file) = self.0.pid_file.as_ref().filter(|_| self.handed_over().is_none()) else { return };
        if std::fs::read_to_string(file).is_ok_and(|text| text.trim() == std::process::id().to_string()) {
            let _ = std::fs::remove_file(file);
        }
    }

    /// Starts a new process on a thread of its own, which tells `events` what has become of it.
    pub(crate) fn start(&self, server: &Server, events: &SyncSender<Event>) -> Result<(), Failure> {
        let Some(timeout) = self.0.timeout else {
            tracing::warn!("SIGUSR2 is of `run` and `envoy`: nothing is done");
            return Ok(());
        };
        {
            let mut phase = self.0.phase.lock();
            if !matches!(*phase, Phase::Idle) {
                tracing::warn!(
                    "a new process has been started already, or this one does not serve yet: nothing is done"
                );
                return Ok(());
            }
            *phase = Phase::Begun;
        }
        let (upgrade, server, told) = (self.clone(), server.clone(), events.clone());
        let thread = std::thread::Builder::new().name("upgrade".to_owned());
        let started = thread.spawn(move || {
            let event = match successor::hand_over(&upgrade.0, &server, timeout) {
                Ok(()) => Event::HandedOver,
                Err(reason) => {
                    if !matches!(*upgrade.0.phase.lock(), Phase::Cancelled) {
                        tracing::error!("no new process takes over, this one goes on: {reason}");
                    }
                    Event::NotHandedOver
                }
            };
            // Nobody listens any more when the process is about to end.
            let _ = told.send(event);
        });
        if let Err(error) = started {
            *self.0.phase.lock() = Phase::Idle;
            tracing::error!(%error, "no new process takes over, this one goes on");
        }
        Ok(())
    }

    /// Whether a new process starts, which may come to nothing.
    pub(crate) fn is_under_way(&self) -> bool {
        matches!(*self.0.phase.lock(), Phase::Begun | Phase::Starting(_))
    }

    /// Ends a process that starts: this one is to end, too. Answers whether one has taken over, which stays.
    pub(crate) fn cancel(&self) -> bool {
        let mut phase = self.0.phase.lock();
        if let Phase::Starting(child) = &mut *phase {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        if matches!(*phase, Phase::Begun | Phase::Starting(_)) {
            *phase = Phase::Cancelled;
        }
        matches!(*phase, Phase::HandedOver(..))
    }

    /// Addresses that a new process has; `None` if none has taken over.
    pub(crate) fn handed_over(&self) -> Option<Vec<BindAddress>> {
        match &*self.0.phase.lock() {
            Phase::HandedOver(addresses, _) => Some(addresses.clone()),
            _ => None,
        }
    }

    /// Tells the new process that connections are accepted here no more.
    pub(crate) fn let_go(&self) {
        if let Phase::HandedOver(_, link) = &mut *self.0.phase.lock() {
            *link = None;
        }
    }

    /// Leaves the surfaces to the new process.
    pub(crate) fn retire_surfaces(&self) {
        self.0.surfaces.lock().iter_mut().for_each(|(surface, _)| surface.retire());
    }
}

impl Inner {
    /// Every socket that listens.
    fn sockets(&self, server: &Server) -> std::io::Result<Vec<Handed>> {
        let mut sockets = server.sockets()?;
        for (surface, _) in &*self.surfaces.lock() {
            sockets.push(surface.socket()?);
        }
        Ok(sockets)
    }

    fn pause_surfaces(&self) {
        let surfaces = self.surfaces.lock();
        let of_store = surfaces.iter().filter(|(_, uses)| *uses == Uses::Store);
        of_store.for_each(|(surface, _)| surface.pause(LAST_ANSWERS));
    }

    fn resume_surfaces(&self) {
        self.surfaces.lock().iter().for_each(|(surface, _)| surface.resume());
    }
}

/// Writes the process's id, all of it or nothing.
fn write_pid(file: &Path) -> std::io::Result<()> {
    let id = std::process::id();
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{id}"));
    std::fs::write(&name, format!("{id}\n"))?;
    std::fs::rename(&name, file)
}
