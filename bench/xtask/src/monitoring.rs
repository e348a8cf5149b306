//! Dashboards for Grafana and rules for Prometheus: `deploy/grafana`, `deploy/prometheus`.
//!
//! What they show is written down once, here: panels in [`gateway`] and [`sidecar`], alerts in [`rules`]. The files
//! are made of it by `cargo xtask monitoring --write`. [`live`] has a real Prometheus scrape a gateway and a sidecar and
//! ask every query: a metric that nobody exposes fails, and so does one of the gateway's that no panel shows.

mod gateway;
mod grafana;
mod live;
mod rules;
mod sidecar;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::process::root;
use crate::tools::build_proxy;

pub use live::check;

#[derive(Debug, Args)]
pub struct Options {
    /// Write deploy/grafana and deploy/prometheus anew instead of asking a Prometheus
    #[arg(long)]
    write: bool,
    /// This binary instead of the proxy built with the `ci` profile
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// One dashboard: rows of panels.
struct Dashboard {
    /// What Grafana knows it by, and the file is called.
    name: &'static str,
    title: &'static str,
    description: &'static str,
    /// A metric that every process of the kind has: its `instance`s can be chosen.
    instances: &'static str,
    rows: &'static [(&'static str, &'static [Panel])],
}

/// One graph. In its queries `$i` stands for the instances that are chosen, `$r` for the span of a rate.
struct Panel {
    title: &'static str,
    description: &'static str,
    /// Grafana's name of the unit.
    unit: &'static str,
    /// Legend and query.
    queries: &'static [(&'static str, &'static str)],
}

/// One alert: a value and what of it is too much.
struct Alert {
    name: &'static str,
    value: &'static str,
    condition: &'static str,
    /// How long it has to hold.
    holds: &'static str,
    severity: &'static str,
    summary: &'static str,
    description: &'static str,
}

/// A query that stands in a file, with its place.
struct Query {
    place: String,
    text: String,
}

fn dashboards() -> [&'static Dashboard; 2] {
    [&gateway::DASHBOARD, &sidecar::DASHBOARD]
}

impl Dashboard {
    /// Its queries, of every instance and over `span`.
    fn queries<'a>(&'a self, span: &'a str) -> impl Iterator<Item = Query> + 'a {
        let panels = self.rows.iter().flat_map(|(_, panels)| *panels);
        panels.flat_map(move |panel| {
            panel.queries.iter().map(move |(_, text)| Query {
                place: format!("{}: {}", self.name, panel.title),
                text: text.replace("$i", "instance=~\".*\"").replace("$r", span),
            })
        })
    }
}

/// Files below `deploy/`, and what has to be in them.
fn files() -> Vec<(String, String)> {
    let boards = dashboards().map(|board| (format!("grafana/{}.json", board.name), grafana::json(board)));
    let rules =
        rules::GROUPS.iter().map(|group| (format!("prometheus/{}.yaml", group.name), rules::yaml(group)));
    boards.into_iter().chain(rules).collect()
}

/// # Errors
/// A file can't be written; or a query has no answer, which the error names.
pub fn run(options: &Options) -> Result<()> {
    if options.write {
        for (name, text) in files() {
            let path = root().join("deploy").join(&name);
            let folder = path.parent().context("no folder")?;
            fs::create_dir_all(folder)?;
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            println!("deploy/{name}");
        }
        return Ok(());
    }
    match &options.binary {
        Some(binary) => check(&binary.canonicalize()?),
        None => check(&build_proxy("ci")?),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_files_are_what_would_be_written() {
        for (name, text) in files() {
            let found = fs::read_to_string(root().join("deploy").join(&name)).unwrap_or_default();
            assert!(found == text, "deploy/{name} is another: cargo xtask monitoring --write");
        }
    }

    #[test]
    fn panels_and_alerts_have_names_of_their_own() {
        let mut names: Vec<&str> = rules::GROUPS.iter().flat_map(|g| g.alerts).map(|a| a.name).collect();
        for board in dashboards() {
            names.extend(board.rows.iter().flat_map(|(_, panels)| *panels).map(|panel| panel.title));
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{}", board.name);
            names.retain(|name| name.starts_with("Sixfold"));
        }
    }
}
