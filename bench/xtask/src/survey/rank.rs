//! Reasons for refusal by how many files have them.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

/// What became of files.
#[derive(Debug, Default)]
pub struct Ranked {
    files: usize,
    accepted: usize,
    /// Only for what they refer to, which is somewhere else.
    dangling: usize,
    reasons: BTreeMap<String, Vec<String>>,
}

impl Ranked {
    /// Adds what `validate --output json` says of a file.
    pub fn add(&mut self, file: &str, said: &Value) {
        self.files += 1;
        let errors = said.get("errors").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let mut reasons: Vec<String> = errors.iter().map(reason_of).collect();
        reasons.sort();
        reasons.dedup();
        if reasons.is_empty() {
            self.accepted += 1;
        } else if reasons.iter().all(|reason| reason.contains(DANGLING)) {
            self.dangling += 1;
        }
        for reason in reasons {
            self.reasons.entry(reason).or_default().push(file.to_owned());
        }
    }

    /// The counts, and so many reasons, the commonest first, each with a file that has it.
    pub fn shown(&self, top: usize) -> String {
        let mut out = String::new();
        let refused = self.files - self.accepted - self.dangling;
        let _ = writeln!(
            out,
            "{} files: {} accepted, {} refused, {} but for what they refer to accepted",
            self.files, self.accepted, refused, self.dangling
        );
        let mut ranked: Vec<(&String, &Vec<String>)> = self.reasons.iter().collect();
        ranked.sort_by_key(|(reason, files)| (usize::MAX - files.len(), *reason));
        for (reason, files) in ranked.iter().take(top) {
            let example = files.first().map(String::as_str).unwrap_or_default();
            let _ = writeln!(out, "{:>5}  {reason}  ({example})", files.len());
        }
        if let Some(more) = ranked.len().checked_sub(top).filter(|more| *more > 0) {
            let _ = writeln!(out, "       and {more} reasons more");
        }
        out
    }
}

/// In the reason of a reference to what is not there.
const DANGLING: &str = "there is no ";

/// A fault without what is of one file alone: its place, the resource, positions in lists, and values.
pub fn reason_of(fault: &Value) -> String {
    let text = |key: &str| fault.get(key).and_then(Value::as_str);
    let Some(reason) = text("reason") else { return general(text("message").unwrap_or_default()) };
    let field = text("field").map(|field| format!("{}: ", general(field))).unwrap_or_default();
    format!("{field}{}", general(reason))
}

/// Numbers as `N`, and what is referred to without its name.
fn general(text: &str) -> String {
    let text = match text.split_once(DANGLING) {
        Some((_, what)) if text.starts_with(DANGLING) => {
            return format!("{DANGLING}{}", what.split('"').next().unwrap_or_default().trim_end());
        }
        _ => text,
    };
    let mut out = String::new();
    let mut in_number = false;
    for char in text.chars() {
        let is_digit = char.is_ascii_digit();
        if is_digit && (in_number || !out.ends_with(|before: char| before.is_alphanumeric() || before == '-'))
        {
            if !in_number {
                out.push('N');
            }
            in_number = true;
        } else {
            in_number = false;
            out.push(char);
        }
    }
    out
}
