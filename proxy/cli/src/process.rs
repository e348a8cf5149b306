//! What every way to serve has in common: the server with its logs and statistics, and how it ends.

use crate::Failure;
use crate::logging;
use crate::signals::{Event, Events};
use crate::upgrade::{Predecessor, Upgrade};
use parking_lot::Mutex;
use sixfold_apisix::config::EnvVars;
use sixfold_core::compile::CompileContext;
use sixfold_core::error::{MORE_FAULTS, tell_most};
use sixfold_core::metrics;
use sixfold_core::model::{Diff, Model};
use sixfold_core::plugin::{BuildContext, Callout, Registry};
use sixfold_server::admin::{Lifecycle, State};
use sixfold_server::callout::{CalloutConfig, Callouts};
use sixfold_server::dns::{DnsCache, ResolverConfig};
use sixfold_server::export::Exports;
use sixfold_server::log_file::{LogFiles, Rotation};
use sixfold_server::server::Server;
use sixfold_server::worker::Options;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// How long an APISIX gateway waits for first answers of DNS before it listens: nginx waits for none, but a
/// request that comes at once shall find what a resolver that works has said.
pub(crate) const APISIX_PATIENCE: Duration = Duration::from_millis(250);
/// The same by an Envoy bootstrap: Envoy listens once its clusters are initialized.
pub(crate) const ENVOY_PATIENCE: Duration = Duration::from_secs(5);
/// How long connections have to end after SIGINT.
const QUICK: Duration = Duration::from_millis(500);

/// How the process serves.
pub(crate) struct ProcessOptions {
    /// Where everything counts.
    pub(crate) metrics: metrics::Registry,
    /// Of workers and draining.
    pub(crate) options: Options,
    /// When access logs are written at the latest.
    pub(crate) flush_interval: Duration,
    /// How names are resolved.
    pub(crate) resolver: ResolverConfig,
    /// Authorities of services beside the upstreams.
    pub(crate) callout: CalloutConfig,
    /// How long connections have to end after SIGTERM.
    pub(crate) drain_limit: Duration,
    /// What another process may take over.
    pub(crate) upgrade: Upgrade,
    /// How access logs are rotated, if that is done here.
    pub(crate) rotation: Option<Rotation>,
}

/// A process that serves.
pub(crate) struct Process {
    pub(crate) server: Server,
    pub(crate) logs: LogFiles,
    exports: Arc<Exports>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) metrics: metrics::Registry,
    /// What configuration is compiled with.
    pub(crate) compile: CompileContext,
    pub(crate) started: Instant,
    pub(crate) upgrade: Upgrade,
    drain_limit: Duration,
}

/// How far the end of a process has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    No,
    /// Another process has taken over; nobody has asked for more.
    HandedOver,
    /// It was told to.
    Told,
}

/// Every plugin of this binary.
pub(crate) fn plugins() -> Registry {
    sixfold_apisix::with_plugins_filter(sixfold_plugins::registry(), EnvVars::Process)
}

impl Process {
    /// Starts workers; nothing listens yet.
    pub(crate) fn start(options: ProcessOptions) -> Result<Process, Failure> {
        let started = Instant::now();
        let ProcessOptions {
            metrics,
            options,
            flush_interval,
            resolver,
            callout,
            drain_limit,
            upgrade,
            rotation,
        } = options;
        let dns = DnsCache::start(resolver).map_err(|e| Failure::new(e.to_string()))?;
        let callout: Arc<dyn Callout> = Arc::new(Callouts::new(dns.clone(), callout));
        let (model, build) = (Arc::<Model>::default(), BuildContext::new(callout.clone(), metrics.clone()));
        let lifecycle = Lifecycle::default();
        let server = Server::start(options, metrics.clone(), model.clone(), callout, lifecycle.clone())?;
        server.set_dns(dns);
        let exports = Arc::new(Exports::default());
        let build = BuildContext {
            failing_checks: server.shared().health_failed.clone(),
            background: exports.clone(),
            ..build
        };
        let logs = LogFiles::rotating(flush_interval, &metrics, rotation);
        let compile = CompileContext::new(&model, plugins(), build, Arc::new(logs.clone()));
        Ok(Process { server, logs, exports, lifecycle, metrics, compile, started, upgrade, drain_limit })
    }

    /// Applies the first configuration, whose listeners open once its clusters are warm or `patience` has
    /// passed, and takes traffic from then on. Answers whether it does: it may be told to end before. `rest` is what
    /// else the first configuration needs; it runs on a thread of its own, when `diff` is in force, and may wait.
    pub(crate) fn go_live(
        &self,
        diff: Diff,
        patience: Duration,
        rest: impl FnOnce() -> Result<(), Failure> + Send + 'static,
        (events, sender): (&Events, &SyncSender<Event>),
    ) -> Result<bool, Failure> {
        self.lifecycle.set(State::Initializing);
        let (server, applied, done) = (self.server.clone(), Arc::new(Mutex::new(Ok(()))), sender.clone());
        let outcome = applied.clone();
        std::thread::Builder::new().name("start".to_owned()).spawn(move || {
            let applied = server.apply_within(diff, patience).map_err(Failure::from);
            let applied = applied.and_then(|()| rest());
            if applied.is_ok() {
                server.wait_until_warm();
            }
            *outcome.lock() = applied;
            // Nobody listens any more when the process is about to end.
            let _ = done.send(Event::Applied);
        })?;
        let mut later = Vec::new();
        while let Some(event) = events.next() {
            match event {
                Event::Applied => break,
                Event::Terminate | Event::Interrupt => return Ok(false),
                other if later.contains(&other) => {}
                other => later.push(other),
            }
        }
        for event in later {
            // Nobody empties the queue now. Where it is full the process is told to end anyway.
            let _ = sender.try_send(event);
        }
        std::mem::replace(&mut *applied.lock(), Ok(()))?;
        self.lifecycle.set(State::Live);
        tracing::info!(after = ?self.started.elapsed(), "serving");
        Ok(true)
    }

    /// Says that the process serves. One that takes another's place does so once `is_loaded`, and when the other lets go; it is
    /// waited for on a thread of its own.
    pub(crate) fn announce(
        &self,
        predecessor: Predecessor,
        is_loaded: impl Fn() -> bool + Send + 'static,
    ) -> Result<(), Failure> {
        if !predecessor.is_somebody() {
            self.upgrade.announce();
            return Ok(());
        }
        let upgrade = self.upgrade.clone();
        std::thread::Builder::new().name("upgrade".to_owned()).spawn(move || {
            predecessor.take_over(is_loaded);
            upgrade.announce();
            tracing::info!("this process has taken over");
        })?;
        Ok(())
    }

    /// Serves until it is told to end. `reload` has the configuration read again.
    pub(crate) fn serve(
        self,
        events: &Events,
        sender: &SyncSender<Event>,
        mut reload: impl FnMut(),
    ) -> Result<(), Failure> {
        let (mut ending, mut reload_later) = (Ending::No, false);
        while let Some(event) = events.next() {
            match event {
                // Who asks twice does not want to wait.
                Event::Terminate | Event::Interrupt if ending == Ending::Told => break,
                Event::Terminate | Event::Interrupt if ending == Ending::HandedOver => ending = Ending::Told,
                Event::Terminate | Event::Interrupt => {
                    ending = Ending::Told;
                    if self.upgrade.cancel() {
                        // It has let go just now, of which `HandedOver` was to tell.
                        self.upgrade.retire_surfaces();
                    }
                    let limit = if event == Event::Interrupt { QUICK } else { self.drain_limit };
                    self.end(limit, sender.clone())?;
                }
                Event::Upgrade if ending == Ending::No => self.upgrade.start(&self.server, sender)?,
                Event::HandedOver if ending == Ending::No => {
                    ending = Ending::HandedOver;
                    self.upgrade.retire_surfaces();
                    self.end(self.drain_limit, sender.clone())?;
                }
                // The store may be lent.
                Event::Reload if self.upgrade.is_under_way() => reload_later = true,
                Event::Reload if ending == Ending::No => reload(),
                Event::NotHandedOver if ending == Ending::No && reload_later => {
                    reload_later = false;
                    reload();
                }
                Event::Upgrade | Event::HandedOver | Event::NotHandedOver | Event::Reload => {}
                Event::ReopenLogs => {
                    self.logs.reopen();
                    logging::reopen();
                }
                Event::Applied => {}
                Event::Ended => break,
            }
        }
        self.exports.shutdown();
        self.logs.shutdown();
        self.upgrade.withdraw();
        Ok(())
    }

    /// Says that it is not ready, unless another process is in its place, then ends connections on a thread of its own.
    fn end(&self, limit: Duration, events: SyncSender<Event>) -> Result<(), Failure> {
        tracing::info!(connections = self.server.connections(), ?limit, "ending");
        let (server, upgrade) = (self.server.clone(), self.upgrade.clone());
        let handed_over = upgrade.handed_over();
        if handed_over.is_none() {
            self.lifecycle.set(State::Draining);
        }
        std::thread::Builder::new().name("shutdown".to_owned()).spawn(move || {
            if let Ok(runtime) = runtime() {
                runtime.block_on(async {
                    match handed_over {
                        Some(addresses) => {
                            server.shutdown_beside(limit, addresses, || upgrade.let_go()).await
                        }
                        None => server.shutdown(limit).await,
                    }
                });
            }
            // Nobody listens any more after a second signal.
            let _ = events.send(Event::Ended);
        })?;
        Ok(())
    }
}

/// Has the configuration read again on the thread `config`: who hears SIGTERM must not compile meanwhile.
pub(crate) struct Reloads(SyncSender<()>);

impl Reloads {
    /// Starts the thread; `reload` is what it does.
    pub(crate) fn start(mut reload: impl FnMut() + Send + 'static) -> Result<Reloads, Failure> {
        // One that waits stands for all that are asked for until it begins.
        let (ask, asked) = sync_channel(1);
        std::thread::Builder::new().name("config".to_owned()).spawn(move || {
            while asked.recv().is_ok() {
                reload();
            }
        })?;
        Ok(Reloads(ask))
    }

    /// Asks for another reading, and does not wait for it.
    pub(crate) fn ask(&self) {
        let _ = self.0.try_send(());
    }
}

/// Says what has become of a configuration that was read again.
pub(crate) fn tell(applied: Result<(), Failure>) {
    match applied {
        Ok(()) => tracing::info!("configuration read again and applied"),
        Err(failure) => tell_most(
            &failure.0,
            |line| tracing::error!("configuration refused, the old one stays: {line}"),
            |more| tracing::error!(more, "{MORE_FAULTS}"),
        ),
    }
}

/// A runtime for one task of the control side.
pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The main thread read and compiled, and heard no SIGTERM until it had; a thousand SIGHUPs were a thousand readings.
    #[test]
    fn asking_for_a_reading_waits_for_none_and_many_become_one() {
        let (begun, begins) = std::sync::mpsc::channel();
        let (go_on, told) = std::sync::mpsc::channel::<()>();
        let reloads = Reloads::start(move || {
            begun.send(()).unwrap();
            let _ = told.recv();
        })
        .unwrap();
        reloads.ask();
        begins.recv().unwrap();
        (0..1000).for_each(|_| reloads.ask());
        go_on.send(()).unwrap();
        begins.recv().unwrap();
        drop((go_on, reloads));
        assert!(begins.recv().is_err(), "two readings in all");
    }
}
