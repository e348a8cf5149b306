//! What became of each part of a configuration.

use serde_json::{Map, Value, json};
use sixfold_core::error::{ConfigError, Place};
use std::collections::HashSet;
use std::sync::Arc;

/// How much of something could be taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Match {
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
    pub(super) const ALL: [Match; 4] = [Match::Exact, Match::Approximate, Match::Manual, Match::Unsupported];

    pub(super) fn word(self) -> &'static str {
        match self {
            Match::Exact => "exact",
            Match::Approximate => "approximate",
            Match::Manual => "manual",
            Match::Unsupported => "unsupported",
        }
    }
}

/// What became of one part.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finding {
    pub(super) kind: Match,
    pub(super) file: Arc<str>,
    pub(super) line: u32,
    pub(super) what: String,
    pub(super) note: String,
}

/// What is written, and what became of each part.
#[derive(Debug, Default)]
pub(super) struct Imported {
    pub(super) config: Map<String, Value>,
    pub(super) resources: Map<String, Value>,
    pub(super) findings: Vec<Finding>,
    /// Parts that something was told of, with their places.
    told: HashSet<(Arc<str>, u32, String)>,
    /// Whether there is no apisix.yaml: resources stay where they are.
    pub(super) without_resources: bool,
}

impl Imported {
    pub(super) fn count(&self, kind: Match) -> usize {
        self.findings.iter().filter(|finding| finding.kind == kind).count()
    }

    /// Adds a finding, of those about one part and place the first alone: what several routes have is told once.
    pub(super) fn add(&mut self, finding: Finding) {
        if self.told.insert((finding.file.clone(), finding.line, finding.what.clone())) {
            self.findings.push(finding);
        }
    }

    /// Takes back all that was found.
    pub(super) fn forget(&mut self) {
        self.findings.clear();
        self.told.clear();
    }

    /// Adds what was found of a resource.
    pub(super) fn take(&mut self, part: Part) {
        if let Some(exact) = part.summary() {
            self.add(exact);
        }
        part.findings.into_iter().for_each(|finding| self.add(finding));
    }

    /// Findings in the order of the files, and a data plane of its two files as the process.
    pub(super) fn finish(&mut self) {
        self.standalone();
        self.sort();
    }

    /// Has the process be a data plane of its two files.
    pub(super) fn standalone(&mut self) {
        self.config.insert(
            "deployment".to_owned(),
            json!({"role": "data_plane", "role_data_plane": {"config_provider": "yaml"}}),
        );
    }

    /// Puts findings in the order of the files.
    pub(super) fn sort(&mut self) {
        self.findings.sort_by(|one, other| (&one.file, one.line).cmp(&(&other.file, other.line)));
    }

    /// Adds a list of resources, if there are some.
    pub(super) fn section(&mut self, name: &str, items: Vec<Value>) {
        if !items.is_empty() {
            self.resources.insert(name.to_owned(), items.into());
        }
    }

    pub(super) fn text(&self) -> String {
        let lines = self.findings.iter().map(|finding| {
            let Finding { kind, file, line, what, note } = finding;
            let note = if note.is_empty() { String::new() } else { format!(": {note}") };
            format!("{:<12} {file}:{line}: {what}{note}\n", kind.word())
        });
        let counts = Match::ALL.map(|kind| format!("{} {}", self.count(kind), kind.word()));
        lines.chain([format!("{}\n", counts.join(", "))]).collect()
    }

    pub(super) fn json(&self, refused: &[ConfigError]) -> Value {
        let findings = self.findings.iter().map(|finding| {
            json!({
                "kind": finding.kind.word(), "file": &*finding.file, "line": finding.line, "what": finding.what,
                "note": finding.note,
            })
        });
        let findings: Vec<Value> = findings.collect();
        let counts: Map<String, Value> =
            Match::ALL.iter().map(|kind| (kind.word().to_owned(), self.count(*kind).into())).collect();
        let refused: Vec<String> = refused.iter().map(ToString::to_string).collect();
        json!({"counts": counts, "findings": findings, "refused": refused})
    }
}

/// What is found of one resource: its fields that do the same are told in one line, all others in one each.
#[derive(Debug)]
pub(super) struct Part {
    /// The resource: `route "shop"`.
    what: String,
    file: Arc<str>,
    line: u32,
    exact: Vec<String>,
    findings: Vec<Finding>,
}

impl Part {
    pub(super) fn new(what: impl Into<String>, file: &Arc<str>, place: Place) -> Part {
        Part {
            what: what.into(),
            file: file.clone(),
            line: place.line,
            exact: Vec::new(),
            findings: Vec::new(),
        }
    }

    /// A field that does the same, or has no part in what is answered.
    pub(super) fn exact(&mut self, field: &str) {
        if !self.exact.iter().any(|known| known == field) {
            self.exact.push(field.to_owned());
        }
    }

    /// The same of something of which nothing is taken over.
    pub(super) fn without_exact(mut self) -> Part {
        self.exact.clear();
        self
    }

    /// A field that is not taken over after all.
    pub(super) fn not_exact(&mut self, field: &str) {
        self.exact.retain(|known| known != field);
    }

    pub(super) fn approximate(&mut self, field: &str, place: Place, note: impl Into<String>) {
        self.add(Match::Approximate, field, place, note);
    }

    pub(super) fn manual(&mut self, field: &str, place: Place, note: impl Into<String>) {
        self.add(Match::Manual, field, place, note);
    }

    pub(super) fn unsupported(&mut self, field: &str, place: Place, note: impl Into<String>) {
        self.add(Match::Unsupported, field, place, note);
    }

    /// A field that nobody has thought of.
    pub(super) fn unknown(&mut self, field: &str, place: Place) {
        self.unsupported(field, place, "there is no counterpart");
    }

    pub(super) fn add(&mut self, kind: Match, field: &str, place: Place, note: impl Into<String>) {
        let what = if field.is_empty() { self.what.clone() } else { format!("{}: {field}", self.what) };
        self.findings.push(Finding {
            kind,
            file: self.file.clone(),
            line: place.line,
            what,
            note: note.into(),
        });
    }

    fn summary(&self) -> Option<Finding> {
        let what = match self.exact.is_empty() {
            // Of something without fields it is told that it is there.
            true if self.findings.is_empty() => self.what.clone(),
            true => return None,
            false => format!("{}: {}", self.what, self.exact.join(", ")),
        };
        Some(Finding {
            kind: Match::Exact,
            file: self.file.clone(),
            line: self.line,
            what,
            note: String::new(),
        })
    }
}
