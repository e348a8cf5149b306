//! The commands: path, whether they change anything, what they do.

use super::{Admin, State, clusters, dump, home, logging, process, statistics};
use crate::surface::{Query, Reply};
use http::StatusCode;
use matchit::Router;
use std::fmt::Write;
use std::sync::LazyLock;

/// One command.
pub(super) struct Command {
    pub(super) path: &'static str,
    pub(super) help: &'static str,
    /// Names of parameters, and what they do.
    parameters: &'static [(&'static str, &'static str)],
    /// Needs POST.
    pub(super) changes: bool,
    /// May be asked for by any name: monitors find a proxy by names that it does not know.
    pub(super) any_host: bool,
    pub(super) run: fn(&Admin, &Query) -> Reply,
}

type Run = fn(&Admin, &Query) -> Reply;

const fn shows(path: &'static str, help: &'static str, run: Run) -> Command {
    Command { path, help, parameters: &[], changes: false, any_host: false, run }
}

const fn monitors(path: &'static str, help: &'static str, run: Run) -> Command {
    Command { any_host: true, ..shows(path, help, run) }
}

const fn changes(path: &'static str, help: &'static str, run: Run) -> Command {
    Command { changes: true, ..shows(path, help, run) }
}

impl Command {
    const fn with(self, parameters: &'static [(&'static str, &'static str)]) -> Command {
        Command { parameters, ..self }
    }
}

const USED_ONLY: (&str, &str) = ("usedonly", "only what was counted or set since the start");
const FILTER: (&str, &str) = ("filter", "regular expression that is found in the names");
const INVERT: (&str, &str) = ("invert_filter", "what the filter does not find instead");

const TEXTS: (&str, &str) = ("text_readouts", "texts too in the Prometheus format, as labels");

/// Every command, sorted by its path.
pub(super) const COMMANDS: &[Command] = &[
    shows("/", "home page", home::page),
    shows("/certs", "certificates in use", process::certificates),
    shows("/clusters", "clusters with their endpoints", clusters::clusters).with(&[
        ("format", "text or json"),
        ("filter", "regular expression that is found in the names of clusters"),
    ]),
    shows("/config_dump", "configuration in force, and what is about to be", dump::config_dump).with(&[
        ("resource", "the elements of this list alone"),
        ("mask", "these fields alone, of each element where a resource is given"),
        ("name_regex", "resources alone whose names match it"),
        ("include_eds", "endpoints, too"),
    ]),
    shows("/contention", "contention of locks, which is not measured", |_, _| {
        ok("Mutex contention tracing is not enabled.")
    }),
    changes("/drain_listeners", "drain listeners", drain_listeners).with(&[
        ("graceful", "sockets stay open for the drain time"),
        ("skip_exit", "connections are drained, but sockets stay open"),
        ("inboundonly", "listeners of inbound traffic alone"),
    ]),
    changes("/healthcheck/fail", "fail health checks", |admin, _| health(admin, true)),
    changes("/healthcheck/ok", "pass health checks again", |admin, _| health(admin, false)),
    shows("/help", "this list", |_, _| ok(help())),
    shows("/hot_restart_version", "there is no hot restart", |_, _| ok("disabled")),
    shows("/init_dump", "what has not come yet", dump::init_dump)
        .with(&[("mask", "listener: listeners alone")]),
    shows("/listeners", "addresses of listeners", listeners).with(&[("format", "text or json")]),
    changes("/logging", "levels of the log", logging::logging).with(&[
        ("paths", "several of them, as name:level,name:level"),
        ("level", "level of everything: trace, debug, info, warning, error, critical or off"),
    ]),
    shows("/memory", "memory that the process holds", process::memory),
    changes("/quitquitquit", "end the process", |admin, _| done(|| admin.control.quit())),
    monitors("/ready", "state; 200 if it is LIVE, else 503", ready),
    changes("/reopen_logs", "open log files anew", |admin, _| done(|| admin.control.reopen_logs())),
    changes("/reset_counters", "set counters to zero", |admin, _| done(|| admin.metrics.reset_counters())),
    shows("/runtime", "values of the runtime", process::runtime),
    changes(
        "/runtime_modify",
        "change values of the admin layer of the runtime, which is not possible",
        process::runtime_modify,
    ),
    shows("/server_info", "version, state, options and node", process::server_info),
    monitors("/stats", "statistics", statistics::stats).with(&[
        USED_ONLY,
        FILTER,
        INVERT,
        TEXTS,
        ("format", "text, json or prometheus"),
        ("type", "All, Counters, Gauges, Histograms or TextReadouts"),
        ("histogram_buckets", "summary, cumulative, disjoint or detailed"),
    ]),
    monitors("/stats/prometheus", "statistics in the Prometheus format", statistics::prometheus).with(&[
        USED_ONLY,
        FILTER,
        INVERT,
        TEXTS,
        ("histogram_buckets", "cumulative or summary"),
    ]),
    shows("/stats/recentlookups", "look-ups of statistics by name, of which there are none", |_, _| {
        ok("Lookup tracking is not enabled. Use /stats/recentlookups/enable to enable.\n\ntotal: 0\n")
    }),
    changes("/stats/recentlookups/clear", "forget look-ups", |_, _| ok("OK\n")),
    changes("/stats/recentlookups/disable", "do not record look-ups", |_, _| ok("OK\n")),
    changes("/stats/recentlookups/enable", "record look-ups", |_, _| ok("OK\n")),
];

/// The list of commands, a line each, and one for each of their parameters.
pub(super) fn help() -> String {
    let mut text = "admin commands are:\n".to_owned();
    for command in COMMANDS {
        let post = if command.changes { " (POST)" } else { "" };
        // Writing to a string never fails.
        let _ = writeln!(text, "  {}{post}: {}", command.path, command.help);
        for (name, help) in command.parameters {
            let _ = writeln!(text, "      {name}: {help}");
        }
    }
    text
}

/// The command of a path.
pub(super) fn find(path: &str) -> Option<&'static Command> {
    static PATHS: LazyLock<Router<&'static Command>> = LazyLock::new(|| {
        let mut paths = Router::new();
        // Only a path that is there twice could be refused, and the first one counts then.
        COMMANDS.iter().for_each(|command| drop(paths.insert(command.path, command)));
        paths
    });
    PATHS.at(path).ok().map(|found| *found.value)
}

pub(super) fn ok(body: impl Into<String>) -> Reply {
    Reply::text(StatusCode::OK, body.into())
}

fn done(run: impl FnOnce()) -> Reply {
    run();
    ok("OK\n")
}

pub(super) fn bad(body: String) -> Reply {
    Reply::text(StatusCode::BAD_REQUEST, body)
}

/// `/ready`
pub(super) fn ready(admin: &Admin, _: &Query) -> Reply {
    let state = admin.lifecycle.get();
    let status = if state == State::Live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Reply::text(status, format!("{}\n", state.as_str()))
}

fn health(admin: &Admin, fail: bool) -> Reply {
    admin.control.fail_health_checks(fail);
    admin.lifecycle.fail_checks(fail);
    ok("OK\n")
}

fn drain_listeners(admin: &Admin, query: &Query) -> Reply {
    let (graceful, skip_exit) = (query.has("graceful"), query.has("skip_exit"));
    // What stays open goes on being listened to, at first or for good.
    admin.control.drain_listeners(graceful || skip_exit, skip_exit, query.has("inboundonly"));
    ok("OK\n")
}

fn listeners(admin: &Admin, query: &Query) -> Reply {
    let listeners = admin.control.listeners();
    if query.get("format") != Some("json") {
        let mut text = String::new();
        for listener in listeners {
            for address in listener.addresses {
                let _ = writeln!(text, "{}::{address}", listener.name);
            }
        }
        return ok(text);
    }
    let address = |a: &std::net::SocketAddr| serde_json::json!({"socket_address": {"address": a.ip().to_string(), "port_value": a.port()}});
    let statuses = listeners.iter().map(|listener| {
        let mut status = serde_json::json!({"name": listener.name});
        if let Some(first) = listener.addresses.first() {
            status["local_address"] = address(first);
        }
        if listener.addresses.len() > 1 {
            status["additional_local_addresses"] = listener.addresses[1..].iter().map(address).collect();
        }
        status
    });
    json(&serde_json::json!({"listener_statuses": statuses.collect::<Vec<_>>()}))
}

/// Pretty JSON, as Envoy prints it: one space a level.
pub(super) fn json(value: &serde_json::Value) -> Reply {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    // A `Value` always serialises into memory.
    let _ = serde::Serialize::serialize(value, &mut serializer);
    out.push(b'\n');
    Reply::json(StatusCode::OK, out)
}
