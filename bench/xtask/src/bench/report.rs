//! `bench/RESULTS.md`.

use std::env;
use std::fmt::Write;

use anyhow::Result;

use super::cases::Case;
use super::change::{Change, Storm};
use super::filters::{self, Cost};
use super::goals;
use super::load::Latency;
use super::measure::{CaseResult, Effort, Row};
use super::memory::{self, Resident};
use super::peers::Peer;
use super::procfs;
use super::scale::{self, Scale};
use super::sidecar::{self, Sidecars};

#[derive(Debug)]
pub(super) struct Report {
    pub cases: Vec<CaseResult>,
    pub k6: Vec<(Peer, Latency)>,
    /// Case, peer, resident megabytes idle and after 100,000 requests over all routes
    pub memory: Vec<(&'static Case, Peer, f64, f64)>,
    pub resident: Vec<Resident>,
    pub changes: Vec<Change>,
    pub storm: Option<Storm>,
    pub scale: Vec<Scale>,
    pub sidecars: Vec<Sidecars>,
    pub filters: Vec<Cost>,
    effort: Effort,
    versions: Vec<(Peer, String)>,
    machine: String,
    /// Which code was measured
    code: String,
    load_average: (f64, f64),
}

impl Report {
    /// # Errors
    /// There is no /proc.
    pub(super) fn begin(effort: Effort, versions: Vec<(Peer, String)>, code: String) -> Result<Self> {
        let load = procfs::load_average()?;
        let machine = procfs::machine()?;
        Ok(Self {
            cases: Vec::new(),
            k6: Vec::new(),
            memory: Vec::new(),
            resident: Vec::new(),
            changes: Vec::new(),
            storm: None,
            scale: Vec::new(),
            sidecars: Vec::new(),
            filters: Vec::new(),
            effort,
            versions,
            machine,
            code,
            load_average: (load, load),
        })
    }

    /// # Errors
    /// There is no /proc.
    pub(super) fn end(&mut self) -> Result<()> {
        self.load_average.1 = procfs::load_average()?;
        Ok(())
    }

    /// The page; a whole run tells of every goal.
    pub(super) fn markdown(&self, whole: bool) -> String {
        let mut text = self.preface() + &goals::section(self, whole);
        for result in &self.cases {
            text += &case_section(result);
        }
        text += &self.k6_section();
        text += &self.memory_section();
        text += &filters::section(&self.filters);
        text += &sidecar::section(&self.sidecars);
        text += &scale::section(&self.scale);
        text += &memory::section(&self.resident);
        text.extend(self.changes.iter().map(Change::section));
        text.extend(self.storm.iter().map(Storm::section));
        text
    }

    fn preface(&self) -> String {
        let command: Vec<String> = env::args().skip(1).collect();
        let Effort { rounds, seconds, .. } = self.effort;
        let mut text = format!(
            "# Load tests\n\n\
             Made by `cargo xtask {}`. Every figure is of this one run.\n\n\
             - Code: {}.\n\
             - Machine: {}.\n\
             - sixfold and the programs of our own beside it are built with the `release` profile (fat LTO, one codegen unit).\n\
             - One worker each, on a core of its own; the load generator and the upstream (nginx) share the other core.\n\
             - Every HTTP proxy writes its access log to a file and counts its metrics (nginx: stub_status). The TCP forwarder\n\
               \x20 has no log and counts nothing: it is the floor.\n\
             - {rounds} turns of {seconds} s for each peer, in alternation. A figure is the median; the interval behind\n\
               \x20 it holds the true median with at least 95 % probability (order statistics; of 7 turns it is the whole\n\
               \x20 range).\n\
             - CPU is user and system time of the whole process from /proc, divided by the requests. It is the figure to\n\
               \x20 compare; requests a second depend on what else the machine does.\n\
             - \"ours / theirs\" is sixfold's CPU a request divided by the peer's, turn by turn.\n\
             - Latency is taken by h2load at the arrival rate named, from the times of all single requests.\n\
             - Load average of the machine: {:.2} when the run began, {:.2} when it ended; at the end of each case it\n\
               \x20 stands under the table. The tests themselves keep two cores busy.\n\n",
            command.join(" "),
            self.code,
            self.machine,
            self.load_average.0,
            self.load_average.1
        );
        for (peer, version) in &self.versions {
            let _ = writeln!(text, "- {}: `{version}`", peer.name());
        }
        text += "\n![CPU a request](results.svg)\n";
        text
    }

    fn k6_section(&self) -> String {
        if self.k6.is_empty() {
            return String::new();
        }
        let mut text = format!(
            "\n## 1 route, latency by k6\n\nConstant arrival rate of {} requests/s.\n\n\
             | proxy | p50 us | p99 us |\n| --- | ---: | ---: |\n",
            super::K6_RATE
        );
        for (peer, latency) in &self.k6 {
            let _ = writeln!(text, "| {} | {:.0} | {:.0} |", peer.name(), latency.p50, latency.p99);
        }
        text
    }

    fn memory_section(&self) -> String {
        if self.memory.is_empty() {
            return String::new();
        }
        let mut text =
            "\n## Resident memory\n\nOf a fresh process with one worker: idle, and after 100,000 requests \
                        spread over all routes. Megabytes of 10^6 bytes.\n\n\
                        | table | proxy | idle MB | after MB |\n| --- | --- | ---: | ---: |\n"
                .to_owned();
        for (case, peer, idle, after) in &self.memory {
            let title =
                case.title.split(", ").filter(|part| !part.contains(" 3,000th") && !part.contains("HTTP"));
            let title = title.collect::<Vec<_>>().join(", ");
            let _ = writeln!(text, "| {title} | {} | {idle:.1} | {after:.1} |", peer.name());
        }
        text
    }
}

fn case_section(result: &CaseResult) -> String {
    let case = result.case;
    let mut text = format!(
        "\n## {}\n\n\
         | proxy | CPU us a request | ours / theirs | requests/s | p50 us | p99 us | MB idle, after |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        case.title
    );
    for row in &result.rows {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {:.0} | {:.0} | {:.1}, {:.1} |",
            row.peer.name(),
            row.cpu.shown(1),
            if row.peer == Peer::Sixfold { String::new() } else { row.ratio.shown(3) },
            row.rate.shown(0),
            row.latency.p50,
            row.latency.p99,
            row.idle,
            row.after,
        );
    }
    let _ = writeln!(
        text,
        "\nCase `{}`; latency at {} requests/s; load average {:.2}.",
        case.name, case.rate, result.load_average
    );
    text
}

/// A row as it is shown while the run goes on.
pub(super) fn one_line(row: &Row) -> String {
    format!(
        "{:14} cpu {:18} us, {:>20} requests/s, p50 {:.0} us, p99 {:.0} us, {:.1} -> {:.1} MB",
        row.peer.name(),
        row.cpu.shown(1),
        row.rate.shown(0),
        row.latency.p50,
        row.latency.p99,
        row.idle,
        row.after
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_report_says_which_code_was_measured() {
        let report = Report::begin(Effort::quick(), Vec::new(), "commit `308b822`".to_owned()).unwrap();
        assert!(report.markdown(false).contains("\n- Code: commit `308b822`.\n"));
    }
}
