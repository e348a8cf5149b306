//! `sixfold doctor`: what a configuration needs of this machine and of others, looked at before somebody serves by it.
//!
//! Nothing is served, and nothing of what is found is changed: addresses are bound and given back without listening.

mod bootstrap;
mod certificate;
mod gateway;
mod machine;
mod port;
mod reach;

use crate::Failure;
use crate::arguments::{DoctorOptions, OutputForm};
use crate::envoy::Text;
use crate::validate::{self, Kind};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// As it should be.
    Ok,
    /// It serves, and should be looked at.
    Warning,
    /// Something does not serve.
    Fault,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Fault => "fault",
        }
    }
}

/// What was found of one thing.
#[derive(Debug)]
struct Line {
    state: State,
    /// The kind of check: `port`, `certificate`, ...
    check: &'static str,
    /// What was looked at, with the key of the configuration that it is from.
    about: String,
    /// What is so.
    reason: String,
    /// What to do about it; empty where all is well.
    advice: String,
}

/// Everything that was found, in the order in which it was looked at.
#[derive(Debug, Default)]
struct Report(Vec<Line>);

impl Report {
    fn ok(&mut self, check: &'static str, about: impl Into<String>, reason: impl Into<String>) {
        self.add(State::Ok, check, about.into(), reason.into(), String::new());
    }

    fn warning(
        &mut self,
        check: &'static str,
        about: impl Into<String>,
        reason: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.add(State::Warning, check, about.into(), reason.into(), advice.into());
    }

    fn fault(
        &mut self,
        check: &'static str,
        about: impl Into<String>,
        reason: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.add(State::Fault, check, about.into(), reason.into(), advice.into());
    }

    fn add(&mut self, state: State, check: &'static str, about: String, reason: String, advice: String) {
        self.0.push(Line { state, check, about, reason, advice });
    }

    fn count(&self, state: State) -> usize {
        self.0.iter().filter(|line| line.state == state).count()
    }

    fn text(&self) -> String {
        let lines = self.0.iter().map(|line| {
            let advice = if line.advice.is_empty() { String::new() } else { format!("; {}", line.advice) };
            let Line { state, check, about, reason, .. } = line;
            format!("{:<8} {check:<12} {about}: {reason}{advice}\n", state.word())
        });
        let (faults, warnings) = (self.count(State::Fault), self.count(State::Warning));
        lines.chain([format!("{faults} faults, {warnings} warnings\n")]).collect()
    }

    fn json(&self, file: &str) -> Value {
        let lines = self.0.iter().map(|line| {
            let advice = Some(&line.advice).filter(|advice| !advice.is_empty());
            json!({
                "state": line.state.word(), "check": line.check, "about": line.about, "reason": line.reason,
                "advice": advice,
            })
        });
        let lines: Vec<Value> = lines.collect();
        json!({
            "file": file,
            "well": self.count(State::Fault) == 0,
            "faults": self.count(State::Fault),
            "warnings": self.count(State::Warning),
            "checks": lines,
        })
    }
}

/// Looks at everything and tells it; answers whether there is no fault.
///
/// # Errors
/// A file that can't be read, or is neither kind of configuration.
pub(crate) fn run(options: &DoctorOptions) -> Result<bool, Failure> {
    let text = Text::read(&options.config)?;
    let kind = validate::kind(&text)?;
    let mut report = Report::default();
    configuration(&mut report, kind, &text, &options.config);
    machine::clock(&mut report, &options.config);
    machine::descriptors(&mut report);
    match kind {
        Kind::Bootstrap => bootstrap::look(&mut report, &text, &options.config)?,
        Kind::Configuration | Kind::Resources => gateway::look(&mut report, kind, &text, &options.config)?,
    }
    let mut out = std::io::stdout();
    match options.output {
        OutputForm::Text => write!(out, "{}", report.text())?,
        OutputForm::Json => writeln!(out, "{:#}", report.json(&text.name))?,
    }
    Ok(report.count(State::Fault) == 0)
}

/// What `sixfold validate` says.
fn configuration(report: &mut Report, kind: Kind, text: &Text, path: &Path) {
    let (errors, warnings) = validate::findings(kind, text, path);
    if errors.is_empty() {
        report.ok("file", &text.name, "is valid");
    }
    for error in errors {
        report.fault("file", &text.name, error, "mend it; `sixfold validate` says the same");
    }
    for warning in warnings {
        let is_idle = ["has no effect", "unknown field"].iter().any(|words| warning.contains(words));
        let advice =
            if is_idle { "mend it, or leave it: it has no effect" } else { "mend it unless it is meant so" };
        report.warning("file", &text.name, warning, advice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_so_and_what_to_do() {
        let mut report = Report::default();
        report.ok("port", "127.0.0.1:1 (a)", "free");
        report.fault("name", "b", "no such name", "mend DNS");
        let text = report.text();
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                "ok       port         127.0.0.1:1 (a): free",
                "fault    name         b: no such name; mend DNS",
                "1 faults, 0 warnings"
            ]
        );
        let json = report.json("f.yaml");
        assert_eq!((&json["well"], &json["checks"][1]["advice"]), (&json!(false), &json!("mend DNS")));
        assert_eq!(json["checks"][0]["advice"], Value::Null);
    }
}
