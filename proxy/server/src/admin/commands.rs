//! The commands: path, whether they change anything, what they do.

use super::{Admin, State, clusters, process, statistics};
use crate::surface::{Query, Reply};
use http::StatusCode;
use matchit::Router;
use regex::Regex;
use std::fmt::Write;
use std::sync::LazyLock;

/// One command.
pub(super) struct Command {
    path: &'static str,
    help: &'static str,
    /// Needs POST.
    pub(super) changes: bool,
    /// May be asked for by any name: monitors find a proxy by names that it does not know.
    pub(super) any_host: bool,
    pub(super) run: fn(&Admin, &Query) -> Reply,
}

const fn shows(path: &'static str, help: &'static str, run: fn(&Admin, &Query) -> Reply) -> Command {
    Command { path, help, changes: false, any_host: false, run }
}

const fn monitors(path: &'static str, help: &'static str, run: fn(&Admin, &Query) -> Reply) -> Command {
    Command { any_host: true, ..shows(path, help, run) }
}

const fn changes(path: &'static str, help: &'static str, run: fn(&Admin, &Query) -> Reply) -> Command {
    Command { changes: true, ..shows(path, help, run) }
}

const COMMANDS: &[Command] = &[
    shows("/", "Admin home page", |_, _| ok(help())),
    shows("/certs", "print certs on machine", process::certificates),
    shows("/clusters", "upstream cluster status (format=json)", clusters::clusters),
    shows("/config_dump", "dump current configuration (resource=, name_regex=)", config_dump),
    changes("/drain_listeners", "drain listeners (graceful, inboundonly)", drain_listeners),
    changes("/healthcheck/fail", "cause the server to fail health checks", |admin, _| health(admin, true)),
    changes("/healthcheck/ok", "cause the server to pass health checks", |admin, _| health(admin, false)),
    shows("/help", "print out list of admin commands", |_, _| ok(help())),
    shows("/hot_restart_version", "print the hot restart compatibility version", |_, _| ok("disabled")),
    shows("/listeners", "print listener info (format=json)", listeners),
    changes("/logging", "query/change logging levels (level=, paths=, NAME=)", logging),
    shows("/memory", "print current allocation/heap usage", process::memory),
    changes("/quitquitquit", "exit the server", |admin, _| done(|| admin.control.quit())),
    monitors("/ready", "print server state, return 200 if LIVE, otherwise return 503", ready),
    changes("/reopen_logs", "reopen access logs", |admin, _| done(|| admin.control.reopen_logs())),
    changes("/reset_counters", "reset all counters to zero", |admin, _| {
        done(|| admin.metrics.reset_counters())
    }),
    shows("/runtime", "print runtime values", |_, _| {
        Reply::json(StatusCode::OK, "{\n \"layers\": [],\n \"entries\": {}\n}\n")
    }),
    shows("/server_info", "print server version/status information", process::server_info),
    monitors("/stats", "print server stats (filter=, usedonly, format=json|prometheus)", statistics::stats),
    monitors("/stats/prometheus", "print server stats in prometheus format", statistics::prometheus),
];

/// The list of commands, a line each.
pub(super) fn help() -> String {
    let mut text = "admin commands are:\n".to_owned();
    for command in COMMANDS {
        let post = if command.changes { " (POST)" } else { "" };
        // Writing to a string never fails.
        let _ = writeln!(text, "  {}{post}: {}", command.path, command.help);
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

fn ok(body: impl Into<String>) -> Reply {
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
    let mut failed_from = admin.failed_from.lock();
    admin.control.fail_health_checks(fail);
    match (fail, *failed_from) {
        (true, None) => {
            *failed_from = Some(admin.lifecycle.get());
            admin.lifecycle.set(State::Draining);
        }
        (false, Some(before)) => {
            *failed_from = None;
            admin.lifecycle.set(before);
        }
        _ => {}
    }
    ok("OK\n")
}

fn drain_listeners(admin: &Admin, query: &Query) -> Reply {
    admin.control.drain_listeners(query.has("graceful"), query.has("inboundonly"));
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

fn config_dump(admin: &Admin, query: &Query) -> Reply {
    let pattern = match query.get("name_regex").map(Regex::new).transpose() {
        Ok(pattern) => pattern,
        Err(error) => {
            return bad(format!("Error while parsing name_regex from config_dump query: {error}\n"));
        }
    };
    let mut configs = admin.control.config_dump();
    if let Some(pattern) = pattern {
        configs.iter_mut().for_each(|config| keep_names(config, &pattern));
    }
    if let Some(resource) = query.get("resource") {
        let found: Vec<_> =
            configs.iter().filter_map(|config| config.get(resource)?.as_array()).flatten().collect();
        if found.is_empty() && !configs.iter().any(|config| config.get(resource).is_some()) {
            return Reply::text(StatusCode::NOT_FOUND, format!("{resource} not found in config dump\n"));
        }
        return json(&serde_json::json!({ "configs": found }));
    }
    json(&serde_json::json!({ "configs": configs }))
}

/// Leaves in the lists of a dump what has a name that matches.
fn keep_names(config: &mut serde_json::Value, pattern: &Regex) {
    let lists = config.as_object_mut().into_iter().flat_map(|map| map.values_mut());
    for list in lists.filter_map(serde_json::Value::as_array_mut) {
        list.retain(|item| named(item).is_none_or(|name| pattern.is_match(name)));
    }
}

/// The name of a resource of a dump: its own, or that of the message in it.
fn named(item: &serde_json::Value) -> Option<&str> {
    item.get("name")
        .or_else(|| item.as_object()?.values().find_map(|inner| inner.get("name")))
        .and_then(serde_json::Value::as_str)
}

fn logging(admin: &Admin, query: &Query) -> Reply {
    let levels: Vec<(Option<String>, String)> = match (query.get("level"), query.get("paths")) {
        (Some(level), _) => vec![(None, level.to_owned())],
        (None, Some(paths)) => paths
            .split(',')
            .filter_map(|pair| pair.split_once(':'))
            .map(|(name, level)| (Some(name.to_owned()), level.to_owned()))
            .collect(),
        (None, None) => {
            query.parameters.iter().map(|(name, level)| (Some(name.clone()), level.clone())).collect()
        }
    };
    match admin.control.set_log_levels(&levels) {
        Ok(active) => {
            let lines = active.iter().map(|(name, level)| format!("  {name}: {level}\n"));
            ok(format!("active loggers:\n{}\n", lines.collect::<String>()))
        }
        Err(reason) => bad(format!("error: {reason}\n")),
    }
}
