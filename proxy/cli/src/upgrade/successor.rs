//! The old process's side: the process that takes its place.

use super::link::{self, DESCRIPTORS, Link, PROTOCOL};
use super::{Inner, Phase, notify};
use serde_json::{Value, json};
use sixfold_apisix::store::Lent;
use sixfold_core::deadline::after;
use sixfold_core::listener::BindAddress;
use sixfold_server::server::Server;
use std::ffi::OsString;
use std::io;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// How a process is told that it takes another one's place.
const TAKE_OVER: &str = "--take-over";
/// How long a process that has gone silent has to end by itself.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Starts a new process, gives it what it needs, and waits until it is ready. Whatever goes wrong ends it, and this one has
/// everything again.
pub(super) fn hand_over(process: &Inner, server: &Server, timeout: Duration) -> Result<(), String> {
    let deadline = after(Instant::now(), timeout);
    let mut lent = Lent::nothing();
    let outcome =
        begin(process).and_then(|link| converse(process, server, link, &mut lent, (deadline, timeout)));
    match outcome {
        Ok(()) => {
            lent.give();
            Ok(())
        }
        Err(reason) => {
            let ended = end(process);
            // Not before the other one is gone, which may have it open.
            drop(lent);
            process.resume_surfaces();
            Err(reason.unwrap_or_else(|| format!("it has ended before it was ready ({ended})")))
        }
    }
}

/// `None` is for one that says nothing, and has ended or will.
type Reason = Option<String>;

/// Starts the process.
fn begin(process: &Inner) -> Result<Link, Reason> {
    let (link, theirs) = Link::pair().map_err(|error| Some(error.to_string()))?;
    let (program, arguments) = command_line();
    let mut command = Command::new(&program);
    command.args(arguments).arg(TAKE_OVER).stdin(theirs);
    let mut phase = process.phase.lock();
    if !matches!(*phase, Phase::Begun) {
        return Err(Some("this process ends".to_owned()));
    }
    let program = program.display().to_string();
    tracing::info!(program, "starting a new process");
    let child = command.spawn().map_err(|error| Some(format!("{program}: {error}")))?;
    *phase = Phase::Starting(child);
    Ok(link)
}

/// As this process was started: who was found by its name is looked for by that again.
fn command_line() -> (OsString, Vec<OsString>) {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_else(|| "sixfold".into());
    (program, arguments.filter(|argument| argument != TAKE_OVER).collect())
}

fn converse(
    process: &Inner,
    server: &Server,
    link: Link,
    lent: &mut Lent,
    (deadline, timeout): (Instant, Duration),
) -> Result<(), Reason> {
    give_sockets(process, server, &link).map_err(|error| silent(&error))?;
    let mut adopted: Vec<BindAddress> = Vec::new();
    loop {
        let message = match link.receive(Some(deadline)) {
            Ok(Some((message, _))) => message,
            Ok(None) => return Err(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(Some(format!("it was not ready within {} s", timeout.as_secs())));
            }
            Err(error) => return Err(Some(error.to_string())),
        };
        if message.get("release").is_some() {
            process.pause_surfaces();
            let store = process.store.get();
            let loaded = store.is_some_and(|store| store.is_loaded());
            if let Some(store) = store {
                *lent = store.lend(deadline).map_err(|error| Some(error.to_string()))?;
            }
            link.send(&json!({"released": true, "loaded": loaded}), &[]).map_err(|error| silent(&error))?;
        }
        adopted.extend(message.get("adopted").and_then(link::read));
        if let Some(reason) = message.get("failed").and_then(Value::as_str) {
            return Err(Some(reason.to_owned()));
        }
        if message.get("ready").is_some() {
            return commit(process, link, adopted);
        }
    }
}

/// Lets go, unless this process is to end. Who ends it from now on finds all of it done, and systemd with another process to
/// look after.
fn commit(process: &Inner, link: Link, adopted: Vec<BindAddress>) -> Result<(), Reason> {
    let mut phase = process.phase.lock();
    let Phase::Starting(child) = &*phase else { return Err(Some("this process ends".to_owned())) };
    let id = child.id();
    link.send(&json!({"go": true}), &[]).map_err(|error| silent(&error))?;
    notify(&format!("MAINPID={id}\nREADY=1"));
    tracing::info!(id, "a new process serves; this one ends when its connections have");
    *phase = Phase::HandedOver(adopted, Some(link));
    Ok(())
}

/// Who does not take what is sent has ended, or hangs.
fn silent(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => None,
        _ => Some(error.to_string()),
    }
}

fn give_sockets(process: &Inner, server: &Server, link: &Link) -> io::Result<()> {
    link.send(&json!({ "protocol": PROTOCOL }), &[])?;
    for (address, sockets) in process.sockets(server)? {
        for some in sockets.chunks(DESCRIPTORS) {
            link.send(&json!({"socket": link::written(&address)}), some)?;
        }
    }
    link.send(&json!({"end": true}), &[])
}

/// Ends a process that has not taken over; answers how it has ended.
fn end(process: &Inner) -> String {
    let mut phase = process.phase.lock();
    let Phase::Starting(child) = &mut *phase else {
        if matches!(*phase, Phase::Begun) {
            *phase = Phase::Idle;
        }
        return "it was not started".to_owned();
    };
    let ended = ended(child);
    *phase = Phase::Idle;
    ended
}

fn ended(child: &mut Child) -> String {
    let deadline = Instant::now() + LAST_MOMENT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.to_string(),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => break,
            Err(error) => return error.to_string(),
        }
    }
    // It may end just now.
    let _ = child.kill();
    child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
}
