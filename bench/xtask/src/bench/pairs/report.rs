//! `wrk.md` and `k6.md`: one table and one plot a case.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::super::measure::Effort;
use super::super::peers::Peer;
use super::super::plot::{Bar, Group, chart};
use super::super::procfs;
use super::super::scripted::Tool;
use super::super::stats::Estimate;
use super::measure::{Figures, PairResult, Row};

#[derive(Debug)]
pub(super) struct Page {
    pub results: Vec<PairResult>,
    tool: Tool,
    effort: Effort,
    versions: Vec<(Peer, String)>,
    code: String,
    machine: String,
    load_average: f64,
}

impl Page {
    /// # Errors
    /// There is no /proc.
    pub(super) fn begin(
        tool: Tool,
        effort: Effort,
        versions: Vec<(Peer, String)>,
        code: String,
    ) -> Result<Self> {
        let (machine, load_average) = (procfs::machine()?, procfs::load_average()?);
        Ok(Self { results: Vec::new(), tool, effort, versions, code, machine, load_average })
    }

    /// The page and its plots.
    ///
    /// # Errors
    /// The folder is not there, or can't be written to.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        for result in &self.results {
            fs::write(dir.join(self.plot_name(result)), plot(result))?;
        }
        let page = dir.join(self.tool.name()).with_extension("md");
        fs::write(&page, self.markdown())?;
        println!("written: {}", page.display());
        Ok(())
    }

    fn plot_name(&self, result: &PairResult) -> String {
        format!("{}-{}.svg", self.tool.name(), result.case.name)
    }

    fn markdown(&self) -> String {
        let command: Vec<String> = env::args().skip(1).collect();
        let Effort { rounds, seconds, .. } = self.effort;
        let mut text = format!(
            "# 5,000 routes under {tool}\n\n\
             Made by `cargo xtask {}`. Every figure is of this one run.\n\n\
             - Code: {}.\n- Machine: {}.\n\
             - One worker each, on a core of its own; {tool} and the upstreams (nginx) share the other core. Every proxy writes its\n\
               \x20 access log to a file and counts its metrics.\n\
             - The three routes that are asked lead to one upstream, the others to another one. Status and body of each answer were\n\
               \x20 looked at; one wrong answer ends the run.\n\
             - {rounds} turns of {seconds} s for each proxy and load, in alternation. A figure is the median; the interval behind it {}.\n\
             - CPU is user and system time of the whole process from /proc by the requests. It is the figure to compare: at full\n\
               \x20 speed requests a second depend on the other core as well, {}.\n\
             - Ratios are sixfold's figure by the other's, turn by turn: of requests/s more is better, of CPU less.\n\
             - The equal load is half of what the slowest carries.\n\
             - Load average of the machine: {:.2} when the run began.\n\n",
            command.join(" "),
            self.code,
            self.machine,
            interval(rounds),
            match self.tool {
                Tool::Wrk => "where wrk looks at each answer by a script",
                Tool::K6 => "and k6 takes some 100 us of it a request",
            },
            self.load_average,
            tool = self.tool.name(),
        );
        for (peer, version) in &self.versions {
            let _ = writeln!(text, "- {}: `{version}`", peer.name());
        }
        for result in &self.results {
            text += &self.section(result);
        }
        text
    }

    fn section(&self, result: &PairResult) -> String {
        let title = result.case.title();
        format!(
            "\n## {title}\n\n![{title}]({})\n\n{}\nCase `{}`; load average {:.2}.\n",
            self.plot_name(result),
            table(result),
            result.case.name,
            result.load_average
        )
    }
}

/// What stands behind a median of so many turns.
fn interval(rounds: u32) -> String {
    if rounds > 8 {
        return "holds the true median with\n  at least 95 % probability".to_owned();
    }
    let missed = 100.0 * 0.5f64.powi(rounds as i32 - 1);
    format!("is the whole\n  range, which holds the true median with {:.0} % probability", 100.0 - missed)
}

/// Each proxy at each load.
fn table(result: &PairResult) -> String {
    let mut text = "| load | proxy | requests/s | ratio | p50 us | p99 us | CPU us a request | ratio |\n\
                    | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    let mut rows = |load: &str, of: fn(&Row) -> &Figures, shows_rate: bool| {
        for row in &result.rows {
            let figures = of(row);
            let other = row.peer != Peer::Sixfold;
            let ratio = |ratio: Estimate, shown: bool, digits| {
                if shown { ratio.shown(digits) } else { String::new() }
            };
            let _ = writeln!(
                text,
                "| {load} | {} | {} | {} | {} | {} | {} | {} |",
                row.peer.name(),
                figures.rate.shown(0),
                ratio(figures.rate_ratio, other && shows_rate, 2),
                figures.p50.shown(0),
                figures.p99.shown(0),
                figures.cpu.shown(1),
                ratio(figures.cpu_ratio, other, 3),
            );
        }
    };
    rows("full speed", |row| &row.full, true);
    rows(&format!("{}/s", result.rate), |row| &row.equal, false);
    text
}

/// Requests a second at full speed; latency and CPU at the equal load.
fn plot(result: &PairResult) -> String {
    let group = |title: String, of: fn(&Row) -> Estimate, digits: usize| Group {
        title,
        bars: result.rows.iter().map(|row| Bar { peer: row.peer, value: of(row), digits }).collect(),
    };
    let at = |what: &str| format!("{what} at {} requests/s (shorter is better)", result.rate);
    let groups = [
        group("requests/s as fast as it goes (longer is better)".to_owned(), |row| row.full.rate, 0),
        group(at("p50 in microseconds"), |row| row.equal.p50, 0),
        group(at("p99 in microseconds"), |row| row.equal.p99, 0),
        group(at("CPU microseconds a request"), |row| row.equal.cpu, 1),
    ];
    chart(&result.case.title(), &groups)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::measure::tests::result;
    use super::*;

    #[test]
    fn a_table_has_each_proxy_at_each_load_and_ratios_of_the_others() {
        let table = table(&result());
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(lines.len(), 4);
        assert!(
            lines[0].starts_with("| full speed | sixfold | 40000 (40000-40000) |  | 100 "),
            "{}",
            lines[0]
        );
        assert!(lines[1].contains("| Envoy | 10000 (10000-10000) | 4.00 (4.00-4.00) |"), "{}", lines[1]);
        assert!(lines[3].starts_with("| 5000/s | Envoy | 10000 (10000-10000) |  |"), "{}", lines[3]);
        assert!(lines[3].ends_with("| 60.0 (60.0-60.0) | 0.250 (0.250-0.250) |"), "{}", lines[3]);
    }

    #[test]
    fn a_plot_has_four_groups_of_bars() {
        let picture = plot(&result());
        assert_eq!(picture.matches("class=\"ours\"").count(), 4);
        assert_eq!(picture.matches("class=\"theirs\"").count(), 4);
        assert!(picture.contains("CPU microseconds a request at 5000 requests/s"));
    }

    #[test]
    fn an_interval_of_few_turns_promises_little() {
        assert!(interval(3).contains("with 75 % probability"));
        assert!(interval(7).contains("with 98 % probability"));
        assert!(interval(9).contains("at least 95 %"));
    }

    #[test]
    fn a_page_shows_the_plot_of_each_case() {
        let mut page =
            Page::begin(Tool::Wrk, Effort::quick(), Vec::new(), "commit `308b822`".to_owned()).unwrap();
        page.results.push(result());
        let text = page.markdown();
        assert!(text.contains("- Code: commit `308b822`.\n"));
        assert!(text.contains("## Gateway, 5,000 routes, the 3,000th\n\n![Gateway, 5,000 routes, the 3,000th](wrk-gateway-3000.svg)"));
    }
}
