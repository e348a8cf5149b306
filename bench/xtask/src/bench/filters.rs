//! What the filters of a mesh's sidecars add to a request: no network, one filter, all of its phases.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::instructions::total;
use super::peers::{PROXY_CORE, bench_program, pinned};
use crate::process::{output, target};

/// Requests of each filter whose instructions are counted.
const COUNTED: u32 = 1_000;

/// What one filter costs.
#[derive(Debug, PartialEq)]
pub(super) struct Cost {
    /// Its name among the goals
    pub name: String,
    pub title: String,
    /// Median that a request takes longer with it
    pub nanoseconds: f64,
}

/// # Errors
/// The program that measures fails.
pub(super) fn measure() -> Result<Vec<Cost>> {
    let program = bench_program("filter-costs")?;
    read(&output(pinned(PROXY_CORE).arg(program))?)
}

/// Counts the instructions of a request through each filter, those of a chain as such and of the request's end among them.
///
/// # Errors
/// valgrind fails.
pub(super) fn instructions() -> Result<()> {
    let program = bench_program("filter-costs")?;
    println!("instructions a request");
    for Cost { name, title, .. } in read(&output(&mut Command::new(&program))?)? {
        println!("{:8.0}  {title}", counted(&program, &name)?);
    }
    Ok(())
}

fn counted(program: &Path, name: &str) -> Result<f64> {
    let file = target().join("filter-costs.callgrind");
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--quiet", "--toggle-collect=*run_and_drop*"]);
    command.arg(format!("--callgrind-out-file={}", file.display()));
    output(command.arg(program).args([name, &COUNTED.to_string()]))?;
    Ok(total(&fs::read_to_string(&file)?)? / f64::from(COUNTED))
}

/// Lines of a name, a number and a title.
fn read(text: &str) -> Result<Vec<Cost>> {
    let cost = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let (name, number, title) = (words.next()?, words.next()?, words.next()?);
        Some(Cost { name: name.to_owned(), nanoseconds: number.parse().ok()?, title: title.to_owned() })
    };
    text.lines().map(|line| cost(line).with_context(|| format!("no cost of a filter: {line}"))).collect()
}

impl Cost {
    pub(super) fn one_line(&self) -> String {
        format!("{}: {:.0} ns a request", self.title, self.nanoseconds)
    }
}

/// A table of what was measured; empty when nothing was.
pub(super) fn section(costs: &[Cost]) -> String {
    if costs.is_empty() {
        return String::new();
    }
    let mut text = "\n## Filters\n\nWhat a filter adds to a request within the process, all of its phases (`bench/src/filters.rs`): the median \
                    of 2,000 batches, each compared with a chain without filters. No network, no codec.\n\n\
                    | filter | ns a request |\n| --- | ---: |\n"
        .to_owned();
    for cost in costs {
        let _ = writeln!(text, "| {} | {:.0} |", cost.title, cost.nanoseconds);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_line_is_a_filter() {
        let costs = read("rbac-paths 312.4 rbac, 100 policies\njwt 9 jwt_authn\n").unwrap();
        let cost = |name: &str, nanoseconds, title: &str| Cost {
            name: name.to_owned(),
            nanoseconds,
            title: title.to_owned(),
        };
        assert_eq!(costs, [cost("rbac-paths", 312.4, "rbac, 100 policies"), cost("jwt", 9.0, "jwt_authn")]);
        assert!(section(&costs).contains("| rbac, 100 policies | 312 |\n"));
        assert!(read("rbac-paths fast rbac").is_err());
    }
}
