//! The book in `docs/`: what it says is looked at by [`check`], and what it shows is run by [`run`].
//!
//! A block of code says behind its language what becomes of it:
//!
//! | mark | what happens |
//! | --- | --- |
//! | `run` | the shell runs it; a command that fails, fails the test |
//! | `retry` | as `run`, again and again for ten seconds until it does not fail and prints what the page shows |
//! | `background=PORT` | one command that goes on beside the others, which wait until PORT of 127.0.0.1 is open |
//! | `output` | what the `run` before it printed, where a line `...` stands for any lines and `…` for anything in a line |
//! | `file=NAME` | it is written to this file in the folder of the page |
//! | `validate=NAME` | as a file of this name by itself it passes `sixfold validate` |
//! | `part-of=route` | as a part of a route it passes `sixfold validate` |
//! | `test=PATH` | this test of the repository reads it from the page |
//! | `not-run="REASON"` | nothing |
//!
//! `fresh` begins a new folder and ends what runs in the background. `<!-- run: COMMAND -->` and `<!-- background=PORT: COMMAND -->`
//! are for what a reader need not see, such as an upstream.

pub mod check;
mod page;
pub mod run;

pub use page::{Block, Page};

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::root;

/// Every page below `docs/`, by path.
///
/// # Errors
/// A page can't be read, or a mark of one of its blocks is not written as marks are.
pub fn pages() -> Result<Vec<Page>> {
    let mut paths = Vec::new();
    collect(&root().join("docs"), &mut paths)?;
    paths.sort();
    paths.iter().map(|path| Page::read(path)).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, paths)?;
        } else if path.extension().is_some_and(|extension| extension == "md") {
            paths.push(path);
        }
    }
    Ok(())
}
