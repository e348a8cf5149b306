//! What filters cost a request: `filter-costs` tells nanoseconds of all of them, a line each, `NAME NANOSECONDS TITLE`. `filter-costs NAME
//! REQUESTS` runs so many requests through one of them and tells nothing, for counting
//! instructions.

use std::env;

use anyhow::{Context, Result, bail};
use sixfold_bench::filters::{CASES, Case};

/// Batches of which the median is told.
const BATCHES: usize = 2_000;

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    match words.as_slice() {
        [] => {
            for case in CASES {
                println!("{} {:.1} {}", case.name, case.ready()?.nanoseconds(BATCHES), case.title);
            }
            Ok(())
        }
        [name, requests] => repeat(named(name)?, requests.parse()?),
        _ => bail!("usage: filter-costs [NAME REQUESTS]"),
    }
}

fn named(name: &str) -> Result<Case> {
    CASES.into_iter().find(|case| case.name == name).context("no such filter")
}

fn repeat(case: Case, requests: u32) -> Result<()> {
    let ready = case.ready()?;
    for _ in 0..requests {
        if !ready.run(ready.request()) {
            bail!("a request did not pass");
        }
    }
    Ok(())
}
