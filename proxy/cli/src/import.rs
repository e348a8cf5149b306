//! `sixfold import`: another proxy's configuration as config.yaml and apisix.yaml, and what became of each part of it.

mod nginx;

use crate::Failure;
use crate::arguments::{ImportFrom, ImportOptions, OutputForm};
use crate::envoy::Text;
use crate::validate::{self, Kind};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::Path;

/// How much of something could be taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    /// It does the same.
    Exact,
    /// It does nearly the same.
    Approximate,
    /// There is a counterpart, which somebody has to write.
    Manual,
    /// There is no counterpart.
    Unsupported,
}

impl Match {
    const ALL: [Match; 4] = [Match::Exact, Match::Approximate, Match::Manual, Match::Unsupported];

    fn word(self) -> &'static str {
        match self {
            Match::Exact => "exact",
            Match::Approximate => "approximate",
            Match::Manual => "manual",
            Match::Unsupported => "unsupported",
        }
    }
}

/// What became of one part.
#[derive(Debug)]
struct Finding {
    kind: Match,
    file: String,
    line: u32,
    what: String,
    note: String,
}

/// What is written, and what became of each part.
#[derive(Debug, Default)]
struct Imported {
    config: Map<String, Value>,
    resources: Map<String, Value>,
    findings: Vec<Finding>,
}

impl Imported {
    fn count(&self, kind: Match) -> usize {
        self.findings.iter().filter(|finding| finding.kind == kind).count()
    }

    fn text(&self) -> String {
        let lines = self.findings.iter().map(|finding| {
            let Finding { kind, file, line, what, note } = finding;
            let note = if note.is_empty() { String::new() } else { format!(": {note}") };
            format!("{:<12} {file}:{line}: {what}{note}\n", kind.word())
        });
        let counts = Match::ALL.map(|kind| format!("{} {}", self.count(kind), kind.word()));
        lines.chain([format!("{}\n", counts.join(", "))]).collect()
    }

    fn json(&self) -> Value {
        let findings = self.findings.iter().map(|finding| {
            json!({
                "kind": finding.kind.word(), "file": finding.file, "line": finding.line, "what": finding.what,
                "note": finding.note,
            })
        });
        let findings: Vec<Value> = findings.collect();
        let counts: Map<String, Value> =
            Match::ALL.iter().map(|kind| (kind.word().to_owned(), self.count(*kind).into())).collect();
        json!({"counts": counts, "findings": findings})
    }
}

/// Writes config.yaml and apisix.yaml, prints the report, and answers whether nothing is left to do by hand.
///
/// # Errors
/// A file that can't be read, files that are there already, or a result that is not valid.
pub(crate) fn run(options: &ImportOptions) -> Result<bool, Failure> {
    let imported = match options.from {
        ImportFrom::Nginx => nginx::import(&options.file)?,
    };
    let directory = &options.directory;
    std::fs::create_dir_all(directory)?;
    let (config, resources) = (directory.join("config.yaml"), directory.join("apisix.yaml"));
    for path in [&config, &resources] {
        if path.exists() && !options.force {
            return Err(Failure::new(format!("{} is there already; --force replaces it", path.display())));
        }
    }
    std::fs::write(&config, sixfold_apisix::yaml(&Value::Object(imported.config.clone())))?;
    std::fs::write(
        &resources,
        format!("{}#END\n", sixfold_apisix::yaml(&Value::Object(imported.resources.clone()))),
    )?;
    let mut out = std::io::stdout();
    match options.output {
        OutputForm::Text => write!(out, "{}", imported.text())?,
        OutputForm::Json => writeln!(out, "{:#}", imported.json())?,
    }
    valid(&config)?;
    Ok(imported.count(Match::Manual) + imported.count(Match::Unsupported) == 0)
}

/// Looks at what was written as `sixfold validate` does.
fn valid(config: &Path) -> Result<(), Failure> {
    let (errors, _) = validate::findings(Kind::Configuration, &Text::read(config)?, config);
    if errors.is_empty() { Ok(()) } else { Err(Failure(errors)) }
}
