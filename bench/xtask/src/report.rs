//! A chore of several parts that all run, whatever becomes of the others.

use std::time::Instant;

use anyhow::{Result, bail};

#[derive(Debug, Default)]
pub struct Report {
    lines: Vec<String>,
    failed: Vec<String>,
}

impl Report {
    /// Does the work at once; a failure is kept for the end.
    pub fn part(&mut self, name: &str, work: impl FnOnce() -> Result<()>) {
        let started = Instant::now();
        let result = work();
        let seconds = started.elapsed().as_secs();
        match result {
            Ok(()) => self.lines.push(format!("ok      {name} ({seconds} s)")),
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
        println!("{chore}: everything passed");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parts_after_a_failure_run_and_the_failure_is_named() {
        let (mut report, mut ran) = (Report::default(), false);
        report.part("first", || bail!("broken"));
        report.part("second", || {
            ran = true;
            Ok(())
        });
        assert_eq!(report.finish("chore").unwrap_err().to_string(), "chore: failed: first");
        assert!(ran);
    }
}
