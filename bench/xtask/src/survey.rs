//! What of other people's configurations is refused, and why: `validate` over a folder, its reasons ranked.
//!
//! A folder is one of configurations as they are found, or is filled from pages of documentation first: each body that a
//! page sends to APISIX's Admin API, and each standalone or static configuration it shows, becomes a file.

mod pages;
mod rank;
mod shell;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::tools::build_proxy;

pub use pages::{Body, bodies};
pub use rank::{Ranked, reason_of};

#[derive(Debug, Args)]
pub struct Options {
    /// The folder; its YAML and JSON files, and those of its folders, are looked at
    folder: PathBuf,
    /// Fill the folder, which must be empty or not there, from the Markdown pages of this one
    #[arg(long, value_name = "DIR")]
    pages: Option<PathBuf>,
    /// This binary instead of the proxy built with the `ci` profile
    #[arg(long)]
    binary: Option<PathBuf>,
    /// How many reasons are shown
    #[arg(long, default_value_t = 40)]
    top: usize,
}

/// # Errors
/// The folder can't be read or filled, or the binary does not run.
pub fn run(options: &Options) -> Result<()> {
    if let Some(pages) = &options.pages {
        fill(pages, &options.folder)?;
    }
    let binary = match &options.binary {
        Some(binary) => fs::canonicalize(binary)?,
        None => build_proxy("ci")?,
    };
    let mut files = Vec::new();
    collect(&options.folder, &["yaml", "yml", "json"], &mut files)?;
    if files.is_empty() {
        bail!("no YAML or JSON file below {}", options.folder.display());
    }
    let mut ranked = Ranked::default();
    for file in &files {
        let name = file.strip_prefix(&options.folder).unwrap_or(file).display().to_string();
        ranked.add(&name, &validated(&binary, file)?);
    }
    print!("{}", ranked.shown(options.top));
    Ok(())
}

/// What `validate` says of a file.
fn validated(binary: &Path, file: &Path) -> Result<Value> {
    let mut command = Command::new(binary);
    command.args(["validate", "--output", "json", "-c"]).arg(file);
    let output = command.output().with_context(|| format!("cannot start {}", binary.display()))?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{}: {}", file.display(), String::from_utf8_lossy(&output.stderr)))
}

/// Writes the bodies of pages into a folder.
fn fill(pages: &Path, folder: &Path) -> Result<()> {
    if folder.exists() && fs::read_dir(folder)?.next().is_some() {
        bail!("{} is not empty", folder.display());
    }
    fs::create_dir_all(folder)?;
    let mut files = Vec::new();
    collect(pages, &["md"], &mut files)?;
    let (mut count, mut no_json) = (0, 0);
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let page = file.strip_prefix(pages).unwrap_or(file).with_extension("");
        let page = page.display().to_string().replace('/', "-");
        for body in bodies(&text) {
            match body {
                Body::NoJson(_) => no_json += 1,
                Body::File { line, extension, text } => {
                    count += 1;
                    fs::write(folder.join(format!("{page}-{line:04}.{extension}")), text)?;
                }
            }
        }
    }
    println!("{count} bodies of {} pages below {}; {no_json} more are no JSON", files.len(), pages.display());
    Ok(())
}

/// The files with one of these extensions, in order.
fn collect(folder: &Path, extensions: &[&str], files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if path.is_dir() {
            collect(&path, extensions, files)?;
        } else if extensions.contains(&extension) {
            files.push(path);
        }
    }
    Ok(())
}
