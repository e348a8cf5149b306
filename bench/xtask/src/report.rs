//! A chore of several parts that all run, whatever becomes of the others.

use std::time::Instant;

use anyhow::{Result, bail};

#[derive(Debug, Default)]
pub struct Report {
    lines: Vec<String>,
    skipped: Vec<String>,
    failed: Vec<String>,
}

/// What became of a part that has not failed.
#[derive(Debug)]
pub enum Outcome {
    Done,
    /// It was left out, and why.
    Skipped(String),
}

impl From<()> for Outcome {
    fn from((): ()) -> Outcome {
        Outcome::Done
    }
}

impl Report {
    /// Does the work at once; a failure is kept for the end.
    pub fn part<O: Into<Outcome>>(&mut self, name: &str, work: impl FnOnce() -> Result<O>) {
        let started = Instant::now();
        let result = work().map(Into::into);
        let seconds = started.elapsed().as_secs();
        match result {
            Ok(Outcome::Done) => self.lines.push(format!("ok      {name} ({seconds} s)")),
            Ok(Outcome::Skipped(why)) => {
                self.lines.push(format!("skipped {name}: {why}"));
                self.skipped.push(name.to_owned());
            }
            Err(error) => {
                self.lines.push(format!("FAILED  {name} ({seconds} s): {error:#}"));
                self.failed.push(name.to_owned());
            }
        }
    }

    /// Prints what became of each part.
    ///
    /// # Errors
    /// Names the parts that failed.
    pub fn finish(self, chore: &str) -> Result<()> {
        println!("\n{}", self.lines.join("\n"));
        if !self.failed.is_empty() {
            bail!("{chore}: failed: {}", self.failed.join(", "));
        }
        println!("{chore}: {}", self.passed());
        Ok(())
    }

    fn passed(&self) -> String {
        match self.skipped.as_slice() {
            [] => "everything passed".to_owned(),
            skipped => format!("everything passed but what was skipped: {}", skipped.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parts_after_a_failure_run_and_the_failure_is_named() {
        let (mut report, mut ran) = (Report::default(), false);
        report.part("first", || -> Result<()> { bail!("broken") });
        report.part("second", || {
            ran = true;
            Ok(())
        });
        assert_eq!(report.finish("chore").unwrap_err().to_string(), "chore: failed: first");
        assert!(ran);
    }

    /// It was `ok`, and everything had passed.
    #[test]
    fn what_was_left_out_is_said_to_be() {
        let mut report = Report::default();
        report.part("first", || Ok(()));
        report.part("second", || Ok(Outcome::Skipped("no moon".to_owned())));
        assert_eq!(report.lines[1], "skipped second: no moon");
        assert_eq!(report.passed(), "everything passed but what was skipped: second");
        report.finish("chore").unwrap();
    }
}
