//! The new process's side: the process whose place it takes.

use super::link::{self, Link, PROTOCOL};
use crate::Failure;
use crate::arguments::UpgradeOptions;
use serde_json::{Value, json};
use sixfold_server::inheritance::{Handed, Inheritance};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the sockets may take to come: they are sent at once.
const SOCKETS_WITHIN: Duration = Duration::from_secs(10);
/// How long the other process may go on accepting before this one is announced all the same.
const LAST_ACCEPTED: Duration = Duration::from_secs(2);
/// Bytes of the reason for an end that the other process is told.
const REASON: usize = 2048;
/// How often it is looked whether a configuration has come.
const LOOK: Duration = Duration::from_millis(10);

/// The process whose place this one takes, if there is one. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Predecessor {
    link: Option<Arc<Link>>,
    inheritance: Inheritance,
}

impl Predecessor {
    /// Nobody.
    pub(crate) fn nobody() -> Predecessor {
        Predecessor { link: None, inheritance: Inheritance::default() }
    }

    /// Takes the sockets of the process that has started this one, if the options say so.
    pub(crate) fn meet(options: &UpgradeOptions) -> Result<Predecessor, Failure> {
        if !options.take_over {
            return Ok(Predecessor::nobody());
        }
        let failed = |reason: String| {
            Failure::new(format!("--take-over is for a process that another one starts: {reason}"))
        };
        let socket = std::io::stdin().as_fd().try_clone_to_owned();
        let link = socket.and_then(Link::new).map_err(|error| failed(error.to_string()))?;
        // Its end is to be this one's.
        rustix::stdio::dup2_stdin(File::open("/dev/null")?).map_err(|error| failed(error.to_string()))?;
        let sockets = sockets(&link).map_err(failed)?;
        Ok(Predecessor { link: Some(Arc::new(link)), inheritance: Inheritance::new(sockets) })
    }

    /// The sockets that are taken over.
    pub(crate) fn inheritance(&self) -> &Inheritance {
        &self.inheritance
    }

    /// Whether there is one.
    pub(crate) fn is_somebody(&self) -> bool {
        self.link.is_some()
    }

    /// Has the other process close its store; answers whether it had a configuration.
    pub(crate) fn take_store(&self) -> Result<bool, Failure> {
        let Some(link) = &self.link else { return Ok(false) };
        if link.send(&json!({"release": true}), &[]).is_err() {
            return Ok(false);
        }
        loop {
            match link.receive(None)? {
                Some((answer, _)) if answer.get("released").is_some() => {
                    return Ok(answer.get("loaded").and_then(Value::as_bool).unwrap_or(false));
                }
                Some(_) => {}
                // It is gone, and its store is free.
                None => return Ok(false),
            }
        }
    }

    /// Says that this process is ready once `is_loaded` is, and accepts connections when the other one has let go. One that
    /// is gone has let go. Waits until the other one accepts none any more.
    pub(crate) fn take_over(&self, is_loaded: impl Fn() -> bool) {
        let Some(link) = &self.link else { return };
        while !is_loaded() {
            // The other process waits no longer than it was told to.
            std::thread::sleep(LOOK);
        }
        let adopted = self.inheritance.adopted();
        let mut messages: Vec<_> =
            adopted.iter().map(|address| json!({"adopted": link::written(address)})).collect();
        messages.push(json!({"ready": true}));
        let told = messages.iter().try_for_each(|message| link.send(message, &[]));
        let mut answer = told.and_then(|()| link.receive(None));
        while let Ok(Some((message, _))) = &answer
            && message.get("go").is_none()
        {
            answer = link.receive(None);
        }
        if !matches!(answer, Ok(Some(_))) {
            tracing::warn!("the process whose place this one takes is gone");
        }
        self.inheritance.open();
        // It ends the link. Whoever is told of this process then reaches no other; only the telling waits.
        let deadline = Instant::now() + LAST_ACCEPTED;
        while let Ok(Some(_)) = link.receive(Some(deadline)) {}
    }

    /// Says why this process can't take over.
    pub(crate) fn refuse(&self, failure: &Failure) {
        let Some(link) = &self.link else { return };
        let mut reason = failure.to_string().trim().to_owned();
        reason.truncate(reason.floor_char_boundary(REASON));
        // It will notice that this one ends.
        let _ = link.send(&json!({"failed": reason}), &[]);
    }
}

fn sockets(link: &Link) -> Result<Vec<Handed>, String> {
    let deadline = Some(Instant::now() + SOCKETS_WITHIN);
    let mut sockets: Vec<Handed> = Vec::new();
    loop {
        let received = link.receive(deadline).map_err(|error| error.to_string())?;
        let (message, descriptors) = received.ok_or("it is gone")?;
        if let Some(protocol) = message.get("protocol").and_then(Value::as_u64)
            && protocol != PROTOCOL
        {
            return Err(format!("it speaks version {protocol}, and this one {PROTOCOL}"));
        }
        if let Some(address) = message.get("socket").and_then(link::read) {
            match sockets.iter_mut().find(|(other, _)| *other == address) {
                Some((_, all)) => all.extend(descriptors),
                None => sockets.push((address, descriptors)),
            }
        }
        if message.get("end").is_some() {
            return Ok(sockets);
        }
    }
}
