//! `sixfold xds serve`: a control plane that serves the Envoy resources of a folder, for tests and trials.

mod folder;
mod server;
mod session;

use crate::arguments::XdsServeOptions;
use crate::process::runtime;
use crate::{Failure, logging};
use folder::Folder;
use parking_lot::Mutex;
use server::{Listen, Shared};
use sixfold_core::error::tell_most;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, watch};

/// How often the folder is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Orders that a stream may be behind; then it has missed some.
const ORDERS: usize = 64;

/// What a stream is told to do, on standard input with `--faults`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Order {
    /// Ends with status 14.
    Cut,
    /// Sends bytes that are no message.
    Garbage,
    /// Sends all it has sent so many times again.
    Flood(usize),
    /// Answers and sends nothing from now on, or does again.
    Hang(bool),
    /// Sends so late from now on.
    Delay(Duration),
    /// New streams are refused with status 14, or no longer.
    Refuse(bool),
}

impl Order {
    /// Reads a line.
    fn parse(line: &str) -> Option<Order> {
        let mut words = line.split_whitespace();
        let (order, number) = (words.next()?, words.next().map(str::parse::<u64>));
        Some(match (order, number) {
            ("cut", None) => Order::Cut,
            ("garbage", None) => Order::Garbage,
            ("flood", Some(Ok(times))) => Order::Flood(usize::try_from(times).ok()?),
            ("hang", None) => Order::Hang(true),
            ("delay", Some(Ok(millis))) => Order::Delay(Duration::from_millis(millis)),
            ("refuse", None) => Order::Refuse(true),
            ("resume", None) => Order::Hang(false),
            ("accept", None) => Order::Refuse(false),
            _ => return None,
        })
    }
}

/// Serves until the process is ended.
pub(crate) fn run(options: &XdsServeOptions) -> Result<(), Failure> {
    logging::start(&logging::LogSettings {
        level: &options.log.log_level,
        components: "",
        form: options.log.log_format,
        path: None,
    })?;
    let mut folder = Folder::new(options.folder.clone());
    let look = folder.look();
    if !look.faults.is_empty() {
        return Err(Failure(look.faults));
    }
    let (orders, _) = broadcast::channel(ORDERS);
    let (changed, changes) = watch::channel(());
    let shared = Arc::new(Shared {
        resources: Mutex::new(Arc::new(folder.resources())),
        changes,
        orders: orders.clone(),
        faults: Mutex::default(),
    });
    let runtime = runtime()?;
    let listen = options.listen.as_str();
    let (listener, address) = runtime
        .block_on(Listen::bind(listen))
        .map_err(|error| Failure::new(format!("--listen {listen}: {error}")))?;
    // Whoever started this waits for the line.
    writeln!(std::io::stdout(), "listening on {address}")?;
    if options.faults {
        let faults = shared.clone();
        std::thread::Builder::new().name("faults".to_owned()).spawn(move || take_orders(&faults, &orders))?;
    }
    let watching = shared.clone();
    std::thread::Builder::new().name("folder".to_owned()).spawn(move || {
        loop {
            std::thread::sleep(LOOK);
            let look = folder.look();
            let more = |more| tracing::error!(more, "more faults in the folder");
            tell_most(&look.faults, |fault| tracing::error!("{fault}"), more);
            if look.changed {
                let resources = folder.resources();
                tracing::info!(resources = resources.len(), "the folder has changed");
                *watching.resources.lock() = Arc::new(resources);
                // Streams come and go.
                let _ = changed.send(());
            }
        }
    })?;
    runtime.block_on(server::serve(listener, shared));
    Ok(())
}

fn take_orders(shared: &Shared, orders: &broadcast::Sender<Order>) {
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        match Order::parse(&line) {
            Some(order) => {
                shared.faults.lock().take(&order);
                // There may be no stream.
                let _ = orders.send(order.clone());
                // Whoever gave the order waits for the line.
                let _ = writeln!(std::io::stdout(), "{line}");
            }
            None => tracing::error!(
                "\"{line}\" is not cut, garbage, flood N, hang, resume, delay MILLISECONDS, refuse or accept"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_words_and_a_number() {
        assert_eq!(Order::parse(" flood 3 "), Some(Order::Flood(3)));
        assert_eq!(Order::parse("delay 20"), Some(Order::Delay(Duration::from_millis(20))));
        assert_eq!(Order::parse("resume"), Some(Order::Hang(false)));
        for wrong in ["", "flood", "flood x", "cut 3", "destroy"] {
            assert_eq!(Order::parse(wrong), None, "{wrong}");
        }
    }
}
