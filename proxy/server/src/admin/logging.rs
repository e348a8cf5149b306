//! `/logging`: levels of the process's own log (server/admin/logs_handler.cc).

use super::Admin;
use super::commands::{bad, ok};
use crate::surface::{Query, Reply};
use std::fmt::Write;

/// Levels in Envoy's words.
const LEVELS: [&str; 7] = ["trace", "debug", "info", "warning", "error", "critical", "off"];

type Change = (Option<String>, String);

pub(super) fn logging(admin: &Admin, query: &Query) -> Reply {
    let changed = changes(query).and_then(|changes| admin.control.set_log_levels(&changes));
    let mut text = String::new();
    if let Err(reason) = &changed {
        // Writing to a string never fails.
        let _ = writeln!(text, "error: {reason}\n");
        text.push_str("usage: /logging?<name>=<level> (change single level)\n");
        text.push_str("usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\n");
        text.push_str("usage: /logging?level=<level> (change all levels)\n");
        let _ = writeln!(text, "levels: {} ", LEVELS.join(" "));
    }
    text.push_str("active loggers:\n");
    // Without changes there is nothing to refuse.
    for (name, level) in changed.clone().or_else(|_| admin.control.set_log_levels(&[])).unwrap_or_default() {
        let _ = writeln!(text, "  {name}: {level}");
    }
    text.push('\n');
    if changed.is_ok() { ok(text) } else { bad(text) }
}

/// What is to be changed: everything, several by name, or one.
fn changes(query: &Query) -> Result<Vec<Change>, String> {
    // A parameter that is given twice counts once.
    let mut given: Vec<&(String, String)> = Vec::new();
    for parameter in &query.parameters {
        if !given.iter().any(|(name, _)| *name == parameter.0) {
            given.push(parameter);
        }
    }
    let (name, value) = match given[..] {
        [] => return Ok(Vec::new()),
        [one] => one,
        _ => return Err("invalid number of parameters".to_owned()),
    };
    let change = |name: Option<&str>, level: &str| {
        let known = LEVELS.contains(&level).then(|| (name.map(str::to_owned), level.to_owned()));
        known.ok_or_else(|| "unknown logger level".to_owned())
    };
    match name.as_str() {
        // What a form sends when nothing is chosen in it.
        "level" | "paths" if value.is_empty() => Ok(Vec::new()),
        "level" => Ok(vec![change(None, value)?]),
        "paths" => {
            let pairs = value.split(',').filter(|pair| !pair.trim().is_empty());
            let one = |pair: &str| match pair.split_once(':') {
                Some((name, level)) if !name.is_empty() && !level.is_empty() => change(Some(name), level),
                _ => Err("empty logger name or empty logger level".to_owned()),
            };
            pairs.map(one).collect()
        }
        name => Ok(vec![change(Some(name), value)?]),
    }
}
