//! `/`: the commands as a page for a browser.

use super::Admin;
use super::commands::COMMANDS;
use crate::surface::{Query, Reply};
use http::StatusCode;
use std::fmt::Write;

/// A link for each command that shows something, a button for each that changes something.
pub(super) fn page(_: &Admin, _: &Query) -> Reply {
    let mut page = "<!DOCTYPE html>\n<html lang=\"en\">\n<head><title>sixfold admin</title></head>\n<body>\n\
                    <table>\n<tr><th>Command</th><th>Description</th></tr>\n"
        .to_owned();
    for command in COMMANDS {
        // Paths are relative: the page may be seen through a proxy that puts a prefix before them.
        let (path, name) = (command.path.trim_start_matches('/'), command.path);
        let entry = if command.changes {
            format!("<form action=\"{path}\" method=\"post\"><button>{name}</button></form>")
        } else {
            format!("<a href=\"{path}\">{name}</a>")
        };
        // Writing to a string never fails.
        let _ = writeln!(page, "<tr><td>{entry}</td><td>{}</td></tr>", command.help);
    }
    page.push_str("</table>\n</body>\n</html>\n");
    Reply { content_type: "text/html; charset=UTF-8", ..Reply::text(StatusCode::OK, page) }
}
